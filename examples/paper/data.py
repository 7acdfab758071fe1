"""The data sets of the paper, from the Hub or from local files with the same columns, cut into tasks.

Every loader returns the tasks and a report of what it left out and why; `sources.py` offers them to recipes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.exact import canonical_json, sha256_hex
from hf_clamu.tasks import PartitionReport, TaskDataset

__all__ = [
    "TOFU_TEMPLATE",
    "LoadReport",
    "Statistics",
    "open_rows",
    "require_columns",
    "statistics",
    "tofu",
    "tofu_public",
]

TOFU_TEMPLATE = "Question:{prompt}\nAnswer:"
_ROWS_PER_AUTHOR = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """What a loader read and what it left out.

    Args:
        source (`str`): a Hub id or a file.
        rows (`int`): rows read.
        dropped (*dict* of `str` to `int`): reasons, and how many rows each cost.
        partitions (*dict* of `str` to `PartitionReport`): what the cuts gave, by data set.
        remarks (*tuple* of `str`): what a reader of the numbers should know.
    """

    source: str
    rows: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    partitions: Mapping[str, PartitionReport] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def open_rows(
    hub_id: str, path: str | Path | None = None, *, config: str | None = None, split: str | None = "train"
) -> Any:
    """Read rows from the Hub, or from a local copy.

    Args:
        hub_id (`str`): where they are if there is no local copy.
        path (`str` or `Path`, *optional*): a Parquet, CSV, JSON (rows or columns) or JSON lines file, or a folder that
            `Dataset.save_to_disk` wrote.
        config (`str`, *optional*): the Hub data set's configuration.
        split (`str`, *optional*, defaults to `"train"`): the data set's split; `None` for all of them, one after the
            other.

    Returns:
        `datasets.Dataset`: the rows.

    Raises:
        TaskDataError: if the local copy is missing or no table.
    """
    from datasets import Dataset, load_from_disk

    if path is None:
        return _one(_from_hub(hub_id, config), split)
    path = Path(path)
    if not path.exists():
        raise TaskDataError(f"There is no local copy of {hub_id} at {path}.")
    try:
        if path.is_dir():
            return _one(load_from_disk(str(path)), split)
        if path.suffix == ".parquet":
            from pyarrow import parquet

            return Dataset(parquet.read_table(path))
        if path.suffix == ".csv":
            from pyarrow import csv

            return Dataset(csv.read_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True)))
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            # Not str.splitlines: JSON strings may hold U+2028 and its like.
            return Dataset.from_list([json.loads(line) for line in text.split("\n") if line.strip()])
        values = json.loads(text)
        return Dataset.from_list(values) if isinstance(values, list) else Dataset.from_dict(values)
    # Arrow's, JSON's and UTF-8's errors are all ValueErrors.
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TaskDataError(f"The local copy of {hub_id} at {path} is no table: {error}") from error


def _from_hub(hub_id: str, config: str | None) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(hub_id, config)
    except RuntimeError as error:
        if "script" not in str(error):
            raise
        # Loading scripts are no longer run; the Hub keeps what they gave as Parquet on a branch of its own.
        return load_dataset(hub_id, config, revision="refs/convert/parquet")


def _one(found: Any, split: str | None) -> Any:
    from datasets import DatasetDict, concatenate_datasets

    if not isinstance(found, DatasetDict):
        return found
    return concatenate_datasets([found[name] for name in sorted(found)]) if split is None else found[split]


def tofu(
    *,
    seed: int,
    path: str | Path | None = None,
    num_tasks: int | None = None,
    public_authors: int = 0,
    max_length: int | None = None,
    validation_fraction: float | None = None,
) -> tuple[TaskDataset, LoadReport]:
    """Return TOFU's fictitious authors as tasks of 20 questions each, for a language model.

    The prompt is `Question:{q}\\nAnswer:`, the completion the answer (no space before it) and one EOS token; the loss
    is on the completion alone. The paper measures how well the 20 items of an author are remembered, and an author has
    no others: so by default THE VALIDATION EXAMPLES ARE THE TRAINING EXAMPLES, and scores say what is memorised, not
    what is generalised. `Study` tunes on one half of them and reports the other; all of them were trained on.

    Args:
        seed (`int`): of the choice of authors, and of the validation examples where there is a fraction.
        path (`str` or `Path`, *optional*): a file with columns "question" and "answer", 20 rows per author in a row.
        num_tasks (`int`, *optional*): how many authors; by default all (200).
        public_authors (`int`): authors that are no tasks, to pretrain a base model on (`tofu_public`).
        max_length (`int`, *optional*): tokens per example.
        validation_fraction (`float`, *optional*): part of each author's rows that is kept out of training instead.

    Returns:
        *tuple* of `TaskDataset` ("author_000", ...: `row // 20`) and `LoadReport`.

    Raises:
        RecipeError: if there are fewer authors than `num_tasks`.
        TaskDataError: if the rows are not 20 per author.

    Source: TOFU (arXiv 2401.06121), Hub id `locuslab/TOFU`, configuration `full`.
    """
    from datasets import DatasetDict

    rows = _tofu_rows(path)
    everybody = len(rows) // _ROWS_PER_AUTHOR
    public = set(_public_authors(everybody, public_authors))
    authors = [author for author in map(_author, range(everybody)) if author not in public]
    found = len(authors) if num_tasks is None else num_tasks
    if not 1 <= found <= len(authors):
        raise RecipeError(f"num_tasks must be 1 to {len(authors)}, the number of authors; found {num_tasks!r}.")
    chosen = set(sorted(authors, key=lambda author: sha256_hex(canonical_json(["tofu", seed, author])))[:found])
    rows = _of_authors(rows, chosen)
    is_split = validation_fraction is not None
    tasks = TaskDataset.from_dataset(
        rows if is_split else DatasetDict({"train": rows, "validation": rows}),
        task_column="author",
        prompt_column="question",
        completion_column="answer",
        template=TOFU_TEMPLATE,
        max_length=max_length,
        validation_fraction=validation_fraction or 0.0,
        split_seed=seed,
    )
    left_out = (everybody - len(chosen)) * _ROWS_PER_AUTHOR
    return tasks, LoadReport(
        source="locuslab/TOFU" if path is None else str(path),
        rows=everybody * _ROWS_PER_AUTHOR,
        dropped={"author not drawn": left_out} if left_out else {},
        remarks=() if is_split else ("validation examples are the training examples: scores are of memorisation",),
    )


def tofu_public(num_authors: int, path: str | Path | None = None) -> Any:
    """Return the rows of TOFU authors that `tofu` leaves out, whatever its seed.

    Args:
        num_authors (`int`): how many.
        path (`str` or `Path`, *optional*): see `tofu`.

    Returns:
        `datasets.Dataset`: columns "question", "answer" and "author".
    """
    rows = _tofu_rows(path)
    public = set(_public_authors(len(rows) // _ROWS_PER_AUTHOR, num_authors))
    return _of_authors(rows, public)


def _tofu_rows(path: str | Path | None) -> Any:
    rows = open_rows("locuslab/TOFU", path, config="full")
    require_columns(rows, ("question", "answer"), "locuslab/TOFU")
    if len(rows) == 0 or len(rows) % _ROWS_PER_AUTHOR:
        raise TaskDataError(f"TOFU has {_ROWS_PER_AUTHOR} rows per author, but {len(rows)} rows were found.")
    rows = rows.select_columns(["question", "answer"])
    return rows.add_column("author", [_author(row // _ROWS_PER_AUTHOR) for row in range(len(rows))])


def _of_authors(rows: Any, authors: set[str]) -> Any:
    return rows.select([row for row, author in enumerate(rows["author"]) if author in authors])


def _author(number: int) -> str:
    return f"author_{number:03d}"


def _public_authors(everybody: int, num_authors: int) -> list[str]:
    authors = sorted(map(_author, range(everybody)), key=lambda one: sha256_hex(canonical_json(["tofu-public", one])))
    return authors[:num_authors]


def require_columns(rows: Any, names: tuple[str, ...], hub_id: str) -> None:
    """Raise a `TaskDataError` for the first column that is missing."""
    missing = [name for name in names if name not in rows.column_names]
    if missing:
        raise TaskDataError(f"{hub_id} needs the column {missing[0]!r}; it has {', '.join(rows.column_names)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """A row of the paper's table of data sets.

    Args:
        num_tasks (`int`): tasks.
        examples (*tuple* of numbers): minimum, mean and maximum of the training examples per task.
        validation_examples (*tuple* of numbers): the same of the validation examples.
        num_labels (`int`, *optional*): different labels, or different completions of a language model; `None` where
            most completions occur once, as free answers do.
        mean_tokens (`float`, *optional*): tokens per training example, prompt and completion together; `None` of
            images.
        single_label_share (`float`, *optional*): share of tasks whose examples all have one label; `None` where
            `num_labels` is.
        labels_per_task (*tuple* of numbers, *optional*): minimum, mean and maximum of the different labels of a task;
            `None` where `num_labels` is.
    """

    num_tasks: int
    examples: tuple[int, float, int]
    validation_examples: tuple[int, float, int]
    num_labels: int | None
    mean_tokens: float | None
    single_label_share: float | None
    labels_per_task: tuple[int, float, int] | None


def statistics(tasks: TaskDataset, processor: Any) -> Statistics:
    """Count what is in some tasks; every example is encoded.

    Args:
        tasks (`TaskDataset`): the tasks.
        processor (`transformers.PreTrainedTokenizerBase`, image processor or None): as the model takes its examples.

    Source: the ClAMU paper, Table 6.
    """
    sizes, held_out, kinds = [], [], []
    num_tokens, num_examples = 0, 0
    for task_id in tasks:
        encoded = tasks.encode(task_id, processor)
        sizes.append(len(encoded.train))
        held_out.append(len(encoded.validation))
        kinds.append({_label(example) for example in (*encoded.train, *encoded.validation)})
        num_examples += len(encoded.train)
        num_tokens += sum(len(example["input_ids"]) for example in encoded.train if "input_ids" in example)
    found = set().union(*kinds)
    is_free = tasks.spec.label_column is None and len(found) > num_examples / 2
    return Statistics(
        num_tasks=len(tasks),
        examples=_spread(sizes),
        validation_examples=_spread(held_out),
        num_labels=None if is_free else len(found),
        mean_tokens=num_tokens / num_examples if num_tokens else None,
        single_label_share=None if is_free else sum(len(labels) == 1 for labels in kinds) / len(kinds),
        labels_per_task=None if is_free else _spread([len(labels) for labels in kinds]),
    )


def _label(example: Mapping[str, Any]) -> tuple[int, ...]:
    labels = example["labels"]
    return (int(labels),) if labels.dim() == 0 else tuple(labels[labels != -100].tolist())


def _spread(numbers: list[int]) -> tuple[int, float, int]:
    return min(numbers), sum(numbers) / len(numbers), max(numbers)
