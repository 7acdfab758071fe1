"""Where a setting's tasks come from, by the name that a recipe has for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch

from examples.paper.data import tofu
from examples.paper.images import clip_label_level, clip_task_level
from examples.paper.questions import banking77
from examples.paper.texts import reddit, sent140
from hf_clamu.errors import RecipeError
from hf_clamu.tasks import TaskDataset, digits, stdlib_text

__all__ = ["ANSWER", "SOURCES", "VIEWS", "load_setting_tasks"]

# What comes between a docstring and the name of its package.
ANSWER = "\nPackage:"
# What stands in for three data sets: the same digits, seen in three ways.
VIEWS: tuple[tuple[str, Callable[[torch.Tensor], torch.Tensor]], ...] = (
    ("upright", lambda image: image),
    ("turned", lambda image: image.rot90(1, (-2, -1))),
    ("inverted", lambda image: 1.0 - image),
)


def load_setting_tasks(data: Mapping[str, Any], seed: int, paths: Mapping[str, str]) -> TaskDataset:
    """Cut a setting's data into tasks, with validation examples.

    Args:
        data (*mapping*): `source` names one of `SOURCES`; the rest are its arguments.
        seed (`int`): of the cut.
        paths (*mapping* of `str` to `str`): local files, by source.
    """
    options = dict(data)
    source = options.pop("source")
    if source not in SOURCES:
        raise RecipeError(f"No source of tasks is called {source!r}; there are {', '.join(SOURCES)}.")
    if source in paths:
        options["path"] = paths[source]
    return SOURCES[source](seed=seed, **options)


def _digits(*, seed: int, num_tasks: int, labels_per_task: int, validation_fraction: float) -> TaskDataset:
    """Digits in three views, which stand in for three data sets; a task has digits of one view."""
    from datasets import concatenate_datasets

    views = []
    for name, seen in VIEWS:
        rows = digits(num_tasks // len(VIEWS), labels_per_task, seed)
        columns = {
            "task": [f"{name}_{task.rpartition('_')[2]}" for task in rows["task"]],
            "id": [f"{name}/{one}" for one in rows["id"]],
            "image": [seen(torch.tensor(image)).tolist() for image in rows["image"]],
            "view": [name] * len(rows),
        }
        rows = rows.remove_columns(["task", "id", "image"])
        for column, values in columns.items():
            rows = rows.add_column(column, values)
        views.append(rows)
    return TaskDataset.from_dataset(
        concatenate_datasets(views),
        task_column="task",
        image_column="image",
        label_column="label",
        id_column="id",
        cluster_column="view",
        validation_fraction=validation_fraction,
        split_seed=seed,
    )


def _stdlib(
    *, seed: int, num_tasks: int, labels_per_task: int, validation_fraction: float, max_length: int, head: str
) -> TaskDataset:
    """Docstrings; the label is their package, for a classification head or as the completion of a language model."""
    rows = stdlib_text(num_tasks, labels_per_task, seed)
    common: dict[str, Any] = {
        "task_column": "task",
        "id_column": "id",
        "max_length": max_length,
        "validation_fraction": validation_fraction,
        "split_seed": seed,
    }
    if head == "classification":
        return TaskDataset.from_dataset(rows, text_column="text", label_column="label", **common)
    names = rows.features["label"].names
    rows = rows.map(lambda row: {"label": f" {names[row['label']]}"}, features=None).cast_column("label", _text())
    return TaskDataset.from_dataset(
        rows, prompt_column="text", completion_column="label", template=f"{{prompt}}{ANSWER}", **common
    )


def _text() -> Any:
    from datasets import Value

    return Value("string")


def _tasks_of(load: Callable[..., tuple[TaskDataset, Any]]) -> Callable[..., TaskDataset]:
    @wraps(load)
    def tasks(**options: Any) -> TaskDataset:
        return load(**options)[0]

    return tasks


SOURCES: dict[str, Callable[..., TaskDataset]] = {
    "digits": _digits,
    "stdlib": _stdlib,
    "tofu": _tasks_of(tofu),
    "sent140": _tasks_of(sent140),
    "reddit": _tasks_of(reddit),
    "banking77": _tasks_of(banking77),
    "clip_task_level": _tasks_of(clip_task_level),
    "clip_label_level": _tasks_of(clip_label_level),
}
