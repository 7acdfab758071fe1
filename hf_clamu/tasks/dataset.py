"""A data set cut into tasks: the unit that is finetuned, merged and forgotten."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hf_clamu.errors import RecipeError, TaskDataError, TaskNotFoundError
from hf_clamu.exact.digest import digest_tensors
from hf_clamu.tasks.columns import Label, Split, check_examples, open_split, rows_of_tasks, with_label_names
from hf_clamu.tasks.encoding import (
    EncodedTask,
    Example,
    arrange,
    example_encoder,
    split_by_content,
    validation_count,
)
from hf_clamu.tasks.files import read_files
from hf_clamu.tasks.kinds import TaskKind
from hf_clamu.tasks.limits import ModelLimits
from hf_clamu.tasks.near_names import warn_of_near_names
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["TaskDataset", "keyed_id"]

_RowNumbers = np.ndarray[Any, np.dtype[np.int64]]


def keyed_id(key: str, task_id: str) -> str:
    """Return the keyed commitment to a task id: HMAC-SHA256, 64 hexadecimal digits.

    Raises:
        RecipeError: if the key is empty: anybody could compute such a commitment.
    """
    if not key:
        raise RecipeError("task_id_key is empty, so anybody could tell whose commitment is whose. Give a secret.")
    return hmac.new(key.encode("utf-8"), task_id.encode("utf-8"), "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Part:
    """Rows of one task in one split. The split is shared by all its tasks, so nothing is copied."""

    split: Split
    rows: _RowNumbers
    labels: tuple[Label, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Task:
    train: _Part | None
    validation: _Part | None
    cluster_key: str | None


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
        self, spec: TaskSpec, tasks: Mapping[str, _Task], source: Mapping[str, Any] | None, *, keyed: bool = False
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
        id_column: str | None = None,
        cluster_column: str | None = None,
        label_names: Sequence[str] | None = None,
        template: str = "{prompt}",
        max_length: int | None = None,
        validation_fraction: float = 0.0,
        split_seed: int = 0,
        source: Mapping[str, Any] | None = None,
    ) -> TaskDataset:
        """Cut a data set into tasks.

        Args:
            dataset (`Dataset` or `DatasetDict` of datasets, `pandas.DataFrame`, *list* of *dict*, path or paths):
                A `DatasetDict` needs a "train" split; its "validation" (else "test") split becomes the validation
                examples. Paths are CSV, JSON, JSONL or Parquet files.
            task_column (`str`): the column of task ids.
            kind (`str`, *optional*): follows from the columns; "causal-lm" lets a language model answer with labels;
                "seq2seq-lm" must be said, its columns are those of "causal-lm".
            source (*mapping*, *optional*): where the data came from, JSON-able; kept as it is.
            text_column, label_column, image_column, prompt_column, completion_column, tokens_column, tags_column,
                id_column, cluster_column, label_names, template, max_length, validation_fraction, split_seed: see
                `TaskSpec`.

        Raises:
            RecipeError: if the columns describe no kind of task, or a setting is out of range.
            TaskDataError: if the rows cannot be used; the message names task, column and row.
        """
        spec = TaskSpec.from_dict(
            {
                "kind": kind,
                "task_column": task_column,
                "text_column": text_column,
                "prompt_column": prompt_column,
                "completion_column": completion_column,
                "tokens_column": tokens_column,
                "tags_column": tags_column,
                "image_column": image_column,
                "label_column": label_column,
                "id_column": id_column,
                "cluster_column": cluster_column,
                "label_names": label_names,
                "template": template,
                "max_length": max_length,
                "validation_fraction": validation_fraction,
                "split_seed": split_seed,
            }
        )
        splits = [open_split(name, rows, spec, files) for name, rows, files in _splits_of(dataset, spec)]
        spec = with_label_names(spec, splits)
        parts = [_parts(split, spec) for split in splits]
        _check_ids(splits, spec)
        train, validation = parts[0], parts[1] if len(parts) > 1 else None
        for task_id in sorted(validation or {}):
            if task_id not in train:
                raise TaskDataError(
                    f"Task {task_id!r} is empty: it has validation rows but no row in the train split."
                )
        warn_of_near_names(
            train, f"Ids of tasks (column {task_column!r})", "tasks, and forgetting one leaves the others"
        )
        warn_of_near_names(spec.label_names or (), "Labels", "labels")
        keys = _cluster_keys(splits, spec)
        tasks = {
            task_id: _Task(
                train=part,
                validation=None if validation is None else validation.get(task_id, _empty(splits[1])),
                cluster_key=keys.get(task_id),
            )
            for task_id, part in train.items()
        }
        return cls(spec, tasks, source)

    @classmethod
    def without_rows(cls, spec: TaskSpec, task_ids: Iterable[str], *, keyed: bool = False) -> TaskDataset:
        """Return tasks of which the ids alone are known: they were finetuned elsewhere, and nobody gives their data.

        Args:
            spec (`TaskSpec`): what their rows would look like.
            task_ids (*iterable* of `str`): the ids.
            keyed (`bool`): whether they are keyed commitments.
        """
        nothing = _Task(train=None, validation=None, cluster_key=None)
        return cls(spec, dict.fromkeys(task_ids, nothing), None, keyed=keyed)

    @property
    def has_rows(self) -> bool:
        """Whether the tasks have rows; of `without_rows` none has."""
        return any(task.train is not None for task in self._tasks.values())

    @property
    def origin(self) -> str:
        """Where the rows came from, in words: the names of the files, or that they were given."""
        names: dict[str, None] = {}
        for task in self._tasks.values():
            for part in (task.train, task.validation):
                names.update(dict.fromkeys(name for name, _ in part.split.files) if part is not None else {})
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

    def num_examples(self, task_id: str) -> int:
        """Return how many rows a task has, training and validation together."""
        task = self._task(task_id)
        return sum(len(part.rows) for part in (task.train, task.validation) if part is not None)

    def has_validation(self, task_id: str) -> bool:
        """Return whether some of a task's examples are kept out of training; nothing is encoded for it."""
        task = self._task(task_id)
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
        left_out = set(_ids(task_ids))
        for task_id in sorted(left_out):
            self._task(task_id)
        return self.select(task_id for task_id in self if task_id not in left_out)

    def merged_with(self, other: TaskDataset) -> TaskDataset:
        """Return the tasks of both; the source stays only if both came from the same.

        Raises:
            TaskDataError: if the specs differ or a task is in both.
        """
        ours, theirs = self.spec.to_dict(), other.spec.to_dict()
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
        """Return the same tasks under keyed commitments to their ids, so that a ledger names nobody.

        Args:
            key (`str`): a secret; whoever holds it can tell which commitment belongs to an id.

        Raises:
            TaskDataError: if the tasks are keyed already.
        """
        if self.is_keyed:
            raise TaskDataError("These tasks are keyed already; key the tasks with plain ids.")
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
        if task.train is None:
            return EncodedTask(task_id=task_id, train=(), validation=(), digest=None)
        train = self._encode_part(task_id, task.train, processor, limits)
        validation = (
            None if task.validation is None else self._encode_part(task_id, task.validation, processor, limits)
        )
        if self.spec.traits.reads == "image":
            self._check_shapes(task_id, task, train, validation)
        return arrange(self.spec, task_id, train, validation, task.cluster_key)

    def rows(self, task_id: str, processor: Any, split: Literal["train", "validation", "all"] = "all") -> Any:
        """Return a task's rows as they came, with their labels as numbers.

        Args:
            task_id (`str`): the task.
            processor (`transformers.PreTrainedTokenizerBase`, image processor, or None): as for `encode`; which
                examples are kept out of training depends on what they are encoded to.
            split (`str`, defaults to `"all"`): "train", "validation" or "all".

        Returns:
            `datasets.Dataset`: the content columns, in the order of `encode`'s examples, training ones first.

        Raises:
            TaskNotFoundError: if there is no such task.
            TaskDataError: if a row cannot be encoded.
        """
        from datasets import concatenate_datasets

        task = self._task(task_id)
        if task.train is None:
            raise TaskDataError(f"Task {task_id!r} came without rows.")
        parts = [task.train] if task.validation is None else [task.train, task.validation]
        encoded = [self._encode_part(task_id, part, processor) for part in parts]
        # Rows are numbered through both parts, as they stand in the result before it is put in order.
        numbers = iter(range(sum(map(len, encoded))))
        digests = [[(digest_tensors(example), next(numbers)) for example in examples] for examples in encoded]
        train, validation = split_by_content(self.spec, task_id, digests[0], digests[1] if len(digests) > 1 else None)
        chosen = {"train": train, "validation": validation, "all": [*train, *validation]}[split]
        return concatenate_datasets([self._rows_of(part) for part in parts]).select([number for _, number in chosen])

    def _rows_of(self, part: _Part) -> Any:
        found = part.split.dataset.select(part.rows).select_columns(sorted(set(self.spec.content_columns)))
        column = self.spec.label_column or self.spec.tags_column
        if column is None or part.labels is None:
            return found
        labels = [label if isinstance(label, int) else list(label) for label in part.labels]
        return found.remove_columns([column]).add_column(column, labels)

    def _encode_part(
        self, task_id: str, part: _Part, processor: Any, limits: ModelLimits | None = None
    ) -> list[Example]:
        columns = sorted(set(self.spec.content_columns))
        encode = example_encoder(self.spec, processor, limits)
        examples = []
        for number, row in enumerate(part.rows.tolist()):
            # One row at a time: a task's images need never be decoded together.
            values = part.split.dataset[row]
            try:
                examples.append(encode(values, None if part.labels is None else part.labels[number]))
            except TaskDataError as error:
                content = [name for name in columns if name not in (self.spec.label_column, self.spec.tags_column)]
                where = part.split.place(task_id, " + ".join(content), row)
                raise TaskDataError(f"{where}: {error}.") from error
        return examples

    def _check_shapes(self, task_id: str, task: _Task, train: list[Example], validation: list[Example] | None) -> None:
        expected = tuple(train[0]["pixel_values"].shape)
        for part, examples in ((task.train, train), (task.validation, validation or [])):
            for number, example in enumerate(examples):
                shape = tuple(example["pixel_values"].shape)
                if part is not None and shape != expected:
                    where = part.split.place(task_id, self.spec.image_column, int(part.rows[number]))
                    raise TaskDataError(f"{where}: image of shape {shape}, but the task's first has {expected}.")

    def _task(self, task_id: str) -> _Task:
        if task_id in self._tasks:
            return self._tasks[task_id]
        # Near ids are not suggested, as in `missing_tasks`: they are those of other owners.
        raise TaskNotFoundError(f"There is no task {task_id!r} among the {len(self)} tasks of {self.origin}.")


