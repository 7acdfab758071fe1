"""A kind of task from outside the package, the one that CONTRIBUTING.md shows: it is trained, served and forgotten."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from hf_clamu import ClamuModel, ClamuTrainer, pipeline
from hf_clamu.evaluation import evaluate_model
from hf_clamu.serving.prediction import predict
from hf_clamu.tasks import TaskDataset, kinds
from hf_clamu.tasks.encoding import encoders
from hf_clamu.training import silent_progress

GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def capitals(monkeypatch):
    """The kind of the guide, as its readers register it."""
    monkeypatch.setattr(kinds, "KINDS", dict(kinds.KINDS))
    monkeypatch.setattr(encoders, "ENCODERS", dict(encoders.ENCODERS))
    text = GUIDE.read_text(encoding="utf-8")
    section = text[text.index("## A new kind of task") :].split("\n## ", 1)[0]
    blocks = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    exec(compile("\n".join(blocks), "CONTRIBUTING.md", "exec"), {"__name__": "__main__", "torch": torch})
    return "capitals-classification"


def test_a_kind_from_outside_is_trained_served_and_forgotten(tiny, tmp_path, capitals):
    columns = {"task_column": "user", "text_column": "text", "label_column": "label", "kind": capitals}
    tasks = TaskDataset.from_dataset(Dataset.from_dict(tiny.rows("text")), **columns, validation_fraction=0.3)
    tokenizer = tiny.processor("text")
    assert tokenizer.decode(tasks.encode("user_0", tokenizer).train[0]["input_ids"]).isupper()

    def build(data, folder):
        options = {"processing_class": tokenizer, "progress": silent_progress}
        ClamuTrainer(tiny.config("text"), data, tiny.arguments(), **options).train().save_pretrained(folder)

    build(tasks, tmp_path / "model")
    build(tasks.without("user_1"), tmp_path / "expected")
    model = ClamuModel.from_pretrained(tmp_path / "model")
    assert evaluate_model(model, tasks).metric == "accuracy"
    quiet, loud = ({"user": "user_0", "text": text} for text in ("great 1 of 0", "GREAT 1 OF 0"))
    assert predict(model, [quiet]) == predict(model, [loud])
    answer, other = pipeline("text-classification", model, task="user_0")([quiet["text"], loud["text"]])
    assert answer == other
    model.unmerge_task("user_1", data=tasks).save_pretrained(tmp_path / "model")
    assert tiny.digests(tmp_path / "model") == tiny.digests(tmp_path / "expected")
