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
from hf_clamu.tasks import TaskDataset

__all__ = ["TOFU_TEMPLATE", "LoadReport", "open_rows", "tofu", "tofu_public"]

TOFU_TEMPLATE = "Question:{prompt}\nAnswer:"
_ROWS_PER_AUTHOR = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """What a loader read and what it left out.

    Args:
        source (`str`): a Hub id or a file.
        rows (`int`): rows read.
        dropped (*dict* of `str` to `int`): reasons, and how many rows each cost.
        remarks (*tuple* of `str`): what a reader of the numbers should know.
    """

    source: str
    rows: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def open_rows(hub_id: str, path: str | Path | None = None, *, config: str | None = None, split: str = "train") -> Any:
    """Read rows from the Hub, or from a local copy.

    Args:
        hub_id (`str`): where they are if there is no local copy.
        path (`str` or `Path`, *optional*): a Parquet, CSV, JSON (rows or columns) or JSON lines file, or a folder that
            `Dataset.save_to_disk` wrote.
        config (`str`, *optional*): the Hub data set's configuration.
        split (`str`, defaults to `"train"`): the Hub data set's split.

    Returns:
        `datasets.Dataset`: the rows.

    Raises:
        TaskDataError: if the local copy is missing or no table.
    """
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    if path is None:
        return load_dataset(hub_id, config, split=split)
    path = Path(path)
    if not path.exists():
        raise TaskDataError(f"There is no local copy of {hub_id} at {path}.")
    try:
        if path.is_dir():
            found = load_from_disk(str(path))
            return found[split] if isinstance(found, DatasetDict) else found
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
    rows = rows.select([row for row in range(len(rows)) if rows[row]["author"] in chosen])
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
    return rows.select([row for row in range(len(rows)) if rows[row]["author"] in public])


def _tofu_rows(path: str | Path | None) -> Any:
    rows = open_rows("locuslab/TOFU", path, config="full")
    _require_columns(rows, ("question", "answer"), "locuslab/TOFU")
    if len(rows) == 0 or len(rows) % _ROWS_PER_AUTHOR:
        raise TaskDataError(f"TOFU has {_ROWS_PER_AUTHOR} rows per author, but {len(rows)} rows were found.")
    rows = rows.select_columns(["question", "answer"])
    return rows.add_column("author", [_author(row // _ROWS_PER_AUTHOR) for row in range(len(rows))])


def _author(number: int) -> str:
    return f"author_{number:03d}"


def _public_authors(everybody: int, num_authors: int) -> list[str]:
    authors = sorted(map(_author, range(everybody)), key=lambda one: sha256_hex(canonical_json(["tofu-public", one])))
    return authors[:num_authors]


def _require_columns(rows: Any, names: tuple[str, ...], hub_id: str) -> None:
    missing = [name for name in names if name not in rows.column_names]
    if missing:
        raise TaskDataError(f"{hub_id} needs the column {missing[0]!r}; it has {', '.join(rows.column_names)}.")
