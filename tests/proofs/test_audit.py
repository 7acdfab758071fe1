"""Audits: what they show without data, and that no forged model or change passes."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_clamu import ClamuModel
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.exact import digest_tensors, narrowest_dtype
from hf_clamu.exact.linear_digest import MODULUS, linear_digest
from hf_clamu.proofs.audit import audit_change, audit_model
from hf_clamu.storage import Archive

LORA = {"peft_type": "LORA", "target_modules": ["c_attn"], "r": 2}


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """Five tasks, one of them forgotten, then two more; with linear digests and without; and receipts."""
    folder = tmp_path_factory.mktemp("audit")
    tasks = tiny.tasks("text")
    for name, kept in (("linear", True), ("plain", False)):
        model = tiny.train("text", linear_digest=kept)
        model.save_pretrained(folder / name / "five")
        model.unmerge_task("user_1", data=tasks, receipt_dir=folder / name / "receipts")
        model.save_pretrained(folder / name / "four")
        model.unmerge_task(["user_0", "user_3"], data=tasks).save_pretrained(folder / name / "two")
    return folder


def _read(folder):
    return read_checkpoint(folder, strict=True)


def _verdicts(report):
    return {check.name: check.verdict for check in report.checks}


def _failed(report):
    return [check.name for check in report.failures()]


def _receipt(place, kind="linear"):
    (path,) = (place / kind / "receipts").glob("*.json")
    return json.loads(path.read_bytes())


# -- what holds ------------------------------------------------------------------------------------------------------


def test_a_model_is_the_sum_of_its_tasks(place):
    for name in ("five", "four", "two"):
        report = audit_model(_read(place / "linear" / name))
        assert report.verdict == "proven"
        assert _verdicts(report)["sum"] == "passed"


def test_without_linear_digests_one_model_shows_nothing(place):
    report = audit_model(_read(place / "plain/five"))
    assert not report
    assert report.verdict == "not proven"
    assert _verdicts(report)["sum"] == "not shown"


@pytest.mark.parametrize("kind", ["linear", "plain"])
def test_what_left_is_the_vector_of_the_ledger(place, kind):
    report = audit_change(_read(place / kind / "five"), _read(place / kind / "four"), receipt=_receipt(place, kind))
    assert report.verdict == "proven"
    assert {name for name, verdict in _verdicts(report).items() if verdict == "passed"} >= {
        *("base model", "recipe", "retained tasks", "difference", "clusters", "kept of tasks", "receipt")
    }


@pytest.mark.parametrize("kind", ["linear", "plain"])
def test_what_joined_is_so_too(place, kind):
    assert audit_change(_read(place / kind / "four"), _read(place / kind / "five"))


def test_several_tasks_at_once(place, tiny, tmp_path):
    assert audit_change(_read(place / "linear/five"), _read(place / "linear/two"))
    before, after = _read(place / "plain/five"), _read(place / "plain/two")
    report = audit_change(before, after)
    assert report.verdict == "not proven"
    assert "3 tasks left or joined at once" in next(one.text for one in report.checks if one.name == "difference")
    archive = Archive(tmp_path / "archive")
    from hf_clamu import ClamuTrainer

    ClamuTrainer(
        tiny.config("text"),
        tiny.tasks("text"),
        tiny.arguments(linear_digest=False),
        processing_class=tiny.processor("text"),
        archive_dir=tmp_path / "archive",
    ).train()
    archive.open(may_create=False)
    assert audit_change(before, after, archive=archive)


def test_a_task_with_other_rows(tiny, tmp_path):
    from hf_clamu.tasks import TaskDataset

    tasks = tiny.tasks("text")
    model = tiny.train("text", linear_digest=True)
    model.save_pretrained(tmp_path / "before")
    content = tasks.content("user_2")
    new = TaskDataset(tasks.spec, {"user_1": content}, tasks.source)
    model.update_task(new, data=tasks).save_pretrained(tmp_path / "after")
    report = audit_change(_read(tmp_path / "before"), _read(tmp_path / "after"))
    assert report, _failed(report)
    assert "1 got other data" in next(one.text for one in report.checks if one.name == "retained tasks")


def test_nothing_is_left(tiny, tmp_path):
    model = tiny.train("text", linear_digest=True)
    model.save_pretrained(tmp_path / "before")
    model.unmerge_task(model.tasks, data=tiny.tasks("text")).save_pretrained(tmp_path / "after")
    assert not (tmp_path / "after/linear_digests.safetensors").exists()
    report = audit_model(_read(tmp_path / "after"))
    assert report, report.to_dict()
    assert audit_change(_read(tmp_path / "before"), _read(tmp_path / "after"))


def test_adapters_keep_linear_digests_by_themselves(tiny, tmp_path):
    from hf_clamu import ClamuTrainer

    def built(name, tasks):
        trainer = ClamuTrainer(
            tiny.config("text"),
            tasks,
            tiny.arguments(),
            processing_class=tiny.processor("text"),
            peft_config=LORA,
            peft_merging="parameters",
        )
        trainer.train().save_pretrained(tmp_path / name)
        return tmp_path / name

    tasks = tiny.tasks("text")
    five, four = built("five", tasks), built("four", tasks.without("user_1"))
    assert audit_model(_read(five))
    assert json.loads((five / "config.json").read_bytes())["arguments"]["linear_digest"] is True
    ClamuModel.from_pretrained(five).unmerge_task("user_1", data=tasks).save_pretrained(tmp_path / "forgot")
    assert tiny.digests(tmp_path / "forgot") == tiny.digests(four)


@pytest.mark.parametrize("localization", ["sift", "global", "emr"])
def test_masks_of_tasks_are_checked_where_they_are_kept(tiny, tmp_path, localization):
    model = tiny.train("text", linear_digest=True, localization=localization, clustering="features")
    model.save_pretrained(tmp_path / "model")
    report = audit_model(_read(tmp_path / "model"))
    assert report, _failed(report)
    assert _verdicts(report)["masks"] == ("not shown" if localization == "emr" else "passed")


# -- what was forged -------------------------------------------------------------------------------------------------


def _forge(tiny, folder, target, *, delta=None, entries=None, digests=None):
    """Change a saved model as somebody with intent would: every digest and every bound in it is true afterwards."""
    shutil.copytree(folder, target)
    ledger, config = (json.loads((target / name).read_bytes()) for name in ("ledger.json", "config.json"))
    tasks = ledger["tasks"]
    if entries is not None:
        entries(tasks)
    if delta is not None:
        steps = delta(load_file(target / "delta.safetensors"))
        for at, name in enumerate(ledger["parameters"]):
            first = tasks[min(tasks)]["bounds"]
            room = sum(entry["bounds"][at] for entry in tasks.values())
            first[at] += max(0, int(steps[name].to(torch.int64).abs().max()) - room)
            room = sum(entry["bounds"][at] for entry in tasks.values())
            steps[name] = steps[name].to(narrowest_dtype(room))
        save_file(steps, target / "delta.safetensors")
        config["delta_digest"] = digest_tensors(load_file(target / "delta.safetensors"))
    if digests is not None:
        rows = load_file(target / "linear_digests.safetensors")["digests"]
        save_file({"digests": digests(rows)}, target / "linear_digests.safetensors")
    (target / "config.json").write_text(json.dumps(config))
    for path in target.glob("masks/*/adapter_config.json"):
        path.write_text(json.dumps({**json.loads(path.read_bytes()), "delta_digest": config["delta_digest"]}))
    tensors = {**ledger["tensors"], "delta": {"digest": config["delta_digest"], "files": "0" * 64}}
    tiny.reseal(target, tasks=tasks, tensors=tensors)
    return target


def _vector(place, kind, task_id):
    """The vector of a task, as the difference of two states."""
    assert task_id == "user_1"
    ours, theirs = (load_file(place / kind / name / "delta.safetensors") for name in ("five", "four"))
    return {name: ours[name].to(torch.int64) - theirs[name].to(torch.int64) for name in ours}


def _plus(vector, times=1):
    return lambda steps: {name: n.to(torch.int64) + times * vector[name] for name, n in steps.items()}


def test_a_smuggled_task(tiny, place, tmp_path):
    """What is merged besides the ledger's tasks: the sum shows it, without any other state to compare with."""
    vector = _vector(place, "linear", "user_1")
    forged = _forge(tiny, place / "linear/four", tmp_path / "forged", delta=_plus(vector))
    report = audit_model(_read(forged))
    assert _failed(report) == ["sum"]
    assert report.verdict == "refuted"
    assert "difference" in _failed(audit_change(_read(place / "linear/five"), _read(forged)))


