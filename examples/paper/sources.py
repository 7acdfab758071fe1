"""Where a setting's tasks come from, by the name that a recipe has for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hf_clamu.errors import RecipeError
from hf_clamu.tasks import TaskDataset, digits, stdlib_text

__all__ = ["SOURCES", "load_setting_tasks"]


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
    return TaskDataset.from_dataset(
        digits(num_tasks, labels_per_task, seed),
        task_column="task",
        image_column="image",
        label_column="label",
        id_column="id",
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
        rows, prompt_column="text", completion_column="label", template="{prompt}\nPackage:", **common
    )


def _text() -> Any:
    from datasets import Value

    return Value("string")


SOURCES: dict[str, Callable[..., TaskDataset]] = {"digits": _digits, "stdlib": _stdlib}
