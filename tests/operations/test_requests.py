"""Requests that fail leave everything as it was; what rebuild, verify and receipts say."""

from __future__ import annotations

import datetime
import hashlib
import json

import pytest
import torch
import transformers
from datasets import Dataset
from safetensors.torch import load_file, save_file

from hf_clamu import (
    ClamuModel,
    ClusterNotFoundError,
    DigestMismatchError,
    EnvironmentMismatchError,
    TaskAlreadyMergedError,
    TaskDataError,
    TaskDataset,
    TaskNotFoundError,
)
from hf_clamu.exact import canonical_json, digest_tensors
from hf_clamu.operations.lifecycle.receipts import commitment, lineage, read_receipts, receipt_path, write_receipt

COLUMNS = {"task_column": "user", "cluster_column": "group", "text_column": "text", "label_column": "label"}


def _tasks(rows, **changes):
    settings = {**COLUMNS, "label_names": ("bad", "good", "mixed"), "validation_fraction": 0.3, **changes}
    return TaskDataset.from_dataset(Dataset.from_dict(rows), **settings)


def _changed(tiny, user):
    rows = tiny.rows("text")
    place = rows["user"].index(user)
    rows["text"][place] += "!"
    return _tasks(rows)


class _Unchanged:
    """Asserts that a model in memory and what it would save are the same before and after a block."""

    def __init__(self, tiny, model, place):
        self.tiny, self.model, self.place = tiny, model, place

    def _picture(self, name):
        self.model.save_pretrained(self.place / name, keep_origin=True)
        weights = {key: value.clone() for key, value in self.model.state_dict().items()}
        return self.tiny.digests(self.place / name), weights, self.model.cluster, self.model.receipts

    def __enter__(self):
        self.before = self._picture("before")

    def __exit__(self, kind, *_):
        if kind is None:
            after = self._picture("after")
            assert after[0] == self.before[0]
            assert after[2:] == self.before[2:]
            assert all(torch.equal(after[1][name], weight) for name, weight in self.before[1].items())


@pytest.fixture
def unchanged(tiny, model, tmp_path):
    model.set_cluster(1)
    return _Unchanged(tiny, model, tmp_path)


# -- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("user", "request_for"), [("user_1", "user_1"), ("user_4", "user_1")])
def test_changed_data(tiny, model, unchanged, user, request_for):
    # A changed example of the forgotten task, and one of a retained task that the masks are derived from.
    with unchanged, pytest.raises(DigestMismatchError, match=rf"data of task '{user}' .*Nothing was changed"):
        model.unmerge_task(request_for, data=_changed(tiny, user))


def test_unknown_task(tiny, model, unchanged):
    with unchanged, pytest.raises(TaskNotFoundError, match=r"'user_11'.*5 are merged\. It was never merged"):
        model.unmerge_task(["user_1", "user_11"], data=tiny.tasks("text"))


def test_no_data(tiny, model, unchanged):
    with unchanged, pytest.raises(TaskDataError, match="names no source"):
        model.unmerge_task("user_1")


def test_missing_tasks(tiny, model, unchanged):
    for absent in ("user_1", "user_3"):
        with unchanged, pytest.raises(TaskDataError, match=f"no rows of the merged task '{absent}'"):
            model.unmerge_task("user_1", data=tiny.tasks("text").without(absent))


@pytest.mark.parametrize(
    "changes", [{"validation_fraction": 0.5}, {"label_names": ("good", "bad", "mixed")}, {"split_seed": 1}], ids=str
)
def test_data_cut_in_another_way(tiny, model, unchanged, changes):
    name = next(iter(changes))
    with unchanged, pytest.raises(TaskDataError, match=rf"with other settings.*{name}"):
        model.unmerge_task("user_1", data=_tasks(tiny.rows("text"), **changes))


def test_unknown_way_out(tiny, model, unchanged):
    message = "on_mismatch must be 'error', 'rebuild' or 'localize', got 'ignore'"
    with unchanged, pytest.raises(ValueError, match=message):
        model.unmerge_task("user_1", data=tiny.tasks("text"), on_mismatch="ignore")


def test_adding_what_is_merged(tiny, model, unchanged):
    tasks = tiny.tasks("text")
    with unchanged, pytest.raises(TaskAlreadyMergedError, match="'user_2' is merged already"):
        model.add_task(tasks.select(["user_2"]), data=tasks)


def _elsewhere(tiny, folder):
    """Say in a saved ledger that it was made under another release and with another number of threads."""
    environment = json.loads((folder / "ledger.json").read_bytes())["environment"]
    environment["models"] = "transformers 1.0.0"
    environment["num_threads"] = 64
    tiny.reseal(folder, environment=environment)
    return ClamuModel.from_pretrained(folder)


