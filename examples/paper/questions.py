"""banking77: customers' questions to a bank, cut into users with few intents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.paper.data import LoadReport, open_rows, require_columns
from hf_clamu.errors import TaskDataError
from hf_clamu.tasks import TaskDataset, partition_by_labels

__all__ = ["banking77"]

_HUB_ID = "PolyAI/banking77"


def banking77(
    *,
    seed: int,
    path: str | Path | None = None,
    num_tasks: int = 100,
    labels_per_task: Sequence[int] = (2, 5),
    examples_per_task: int = 40,
    num_validation: int = 40,
    max_length: int | None = None,
) -> tuple[TaskDataset, LoadReport]:
    """Return users as tasks, who ask about few of the 77 intents each; no question is in two tasks.

    The data set has no users; they are drawn. All its splits are pooled first, so a user's validation examples are
    other questions with the same intents.

    Args:
        seed (`int`): of the choice of intents and questions.
        path (`str` or `Path`, *optional*): a file with columns "text" and "category" (or "label"), or a folder of CSV
            files.
        num_tasks (`int`, defaults to 100): users.
        labels_per_task (*sequence* of two `int`, defaults to `(2, 5)`): the least and the most intents of a user.
        examples_per_task (`int`, defaults to 40): training examples.
        num_validation (`int`, defaults to 40): validation examples.
        max_length (`int`, *optional*): tokens per example.

    Returns:
        *tuple* of `TaskDataset` ("user_00", ...; the labels are all intents of the data) and `LoadReport`.

    Raises:
        RecipeError: if there are fewer intents than a user is to have.
        TaskDataError: if a column is missing, or there is no file.

    Source: banking77 (arXiv 2003.04807), `PolyAI/banking77` on the Hub, CC-BY-4.0.
    """
    least, most = labels_per_task
    rows = _rows(path)
    num_rows = len(rows)
    names = sorted(set(rows["intent"]))
    cut, report = partition_by_labels(
        rows,
        "intent",
        num_tasks=num_tasks,
        labels_per_task=(least, most),
        seed=seed,
        examples_per_task=examples_per_task,
        num_validation=num_validation,
        content_columns=["text"],
        prefix="user",
    )
    tasks = TaskDataset.from_dataset(
        cut, task_column="task", text_column="text", label_column="intent", label_names=names, max_length=max_length
    )
    source = _HUB_ID if path is None else str(path)
    return tasks, LoadReport(
        source=source,
        rows=num_rows,
        dropped={"question not drawn": report.num_left_over} if report.num_left_over else {},
        partitions={source: report},
        remarks=("users are drawn, the data set has none",),
    )


def _rows(path: str | Path | None) -> Any:
    """Return all questions with the names of their intents: columns "text" and "intent"."""
    from datasets import concatenate_datasets

    files = sorted(Path(path).glob("*.csv")) if path is not None and Path(path).is_dir() else []
    parts = [open_rows(_HUB_ID, file) for file in files] if files else [open_rows(_HUB_ID, path, split=None)]
    return concatenate_datasets([_with_names(part) for part in parts])


def _with_names(rows: Any) -> Any:
    from datasets import Dataset

    column = "category" if "category" in rows.column_names else "label"
    require_columns(rows, ("text", column), _HUB_ID)
    intents, names = rows[column][:], getattr(rows.features[column], "names", None)
    if column == "label" and names is None and not all(isinstance(one, str) for one in intents):
        raise TaskDataError(f"{_HUB_ID} needs names of its intents: a column 'category', or 'label' with names.")
    return Dataset.from_dict(
        {"text": rows["text"][:], "intent": intents if names is None else [names[one] for one in intents]}
    )
