"""The promise for local models from elsewhere: `merge(S)` then `unmerge(U)` is `merge(S - U)`, byte for byte."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_clamu import (
    ClamuArguments,
    ClamuModel,
    ClamuTrainer,
    DigestMismatchError,
    EnvironmentMismatchError,
    RecipeError,
    TaskAlreadyMergedError,
    TaskDataError,
    TaskNotFoundError,
)
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.training import Environment

GONE = ["user_0", "user_3"]
# What goes without data.
SETTINGS = {
    "default": None,
    "emr-random": {"localization": "emr", "clustering": "random"},
    "emr-none": {"localization": "emr", "clustering": "none"},
    "tall-random": {"localization": "tall", "clustering": "random", "tall_lambda": 0.3},
    "global-none": {"localization": "global", "clustering": "none", "scaling": "sum"},
    "emr-one": {"localization": "emr", "clustering": "task_vectors", "num_clusters": 1},
    "frozen": {"localization": "emr", "clustering": "random", "freeze": ["transformer.wte.*"]},
}


def _arguments(name):
    return None if SETTINGS[name] is None else ClamuArguments(**{"num_clusters": 2, **SETTINGS[name]})


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    """Base and local models of the text tasks: folder by task id."""
    return tiny.local_models("text", tmp_path_factory.mktemp("local"))


@pytest.fixture(scope="module")
def base(folders):
    return folders["user_0"].parents[1] / "base"


@pytest.fixture(scope="module")
def merged(folders, base, tmp_path_factory):
    """Return a function that merges some of the tasks, saves, and gives the folder; each is made once."""
    made = {}

    def merge(name, without=(), tasks=None, **options):
        key = (name, tuple(without), tasks is not None)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("merged") / "model"
            chosen = {task_id: folder for task_id, folder in folders.items() if task_id not in without}
            ClamuModel.merge(base, chosen, _arguments(name), tasks=tasks, **options).save_pretrained(made[key])
        return made[key]

    return merge


@pytest.fixture
def check(tiny, merged, tmp_path):
    def compare(model, name, without, tasks=None):
        model.save_pretrained(tmp_path / "ours")
        expected = tiny.digests(merged(name, without, tasks))
        assert len(expected) >= 5
        assert tiny.digests(tmp_path / "ours") == expected
        shutil.rmtree(tmp_path / "ours")

    return compare


@pytest.mark.parametrize("name", SETTINGS)
def test_unmerged_is_merged_without(folders, merged, check, name):
    model = ClamuModel.from_pretrained(merged(name))
    model.unmerge_task(GONE, checkpoints=folders)
    check(model, name, GONE)
    assert model.receipts[-1]["how"] == "subtracted"


@pytest.mark.parametrize("name", ["default", "tall-random"])
def test_adding_back(folders, merged, check, name):
    model = ClamuModel.from_pretrained(merged(name, GONE))
    model.add_task(checkpoints=folders)
    check(model, name, [])


def test_requests_without_a_trip_through_files(folders, base, check):
    model = ClamuModel.merge(base, folders)
    for task_id in reversed(GONE):
        model.unmerge_task(task_id, checkpoints=folders)
    check(model, "default", GONE)
    model.unmerge_task(list(model.tasks), checkpoints=folders)
    assert model.tasks == ()
    check(model.add_task(checkpoints=folders), "default", [])


def test_the_order_of_folders_does_not_show(tiny, folders, base, merged, tmp_path):
    shuffled = list(folders.items())
    random.Random(3).shuffle(shuffled)
    assert [task_id for task_id, _ in shuffled] != list(folders)
    ClamuModel.merge(base, dict(shuffled)).save_pretrained(tmp_path / "ours")
    assert tiny.digests(tmp_path / "ours") == tiny.digests(merged("default"))


def test_neither_places_nor_shards_show(tiny, folders, base, merged, tmp_path):
    from transformers import AutoModelForSequenceClassification

    elsewhere = {}
    for task_id, folder in folders.items():
        elsewhere[task_id] = tmp_path / "a secret place" / f"of {task_id}"
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        model.save_pretrained(elsewhere[task_id], max_shard_size="8KB")
        assert len(list(elsewhere[task_id].glob("*.safetensors"))) > 1
    ClamuModel.merge(base, elsewhere).save_pretrained(tmp_path / "ours")
    assert tiny.digests(tmp_path / "ours") == tiny.digests(merged("default"))
    for path in (tmp_path / "ours").rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()
    model = ClamuModel.from_pretrained(merged("default"))
    model.unmerge_task(GONE, checkpoints=elsewhere)
    assert "secret" not in json.dumps(model.receipts)


def test_the_delta_is_that_of_a_trainer(tiny, merged, tmp_path):
    tiny.train("text", fraction_bits=20).save_pretrained(tmp_path / "built")
    ours, theirs = read_checkpoint(merged("default")).state, read_checkpoint(tmp_path / "built").state
    assert ours.delta.keys() == theirs.delta.keys()
    assert all(torch.equal(ours.delta[name], theirs.delta[name]) for name in theirs.delta)
    assert all(ours.delta[name].dtype == theirs.delta[name].dtype for name in theirs.delta)
    for task_id, record in theirs.records.items():
        assert ours.records[task_id].vector_digest == record.vector_digest
        assert ours.records[task_id].bounds == record.bounds
        assert (ours.records[task_id].from_checkpoint, record.from_checkpoint) == (True, False)


def test_the_card_says_where_the_local_models_came_from(tiny, merged, tmp_path):
    card = (merged("emr-random") / "README.md").read_text(encoding="utf-8")
    assert "| local models | finetuned elsewhere, and merged from their checkpoints |" in card
    assert "reads the checkpoint of a task again" in card
    assert "learning_rate" not in card
    tiny.train("text").save_pretrained(tmp_path / "trained")
    trained = (tmp_path / "trained" / "README.md").read_text(encoding="utf-8")
    assert "retrains a task alone" in trained
    assert "finetuned elsewhere" not in trained


# -- with data -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_data(tiny, base):
    """A merge under learned masks, features and held-out scores, as a trainer's."""

    def merge(folders):
        arguments = tiny.arguments()
        return ClamuModel.merge(base, folders, arguments, tasks=tiny.tasks("text"))

    return merge


