"""Ledgers that keep keyed commitments instead of task ids."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from hf_clamu import ClamuModel, ClamuTrainer, TaskDataError, TaskNotFoundError

KEY = "a secret of the owner"


@pytest.fixture(scope="module")
def keyed(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keyed") / "model"
    _trainer(tiny, tiny.tasks("text")).train().save_pretrained(folder)
    return folder


def _trainer(tiny, tasks):
    return ClamuTrainer(
        tiny.config("text"),
        tasks,
        tiny.arguments(),
        processing_class=tiny.processor("text"),
        task_id_key=KEY,
        progress=lambda items, description: items,
    )


def test_no_file_names_a_task(keyed, tiny):
    ids = tiny.tasks("text").task_ids
    for path in keyed.rglob("*"):
        if path.is_file():
            assert not any(task_id.encode() in path.read_bytes() for task_id in ids), path


def test_the_ledger_keeps_hmac_sha256_of_the_ids(keyed, tiny):
    expected = {
        hmac.new(KEY.encode(), task_id.encode(), hashlib.sha256).hexdigest() for task_id in tiny.tasks("text").task_ids
    }
    assert set(ClamuModel.from_pretrained(keyed).tasks) == expected


def test_who_holds_the_key_unmerges_exactly(keyed, tiny, tmp_path):
    tasks = tiny.tasks("text")
    model = ClamuModel.from_pretrained(keyed, task="user_1", task_id_key=KEY)
    assert model.cluster == model.cluster_of("user_1")
    model.unmerge_task("user_1", data=tasks)
    model.save_pretrained(tmp_path / "unmerged")
    _trainer(tiny, tasks.without("user_1")).train().save_pretrained(tmp_path / "rebuilt")
    assert tiny.digests(tmp_path / "unmerged") == tiny.digests(tmp_path / "rebuilt")
    assert model.verify(data=tasks)
    with pytest.raises(TaskNotFoundError):
        model.cluster_of("user_1")
    model.add_task(tasks.select("user_1"), data=tasks)
    model.save_pretrained(tmp_path / "again")
    assert tiny.digests(tmp_path / "again") == tiny.digests(keyed)


def test_without_the_key_ids_cannot_be_looked_up(keyed, tiny):
    model = ClamuModel.from_pretrained(keyed)
    with pytest.raises(TaskNotFoundError, match="task_id_key"):
        model.set_cluster(task="user_1")
    with pytest.raises(TaskDataError, match="task_id_key"):
        model.verify(data=tiny.tasks("text"))
    assert model.cluster_of(model.tasks[0]) == 0


def test_another_key_finds_nobody(keyed):
    with pytest.raises(TaskNotFoundError):
        ClamuModel.from_pretrained(keyed, task="user_1", task_id_key="another")


def test_tasks_are_keyed_once(tiny):
    tasks = tiny.tasks("text").with_key(KEY)
    assert tasks.select(tasks.task_ids[0]).is_keyed
    with pytest.raises(TaskDataError, match="keyed already"):
        tasks.with_key(KEY)
    with pytest.raises(TaskDataError, match="plain ones"):
        tasks.merged_with(tiny.tasks("text"))
