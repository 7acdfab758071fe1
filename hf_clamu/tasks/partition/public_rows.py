"""Rows that belong to no task: what a model is given of them, without owners, labels and completions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.dataset import TaskDataset
from hf_clamu.tasks.reading.given import tables_of
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["PUBLIC_TASK", "public_rows"]

PUBLIC_TASK = "public"
_ANSWER = ['{"role": "assistant", "content": "."}']


def public_rows(dataset: Any, spec: TaskSpec) -> TaskDataset:
    """Return rows of nobody as the one task `PUBLIC_TASK`, with stand-ins for what a model is to answer.

    Args:
        dataset: what `TaskDataset.from_dataset` takes, with the columns that a model is given; others are not read.
        spec (`TaskSpec`): of the tasks, with its label names.

    Raises:
        TaskDataError: if such a column is missing, or rows cannot be used.
    """
    _, rows, _ = tables_of(dataset, spec, partial=True)[0]
    answers = {spec.label_column, spec.tags_column, spec.completion_column}
    given = sorted(set(spec.content_columns) - answers)
    missing = [column for column in given if column not in rows.column_names]
    if missing:
        raise TaskDataError(
            f"The public rows have no column {missing[0]!r} ({spec.columns[missing[0]]}); they have "
            f"{', '.join(rows.column_names) or 'none that is read'}."
        )
    rows, first_label = rows.select_columns(given), (spec.label_names or ("",))[0]
    completion: Any = _ANSWER if spec.conversational else "."
    fillings = {spec.task_column: PUBLIC_TASK, spec.label_column: first_label, spec.completion_column: completion}
    columns: dict[str, list[Any]] = {name: [value] * len(rows) for name, value in fillings.items() if name is not None}
    if spec.tags_column is not None:
        columns[spec.tags_column] = [[first_label] * len(words or ()) for words in rows[str(spec.tokens_column)]]
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    plain = replace(spec, id_column=None, cluster_column=None, validation_fraction=0.0, ids="as-is")
    return TaskDataset.from_spec(rows, plain)
