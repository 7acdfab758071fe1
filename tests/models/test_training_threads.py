"""Threads of one process that each train: they take turns, and the bytes are those of one after the other."""

from __future__ import annotations

import pytest
from in_threads import together

from hf_clamu import ClamuModel

pytestmark = pytest.mark.usefixtures("many_switches_of_threads")


def test_two_models_forget_at_once(tiny, saved_text, tmp_path):
    tasks = tiny.tasks("text")

    def forget(task_id, name):
        model = ClamuModel.from_pretrained(saved_text)
        model.unmerge_task(task_id, data=tasks)
        model.save_pretrained(tmp_path / name)

    forget("user_1", "a")
    forget("user_2", "b")
    assert together(lambda: forget("user_1", "c"), lambda: forget("user_2", "d")) == []
    assert tiny.digests(tmp_path / "c") == tiny.digests(tmp_path / "a")
    assert tiny.digests(tmp_path / "d") == tiny.digests(tmp_path / "b")


def test_two_builds_at_once(tiny, saved_text, tmp_path):
    def build(name):
        tiny.train("text").save_pretrained(tmp_path / name)

    assert together(lambda: build("a"), lambda: build("b")) == []
    for name in ("a", "b"):
        assert tiny.digests(tmp_path / name) == tiny.digests(saved_text)