def test_a_task_that_is_subtracted_from_the_ledger_alone(tiny, place, tmp_path):
    for kind in ("plain", "linear"):
        five = place / kind / "five"
        forged = _forge(
            tiny,
            place / kind / "four",
            tmp_path / kind,
            delta=lambda _, five=five: load_file(five / "delta.safetensors"),
        )
        assert "difference" in _failed(audit_change(_read(five), _read(forged)))
    assert "sum" in _failed(audit_model(_read(forged)))


def test_a_task_that_is_subtracted_twice(tiny, place, tmp_path):
    vector = _vector(place, "linear", "user_1")
    forged = _forge(tiny, place / "linear/four", tmp_path / "forged", delta=_plus(vector, -1))
    assert "difference" in _failed(audit_change(_read(place / "linear/five"), _read(forged)))
    assert "sum" in _failed(audit_model(_read(forged)))


def test_bounds_so_wide_that_digests_can_be_forged_prove_nothing(tiny, place, tmp_path):
    """The modulus, added to one entry, changes no linear digest: claimed bounds make room for it."""

    def wide(steps):
        name = min(steps)
        steps = {**steps, name: steps[name].to(torch.int64)}
        steps[name].reshape(-1)[0] += MODULUS
        return steps

    forged = _read(_forge(tiny, place / "linear/two", tmp_path / "forged", delta=wide))
    report = audit_model(forged)
    assert report.verdict == "not proven"
    assert "equal linear digests show nothing" in report.checks[1].text
    assert not audit_change(_read(place / "linear/five"), forged)


