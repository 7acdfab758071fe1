"""The rows of each task: which they are, and their labels as numbers; nothing is copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.near_names import describe_near, ids_remedy, near_names
from hf_clamu.tasks.reading.checks import check_examples, check_ids, cluster_keys
from hf_clamu.tasks.reading.given import open_splits
from hf_clamu.tasks.reading.labels import Label, with_label_names
from hf_clamu.tasks.reading.problems import Problems
from hf_clamu.tasks.reading.splits import Split, rows_of_tasks, with_form
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["PartRows", "TaskRows", "read_tasks"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PartRows:
    """Rows of one task in one split. The split is shared by all its tasks, so nothing is copied.

    Args:
        split (`Split`): the split.
        rows (`numpy.ndarray` of shape `(num_rows,)`, int64): their numbers in it.
        labels (*tuple* of `Label`, *optional*): the label of each, if there are labels.
    """

    split: Split
    rows: np.ndarray[Any, np.dtype[np.int64]]
    labels: tuple[Label, ...] | None

    @property
    def first_place(self) -> str:
        """Where the first row is."""
        return self.split.row(int(self.rows[0]))

    def content(self, spec: TaskSpec) -> Any:
        """Return the content columns (`datasets.Dataset`), with labels as numbers."""
        content = self.split.dataset.select(self.rows).select_columns(sorted(set(spec.content_columns)))
        column = spec.label_column or spec.tags_column
        if column is None or self.labels is None:
            return content
        labels = [label if isinstance(label, int) else list(label) for label in self.labels]
        return content.remove_columns([column]).add_column(column, labels)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TaskRows:
    """The rows of one task.

    Args:
        train (`PartRows`, *optional*): those of the "train" split; None if the task came without rows.
        validation (`PartRows`, *optional*): those that the data set itself keeps out of training.
        cluster_key (`str`, *optional*): the task's value in the cluster column.
    """

    train: PartRows | None = None
    validation: PartRows | None = None
    cluster_key: str | None = None

    @property
    def parts(self) -> list[PartRows]:
        """The parts that there are, training first."""
        return [part for part in (self.train, self.validation) if part is not None]

    @property
    def num_examples(self) -> int:
        """How many rows it has."""
        return sum(len(part.rows) for part in self.parts)

    @property
    def first_place(self) -> str:
        """Where the first row is; "" if the task came without rows."""
        return "" if self.train is None else self.train.first_place


def read_tasks(dataset: Any, spec: TaskSpec, *, refuse_near_ids: bool = True) -> tuple[TaskSpec, dict[str, TaskRows]]:
    """Read data, check all rows and group them by task.

    Args:
        dataset: what `TaskDataset.from_dataset` takes.
        spec (`TaskSpec`): which column is which.
        refuse_near_ids (`bool`): unless the spec says `ids="as-is"`.

    Returns:
        *tuple*: the spec with its label names, and the rows of each task.

    Raises:
        RecipeError: if both the data and the spec keep examples out of training.
        TaskDataError: if rows cannot be used; the message names task, column and row of up to ten.
    """
    problems = Problems()
    splits = open_splits(dataset, spec, problems)
    spec = with_form(with_label_names(spec, splits, problems), splits)
    parts = [_parts(split, spec, problems) for split in splits]
    check_ids(splits, spec, problems)
    keys = cluster_keys(splits, spec, problems)
    train, validation = parts[0], parts[1] if len(parts) > 1 else None
    if refuse_near_ids and spec.ids != "as-is":
        _note_near_ids(train, spec, problems)
    problems.refuse()
    for task_id in sorted(validation or {}):
        if task_id not in train:
            raise TaskDataError(f"Task {task_id!r} is empty: it has validation rows but no row in the train split.")
    return spec, {
        task_id: TaskRows(
            train=part,
            validation=None if validation is None else validation.get(task_id, _no_rows(splits[1])),
            cluster_key=keys.get(task_id),
        )
        for task_id, part in train.items()
    }


def _note_near_ids(parts: Mapping[str, PartRows], spec: TaskSpec, problems: Problems) -> None:
    """Note ids that look alike: a request for one would leave rows of the same owner under the other."""
    groups = near_names(filter(None, parts))
    if groups:
        shown = describe_near(groups, lambda task_id: parts[task_id].first_place, "ids")
        text = (
            f"Column {spec.task_column!r} has task ids that look alike: {shown}. Forgetting one would leave the rows "
            f"of the other. {ids_remedy(groups)}"
        )
        problems.add(lambda: text)


def _parts(split: Split, spec: TaskSpec, problems: Problems) -> dict[str, PartRows]:
    labels = check_examples(split, spec, problems)
    return {
        task_id: PartRows(
            split=split, rows=rows, labels=None if labels is None else tuple(labels[row] for row in rows.tolist())
        )
        for task_id, rows in rows_of_tasks(split).items()
    }


def _no_rows(split: Split) -> PartRows:
    return PartRows(split=split, rows=np.empty(0, dtype=np.int64), labels=())
