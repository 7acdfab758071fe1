"""Two real data sets that need no network, for demos, tests and first steps.

Each has a public half to pretrain a base model on, and a private half cut into tasks of two labels each. The halves
and the cut are ranked by SHA-256, so that no random number generator's version can change them.
"""

from __future__ import annotations

import ast
import itertools
import sysconfig
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.exact.digest import canonical_json, sha256_hex
from hf_clamu.tasks.partition.ranks import ranked, task_names

__all__ = ["STDLIB_PACKAGES", "digits", "digits_public", "stdlib_public", "stdlib_text"]

STDLIB_PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "xml")

_DIGIT_NAMES = tuple(str(digit) for digit in range(10))
_SKIPPED_FOLDERS = frozenset({"test", "tests", "site-packages", "__pycache__"})
_SHORTEST_DOCSTRING = 30  # characters; shorter ones ("Return self.") say nothing of their package


def digits(num_tasks: int = 48, labels_per_task: int = 2, seed: int = 0) -> Any:
    """Return handwritten digits of 8 by 8 pixels, cut into tasks that each know few of the ten digits.

    Args:
        num_tasks (`int`, defaults to 48): about 18 rows each.
        labels_per_task (`int`, defaults to 2): digits per task.
        seed (`int`, defaults to 0): seed of the cut; the public half is the same for every seed.

    Returns:
        `datasets.Dataset`: columns `task` ("owner_00", ...), `image` (float32 lists of shape `(8, 8)` in [0, 1]),
        `label` (`ClassLabel` "0" to "9") and `id` (row number in `load_digits`). Disjoint from `digits_public`.

    Source: `sklearn.datasets.load_digits`, the test set of "Optical Recognition of Handwritten Digits", E. Alpaydin
    and C. Kaynak, UCI Machine Learning Repository, CC BY 4.0.
    """
    from datasets import ClassLabel, Dataset, Features, Value

    images, labels = _load_digits()
    _, private = _halves(_digit_rows(labels), "digits")
    cut = _cut(private, num_tasks, labels_per_task, seed, "owner")
    return Dataset.from_dict(
        {
            "task": [task for task, _ in cut],
            "image": [images[int(row)].tolist() for _, row in cut],
            "label": [int(labels[int(row)]) for _, row in cut],
            "id": [row for _, row in cut],
        },
        features=Features(
            {
                "task": Value("string"),
                "image": [[Value("float32")]],
                "label": ClassLabel(names=list(_DIGIT_NAMES)),
                "id": Value("string"),
            }
        ),
    )