def test_with_data_it_is_what_a_trainer_builds(tiny, folders, base, with_data, tmp_path):
    with_data(folders).save_pretrained(tmp_path / "merged")
    tiny.train("text", base=str(base), fraction_bits=20).save_pretrained(tmp_path / "trained")
    ours, theirs = tiny.digests(tmp_path / "merged"), tiny.digests(tmp_path / "trained")
    # Ledger and card say that the tasks came from checkpoints; everything else is the same.
    assert {name for name in ours if ours[name] != theirs.get(name)} == {"ledger.json", "README.md"}
    assert ours.keys() == theirs.keys()
    assert (tmp_path / "merged" / "features.safetensors").is_file()


def test_unmerging_with_data(tiny, folders, with_data, tmp_path):
    kept = {task_id: folder for task_id, folder in folders.items() if task_id not in GONE}
    with_data(kept).save_pretrained(tmp_path / "expected")
    with_data(folders).save_pretrained(tmp_path / "all")
    model = ClamuModel.from_pretrained(tmp_path / "all")
    # The rows of the forgotten may be gone, and no folder but theirs is read.
    left = tiny.tasks("text").without(GONE)
    model.unmerge_task(GONE, checkpoints={task_id: folders[task_id] for task_id in GONE}, data=left)
    model.save_pretrained(tmp_path / "ours")
    assert tiny.digests(tmp_path / "ours") == tiny.digests(tmp_path / "expected")
    model.add_task(tiny.tasks("text").select(GONE), checkpoints={one: folders[one] for one in GONE}, data=left)
    model.save_pretrained(tmp_path / "again")
    assert tiny.digests(tmp_path / "again") == tiny.digests(tmp_path / "all")


def test_a_finetuned_and_a_foreign_task_in_one_model(tiny, folders, base, tmp_path):
    tasks, foreign = tiny.tasks("text"), {"user_1": folders["user_1"]}
    model = ClamuTrainer(
        str(base), tasks.without("user_1"), tiny.arguments(localization="emr"), progress=lambda items, _: items
    ).train()
    model.save_pretrained(tmp_path / "before")
    model.add_task(tasks.select("user_1"), checkpoints=foreign)
    assert model.ledger["tasks"]["user_1"]["from_checkpoint"] is True
    assert "from_checkpoint" not in model.ledger["tasks"]["user_0"]
    with pytest.raises(TaskDataError, match="'user_1' came from checkpoints"):
        model.unmerge_task("user_2")
    assert model.verify(checkpoints=foreign)
    model.unmerge_task("user_1", checkpoints=foreign)
    model.save_pretrained(tmp_path / "after")
    assert tiny.digests(tmp_path / "after") == tiny.digests(tmp_path / "before")


