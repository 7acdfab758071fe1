"""Threads of one process that each train: they take turns, and the bytes are those of one after the other."""

from __future__ import annotations

import sys
import threading

import pytest

from hf_clamu import ClamuModel


@pytest.fixture(autouse=True)
def _many_switches_of_threads():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def _together(*works):
    """Run functions in a thread each, and return what they raised."""
    errors = []
    start = threading.Barrier(len(works))

    def run(work):
        try:
            start.wait(60)
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return errors


def test_two_models_forget_at_once(tiny, saved_text, tmp_path):
    tasks = tiny.tasks("text")

    def forget(task_id, name):
        model = ClamuModel.from_pretrained(saved_text)
        model.unmerge_task(task_id, data=tasks)
        model.save_pretrained(tmp_path / name)

    forget("user_1", "a")
    forget("user_2", "b")
    assert _together(lambda: forget("user_1", "c"), lambda: forget("user_2", "d")) == []
    assert tiny.digests(tmp_path / "c") == tiny.digests(tmp_path / "a")
    assert tiny.digests(tmp_path / "d") == tiny.digests(tmp_path / "b")


def test_two_builds_at_once(tiny, saved_text, tmp_path):
    def build(name):
        tiny.train("text").save_pretrained(tmp_path / name)

    assert _together(lambda: build("a"), lambda: build("b")) == []
    for name in ("a", "b"):
        assert tiny.digests(tmp_path / name) == tiny.digests(saved_text)
