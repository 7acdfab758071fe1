"""Arrow tables from rows, and which columns of a file are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.conversations import as_texts
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["TableBuilder", "columns_to_read", "require_once"]

_BATCH_ROWS = 1000


_BATCH_CHARACTERS = 2**23


def columns_to_read(names: Sequence[str], spec: TaskSpec, partial: bool) -> list[str]:
    """Return the columns to read of those that a file has.

    Args:
        names (*sequence* of `str`): the file's columns.
        spec (`TaskSpec`): names the columns that are wanted.
        partial (`bool`): columns may be missing.

    Raises:
        TaskDataError: if a wanted column is missing or there twice.
    """
    wanted = spec.columns
    missing = {column: field for column, field in wanted.items() if column not in names}
    if missing and not partial:
        column, field = next(iter(missing.items()))
        raise TaskDataError(f"the file has no column {column!r} ({field}); it has {', '.join(names)}.")
    require_once(wanted, names)
    return [column for column in wanted if column in names]


def require_once(wanted: Iterable[str], names: Sequence[str]) -> None:
    """Refuse a file that has a wanted column twice."""
    for column in wanted:
        if list(names).count(column) > 1:
            raise TaskDataError(f"the file has two columns {column!r}; rename one of them.")


class TableBuilder:
    """Collects rows into Arrow tables, batch by batch: as Python objects they would take many times the memory."""

    def __init__(self, spec: TaskSpec) -> None:
        self._names, self._texts, self._messages = spec.name_columns, spec.text_columns, spec.message_columns
        self._values: dict[str, list[Any]] = {name: [] for name in spec.columns}
        self._types: dict[str, type] = {}
        self._tables: list[Any] = []
        self._characters = 0
        self.num_rows = 0

    def add(self, row: Mapping[str, Any], position: str) -> None:
        """Take the columns of a row.

        Raises:
            TaskDataError: naming row and column of a value that is not usable.
        """
        for name, values in self._values.items():
            value = row.get(name)
            if name in self._names:
                value = self._name(value, name, position)
            elif name in self._messages:
                value = self._messages_of(value, name, position)
            elif name in self._texts and not isinstance(value, (str, type(None))):
                raise TaskDataError(
                    f"{position}, column {name!r}: expected a text, found {_shown(value)}. Write it in quotes."
                )
            self._characters += len(value) if isinstance(value, str) else 8
            self._characters += sum(map(len, value)) if name in self._messages and isinstance(value, list) else 0
            values.append(value)
        self.num_rows += 1
        if len(next(iter(self._values.values()))) >= _BATCH_ROWS or self._characters > _BATCH_CHARACTERS:
            self._flush()

    def _name(self, value: Any, name: str, position: str) -> str | None:
        if value is None:
            return None
        # bool is a kind of int.
        kind = next((kind for kind in (str, bool, int) if isinstance(value, kind)), None)
        if kind is None:
            raise TaskDataError(
                f"{position}, column {name!r}: ids and labels are non-empty strings or whole numbers, found "
                f"{_shown(value)}. Write it in quotes."
            )
        if self._types.setdefault(name, kind) is not kind:
            raise TaskDataError(
                f"{position}, column {name!r}: found {_shown(value)}, where rows before it have values of another "
                f"type ({self._types[name].__name__}). Are 1 and '1' the same? Write all of them in quotes."
            )
        return str(value).lower() if kind is bool else str(value)

    def _messages_of(self, value: Any, name: str, position: str) -> Any:
        """Return a cell that is a text, or a list of messages, of which it keeps the texts."""
        if value is None:
            return None
        if not isinstance(value, (str, list)):
            problem = "expected a list of messages" if name not in self._texts else "expected a text or messages"
            raise TaskDataError(f"{position}, column {name!r}: {problem}, found {_shown(value)}.")
        if self._types.setdefault(name, type(value)) is not type(value):
            raise TaskDataError(
                f"{position}, column {name!r}: found {_shown(value)}, where rows before it have "
                f"{'texts' if self._types[name] is str else 'lists'}. Give all as texts, or all as lists of messages."
            )
        return as_texts(value)

    def _flush(self) -> None:
        import pyarrow as pa
        from datasets import Dataset

        columns = {}
        message_types: dict[type | None, Any] = {str: pa.string(), list: pa.list_(pa.string())}
        for name, values in self._values.items():
            if name in self._messages:
                # Of which type they are shows with the first that is not null; tables without any fit both.
                columns[name] = pa.array(values, type=message_types.get(self._types.get(name), pa.null()))
            elif name in self._names or name in self._texts:
                columns[name] = pa.array(values, type=pa.string())
            else:
                try:
                    columns[name] = Dataset.from_dict({name: values}).data.table[name]
                except (ValueError, TypeError, OverflowError) as error:
                    raise TaskDataError(
                        f"column {name!r} in the {len(values)} rows up to row {self.num_rows}: "
                        f"{' '.join(str(error).split())}"
                    ) from error
            self._values[name] = []
        self._characters = 0
        self._tables.append(pa.table(columns))

    def tables(self) -> list[Any]:
        """Return what was collected."""
        if next(iter(self._values.values())):
            self._flush()
        return self._tables


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) < 80 else text[:80] + '…'} ({type(value).__name__})"