def test_a_checkpoint_spares_the_retraining_of_a_finetuned_task(tiny, folders, tmp_path):
    model = tiny.train("text", localization="global", clustering="none", score_validation=False)
    model.save_pretrained(tmp_path / "all")
    loaded = ClamuModel.from_pretrained(tmp_path / "all")
    loaded.unmerge_task("user_2", checkpoints={"user_2": folders["user_2"]}, data=tiny.tasks("text").without("user_2"))
    model.unmerge_task("user_2")
    for name, one in (("ours", loaded), ("expected", model)):
        one.save_pretrained(tmp_path / name)
    assert tiny.digests(tmp_path / "ours") == tiny.digests(tmp_path / "expected")


# -- what a request needs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("global-none", [], "'user_0' and 1 more came from checkpoints.*to be subtracted.*--checkpoint user_0=FOLDER"),
        ("global-none", ["user_0"], "'user_3' came from checkpoints"),
        ("emr-random", GONE, "'user_1' and 2 more came from checkpoints.*to derive the emr masks again"),
        ("tall-random", GONE, "'user_1' and 2 more came.*tall masks"),
    ],
)
def test_missing_folders(tiny, folders, merged, name, given, message, tmp_path):
    model = ClamuModel.from_pretrained(merged(name))
    with pytest.raises(TaskDataError, match=message):
        model.unmerge_task(GONE, checkpoints={task_id: folders[task_id] for task_id in given})
    model.save_pretrained(tmp_path / "after")
    assert tiny.digests(tmp_path / "after") == tiny.digests(merged(name))


@pytest.mark.parametrize("name", ["global-none", "emr-one"])
def test_folders_of_the_retained_are_not_asked_for_in_vain(folders, merged, check, name):
    model = ClamuModel.from_pretrained(merged(name))
    check(model.unmerge_task(GONE, checkpoints={task_id: folders[task_id] for task_id in GONE}), name, GONE)


@pytest.mark.parametrize("name", ["emr-random", "global-none"])
def test_an_archive_stands_in_for_the_folders(folders, base, check, tmp_path, name):
    model = ClamuModel.merge(base, folders, _arguments(name), archive_dir=tmp_path / "archive")
    assert len(list((tmp_path / "archive").iterdir())) == len(folders)
    model.unmerge_task(GONE, archive=tmp_path / "archive")
    check(model, name, GONE)
    # They were destroyed with the request; what is still needed has to be given.
    assert len(list((tmp_path / "archive").iterdir())) == len(folders) - len(GONE)
    model.add_task(checkpoints=folders, archive=tmp_path / "archive")
    check(model, name, [])


def test_a_receipt_says_whether_vectors_came_from_the_archive(folders, base, tmp_path):
    first, second = sorted(folders)[:2]
    model = ClamuModel.merge(base, folders, _arguments("global-none"), archive_dir=tmp_path / "archive")
    model.unmerge_task(first, archive=tmp_path / "archive", checkpoints=folders)  # which are read first
    model.unmerge_task(second, archive=tmp_path / "archive")
    assert [receipt.get("vectors_from") for receipt in model.receipts] == [None, "archive"]


@pytest.fixture
def changed(folders, tmp_path):
    """Return a function that gives the folders with one weight of one task moved by a little."""
    from safetensors.torch import load_file, save_file

    def change(task_id):
        shutil.copytree(folders[task_id], tmp_path / "changed")
        path = tmp_path / "changed" / "model.safetensors"
        tensors = load_file(path)
        tensors["score.weight"][0, 0] += 1e-6
        save_file(tensors, path, metadata={"format": "pt"})
        return {**folders, task_id: tmp_path / "changed"}

    return change


