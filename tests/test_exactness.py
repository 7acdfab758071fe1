"""The promise: `build(S)` then `unmerge(U)` is `build(S - U)`, byte for byte, in every file of the saved model."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from hf_clamu import ClamuModel, TaskDataError

TESTS = Path(__file__).parent
LOCALIZATIONS = ("clamu", "sift", "tall", "emr", "global")
SCALINGS = (4.0, "auto")
# The kinds have five or four tasks; places in the sorted ids.
FORGOTTEN = {"one": [1], "several": [0, 3], "all but one": [0, 1, 3, 4], "all": [0, 1, 2, 3, 4]}


@pytest.fixture(scope="session")
def built(tiny, tmp_path_factory):
    """Return a function that builds from some of the tasks, saves, and gives the folder; each build is made once."""
    folders = {}

    def build(kind, without=(), **changes):
        key = json.dumps([kind, sorted(without), sorted(changes.items())])
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("built") / "model"
            retained = [task_id for task_id in tiny.tasks(kind) if task_id not in without]
            tiny.train(kind, tiny.tasks(kind).select(retained), **changes).save_pretrained(folders[key])
        return folders[key]

    return build


@pytest.fixture
def check(tiny, built, tmp_path):
    """Return a function that saves a model and compares it with a build without the forgotten tasks."""

    def compare(model, kind, forgotten, **changes):
        model.save_pretrained(tmp_path / "ours")
        expected = tiny.digests(built(kind, forgotten, **changes))
        assert len(expected) >= 6
        assert tiny.digests(tmp_path / "ours") == expected
        assert set(model.tasks) == set(tiny.tasks(kind)) - set(forgotten)

    return compare


def _forgotten(tiny, kind, which):
    ids = tiny.tasks(kind).task_ids
    return [ids[place] for place in FORGOTTEN[which] if place < len(ids)]


def _settings(localization, scaling):
    return {"localization": localization, "scaling": scaling}


def _matrix():
    for kind in ("text", "lm", "image"):
        for localization in LOCALIZATIONS:
            for scaling in SCALINGS:
                for which in FORGOTTEN:
                    # Quickly: every setting with some request, and every request with some setting.
                    quick = which == "several" and (kind == "text" or scaling == 4.0)
                    quick = quick or (localization == "clamu" and scaling == 4.0)
                    marks = () if quick else (pytest.mark.slow,)
                    yield pytest.param(kind, localization, scaling, which, marks=marks)


@pytest.mark.parametrize(("kind", "localization", "scaling", "which"), list(_matrix()))
def test_unmerged_is_built_without(tiny, built, check, kind, localization, scaling, which):
    changes = _settings(localization, scaling)
    forgotten = _forgotten(tiny, kind, which)
    model = ClamuModel.from_pretrained(built(kind, **changes))
    model.unmerge_task(forgotten, data=tiny.tasks(kind))
    check(model, kind, forgotten, **changes)


@pytest.mark.parametrize("kind", ["text", "lm", "image"])
def test_a_forgotten_task_shows_in_the_bytes(tiny, built, kind):
    # Without this, equal digests could mean that no task ever leaves a trace.
    first = _forgotten(tiny, kind, "one")
    before, after = tiny.digests(built(kind)), tiny.digests(built(kind, first))
    for name in ("config.json", "delta.safetensors", "features.safetensors", "ledger.json"):
        assert before[name] != after[name]


@pytest.mark.parametrize("kind", ["text", "lm", "image"])
def test_without_a_trip_through_files(tiny, built, check, kind):
    forgotten = _forgotten(tiny, kind, "several")
    check(tiny.train(kind).unmerge_task(forgotten), kind, forgotten)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("kind", ["text", pytest.param("image", marks=pytest.mark.slow)])
def test_requests_one_by_one(tiny, built, check, kind, order, tmp_path):
    forgotten = _forgotten(tiny, kind, "several")
    model = ClamuModel.from_pretrained(built(kind))
    for place in order:
        model.unmerge_task(forgotten[place], data=tiny.tasks(kind))
        model.save_pretrained(tmp_path / "between")
        model = ClamuModel.from_pretrained(tmp_path / "between")
    check(model, kind, forgotten)


def test_a_task_named_twice_is_forgotten_once(tiny, built, check):
    forgotten = _forgotten(tiny, "text", "one")
    model = ClamuModel.from_pretrained(built("text"))
    check(model.unmerge_task(forgotten * 2, data=tiny.tasks("text")), "text", forgotten)


@pytest.mark.parametrize("kind", ["text", "lm", "image"])
def test_order_of_rows_and_tasks(tiny, built, check, kind):
    forgotten = _forgotten(tiny, kind, "several")
    check(tiny.train(kind, tiny.tasks(kind, shuffled=1)), kind, [])
    model = ClamuModel.from_pretrained(built(kind)).unmerge_task(forgotten, data=tiny.tasks(kind, shuffled=2))
    check(model, kind, forgotten)


def test_serving_leaves_no_trace(tiny, built, check):
    forgotten = _forgotten(tiny, "text", "several")
    model = ClamuModel.from_pretrained(built("text"), cluster=1)
    model.set_cluster(task="user_4")
    model.processor(["a text that is cut", "short"], truncation=True, max_length=7, padding=True, return_tensors="pt")
    model.set_cluster(2)
    check(model, "text", [])
    model.unmerge_task(forgotten, data=tiny.tasks("text"))
    model.set_cluster(0)
    check(model, "text", forgotten)
    model.set_base()
    check(model, "text", forgotten)


@pytest.mark.parametrize("localization", LOCALIZATIONS)
def test_adding_back(tiny, built, check, localization):
    changes = _settings(localization, 4.0)
    tasks, forgotten = tiny.tasks("text"), _forgotten(tiny, "text", "several")
    model = ClamuModel.from_pretrained(built("text", **changes))
    model.unmerge_task(forgotten, data=tasks)
    model.add_task(tasks.select(forgotten), data=tasks.without(forgotten))
    check(model, "text", [], **changes)


@pytest.fixture(scope="session")
def revised(tiny):
    """Return a function that gives the tasks of a kind with other rows: some tasks lose one, some get others."""
    from datasets import Dataset

    from hf_clamu import TaskDataset

    def tasks_of(kind, users):
        rows = tiny.rows("text")
        listed = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        kept = [row for number, row in enumerate(listed) if row["user"] not in users or number % 7 > 1]
        kept += [{**row, "text": f"more {row['text']}"} for row in listed[::7] if row["user"] in users]
        columns = {"text_column": "text", "label_column": "label", "label_names": ("bad", "good", "mixed")}
        if kind == "lm":
            columns = {"prompt_column": "text", "completion_column": "label", "template": "{prompt} is "}
        columns |= {"task_column": "user", "cluster_column": "group", "validation_fraction": 0.3}
        return TaskDataset.from_dataset(Dataset.from_list(kept), **columns)

    return tasks_of


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("text", {}),
        ("lm", {"localization": "emr"}),
        ("text", {"localization": "tall", "scaling": "auto"}),
        ("text", {"localization": "global", "clustering": "task_vectors"}),
        ("text", {"clustering": "column"}),
        ("text", {"localization": "sift"}),
        ("lm", {"localization": "sift", "clustering": "none"}),
    ],
    ids=str,
)
def test_updated_is_built_with_the_new_rows(tiny, built, revised, kind, changes, tmp_path):
    users = ["user_1", "user_3"]
    new = revised(kind, users)
    model = ClamuModel.from_pretrained(built(kind, **changes))
    # Those that did not change are known by their digests.
    model.update_task(new, data=tiny.tasks(kind))
    assert list(model.receipts[0]["private"]["salts"]) == users
    assert (model.receipts[0]["request"], model.receipts[0]["how"]) == ("update", "updated")
    model.save_pretrained(tmp_path / "updated")
    tiny.train(kind, new, **changes).save_pretrained(tmp_path / "built")
    assert tiny.digests(tmp_path / "updated") == tiny.digests(tmp_path / "built")
    assert tiny.digests(tmp_path / "updated") != tiny.digests(built(kind, **changes))
    # And back, with the data at hand.
    model.update_task(tiny.tasks(kind).select(users))
    model.save_pretrained(tmp_path / "back")
    assert tiny.digests(tmp_path / "back") == tiny.digests(built(kind, **changes))


def test_updating_every_task(tiny, built, revised, tmp_path):
    new = revised("text", tiny.tasks("text").task_ids)
    model = ClamuModel.from_pretrained(built("text", localization="emr"))
    model.update_task(new, data=tiny.tasks("text")).save_pretrained(tmp_path / "updated")
    tiny.train("text", new, localization="emr").save_pretrained(tmp_path / "built")
    assert tiny.digests(tmp_path / "updated") == tiny.digests(tmp_path / "built")


def _clusterings_and_localizations():
    clusterings = ("features", "task_vectors", "random", "column", "none")
    for one, clustering in enumerate(clusterings):
        for other, localization in enumerate(LOCALIZATIONS):
            marks = () if one == other or clustering == "none" else (pytest.mark.slow,)
            yield pytest.param(clustering, localization, marks=marks)


@pytest.mark.parametrize(("clustering", "localization"), list(_clusterings_and_localizations()))
def test_forgetting_everything_is_a_build_of_nothing(tiny, built, check, tmp_path, clustering, localization):
    changes = {"clustering": clustering, "localization": localization}
    model = ClamuModel.from_pretrained(built("text", **changes))
    everything = tiny.tasks("text").task_ids
    model.unmerge_task(everything, data=tiny.tasks("text"))
    check(model, "text", everything, **changes)
    # Of no task there are no data that could be asked for.
    assert ClamuModel.from_pretrained(tmp_path / "ours").verify().identical


def test_verify_notices_what_one_task_leaves_to_the_next(tiny, monkeypatch):
    """A build in the same order would be fooled: `verify` takes the tasks in the opposite one."""
    carried = [0.0]
    whole = GPT2MLP.forward

    def leaking(self, hidden_states):
        answer = whole(self, hidden_states)
        if self.training:
            answer = answer * (1 + carried[0])
            carried[0] = float(hidden_states.detach()[0, 0, 0])
        return answer

    monkeypatch.setattr(GPT2MLP, "forward", leaking)
    settings = {"localization": "global", "clustering": "none", "score_validation": False}
    model = tiny.train("text", **settings)
    carried[0] = 0.0
    assert tiny.train("text", **settings).state_digest() == model.state_digest()
    carried[0] = 0.0
    assert not model.verify(data=tiny.tasks("text")).identical


def test_adding_needs_no_rows_of_others_where_nothing_is_learned_from_them(tiny, built, check):
    changes = {"localization": "global", "clustering": "none", "score_validation": False}
    model = ClamuModel.from_pretrained(built("text", ["user_1"], **changes))
    model.add_task(tiny.tasks("text").select(["user_1"]))
    check(model, "text", [], **changes)


def test_a_rebuild_needs_the_rows_of_all_retained_tasks(tiny, built):
    model = ClamuModel.from_pretrained(built("text"))
    before = model.state_digest()
    some = tiny.tasks("text").without(["user_1", "user_3"])
    with pytest.raises(TaskDataError):
        model.unmerge_task("user_1", data=some, on_mismatch="rebuild")
    assert model.state_digest() == before


def test_adding_to_an_empty_model(tiny, built, check):
    tasks = tiny.tasks("text")
    model = ClamuModel.from_pretrained(built("text")).unmerge_task(list(tasks), data=tasks)
    check(model.add_task(tasks.without("user_1")), "text", ["user_1"])


@pytest.mark.parametrize("clustering", ["task_vectors", "random", "column", "none"])
@pytest.mark.parametrize("localization", ["clamu", "sift", pytest.param("emr", marks=pytest.mark.slow)])
def test_every_clustering(tiny, built, check, clustering, localization):
    changes = {"clustering": clustering, "localization": localization, "num_clusters": 2}
    forgotten = _forgotten(tiny, "text", "several")
    model = ClamuModel.from_pretrained(built("text", **changes))
    check(model.unmerge_task(forgotten, data=tiny.tasks("text")), "text", forgotten, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"freeze": ["transformer.wte.*", "transformer.h.*"]},
        {"fraction_bits": 20, "seed": 7},
        {"weight_decay": 0.1, "warmup_steps": 1, "lr_scheduler_type": "cosine", "max_grad_norm": 0.0},
        {"bf16": True},
        {"scaling": "sum", "num_clusters": 1},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_other_settings(tiny, built, check, changes):
    forgotten = _forgotten(tiny, "text", "several")
    model = ClamuModel.from_pretrained(built("text", **changes))
    check(model.unmerge_task(forgotten, data=tiny.tasks("text")), "text", forgotten, **changes)


def _walk(tiny, built, seed, kind, changes, steps):
    """Forget and add tasks at random, sometimes by way of files; give the model and who is missing at the end."""
    draw = random.Random(seed)
    tasks = tiny.tasks(kind)
    merged = set(tasks)
    model = ClamuModel.from_pretrained(built(kind, **changes))
    for _ in range(steps):
        absent = sorted(set(tasks) - merged)
        if absent and (not merged or draw.random() < 0.5):
            new = draw.sample(absent, draw.randint(1, len(absent)))
            model.add_task(tasks.select(new), data=tasks.select(merged) if merged else None)
            merged |= set(new)
        else:
            gone = draw.sample(sorted(merged), draw.randint(1, len(merged)))
            model.unmerge_task(gone, data=tasks)
            merged -= set(gone)
        if model.clusters:
            model.set_cluster(draw.randrange(len(model.clusters)))
    return model, sorted(set(tasks) - merged)


@pytest.mark.parametrize("seed", range(4))
def test_random_requests(tiny, built, check, seed):
    model, absent = _walk(tiny, built, seed, "text", {}, steps=5)
    assert len(model.receipts) == 5
    check(model, "text", absent)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
@pytest.mark.parametrize("localization", LOCALIZATIONS)
@pytest.mark.parametrize("kind", ["text", "lm", "image"])
def test_long_random_requests(tiny, built, check, kind, localization, seed):
    changes = _settings(localization, SCALINGS[seed % 2])
    model, absent = _walk(tiny, built, seed, kind, changes, steps=8)
    check(model, kind, absent, **changes)


_SCRIPT = """
import json, sys
from pathlib import Path
import torch
from conftest import Tiny
from hf_clamu import ClamuModel