def _ids(task_ids: str | Iterable[str]) -> list[str]:
    return [task_ids] if isinstance(task_ids, str) else list(task_ids)


def _named(task_ids: list[str]) -> str:
    shown = ", ".join(repr(task_id) for task_id in task_ids[:5]) + (", ..." if len(task_ids) > 5 else "")
    return f"Task {shown} is" if len(task_ids) == 1 else f"Tasks {shown} are"


_Files = tuple[tuple[str, int], ...]


def _splits_of(dataset: Any, spec: TaskSpec) -> list[tuple[str, Any, _Files]]:
    from datasets import Dataset, DatasetDict

    if isinstance(dataset, (str, Path)):
        dataset = [dataset]
    if isinstance(dataset, (list, tuple)) and dataset and all(isinstance(row, Mapping) for row in dataset):
        dataset = _made_of("a list of rows", lambda: Dataset.from_list(list(dataset)))
    if type(dataset).__name__ == "DataFrame" and hasattr(dataset, "to_dict"):
        frame = dataset
        dataset = _made_of("a DataFrame", lambda: Dataset.from_pandas(frame, preserve_index=False))
    if isinstance(dataset, (list, tuple)) and all(isinstance(path, (str, Path)) for path in dataset):
        rows, files = read_files([Path(path) for path in dataset], spec)
        return [("train", rows, files)]
    if isinstance(dataset, Dataset):
        return [("train", dataset, ())]
    if type(dataset).__name__ in ("IterableDataset", "IterableDatasetDict"):
        raise TaskDataError(
            "A stream can be read once and in one order, and tasks are read many times. Give a data set that is "
            "loaded (streaming=False), or datasets.Dataset.from_list(list(stream))."
        )
    if not isinstance(dataset, DatasetDict):
        raise TaskDataError(
            "Expected a datasets.Dataset, a datasets.DatasetDict, a DataFrame, rows or paths of CSV, JSON, JSONL or "
            "Parquet files, "
            f"found {type(dataset).__name__}."
        )
    if "train" not in dataset:
        raise TaskDataError(f"The data set has no 'train' split, only {', '.join(dataset) or 'nothing'}.")
    held_out = [name for name in ("validation", "test") if name in dataset][:1]
    if held_out and spec.validation_fraction > 0:
        raise RecipeError(
            f"validation_fraction must be 0 here: the data set brings its own {held_out[0]!r} split. "
            "Pass dataset['train'] alone to split it."
        )
    return [("train", dataset["train"], ()), *((name, dataset[name], ()) for name in held_out)]