@pytest.mark.parametrize("task_id", ["user_0", "user_4"])
def test_a_changed_folder(tiny, folders, merged, changed, check, tmp_path, task_id):
    model = ClamuModel.from_pretrained(merged("emr-random"))
    given = changed(task_id)
    with pytest.raises(DigestMismatchError, match=f"checkpoint that is given for task '{task_id}' is not what was"):
        model.unmerge_task("user_0", checkpoints=given)
    model.save_pretrained(tmp_path / "after")
    assert tiny.digests(tmp_path / "after") == tiny.digests(merged("emr-random"))
    if task_id == "user_0":  # the way out needs the retained ones alone
        model.unmerge_task("user_0", checkpoints=given, on_mismatch="rebuild")
        check(model, "emr-random", ["user_0"])
        assert model.receipts[-1]["how"] == "rebuilt"


def test_verify(folders, merged, changed):
    model = ClamuModel.from_pretrained(merged("emr-random"))
    assert model.verify(checkpoints=folders)
    report = model.verify(checkpoints=changed("user_2"))
    assert not report
    assert {"ledger.json", "delta.safetensors"} <= set(report.differences)
    with pytest.raises(TaskDataError, match="'user_1' and 1 more came from checkpoints"):
        model.verify(checkpoints={one: folders[one] for one in ("user_0", "user_3", "user_4")})


def test_wrong_names(tiny, folders, base, merged):
    model = ClamuModel.from_pretrained(merged("emr-random", GONE))
    with pytest.raises(TaskDataError, match="'user_1' and 2 more came from checkpoints"):
        model.unmerge_task("user_1", checkpoints={"usr_1": folders["user_1"]})
    with pytest.raises(TaskNotFoundError, match="user_0"):
        model.unmerge_task("user_0", checkpoints=folders)
    retained = {one: folders[one] for one in model.tasks}
    with pytest.raises(TaskDataError, match="nothing to add"):
        model.add_task(checkpoints=retained)
    with pytest.raises(TaskDataError, match="'user_0' comes without rows"):
        tiny.train("text", tiny.tasks("text").without("user_0"), localization="emr", clustering="random").add_task(
            checkpoints={"user_0": folders["user_0"]}
        )
    with_rows = ClamuModel.merge(base, retained, tiny.arguments(), tasks=tiny.tasks("text"))
    with pytest.raises(TaskAlreadyMergedError, match="user_1"):
        with_rows.add_task(tiny.tasks("text").select("user_1"), checkpoints=retained)
    with pytest.raises(TaskDataError, match="'user_0', which is neither merged nor"):
        with_rows.add_task(tiny.tasks("text").select("user_3"), checkpoints=folders)
    rows = tiny.rows("text")
    rows["text"] = [f"{text}!" for text in rows["text"]]
    from datasets import Dataset

    from hf_clamu import TaskDataset

    columns = {"task_column": "user", "text_column": "text", "label_column": "label", "cluster_column": "group"}
    other = TaskDataset.from_dataset(
        Dataset.from_dict(rows), **columns, label_names=("bad", "good", "mixed"), validation_fraction=0.3
    )
    with pytest.raises(TaskDataError, match="'user_1' came from a checkpoint, so other data"):
        with_rows.update_task(other.select("user_1"), checkpoints=retained)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "clusters"}, "localization='clamu' looks at the tasks' data"),
        ({"localization": "emr"}, "clustering='features' looks"),
        ({"localization": "emr", "clustering": "column"}, "clustering='column' looks"),
        ({"localization": "tall", "clustering": "none", "scaling": "auto"}, "scaling='auto' looks"),
    ],
)
def test_settings_that_need_data(folders, base, settings, message):
    with pytest.raises(RecipeError, match=message):
        ClamuModel.merge(base, folders, ClamuArguments(**settings))


def test_data_of_a_task_are_missing(tiny, folders, base):
    with pytest.raises(TaskDataError, match="no rows of task 'user_3', of which there is a checkpoint"):
        ClamuModel.merge(base, folders, tiny.arguments(), tasks=tiny.tasks("text").without("user_3"))
    with pytest.raises(TaskDataError, match="nothing to merge"):
        ClamuModel.merge(base, {})


def test_tall_follows_its_lambda(tiny, merged, base, folders, tmp_path):
    other = ClamuArguments(num_clusters=2, localization="tall", clustering="random", tall_lambda=0.9)
    ClamuModel.merge(base, folders, other).save_pretrained(tmp_path / "other")
    name = "masks/cluster_000/adapter_model.safetensors"
    assert tiny.digests(tmp_path / "other")[name] != tiny.digests(merged("tall-random"))[name]


