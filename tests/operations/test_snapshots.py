"""Requests with a snapshot need no other data, end in the bytes of a build, and destroy forgotten rows."""

from __future__ import annotations

import json
import secrets
import shutil

import pytest
from datasets import Dataset

from hf_clamu import ClamuModel, ClamuTrainer, RecipeError, RunInProgressError, SnapshotError, TaskDataset
from hf_clamu.evaluation import evaluate_model
from hf_clamu.storage import KEY_VARIABLE, Journal, Snapshot, snapshot_beside


def _train(tiny, folder, tasks=None, kind="text", snapshot=True, **options):
    changes = options.pop("changes", {})
    tiny.train(kind, tasks, options={"snapshot": snapshot, **options}, **changes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def kept(tiny, tmp_path_factory):
    """A model with its snapshot beside it; not to be changed."""
    return _train(tiny, tmp_path_factory.mktemp("kept") / "model")


@pytest.fixture(scope="session")
def without(tiny, tmp_path_factory):
    """A build without user_1, and without a snapshot; not to be changed."""
    folder = tmp_path_factory.mktemp("without") / "model"
    return _train(tiny, folder, tiny.tasks("text").without("user_1"), snapshot=False)


@pytest.fixture
def place(kept, tmp_path):
    """A copy of the model and of its snapshot: they may be moved together."""
    shutil.copytree(kept, tmp_path / "model")
    shutil.copytree(snapshot_beside(kept), tmp_path / "model.snapshot")
    return tmp_path / "model"


def _name(folder, task_id):
    entry = json.loads((folder / "ledger.json").read_bytes())["tasks"][task_id]
    return Snapshot.name(task_id, entry["data_digest"], entry.get("cluster_key"))


def _file(folder, task_id):
    return snapshot_beside(folder) / f"{_name(folder, task_id)}.safetensors"


def _files(folder):
    return sorted(path.name for path in snapshot_beside(folder).iterdir())


def _expected(folder):
    tasks = json.loads((folder / "ledger.json").read_bytes())["tasks"]
    return sorted(f"{_name(folder, task_id)}.safetensors" for task_id in tasks)


def test_a_model_does_not_know_of_its_snapshot(tiny, kept, saved_text):
    assert tiny.digests(kept) == tiny.digests(saved_text)
    assert _files(kept) == _expected(kept)
    assert len(_files(kept)) == 5
    folder = snapshot_beside(kept)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_forgetting_needs_no_other_data(tiny, place, without):
    gone = _file(place, "user_1")
    witness = place.parent / "witness"
    witness.hardlink_to(gone)
    model = ClamuModel.from_pretrained(place)
    model.unmerge_task("user_1", receipt_dir=place.parent / "receipts")
    # Nothing is destroyed, and no receipt says so, before the model is saved.
    assert gone.is_file()
    assert not (place.parent / "receipts").exists()
    model.save_pretrained(place)
    assert tiny.digests(place) == tiny.digests(without)
    assert _files(place) == _expected(place)
    assert set(witness.read_bytes()) == {0}
    (path,) = (place.parent / "receipts").iterdir()
    assert json.loads(path.read_bytes())["snapshot"] == "destroyed"
    assert ClamuModel.from_pretrained(place).verify().identical


def test_others_may_edit_and_delete_their_rows(tiny, tmp_path, without):
    rows = tiny.rows("text")
    columns = {"task_column": "user", "text_column": "text", "label_column": "label", "cluster_column": "group"}
    columns |= {"label_names": ["bad", "good", "mixed"], "validation_fraction": 0.3}
    file = tmp_path / "rows.csv"
    Dataset.from_dict(rows).to_csv(file)
    tasks = TaskDataset.from_dataset(str(file), **columns, source={"files": "rows.csv", **columns})
    folder = _train(tiny, tmp_path / "model", tasks)
    built = _train(tiny, tmp_path / "built", tasks.without("user_1"), snapshot=False)
    file.write_text(file.read_text().replace("1 of 2", "another text"))
    model = ClamuModel.from_pretrained(folder)
    model.unmerge_task("user_1").save_pretrained(folder)
    assert tiny.digests(folder) == tiny.digests(built)
    file.unlink()
    model = ClamuModel.from_pretrained(folder)
    assert model.verify().identical
    model.unmerge_task("user_2").save_pretrained(folder)
    assert _files(folder) == _expected(folder)


def test_requests_in_the_process_that_trained(tiny, tmp_path, without):
    folder = tmp_path / "model"
    model = tiny.train("text", options={"snapshot": True})
    model.unmerge_task("user_1", receipt_dir=tmp_path / "receipts")
    # Nothing of it was ever kept, and so the receipt says nothing.
    assert "snapshot" not in model.receipts[0]
    model.save_pretrained(folder)
    assert tiny.digests(folder) == tiny.digests(without)
    assert _files(folder) == _expected(folder)
    model.unmerge_task("user_2").save_pretrained(folder)
    assert model.receipts[1]["snapshot"] == "destroyed"
    assert _files(folder) == _expected(folder)


def test_add_and_update_keep_it(tiny, place, kept):
    tasks = tiny.tasks("text")
    model = ClamuModel.from_pretrained(place)
    model.unmerge_task("user_1").save_pretrained(place)
    assert len(_files(place)) == 4
    model.add_task(tasks.select("user_1"))
    model.save_pretrained(place)
    assert tiny.digests(place) == tiny.digests(kept)
    assert _files(place) == _files(kept)
    rows = [dict(zip(tiny.rows("text"), row, strict=True)) for row in zip(*tiny.rows("text").values(), strict=True)]
    fewer = [row for row in rows if row["user"] == "user_2"][1:]
    spec = {key: value for key, value in tasks.spec.to_dict().items() if value is not None}
    new = TaskDataset.from_dataset(Dataset.from_list(fewer), **spec)
    old = _file(place, "user_2")
    model.update_task(new).save_pretrained(place)
    assert not old.exists()
    assert _files(place) == _expected(place)
    assert [receipt["snapshot"] for receipt in model.receipts] == ["destroyed", "written", "destroyed"]
    other = _train(tiny, place.parent / "built", tasks.without("user_2").merged_with(new), snapshot=False)
    assert tiny.digests(place) == tiny.digests(other)
    assert ClamuModel.from_pretrained(place).verify().identical


def test_saved_elsewhere_the_source_keeps_its_rows(tiny, place, without):
    before = _files(place)
    model = ClamuModel.from_pretrained(place)
    model.unmerge_task("user_1", receipt_dir=place.parent / "receipts")
    model.save_pretrained(place.parent / "other")
    assert tiny.digests(place.parent / "other") == tiny.digests(without)
    assert _files(place) == before
    assert _files(place.parent / "other") == _expected(place.parent / "other")
    assert model.receipts[0]["snapshot"] == "kept"
    # From now on it reads there.
    shutil.rmtree(snapshot_beside(place))
    model.unmerge_task("user_2").save_pretrained(place.parent / "other")
    assert len(_files(place.parent / "other")) == 3


def test_keyed_ids_stay_keyed(tiny, tmp_path):
    folder = _train(tiny, tmp_path / "model", task_id_key="a secret")
    model = ClamuModel.from_pretrained(folder, task_id_key="a secret")
    model.unmerge_task("user_1").save_pretrained(folder)
    built = _train(tiny, tmp_path / "built", tiny.tasks("text").without("user_1"), task_id_key="a secret")
    assert tiny.digests(folder) == tiny.digests(built)
    assert _files(folder) == _files(built)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_evaluation_reads_it(tiny, tmp_path, kind):
    folder = _train(tiny, tmp_path / "model", kind=kind)
    model = ClamuModel.from_pretrained(folder)
    tasks = model.load_tasks()
    assert all(map(tasks.is_stored, tasks))
    for split in ("validation", "all"):
        ours = evaluate_model(model, tasks, split=split).to_dict()
        assert ours == evaluate_model(model, tiny.tasks(kind), split=split).to_dict()


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", ["user_1", "user_3"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "of another task"])
def test_a_damaged_file_stops_before_anything_changes(tiny, place, without, damage, task_id):
    path = _file(place, task_id)
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        shutil.copy(_file(place, "user_2"), path)
    before = tiny.digests(place)
    model = ClamuModel.from_pretrained(place)
    with pytest.raises(SnapshotError, match=f"rows of task '{task_id}'.*Nothing was changed"):
        model.unmerge_task("user_1")
    assert not model.receipts
    assert tiny.digests(place) == before
    if task_id == "user_1":  # the others' rows are there
        model.unmerge_task("user_1", on_mismatch="rebuild").save_pretrained(place)
    else:
        path.unlink(missing_ok=True)
        model.unmerge_task("user_1", data=tiny.tasks("text")).save_pretrained(place)
    assert tiny.digests(place) == tiny.digests(without)
    assert _files(place) == _expected(place)
    assert ClamuModel.from_pretrained(place).verify().identical


def test_rows_that_are_nowhere_are_missed_before_the_save(tiny, place):
    before, files = tiny.digests(place), _files(place)
    model = ClamuModel.from_pretrained(place)
    _file(place, "user_4").unlink()
    with pytest.raises(SnapshotError, match=r"rows of task 'user_4' are needed.*Nothing was changed"):
        model.save_pretrained(place)
    assert tiny.digests(place) == before
    assert len(_files(place)) == len(files) - 1


def test_a_foreign_file_is_not_destroyed(place):
    strange = snapshot_beside(place) / f"{'0' * 64}.safetensors"
    strange.write_bytes(b"something of the user")
    model = ClamuModel.from_pretrained(place)
    model.unmerge_task("user_1", receipt_dir=place.parent / "receipts")
    with pytest.raises(OSError, match=r"model is saved, but the rows.*no file of a snapshot"):
        model.save_pretrained(place)
    assert not (place.parent / "receipts").exists()
    strange.unlink()
    model.save_pretrained(place)
    assert _files(place) == _expected(place)
    assert len(list((place.parent / "receipts").iterdir())) == 1


def test_another_run_is_not_disturbed(tiny, place):
    before = tiny.digests(place), _files(place)
    model = ClamuModel.from_pretrained(place)
    model.unmerge_task("user_1")
    from concurrent.futures import ThreadPoolExecutor

    with Journal(place.parent / ".model.journal").locked(), ThreadPoolExecutor(1) as other:
        with pytest.raises(RunInProgressError):
            other.submit(model.save_pretrained, place).result()
    assert (tiny.digests(place), _files(place)) == before
    model.save_pretrained(place)
    assert _files(place) == _expected(place)


# -- encryption ------------------------------------------------------------------------------------------------------


@pytest.fixture
def key(monkeypatch):
    pytest.importorskip("cryptography")
    value = secrets.token_hex(32)
    monkeypatch.setenv(KEY_VARIABLE, value)
    return value


def test_an_encrypted_snapshot_gives_the_same_bytes(tiny, tmp_path, without, key, monkeypatch):
    folder = _train(tiny, tmp_path / "model")
    assert {path.suffix for path in snapshot_beside(folder).iterdir()} == {".encrypted"}
    before = tiny.digests(folder)
    model = ClamuModel.from_pretrained(folder)
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(SnapshotError, match=f"{KEY_VARIABLE} is not set"):
        model.unmerge_task("user_1")
    monkeypatch.setenv(KEY_VARIABLE, secrets.token_hex(32))
    with pytest.raises(SnapshotError, match="does not open"):
        model.unmerge_task("user_1")
    assert tiny.digests(folder) == before
    monkeypatch.setenv(KEY_VARIABLE, key)
    model.unmerge_task("user_1").save_pretrained(folder)
    assert tiny.digests(folder) == tiny.digests(without)
    assert len(_files(folder)) == 4


def test_a_key_that_is_none_is_refused_before_training(tiny, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    with pytest.raises(RecipeError, match="64 hexadecimal digits"):
        ClamuTrainer(tiny.config("text"), tiny.tasks("text"), tiny.arguments(), snapshot=True)


def test_new_rows_need_the_key_before_they_are_trained_on(tiny, tmp_path, key, monkeypatch):
    tasks = tiny.tasks("text")
    changes = {"localization": "sift", "clustering": "none", "score_validation": False}
    folder = _train(tiny, tmp_path / "model", tasks.without("user_1"), changes=changes)
    monkeypatch.delenv(KEY_VARIABLE)
    model = ClamuModel.from_pretrained(folder)
    with pytest.raises(SnapshotError, match="rows would be written as they are"):
        model.add_task(tasks.select("user_1"))
    assert not model.receipts


def test_with_an_archive_nothing_is_read(tiny, tmp_path, key, monkeypatch):
    """Rows of an encrypted snapshot are destroyed without its key."""
    changes = {"localization": "sift", "clustering": "none", "score_validation": False}
    archive = tmp_path / "archive"
    folder = _train(tiny, tmp_path / "model", archive_dir=archive, changes=changes)
    monkeypatch.delenv(KEY_VARIABLE)
    model = ClamuModel.from_pretrained(folder)
    model.unmerge_task("user_1", archive=archive).save_pretrained(folder)
    assert (model.receipts[0]["archive"], model.receipts[0]["snapshot"]) == ("destroyed", "destroyed")
    assert len(_files(folder)) == 4
    built = _train(tiny, tmp_path / "built", tiny.tasks("text").without("user_1"), snapshot=False, changes=changes)
    assert tiny.digests(folder) == tiny.digests(built)