def test_an_embedded_base_model_that_was_exchanged(tiny, place, tmp_path):
    """The configuration still says the old digest: that alone shows nothing."""
    forged = tmp_path / "forged"
    shutil.copytree(place / "linear/four", forged)
    path = forged / "base_model/model.safetensors"
    weights = load_file(path)
    weights[min(weights)] += 0.5
    save_file(weights, path, metadata={"format": "pt"})
    tiny.reseal(forged)
    report = audit_change(_read(place / "linear/five"), _read(forged))
    assert report.verdict == "not proven"
    assert _verdicts(report)["base model"] == "not shown"


@pytest.mark.parametrize("kind", ["linear", "plain"])
def test_one_step_of_one_weight(tiny, place, tmp_path, kind):
    """Anywhere: a weight, a sign."""
    draw = random.Random(kind)
    before = _read(place / kind / "five")
    for number in range(10):

        def change(steps, number=number):
            name = draw.choice(sorted(steps))
            flat = steps[name].reshape(-1).clone()
            at = draw.randrange(flat.numel())
            flat[at] += -1 if flat[at] > 0 else 1
            return {**steps, name: flat.reshape(steps[name].shape)}

        forged = _forge(tiny, place / kind / "four", tmp_path / f"{number}", delta=change)
        checkpoint = _read(forged)
        assert "difference" in _failed(audit_change(before, checkpoint))
        if kind == "linear":
            assert _failed(audit_model(checkpoint)) == ["sum"]


def test_an_entry_of_a_retained_task_that_was_exchanged(tiny, place, tmp_path):
    def exchange(tasks):
        tasks["user_2"] = {**tasks["user_2"], "vector_digest": "0" * 64}

    forged = _forge(tiny, place / "plain/four", tmp_path / "forged", entries=exchange)
    assert "retained tasks" in _failed(audit_change(_read(place / "plain/five"), _read(forged)))


def test_linear_digests_of_others_that_were_exchanged(tiny, place, tmp_path):
    """Their sum is the same; the state before knows them."""
    forged = _forge(
        tiny, place / "linear/four", tmp_path / "forged", digests=lambda rows: rows[[1, 0, 2, 3]].contiguous()
    )
    assert audit_model(_read(forged))
    assert _failed(audit_change(_read(place / "linear/five"), _read(forged))) == ["kept of tasks"]