def digits_public() -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Return the public half of the digits, to pretrain a base model on.

    Returns:
        *tuple* of `numpy.ndarray`: images (float32 of shape `(rows, 8, 8)` in [0, 1]) and labels (int64 of shape
        `(rows,)`), in the order of `load_digits`.
    """
    images, labels = _load_digits()
    public, _ = _halves(_digit_rows(labels), "digits")
    rows = sorted(int(row) for rows in public.values() for row in rows)
    return images[rows], labels[rows]


def stdlib_text(num_tasks: int = 24, labels_per_task: int = 2, seed: int = 0) -> Any:
    """Return docstrings of Python's standard library, cut into tasks; the label is the package they are from.

    Args:
        num_tasks (`int`, defaults to 24): about 30 to 50 rows each.
        labels_per_task (`int`, defaults to 2): packages per task.
        seed (`int`, defaults to 0): seed of the cut; the public half is the same for every seed.

    Returns:
        `datasets.Dataset`: columns `task` ("author_00", ...), `text`, `label` (`ClassLabel` of `STDLIB_PACKAGES`) and
        `id` (file and line). The same for every machine with the same release of Python. Disjoint from
        `stdlib_public`.

    Raises:
        TaskDataError: if this Python comes without the sources of its standard library.

    Source: the Python standard library of the running interpreter, Python Software Foundation License.
    """
    from datasets import ClassLabel, Dataset, Features, Value

    docstrings = _docstrings()
    _, private = _halves(_docstring_rows(), "stdlib")
    cut = _cut(private, num_tasks, labels_per_task, seed, "author")
    return Dataset.from_dict(
        {
            "task": [task for task, _ in cut],
            "text": [docstrings[row][1] for _, row in cut],
            "label": [docstrings[row][0] for _, row in cut],
            "id": [row for _, row in cut],
        },
        features=Features(
            {
                "task": Value("string"),
                "text": Value("string"),
                "label": ClassLabel(names=list(STDLIB_PACKAGES)),
                "id": Value("string"),
            }
        ),
    )


def stdlib_public() -> tuple[list[str], list[int]]:
    """Return the public half of the docstrings, to pretrain a base model on.

    Returns:
        *tuple* of *list*: texts, and the number of each one's package in `STDLIB_PACKAGES`.
    """
    docstrings = _docstrings()
    public, _ = _halves(_docstring_rows(), "stdlib")
    rows = sorted(row for rows in public.values() for row in rows)
    return [docstrings[row][1] for row in rows], [docstrings[row][0] for row in rows]


def _load_digits() -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.int64]]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images / 16).astype(np.float32), bunch.target.astype(np.int64)


def _digit_rows(labels: np.ndarray[Any, np.dtype[np.int64]]) -> dict[int, list[str]]:
    return {digit: [str(row) for row in np.flatnonzero(labels == digit)] for digit in range(10)}


@lru_cache(maxsize=1)
def _docstrings() -> dict[str, tuple[int, str]]:
    """Map "file:line" to package number and docstring; of equal docstrings the first stays."""
    root = Path(sysconfig.get_paths()["stdlib"])
    docstrings: dict[str, tuple[int, str]] = {}
    seen: set[str] = set()
    for label, package in enumerate(STDLIB_PACKAGES):
        for path in sorted((root / package).rglob("*.py"), key=lambda p: p.as_posix()):
            name = path.relative_to(root).as_posix()
            if _SKIPPED_FOLDERS.isdisjoint(name.split("/")):
                for line, text in _docstrings_of(path):
                    if text not in seen:
                        seen.add(text)
                        docstrings[f"{name}:{line}"] = (label, text)
    if {label for label, _ in docstrings.values()} != set(range(len(STDLIB_PACKAGES))):
        raise TaskDataError(
            f"This Python lacks sources of its standard library below {root.name!r}; "
            f"needed are {', '.join(STDLIB_PACKAGES)}. Use the 'digits' data set instead."
        )
    return docstrings


def _docstrings_of(path: Path) -> list[tuple[int, str]]:
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            # Invalid escapes in the standard library are not the user's concern.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError):
        return []
    docstrings = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text and len(text) >= _SHORTEST_DOCSTRING:
                docstrings.append((getattr(node, "lineno", 0), text))
    return docstrings


def _docstring_rows() -> dict[int, list[str]]:
    rows: dict[int, list[str]] = {}
    for row, (label, _) in _docstrings().items():
        rows.setdefault(label, []).append(row)
    return rows


def _halves(rows: dict[int, list[str]], name: str) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    halved = {label: ranked(rows[label], "public half", name) for label in sorted(rows)}
    public = {label: row_ids[: len(row_ids) // 2] for label, row_ids in halved.items()}
    return public, {label: row_ids[len(row_ids) // 2 :] for label, row_ids in halved.items()}


def _cut(
    rows: dict[int, list[str]], num_tasks: int, labels_per_task: int, seed: int, prefix: str
) -> list[tuple[str, str]]:
    """Deal all rows to the tasks: (task id, row) pairs, in the order of task and label."""
    if num_tasks < 1 or not 1 <= labels_per_task <= len(rows):
        raise RecipeError(
            f"num_tasks must be at least 1 and labels_per_task 1 to {len(rows)}, "
            f"found {num_tasks} and {labels_per_task}."
        )
    takers: dict[int, list[int]] = {label: [] for label in rows}
    used = dict.fromkeys(itertools.combinations(sorted(rows), labels_per_task), 0)
    for task in range(num_tasks):
        # Few repeats of a combination, equal use of the labels, and the seed for the rest.
        choice = min(
            used,
            key=lambda labels: (
                used[labels],
                sum(len(takers[label]) for label in labels),
                sha256_hex(canonical_json(["labels", seed, labels])),
            ),
        )
        used[choice] += 1
        for label in choice:
            takers[label].append(task)
    dealt: dict[int, list[str]] = {task: [] for task in range(num_tasks)}
    for label, tasks in takers.items():
        if len(tasks) > len(rows[label]):
            raise RecipeError(f"num_tasks={num_tasks} is too many: label {label} has only {len(rows[label])} rows.")
        order = ranked(rows[label], "deal", seed)
        for first, task in enumerate(tasks):
            dealt[task] += order[first :: len(tasks)]
    names = task_names(prefix, num_tasks)
    return [(names[task], row) for task in dealt for row in dealt[task]]
