"""A data set cut into tasks: the unit that is finetuned, merged and forgotten."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from hf_clamu.errors import TaskDataError, TaskNotFoundError
from hf_clamu.exact.digest import digest_tensors
from hf_clamu.tasks.conversations import ChatTemplate, template_text
from hf_clamu.tasks.encoding import (
    EncodedTask,
    Example,
    arrange,
    check_shapes,
    encode_rows,
    split_by_content,
    validation_count,
)
from hf_clamu.tasks.keyed_ids import keyed_id
from hf_clamu.tasks.kinds import TaskKind, traits_of
from hf_clamu.tasks.limits import ModelLimits
from hf_clamu.tasks.near_names import hint_at_like
from hf_clamu.tasks.reading.task_rows import TaskRows, read_tasks
from hf_clamu.tasks.spec import IdsSetting, IncompleteRows, TaskSpec
from hf_clamu.tasks.stored import StoredTask

__all__ = ["TaskDataset"]


class TaskDataset:
    """An immutable set of tasks, each with its rows; rows are encoded only when asked for.

    Make one with `TaskDataset.from_dataset`.

    Attributes:
        spec (`TaskSpec`): which column is which, with the label names filled in.
        source (*dict*, *optional*): where the rows came from, as `load_tasks` reads it.
        is_keyed (`bool`): whether the ids are keyed commitments, see `with_key`.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> rows = {"user": ["b", "a", "b"], "text": ["no", "yes", "well"], "label": ["neg", "pos", "neg"]}
    >>> tasks = TaskDataset.from_dataset(
    ...     Dataset.from_dict(rows), task_column="user", text_column="text", label_column="label"
    ... )
    >>> tasks.task_ids, tasks.num_labels, tasks.without("a").spec.label_names
    (('a', 'b'), 2, ('neg', 'pos'))

    ```
    """

    def __init__(
        self,
        spec: TaskSpec,
        tasks: Mapping[str, TaskRows | StoredTask],
        source: Mapping[str, Any] | None,
        *,
        keyed: bool = False,
    ) -> None:
        self.spec = spec
        self.is_keyed = keyed
        self.source = None if source is None else dict(source)
        # Code point order: the same on every machine, whatever its locale.
        self._tasks = {task_id: tasks[task_id] for task_id in sorted(tasks)}

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        task_column: str,
        kind: TaskKind | None = None,
        text_column: str | None = None,
        label_column: str | None = None,
        image_column: str | None = None,
        prompt_column: str | None = None,
        completion_column: str | None = None,
        tokens_column: str | None = None,
        tags_column: str | None = None,
        messages_column: str | None = None,
        tools_column: str | None = None,
        id_column: str | None = None,
        cluster_column: str | None = None,
        label_names: Sequence[str] | None = None,
        template: str = "{prompt}",
        max_length: int | None = None,
        validation_fraction: float = 0.0,
        split_seed: int = 0,
        ids: IdsSetting = "strict",
        incomplete_rows: IncompleteRows = "error",
        chat_template: str | None = None,
        assistant_only_loss: bool = False,
        completion_only_loss: bool | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> TaskDataset:
        """Group a data set's rows by task.

        Args:
            dataset (`Dataset` or `DatasetDict` of datasets, `pandas.DataFrame`, *list* of *dict*, path or paths):
                A `DatasetDict` needs a "train" split; its "validation" (else "test") split becomes the validation
                examples. Paths are CSV, JSON, JSONL or Parquet files.
            task_column (`str`): the column of task ids.
            kind (`str`, *optional*): follows from the columns; "causal-lm" lets a language model answer with labels;
                "seq2seq-lm" must be said, its columns are those of "causal-lm".
            source (*mapping*, *optional*): where the data came from, JSON-able; kept as it is.
            text_column, label_column, image_column, prompt_column, completion_column, tokens_column, tags_column,
                messages_column, tools_column, id_column, cluster_column, label_names, template, max_length,
                validation_fraction, split_seed, ids, incomplete_rows, chat_template (text or a path),
                assistant_only_loss, completion_only_loss: see `TaskSpec`.

        Raises:
            RecipeError: if the columns describe no kind of task, or a setting is out of range.
            TaskDataError: if the rows cannot be used; the message names task, column and row, or file and line, of
                up to ten.
        """
        settings = {name: value for name, value in locals().items() if name not in ("cls", "dataset", "source")}
        settings["chat_template"] = template_text(chat_template)
        return cls.from_spec(dataset, TaskSpec.from_dict(settings), source)

    @classmethod
    def from_spec(
        cls, dataset: Any, spec: TaskSpec, source: Mapping[str, Any] | None = None, *, refuse_near_ids: bool = True
    ) -> TaskDataset:
        """Group a data set's rows by task, as `from_dataset` does.

        With `refuse_near_ids=False` ids that look alike are taken: it was settled earlier which are which tasks.
        """
        return cls(*read_tasks(dataset, spec, refuse_near_ids=refuse_near_ids), source)

    @classmethod
    def without_rows(cls, spec: TaskSpec, task_ids: Iterable[str], *, keyed: bool = False) -> TaskDataset:
        """Return tasks without data, of which only the ids are known: they were finetuned elsewhere.

        Args:
            spec (`TaskSpec`): what their rows would look like.
            task_ids (*iterable* of `str`): the ids.
            keyed (`bool`): whether they are keyed commitments.
        """
        return cls(spec, dict.fromkeys(task_ids, TaskRows()), None, keyed=keyed)

    @property
    def has_rows(self) -> bool:
        """Whether the tasks have rows; of `without_rows` none has."""
        return any(isinstance(task, StoredTask) or task.train is not None for task in self._tasks.values())

    def is_stored(self, task_id: str) -> bool:
        """Return whether a task came as encoded examples, so that `encode` gives them and `rows` has none."""
        return isinstance(self._task(task_id), StoredTask)

    @property
    def origin(self) -> str:
        """Where the rows came from, in words: the names of the files, or that they were given."""
        names: dict[str, None] = {}
        for task in self._tasks.values():
            if isinstance(task, StoredTask):
                names[task.origin] = None
                continue
            for part in task.parts:
                names.update(dict.fromkeys(file.path.name for file in part.split.files))
        return ", ".join(names) or "the data given"

    @property
    def task_ids(self) -> tuple[str, ...]:
        """The ids of the tasks, sorted by code point."""
        return tuple(self._tasks)

    @property
    def num_labels(self) -> int:
        """The size of the declared label space; 0 where there are no labels."""
        return len(self.spec.label_names or ())

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._tasks

    def __repr__(self) -> str:
        return f"TaskDataset({self.spec.kind}, {len(self)} tasks, {self.num_labels} labels)"

    def content(self, task_id: str) -> object:
        """Return what tells these rows from others: the same object in each selection of a data set."""
        return self._task(task_id)

    def num_examples(self, task_id: str) -> int:
        """Return how many rows a task has, training and validation together."""
        return self._task(task_id).num_examples

    def has_validation(self, task_id: str) -> bool:
        """Return whether some of a task's examples are kept out of training; nothing is encoded for it."""
        task = self._task(task_id)
        if isinstance(task, StoredTask):
            return task.num_validation > 0
        if task.train is None or task.validation is not None:
            return task.validation is not None and len(task.validation.rows) > 0
        return validation_count(len(task.train.rows), self.spec.validation_fraction) > 0

    def cluster_key(self, task_id: str) -> str | None:
        """Return the task's value in the cluster column, or None if there is no such column."""
        return self._task(task_id).cluster_key

    def select(self, task_ids: str | Iterable[str]) -> TaskDataset:
        """Return these tasks alone; labels stay those of the whole space.

        Raises:
            TaskNotFoundError: if an id is unknown; no other id is named.
        """
        chosen = {task_id: self._task(task_id) for task_id in _ids(task_ids)}
        return TaskDataset(self.spec, chosen, self.source, keyed=self.is_keyed)

    def without(self, task_ids: str | Iterable[str]) -> TaskDataset:
        """Return all tasks but these; labels stay those of the whole space.

        Raises:
            TaskNotFoundError: if an id is unknown; no other id is named.
        """
        left_out = set(self.select(task_ids))
        return self.select(task_id for task_id in self if task_id not in left_out)

    def first_place(self, task_id: str) -> str:
        """Say where the first row of a task is: file and line, or the number of the row."""
        return self._task(task_id).first_place or self.origin

    def with_ids(self, ids: IdsSetting) -> TaskDataset:
        """Return the same tasks, as if they had been read with another setting for ids."""
        return TaskDataset(dataclasses.replace(self.spec, ids=ids), self._tasks, self.source, keyed=self.is_keyed)

    def merged_with(self, other: TaskDataset) -> TaskDataset:
        """Return the tasks of both; the source stays only if both came from the same.

        Raises:
            TaskDataError: if the specs differ or a task is in both.
        """
        ours, theirs = map(dataclasses.asdict, (self.spec, other.spec))
        unequal = [f"{name} ({ours[name]!r} and {theirs[name]!r})" for name in ours if ours[name] != theirs[name]]
        if unequal:
            raise TaskDataError(f"Task sets with different settings cannot be merged; they differ in {unequal[0]}.")
        shared = sorted(set(self) & set(other))
        if shared:
            raise TaskDataError(f"{_named(shared)} in both task sets; leave them out of one with without().")
        if len(self) and len(other) and self.has_rows != other.has_rows:
            raise TaskDataError(
                f"Task {(self if other.has_rows else other).task_ids[0]!r} comes without rows and others with them; "
                "give the rows of all tasks, or of none."
            )
        if self.is_keyed != other.is_keyed:
            raise TaskDataError("One task set has keyed ids and the other plain ones; key both with the same key.")
        source = self.source if self.source == other.source else None
        return TaskDataset(self.spec, {**self._tasks, **other._tasks}, source, keyed=self.is_keyed)

    def with_key(self, key: str) -> TaskDataset:
        """Return the same tasks under keyed commitments to their ids, so that a ledger holds no names.

        Args:
            key (`str`): a secret: it tells which commitment belongs to an id.

        Raises:
            TaskDataError: if the tasks are keyed already.
        """
        if self.is_keyed:
            raise TaskDataError("These tasks are keyed already; key the tasks with plain ids.")
        if any(map(self.is_stored, self)):  # their validation examples were chosen under the plain ids
            raise TaskDataError("These tasks come as encoded examples, so their ids stay as they are.")
        tasks = {keyed_id(key, task_id): task for task_id, task in self._tasks.items()}
        return TaskDataset(self.spec, tasks, self.source, keyed=True)

    def encode(self, task_id: str, processor: Any, limits: ModelLimits | None = None) -> EncodedTask:
        """Tokenise one task.

        Args:
            task_id (`str`): the task.
            processor (`transformers.PreTrainedTokenizerBase`, image processor, or None for images as they are).
            limits (`ModelLimits`, *optional*): of the model that it is for; a row that it cannot take is refused.

        Returns:
            `EncodedTask`: the examples in canonical order, whatever the order of the rows.

        Raises:
            TaskNotFoundError: if there is no such task.
            TaskDataError: if a row cannot be encoded; the message names task, column and row.
        """
        task = self._task(task_id)
        if isinstance(task, StoredTask):
            return task.read()
        if task.train is None:
            return EncodedTask(task_id=task_id, train=(), validation=(), digest=None)
        encoded = [encode_rows(self.spec, task_id, part, processor, limits) for part in task.parts]
        if traits_of(self.spec.kind).reads == "image":
            check_shapes(self.spec, task_id, list(zip(task.parts, encoded, strict=True)))
        validation = encoded[1] if len(encoded) > 1 else None
        template = ChatTemplate(self.spec, processor).digest if self.spec.conversational else None
        return arrange(self.spec, task_id, encoded[0], validation, task.cluster_key, template)

    def rows(self, task_id: str, processor: Any, split: Literal["train", "validation", "all"] = "all") -> Any:
        """Return a task's rows as they came, with their labels as numbers.

        Args:
            task_id (`str`): the task.
            processor (*optional*): as for `encode`; it decides which examples are kept out of training.
            split (`str`, defaults to `"all"`): "train", "validation" or "all".

        Returns:
            `datasets.Dataset`: the content columns, in the order of `encode`'s examples, training ones first.

        Raises:
            TaskNotFoundError: if there is no such task.
            TaskDataError: if a row cannot be encoded.
        """
        from datasets import concatenate_datasets

        task = self._task(task_id)
        if isinstance(task, StoredTask) or task.train is None:
            raise TaskDataError(f"Task {task_id!r} came without rows.")
        encoded = [encode_rows(self.spec, task_id, part, processor) for part in task.parts]
        rows = concatenate_datasets([part.content(self.spec) for part in task.parts])
        return rows.select(_order(self.spec, task_id, encoded, split))

    def _task(self, task_id: str) -> TaskRows | StoredTask:
        if task_id in self._tasks:
            return self._tasks[task_id]
        hint = hint_at_like([task_id], self._tasks)  # as in `require_merged`
        raise TaskNotFoundError(f"There is no task {task_id!r} among the {len(self)} tasks of {self.origin}.{hint}")


def _order(spec: TaskSpec, task_id: str, encoded: Sequence[Sequence[Example]], split: str) -> list[int]:
    """Return the numbers of a task's rows in the order of its examples; its parts are numbered through."""
    numbers = iter(range(sum(map(len, encoded))))
    digests = [[(digest_tensors(example), next(numbers)) for example in examples] for examples in encoded]
    train, validation = split_by_content(spec, task_id, digests[0], digests[1] if len(digests) > 1 else None)
    return [row for _, row in {"train": train, "validation": validation, "all": [*train, *validation]}[split]]


def _ids(task_ids: str | Iterable[str]) -> list[str]:
    return [task_ids] if isinstance(task_ids, str) else list(task_ids)


def _named(task_ids: list[str]) -> str:
    shown = ", ".join(repr(task_id) for task_id in task_ids[:5]) + (", ..." if len(task_ids) > 5 else "")
    return f"Task {shown} is" if len(task_ids) == 1 else f"Tasks {shown} are"