# -- what the bits depend on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "depends"), [("default", True), ("emr-random", False), ("tall-random", False), ("global-none", False)]
)
def test_the_environment_counts_where_it_shows(folders, merged, check, monkeypatch, name, depends):
    model = ClamuModel.from_pretrained(merged(name))
    assert (model.ledger["environment"] is not None) == depends
    check(model, name, [])  # and still after a trip through files
    capture = Environment.capture

    def elsewhere(*args, **kwargs):
        from dataclasses import replace

        return replace(capture(*args, **kwargs), framework="torch of another machine")

    monkeypatch.setattr(Environment, "capture", elsewhere)
    if depends:
        with pytest.raises(EnvironmentMismatchError, match="another machine"):
            model.unmerge_task(GONE, checkpoints=folders)
    else:
        model.unmerge_task(GONE, checkpoints=folders)
        check(model, name, GONE)
        assert model.receipts[-1]["environment"] is None


def test_keyed_ids(tiny, folders, base, tmp_path):
    arguments = _arguments("emr-random")
    kept = {task_id: folder for task_id, folder in folders.items() if task_id not in GONE}
    for name, chosen in (("all", folders), ("kept", kept)):
        ClamuModel.merge(base, chosen, arguments, task_id_key="secret").save_pretrained(tmp_path / name)
    assert not any(b"user_" in path.read_bytes() for path in (tmp_path / "all").rglob("*") if path.is_file())
    model = ClamuModel.from_pretrained(tmp_path / "all", task_id_key="secret")
    model.unmerge_task(GONE, checkpoints=folders)
    model.save_pretrained(tmp_path / "ours")
    assert tiny.digests(tmp_path / "ours") == tiny.digests(tmp_path / "kept")


def test_an_interrupted_merge_goes_on_and_sees_other_folders(tiny, folders, base, merged, changed, tmp_path):
    order = iter(range(3))

    def stops(items, description):
        for item in items:
            if next(order, None) is None:
                raise KeyboardInterrupt
            yield item

    arguments = _arguments("emr-random")
    other = changed("user_0")
    with pytest.raises(KeyboardInterrupt):
        ClamuModel.merge(base, other, arguments, journal_dir=tmp_path / "journal", progress=stops)
    assert list((tmp_path / "journal").glob("*.part"))
    assert all(b"user_0/model" not in path.read_bytes() for path in (tmp_path / "journal").glob("*.part"))
    # What was finished was of another folder, so it is read again.
    model = ClamuModel.merge(base, folders, arguments, journal_dir=tmp_path / "journal")
    model.save_pretrained(tmp_path / "ours")
    assert tiny.digests(tmp_path / "ours") == tiny.digests(merged("emr-random"))


def test_a_mask_of_other_vectors_with_the_same_sum_is_not_taken(tiny, folders, base, merged, tmp_path):
    def stops(items, description):
        for number, item in enumerate(items):
            if description.startswith("localize") and number == 2:
                raise KeyboardInterrupt
            yield item

    arguments = _arguments("emr-none")
    swapped = {**folders, "user_0": folders["user_1"], "user_1": folders["user_0"]}
    with pytest.raises(KeyboardInterrupt):
        ClamuModel.merge(base, swapped, arguments, journal_dir=tmp_path / "journal", progress=stops)
    ClamuModel.merge(base, folders, arguments, journal_dir=tmp_path / "journal").save_pretrained(tmp_path / "ours")
    assert tiny.digests(tmp_path / "ours") == tiny.digests(merged("emr-none"))


_SCRIPT = """
import json, sys, torch
from hf_clamu import ClamuModel
source, target, folders = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
torch.set_num_threads(2)
model = ClamuModel.from_pretrained(source)
model.unmerge_task(json.loads(sys.argv[4]), checkpoints=folders)
model.save_pretrained(target)
"""


def test_in_another_process(tiny, folders, merged, tmp_path):
    environment = {**os.environ, "PYTHONHASHSEED": "7", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    words = [str(merged("default")), str(tmp_path / "ours"), json.dumps({k: str(v) for k, v in folders.items()})]
    command = [sys.executable, "-c", _SCRIPT, *words, json.dumps(GONE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert tiny.digests(tmp_path / "ours") == tiny.digests(merged("default", GONE))