def test_another_environment(tiny, folder, tmp_path):
    model = _elsewhere(tiny, folder)
    with _Unchanged(tiny, model, tmp_path):
        with pytest.raises(EnvironmentMismatchError, match=r"models: 'transformers 1.0.0' then, 'transformers 5"):
            model.unmerge_task("user_1", data=tiny.tasks("text"))
        with pytest.raises(EnvironmentMismatchError):
            model.add_task(tiny.tasks("text").select([]), data=tiny.tasks("text"))
        with pytest.raises(EnvironmentMismatchError):
            model.verify(data=tiny.tasks("text"))


def test_another_vector_digest(tiny, folder, tmp_path):
    tasks = json.loads((folder / "ledger.json").read_bytes())["tasks"]
    tasks["user_1"]["vector_digest"] = "0" * 64
    tiny.reseal(folder, tasks=tasks)
    model = ClamuModel.from_pretrained(folder)
    with _Unchanged(tiny, model, tmp_path), pytest.raises(DigestMismatchError, match="Retraining task 'user_1'"):
        model.unmerge_task("user_1", data=tiny.tasks("text"))


# -- rebuild ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["environment", "data of the forgotten task", "vector"])
def test_rebuild_is_a_fresh_build_of_the_retained(tiny, folder, tmp_path, reason):
    data = tiny.tasks("text")
    if reason == "environment":
        model = _elsewhere(tiny, folder)
    elif reason == "vector":
        tasks = json.loads((folder / "ledger.json").read_bytes())["tasks"]
        tasks["user_1"]["vector_digest"] = "0" * 64
        tiny.reseal(folder, tasks=tasks)
        model = ClamuModel.from_pretrained(folder)
    else:
        model, data = ClamuModel.from_pretrained(folder), _changed(tiny, "user_1")
    model.unmerge_task("user_1", data=data, on_mismatch="rebuild")
    assert model.receipts[-1]["how"] == "rebuilt"
    model.save_pretrained(tmp_path / "rebuilt")
    tiny.train("text", tiny.tasks("text").without("user_1")).save_pretrained(tmp_path / "fresh")
    assert tiny.digests(tmp_path / "rebuilt") == tiny.digests(tmp_path / "fresh")


def test_without_a_mismatch_nothing_is_rebuilt(tiny, model):
    model.unmerge_task("user_1", data=tiny.tasks("text"), on_mismatch="rebuild")
    assert model.receipts[-1]["how"] == "subtracted"


# -- nothing is left -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("localization", ["clamu", "global"])
def test_a_model_that_forgot_all_is_its_base(tiny, tmp_path, localization):
    model = tiny.train("text", localization=localization)
    model.save_pretrained(tmp_path / "m")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m/base_model")
    inputs = {"input_ids": torch.tensor([[72, 105, 33]])}
    assert not torch.equal(model(**inputs).logits, base(**inputs).logits)
    model.unmerge_task(list(model.tasks))
    model.save_pretrained(tmp_path / "m")
    for empty in (model, ClamuModel.from_pretrained(tmp_path / "m")):
        assert empty.tasks == empty.clusters == ()
        for name, weight in base.state_dict().items():
            assert torch.equal(empty.state_dict()[name].view(torch.int32), weight.view(torch.int32))
        assert torch.equal(empty(**inputs).logits, base(**inputs).logits)
        with pytest.raises(ClusterNotFoundError):
            empty.set_cluster(0)
        assert empty.verify(data=tiny.tasks("text"))


# -- receipts --------------------------------------------------------------------------------------------------------


def test_receipt(tiny, model, tmp_path):
    before = digest_tensors(model.state_dict())
    model.unmerge_task(["user_3", "user_1"], data=tiny.tasks("text"), receipt_dir=tmp_path / "receipts")
    assert digest_tensors(model.state_dict()) != before
    (written,) = (tmp_path / "receipts").iterdir()
    data = written.read_bytes()
    receipt = json.loads(data)
    assert data == canonical_json(receipt)
    assert model.receipts == (receipt,)
    assert receipt["request"] == "unmerge"
    assert receipt["how"] == "subtracted"
    assert receipt["num_tasks"] == {"before": 5, "after": 3}
    assert receipt["digests"]["before"] != receipt["digests"]["after"]
    assert datetime.datetime.fromisoformat(receipt["time"]).tzinfo is not None
    private = receipt.pop("private")
    assert b"user_" not in canonical_json(receipt)
    salts = private["salts"]
    assert sorted(salts) == ["user_1", "user_3"]
    by_hand = [hashlib.sha256(bytes.fromhex(salt) + task_id.encode()).hexdigest() for task_id, salt in salts.items()]
    assert sorted(by_hand) == receipt["tasks"]
    assert [commitment(salt, task_id) for task_id, salt in salts.items()] == by_hand
    assert commitment(salts["user_1"], "user_3") not in receipt["tasks"]
    assert commitment("00" * 16, "user_1") not in receipt["tasks"]