job, target, plan = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
torch.rand(int(sys.argv[4]))  # nobody's generator may matter
torch.set_num_threads(2)
for kind, (folder, forgotten, changes) in plan.items():
    if job == "unmerge":
        model = ClamuModel.from_pretrained(folder)
        model.unmerge_task(forgotten, data=Tiny.tasks(kind, shuffled=5))
    else:
        model = Tiny.train(kind, Tiny.tasks(kind).without(forgotten), **changes)
    model.save_pretrained(target / kind)
"""


@pytest.mark.parametrize(
    "localization", ["clamu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tall", "emr", "global"))]
)
def test_in_another_process(tiny, built, tmp_path, localization):
    changes = _settings(localization, "auto")
    plan = {}
    for kind in tiny.kinds:
        forgotten = _forgotten(tiny, kind, "several")
        plan[kind] = (str(built(kind, **changes)), forgotten, changes)
    processes = []
    for number, job in enumerate(("unmerge", "build")):
        environment = {**os.environ, "PYTHONHASHSEED": str(number + 11), "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        command = [sys.executable, "-c", _SCRIPT, job, str(tmp_path / job), json.dumps(plan), str(number + 1)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path))
    for process in processes:
        _, problems = process.communicate(timeout=300)
        assert process.returncode == 0, problems
    for kind, (_, forgotten, _) in plan.items():
        here = tiny.digests(built(kind, forgotten, **changes))
        assert tiny.digests(tmp_path / "unmerge" / kind) == here
        assert tiny.digests(tmp_path / "build" / kind) == here