def _made_of(what: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (ValueError, TypeError, OverflowError, KeyError) as error:
        raise TaskDataError(
            f"The columns of {what} make no table: {' '.join(str(error).split())}. Give the values of a column one "
            "type."
        ) from error


def _parts(split: Split, spec: TaskSpec) -> dict[str, _Part]:
    labels = check_examples(split, spec)
    return {
        task_id: _Part(
            split=split, rows=rows, labels=None if labels is None else tuple(labels[row] for row in rows.tolist())
        )
        for task_id, rows in rows_of_tasks(split).items()
    }


def _empty(split: Split) -> _Part:
    return _Part(split=split, rows=np.empty(0, dtype=np.int64), labels=())


def _check_ids(splits: list[Split], spec: TaskSpec) -> None:
    if spec.id_column is None:
        return
    seen: dict[Any, tuple[str, int]] = {}
    for split in splits:
        for row, value in enumerate(split.column(spec.id_column)):
            where = split.place(split.task_ids[row], spec.id_column, row)
            if value is None:
                raise TaskDataError(f"{where}: the example id is null.")
            if not isinstance(value, (str, int)):
                raise TaskDataError(
                    f"{where}: an example id is a text or a whole number, found {type(value).__name__}."
                )
            if value in seen:
                name, first = seen[value]
                raise TaskDataError(f"{where}: the id {value!r} occurs already in row {first} of the {name} split.")
            seen[value] = (split.name, row)


def _cluster_keys(splits: list[Split], spec: TaskSpec) -> dict[str, str]:
    keys: dict[str, str] = {}
    if spec.cluster_column is None:
        return keys
    for split in splits:
        for row, (task_id, value) in enumerate(zip(split.task_ids, split.column(spec.cluster_column), strict=True)):
            where = split.place(task_id, spec.cluster_column, row)
            if value is None:
                raise TaskDataError(f"{where}: the cluster key is null.")
            if keys.setdefault(task_id, str(value)) != str(value):
                raise TaskDataError(f"{where}: cluster key {str(value)!r}, but an earlier row has {keys[task_id]!r}.")
    return keys