def test_receipts_stay_out_of_the_saved_model(tiny, model, tmp_path):
    model.unmerge_task("user_1", data=tiny.tasks("text"))
    model.save_pretrained(tmp_path / "m")
    everything = b"".join(path.read_bytes() for path in (tmp_path / "m").rglob("*") if path.is_file())
    (receipt,) = model.receipts
    for secret in (receipt["tasks"][0], receipt["private"]["salts"]["user_1"], receipt["time"], "user_1"):
        assert secret.encode() not in everything


def test_each_request_has_a_receipt_with_its_own_salts(tiny, model, tmp_path):
    tasks = tiny.tasks("text")
    model.unmerge_task("user_1", data=tasks, receipt_dir=tmp_path)
    model.add_task(tasks.select(["user_1"]), receipt_dir=tmp_path)
    model.unmerge_task("user_1", data=tasks, receipt_dir=tmp_path)
    first, second, third = model.receipts
    assert [receipt["request"] for receipt in model.receipts] == ["unmerge", "add", "unmerge"]
    assert first["digests"]["before"] == second["digests"]["after"] == third["digests"]["before"]
    assert first["digests"]["after"] == second["digests"]["before"] == third["digests"]["after"]
    assert len({receipt["private"]["salts"]["user_1"] for receipt in model.receipts}) == 3
    assert len({receipt["tasks"][0] for receipt in model.receipts}) == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_a_receipt_that_cannot_be_written_leaves_the_model(tiny, model, unchanged, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with unchanged, pytest.raises(FileExistsError):
        model.unmerge_task("user_1", data=tiny.tasks("text"), receipt_dir=tmp_path / "file")


def test_a_failed_write_leaves_no_part_of_a_receipt(tmp_path, monkeypatch):
    def fails(self, target):
        raise OSError("full")

    monkeypatch.setattr("pathlib.Path.replace", fails)
    with pytest.raises(OSError, match="full"):
        write_receipt(tmp_path, {"time": "2030-01-01T00:00:00+00:00", "request": "unmerge"})
    assert list(tmp_path.iterdir()) == []


def test_requests_together_have_receipts_of_their_own(tiny, model, tmp_path):
    tasks = tiny.tasks("text")
    model.unmerge_requests({"req-1": "user_1", "req-2": ["user_3", "user_1"]}, data=tasks, receipt_dir=tmp_path)
    first, second = model.receipts
    assert [receipt["id"] for receipt in (first, second)] == ["req-1", "req-2"]
    assert [sorted(receipt["private"]["salts"]) for receipt in (first, second)] == [["user_1"], ["user_1", "user_3"]]
    assert first["private"]["salts"]["user_1"] != second["private"]["salts"]["user_1"]
    assert first["digests"] == second["digests"]
    assert first["num_requests"] == second["num_requests"] == 2
    assert first["num_tasks"] == {"before": 5, "after": 3}
    assert read_receipts(tmp_path) == {receipt_path(tmp_path, receipt): receipt for receipt in model.receipts}


def test_requests_together_are_refused_together(tiny, model, unchanged):
    with unchanged, pytest.raises(TaskNotFoundError, match="'user_11'"):
        model.unmerge_requests({"req-1": "user_1", "req-2": "user_11"}, data=tiny.tasks("text"))


def test_with_a_journal_receipts_wait_for_the_save(tiny, model, tmp_path):
    tasks = tiny.tasks("text")
    for user in ("user_1", "user_3"):
        model.unmerge_task(user, data=tasks, receipt_dir=tmp_path / "receipts", journal_dir=tmp_path / "journal")
    assert not (tmp_path / "receipts").exists()
    model.save_pretrained(tmp_path / "saved")
    assert list(read_receipts(tmp_path / "receipts").values()) == sorted(
        model.receipts, key=lambda receipt: receipt_path(tmp_path, receipt)
    )
    assert not (tmp_path / "journal").exists()
    model.save_pretrained(tmp_path / "saved")
    assert len(read_receipts(tmp_path / "receipts")) == 2


def test_the_lineage_of_a_state(tiny, model, tmp_path):
    def receipt(before, after, time="2030"):
        return {"request": "unmerge", "time": time, "digests": {"before": before, "after": after}}

    (tmp_path / "notes.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "other.json").write_text('{"request": "unmerge"}', encoding="utf-8")
    assert read_receipts(tmp_path) == {}
    names = {"ab": ("a", "b"), "bc": ("b", "c"), "xb": ("x", "b"), "cb": ("c", "b"), "cd": ("c", "d")}
    receipts = {name: receipt(*digests) for name, digests in names.items()}
    assert sorted(lineage(receipts, "c")) == ["ab", "bc", "cb", "xb"]  # with a round that comes back
    assert next(iter(lineage(receipts, "d"))) == "cd"
    assert lineage(receipts, "a") == lineage(receipts, "e") == {}


# -- update ----------------------------------------------------------------------------------------------------------


def test_an_update_without_a_change(tiny, model, unchanged):
    with unchanged:
        model.update_task(tiny.tasks("text").select(["user_1"]), data=tiny.tasks("text"))


def test_updating_what_is_not_merged(tiny, model, unchanged):
    rows = {key: [value] for key, value in {"user": "usr_1", "text": "a", "label": "bad", "group": "A"}.items()}
    with unchanged, pytest.raises(TaskNotFoundError, match="'usr_1'"):
        model.update_task(_tasks(rows), data=tiny.tasks("text"))


def test_updating_needs_the_old_rows(tiny, model, unchanged, tmp_path):
    new, old = _changed(tiny, "user_1").select(["user_1"]), tiny.tasks("text").without("user_1")
    with unchanged, pytest.raises(TaskDataError, match=r"no rows of the merged task 'user_1'.*on_mismatch='rebuild'"):
        model.update_task(new, data=old)
    with unchanged, pytest.raises(DigestMismatchError, match="data of task 'user_1'"):
        model.update_task(new, data=_changed(tiny, "user_1"))
    model.update_task(new, data=old, on_mismatch="rebuild")
    assert (model.receipts[-1]["request"], model.receipts[-1]["how"]) == ("update", "rebuilt")
    model.save_pretrained(tmp_path / "updated")
    tiny.train("text", _changed(tiny, "user_1")).save_pretrained(tmp_path / "built")
    assert tiny.digests(tmp_path / "updated") == tiny.digests(tmp_path / "built")


def test_rows_that_are_deleted_before_the_request(tiny, model, tmp_path):
    left = tiny.tasks("text").without("user_1")
    with pytest.raises(TaskDataError, match=r"deleted already.*rebuild"):
        model.unmerge_task("user_1", data=left)
    model.unmerge_task("user_1", data=left, on_mismatch="rebuild").save_pretrained(tmp_path / "rebuilt")
    tiny.train("text", left).save_pretrained(tmp_path / "fresh")
    assert tiny.digests(tmp_path / "rebuilt") == tiny.digests(tmp_path / "fresh")


# -- verify ----------------------------------------------------------------------------------------------------------


def test_verify_a_true_model(tiny, model, saved_text):
    report = model.verify(data=tiny.tasks("text"))
    assert report
    assert report.identical
    assert report.differences == ()
    assert report.files_compared == len(tiny.digests(saved_text))
    assert report.seconds > 0
    assert json.loads(canonical_json(report.to_dict()))["identical"] is True
    assert model.unmerge_task("user_1", data=tiny.tasks("text")).verify()


def test_verify_leaves_the_model(tiny, model, unchanged):
    with unchanged:
        assert model.verify(data=tiny.tasks("text"))


def test_verify_a_tampered_model(tiny, folder):
    # One step of one weight, with every digest made to fit: only a rebuild can tell.
    delta = load_file(folder / "delta.safetensors")
    delta["score.weight"][0, 0] += 1
    save_file(delta, folder / "delta.safetensors", metadata={"format": "pt"})
    for name in ("config.json", *(f"masks/cluster_{cluster:03d}/adapter_config.json" for cluster in range(3))):
        values = json.loads((folder / name).read_bytes())
        values["delta_digest"] = digest_tensors(delta)
        (folder / name).write_bytes(canonical_json(values))
    tiny.reseal(folder)
    report = ClamuModel.from_pretrained(folder).verify(data=tiny.tasks("text"))
    assert not report
    assert {"delta.safetensors", "config.json", "ledger.json"} <= set(report.differences)
    assert "masks/cluster_000/adapter_model.safetensors" not in report.differences


def test_verify_sees_one_bit_of_a_mask(tiny, folder):
    path = folder / "masks/cluster_001/adapter_model.safetensors"
    mask = load_file(path)
    mask["base_model.model.clamu_adapters.clamu_mask"][-1] ^= 1
    save_file(mask, path, metadata={"format": "pt"})
    tiny.reseal(folder)
    report = ClamuModel.from_pretrained(folder).verify(data=tiny.tasks("text"))
    assert report.differences == ("ledger.json", "masks/cluster_001/adapter_model.safetensors")


def test_verify_sees_other_files_and_an_edited_card(tiny, folder):
    (folder / "README.md").write_text("Mine.", encoding="utf-8")
    (folder / "more.txt").write_text("Mine.", encoding="utf-8")
    report = ClamuModel.from_pretrained(folder).verify(data=tiny.tasks("text"))
    assert report.differences == ("README.md", "more.txt")