def test_clusters_that_are_not_derived(tiny, place, tmp_path):
    def move(tasks):
        first, *rest = sorted(tasks)
        other = next(one for one in rest if tasks[one]["cluster"] != tasks[first]["cluster"])
        tasks[first]["cluster"], tasks[other]["cluster"] = tasks[other]["cluster"], tasks[first]["cluster"]

    forged = _forge(tiny, place / "linear/four", tmp_path / "forged", entries=move)
    assert _failed(audit_model(_read(forged))) == ["clusters"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda receipt: receipt["digests"].update(after="0" * 64), "the state after"),
        (lambda receipt: receipt["digests"].update(before="0" * 64), "the state before"),
        (lambda receipt: receipt["num_tasks"].update(before=6, after=5), "the number of tasks"),
        (lambda receipt: receipt.update(recipe_digest="0" * 64), "the recipe"),
        (lambda receipt: receipt.update(how="Subtracted!"), "was edited"),
        (lambda receipt: receipt.pop("digests"), "lacks a field"),
    ],
)
def test_receipts_of_other_changes(place, change, said):
    receipt = _receipt(place)
    change(receipt)
    report = audit_change(_read(place / "linear/five"), _read(place / "linear/four"), receipt=receipt)
    assert _failed(report) == ["receipt"]
    assert said in report.checks[-1].text


def test_a_receipt_of_another_task(place):
    from hf_clamu.operations.lifecycle.receipts import commitment

    receipt = _receipt(place)
    salt = "0" * 32
    receipt["tasks"], receipt["private"]["salts"] = [commitment(salt, "user_2")], {"user_2": salt}
    report = audit_change(_read(place / "linear/five"), _read(place / "linear/four"), receipt=receipt)
    assert "the tasks that it names" in report.checks[-1].text
    del receipt["private"]
    assert audit_change(_read(place / "linear/five"), _read(place / "linear/four"), receipt=receipt)


def test_a_receipt_that_names_fewer_tasks_than_changed(tiny, place, tmp_path):
    """Without its salts, too: one left as it says, and another one got other data besides."""
    receipt = _receipt(place)
    del receipt["private"]

    def update(tasks):
        tasks["user_2"] = {**tasks["user_2"], "data_digest": "0" * 64}

    forged = _read(_forge(tiny, place / "linear/four", tmp_path / "forged", entries=update))
    receipt["digests"]["after"] = forged.state_digest
    report = audit_change(_read(place / "linear/five"), forged, receipt=receipt)
    assert "the number of tasks that it names (1, and 2 changed)" in report.checks[-1].text


def test_models_of_other_recipes_and_bases(tiny, place, tmp_path):
    tiny.train("text", linear_digest=True, seed=1).save_pretrained(tmp_path / "other")
    report = audit_change(_read(place / "linear/five"), _read(tmp_path / "other"))
    assert {"recipe", "difference"} <= set(_failed(report))


def test_linear_digests_that_no_reader_takes(tiny, place, tmp_path):
    from hf_clamu import CheckpointFormatError

    for number, (rows, said) in enumerate(
        (
            (lambda rows: rows[:3], "must hold one tensor"),
            (lambda rows: rows.to(torch.int64), "must hold one tensor"),
            (lambda rows: rows * 0 - 1, "no residues"),
            (lambda rows: rows * 0 + 2147483647, "no residues"),
        )
    ):
        forged = _forge(tiny, place / "linear/four", tmp_path / f"{number}", digests=rows)
        with pytest.raises(CheckpointFormatError, match=said):
            _read(forged)


def test_the_digests_are_those_of_the_vectors(place):
    ours, theirs = (_read(place / "linear" / name) for name in ("five", "four"))
    row = list(ours.state.records).index("user_1")
    found = linear_digest(_vector(place, "linear", "user_1"))
    assert torch.equal(ours.state.linear_digests[row], found)
    assert len(theirs.state.linear_digests) == 4
    assert Path(place / "linear/four/linear_digests.safetensors").stat().st_size < 4 * 8192 + 200
