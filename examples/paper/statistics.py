"""Table 6: what the data of a setting are, counted."""

from __future__ import annotations

import statistics
from typing import Any

from hf_clamu.tasks import TaskDataset

__all__ = ["count_data"]


def count_data(tasks: TaskDataset, processor: Any) -> dict[str, float]:
    """Count the tasks of a setting.

    Args:
        tasks (`TaskDataset`): the data.
        processor (*optional*): the tokenizer.

    Returns:
        *dict* of `str` to `float`: by the name of the column.
    """
    encoded = [tasks.encode(task_id, processor) for task_id in tasks]
    counts = [len(one.train) for one in encoded]
    found: dict[str, float] = {
        "tasks": len(encoded),
        "training examples of a task, least": min(counts),
        "mean": statistics.fmean(counts),
        "most": max(counts),
        "validation examples of a task, mean": statistics.fmean(len(one.validation) for one in encoded),
    }
    examples = [example for one in encoded for example in one.train]
    if "input_ids" in examples[0]:
        found["tokens per example"] = statistics.fmean(len(example["input_ids"]) for example in examples)
    labels = [{tuple(example["labels"].reshape(-1).tolist()) for example in one.train} for one in encoded]
    if tasks.spec.kind != "causal-lm":
        found["labels"] = tasks.num_labels
        found["labels per task"] = statistics.fmean(map(len, labels))
        found["tasks with one label"] = sum(len(one) == 1 for one in labels)
    return found
