"""Requests with an archive end in the bytes of those without one, and destroy what is forgotten."""

from __future__ import annotations

import json
import shutil

import pytest

from hf_clamu import (
    ArchiveError,
    ClamuModel,
    ClamuTrainer,
    DigestMismatchError,
    EnvironmentMismatchError,
    TaskDataError,
)
from hf_clamu.storage import Archive
from hf_clamu.training import silent_progress
from tests.differential.checks import counted_steps

PORTABLE = {"localization": "global", "clustering": "random", "score_validation": False}


def _train(tiny, tasks, folder, archive=None, **changes):
    tiny.train("text", tasks, options={"archive_dir": archive}, **changes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def archived(tiny, tmp_path_factory):
    """Gives the folders of a model with its archive, and of builds without some tasks; each is made once."""
    folders = {}

    def build(without=(), **changes):
        key = json.dumps([without, sorted(changes.items())])
        if key not in folders:
            folder = tmp_path_factory.mktemp("archived")
            archive = None if without else folder / "archive"
            _train(tiny, tiny.tasks("text").without(without), folder / "model", archive, **changes)
            folders[key] = folder
        return folders[key]

    return build


@pytest.fixture
def opened(archived, tmp_path):
    """Gives a model and a copy of its archive."""

    def open_(**changes):
        folder = archived(**changes)
        shutil.copytree(folder / "archive", tmp_path / "archive")
        return ClamuModel.from_pretrained(folder / "model"), tmp_path / "archive"

    return open_


def _same(tiny, model, place, expected):
    model.save_pretrained(place)
    assert tiny.digests(place) == tiny.digests(expected)


def _names(archive):
    return sorted(path.name for path in archive.iterdir())


def _name(model, task_id):
    return Archive.file_name(task_id, model.ledger["tasks"][task_id]["vector_digest"])


def test_a_model_does_not_know_of_its_archive(tiny, archived, saved_text):
    folder = archived()
    assert tiny.digests(folder / "model") == tiny.digests(saved_text)
    model = ClamuModel.from_pretrained(folder / "model")
    assert _names(folder / "archive") == sorted(_name(model, task_id) for task_id in model.tasks)


@pytest.mark.parametrize(
    "changes",
    [{}, {"localization": "tall"}, {"localization": "emr"}, PORTABLE, {"clustering": "task_vectors"}],
    ids=str,
)
def test_unmerged_is_built_without(tiny, archived, opened, changes, tmp_path):
    model, archive = opened(**changes)
    gone = ["user_1", "user_3"]
    names = {task_id: _name(model, task_id) for task_id in model.tasks}
    # The rows of the forgotten tasks are gone already.
    model.unmerge_task(gone, data=tiny.tasks("text").without(gone), archive=archive, receipt_dir=tmp_path / "receipts")
    assert model.receipts[0]["vectors_from"] == "archive"
    # Nothing is destroyed, and no receipt says so, before the model is saved.
    assert len(_names(archive)) == 5
    assert not (tmp_path / "receipts").exists()
    _same(tiny, model, tmp_path / "ours", archived(gone, **changes) / "model")
    assert _names(archive) == sorted(name for task_id, name in names.items() if task_id not in gone)
    (path,) = (tmp_path / "receipts").iterdir()
    assert json.loads(path.read_bytes()) == model.receipts[0]
    assert model.receipts[0]["archive"] == "destroyed"
    assert not any(name.encode() in path.read_bytes() for name in names.values())


def test_nothing_but_the_archive_is_needed_for_a_global_model(tiny, archived, opened, tmp_path):
    model, archive = opened(**PORTABLE)
    model.unmerge_task("user_1", archive=archive)
    _same(tiny, model, tmp_path / "ours", archived(["user_1"], **PORTABLE) / "model")
    with pytest.raises(TaskDataError, match="names no source"):
        model.unmerge_task("user_2")
    model.unmerge_task("user_2", archive=archive)
    _same(tiny, model, tmp_path / "more", archived(["user_1", "user_2"], **PORTABLE) / "model")


def test_masks_need_the_data_of_the_retained(tiny, opened):
    model, archive = opened()
    with pytest.raises(TaskDataError, match="no rows of the merged task 'user_2'"):
        model.unmerge_task("user_1", data=tiny.tasks("text").without("user_2"), archive=archive)


def test_add_and_update_keep_it(tiny, archived, opened, tmp_path):
    tasks = tiny.tasks("text")
    model, archive = opened()
    before = _names(archive)
    model.unmerge_task("user_1", data=tasks, archive=archive)
    model.add_task(tasks.select("user_1"), data=tasks.without("user_1"), archive=archive)
    _same(tiny, model, tmp_path / "back", archived() / "model")
    # Forgotten and merged again before anything was saved: it is still needed.
    assert _names(archive) == before
    new = _with_a_row_less(tiny, "user_2")
    old = _name(model, "user_2")
    model.update_task(new.select("user_2"), data=tasks.without("user_2"), archive=archive)
    assert old in _names(archive)
    _same(tiny, model, tmp_path / "ours", _train(tiny, new, tmp_path / "built"))
    assert old not in _names(archive)
    assert _names(archive) == sorted(_name(model, task_id) for task_id in model.tasks)
    assert [receipt["archive"] for receipt in model.receipts] == ["destroyed", "written", "destroyed"]


def _with_a_row_less(tiny, user):
    from datasets import Dataset

    from hf_clamu import TaskDataset

    rows = tiny.rows("text")
    place = rows["user"].index(user)
    rows = {key: values[:place] + values[place + 1 :] for key, values in rows.items()}
    columns = {"task_column": "user", "text_column": "text", "label_column": "label", "cluster_column": "group"}
    labels = ("bad", "good", "mixed")
    return TaskDataset.from_dataset(Dataset.from_dict(rows), **columns, label_names=labels, validation_fraction=0.3)


def test_it_is_kept_for_another_copy_of_the_model(tiny, opened, tmp_path):
    model, archive = opened()
    before = _names(archive)
    model.unmerge_task("user_1", data=tiny.tasks("text"), archive=Archive(archive, retains_forgotten=True))
    model.save_pretrained(tmp_path / "apart")
    assert _names(archive) == before
    assert model.receipts[0]["archive"] == "kept"


# -- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["missing", "flipped", "another task's"])
def test_a_vector_that_is_not_the_one(tiny, archived, opened, tmp_path, damage):
    model, archive = opened()
    path = archive / _name(model, "user_1")
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        data = bytearray(path.read_bytes())
        data[-20] ^= 1
        path.write_bytes(data)
    else:
        shutil.copy(archive / _name(model, "user_2"), path)
    before = model.state_digest()
    with pytest.raises(ArchiveError, match=r"task 'user_1'.*Nothing was changed.*leave the archive out.*rebuild"):
        model.unmerge_task("user_1", data=tiny.tasks("text"), archive=archive)
    assert (model.state_digest(), model.receipts) == (before, ())
    model.unmerge_task("user_1", data=tiny.tasks("text"), archive=archive, on_mismatch="rebuild")
    _same(tiny, model, tmp_path / "ours", archived(["user_1"]) / "model")
    assert _names(archive) == sorted(_name(model, task_id) for task_id in model.tasks)


def test_a_vector_that_cannot_be_destroyed(tiny, opened, tmp_path, monkeypatch):
    model, archive = opened()
    name = _name(model, "user_1")
    model.unmerge_task("user_1", data=tiny.tasks("text"), archive=archive, receipt_dir=tmp_path / "receipts")
    # Whoever tests as root may write everywhere, so a folder stands in the way.
    (archive / name).rename(tmp_path / "vector")
    (archive / name).mkdir()
    with pytest.raises(OSError, match=r"The model is saved, but .* could not be destroyed"):
        model.save_pretrained(tmp_path / "ours")
    assert not (tmp_path / "receipts").exists()
    (archive / name).rmdir()
    (tmp_path / "vector").rename(archive / name)
    model.save_pretrained(tmp_path / "ours")
    assert name not in _names(archive)
    assert len(list((tmp_path / "receipts").iterdir())) == 1


def test_a_build_that_is_resumed_fills_the_archive(tiny, archived, tmp_path):
    options = {"processing_class": tiny.processor("text"), "progress": silent_progress}

    def trainer(**more):
        kept = {"journal_dir": tmp_path / "journal", **more}
        return ClamuTrainer(tiny.config("text"), tiny.tasks("text"), tiny.arguments(), **options, **kept)

    trainer().train()  # its sums are in the journal; nobody kept the vectors
    model = trainer(archive_dir=tmp_path / "archive").train()
    assert _names(tmp_path / "archive") == _names(archived() / "archive")
    _same(tiny, model, tmp_path / "ours", archived() / "model")


# -- another environment ---------------------------------------------------------------------------------------------


def _elsewhere(tiny, folder, place, **more):
    """A copy of a saved model that says that it was made under another release."""
    shutil.copytree(folder, place)
    environment = json.loads((place / "ledger.json").read_bytes())["environment"]
    tiny.reseal(place, environment={**environment, "models": "transformers 1.0.0"}, **more)
    return place


def test_a_global_model_forgets_anywhere(tiny, archived, opened, tmp_path):
    _, archive = opened(**PORTABLE)
    folder = archived(**PORTABLE) / "model"
    model = ClamuModel.from_pretrained(_elsewhere(tiny, folder, tmp_path / "there"))
    with pytest.raises(EnvironmentMismatchError):
        model.unmerge_task("user_1", data=tiny.tasks("text"))
    model.unmerge_task("user_1", archive=archive)
    expected = _elsewhere(tiny, archived(["user_1"], **PORTABLE) / "model", tmp_path / "expected")
    _same(tiny, model, tmp_path / "ours", expected)
    assert "localized_in" not in model.receipts[0]


def test_masks_are_localized_here_if_that_is_wanted(tiny, archived, opened, tmp_path):
    _, archive = opened()
    tasks = tiny.tasks("text")
    model = ClamuModel.from_pretrained(_elsewhere(tiny, archived() / "model", tmp_path / "there"))
    with pytest.raises(EnvironmentMismatchError, match=r"transformers 1\.0\.0.*on_mismatch='localize'"):
        model.unmerge_task("user_1", data=tasks, archive=archive)
    with pytest.raises(ValueError, match="goes with an archive"):
        model.unmerge_task("user_1", data=tasks, on_mismatch="localize")
    for user in ("user_1", "user_3"):
        model.unmerge_task(user, data=tasks, archive=archive, on_mismatch="localize")
    here = json.loads((archived() / "model/ledger.json").read_bytes())["environment"]
    assert model.receipts[0]["localized_in"] == model.ledger["localized_in"] == here
    # One by one or from the start: the bytes of a build there of the others, localized here.
    gone = archived(["user_1", "user_3"]) / "model"
    _same(tiny, model, tmp_path / "ours", _elsewhere(tiny, gone, tmp_path / "expected", localized_in=here))
    again = ClamuModel.from_pretrained(tmp_path / "ours")
    assert again.ledger == model.ledger
    with pytest.raises(EnvironmentMismatchError):
        again.verify(data=tasks)


def test_a_model_that_was_localized_elsewhere(tiny, archived, opened, tmp_path):
    _, archive = opened()
    tasks = tiny.tasks("text")
    environment = json.loads((archived() / "model/ledger.json").read_bytes())["environment"]
    elsewhere = {**environment, "models": "transformers 1.0.0"}
    shutil.copytree(archived() / "model", tmp_path / "there")
    tiny.reseal(tmp_path / "there", localized_in=elsewhere)
    model = ClamuModel.from_pretrained(tmp_path / "there")
    with pytest.raises(EnvironmentMismatchError, match="derived in another environment than its task vectors"):
        model.verify(data=tasks)
    # A request where the vectors are from derives all anew, and its result is a plain build again.
    model.unmerge_task("user_1", data=tasks, archive=archive)
    _same(tiny, model, tmp_path / "ours", archived(["user_1"]) / "model")


def test_what_retraining_would_notice_is_noticed_for_the_retained(tiny, archived, opened):
    model, archive = opened()
    with pytest.raises(DigestMismatchError, match="data of task 'user_2'"):
        model.unmerge_task("user_1", data=_with_a_row_less(tiny, "user_2"), archive=archive)


def test_a_vector_that_masks_need_and_the_archive_lacks_is_missed_before_training(tiny, opened):
    # TALL masks need the vectors of all tasks. One that was added without the archive has none there.
    tasks = tiny.tasks("text")
    model, archive = opened(localization="tall")
    (archive / _name(model, "user_1")).unlink()
    model.unmerge_task("user_2", data=tasks)
    before = model.state_digest()
    with counted_steps() as steps, pytest.raises(ArchiveError, match=r"no vector of task 'user_1' as it was merged"):
        model.add_task(tasks.select("user_2"), data=tasks, archive=archive)
    assert steps == [0]
    assert model.state_digest() == before
