"""Threads of one process that each train: they take turns, and the bytes are those of one after the other."""

from __future__ import annotations

import pytest
import transformers
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


def test_models_of_tied_weights_are_loaded_at_once(saved_kind, tmp_path):
    # Loading replaces methods of transformers' classes for a while. Threads that overlapped left them replaced.
    folder = saved_kind("lm")

    def load_and_export(name):
        for number in range(4):
            ClamuModel.from_pretrained(folder).export(tmp_path / f"{name}-{number}", cluster=number % 2)

    whole = transformers.PreTrainedModel.tie_weights
    assert together(*(lambda name=name: load_and_export(name) for name in "abcd")) == []
    assert transformers.PreTrainedModel.tie_weights is whole
    model = ClamuModel.from_pretrained(folder)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
