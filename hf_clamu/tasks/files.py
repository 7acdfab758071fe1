"""Tables from files: CSV, JSON, JSON lines and Parquet, read without a cache that could go stale.

Only the columns that a `TaskSpec` names are read, whatever else is in a file. Ids and labels are names: they are text,
whatever they look like, so that 007 and true stay what they are.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["SUFFIXES", "read_files"]

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")

_BATCH_ROWS = 1000
_BATCH_CHARACTERS = 2**23
# A row of a CSV file must fit into a block.
_CSV_BLOCK = 2**26
# Text of a language model packs four to one; a file that grows more than this is made to fill the memory.
_MOST_GROWTH = 64
_ALWAYS_FITS = 2**30


def read_files(
    paths: Sequence[Path], spec: TaskSpec, *, partial: bool = False
) -> tuple[Any, tuple[tuple[str, int], ...]]:
    """Read files one after the other into one data set of the columns that a spec names.

    Args:
        paths (*sequence* of `Path`): files ending in .csv, .json, .jsonl or .parquet.
        spec (`TaskSpec`): names the columns.
        partial (`bool`): columns may be missing.

    Returns:
        *tuple*: all rows (`datasets.Dataset`), and the name and number of rows of each file.

    Raises:
        TaskDataError: if a file is missing, is no table, lacks a column, or the files do not fit together.
    """
    from datasets import concatenate_datasets

    if not paths:
        raise TaskDataError("The list of data files is empty.")
    tables = [_read_file(path, spec, partial) for path in paths]
    sizes = tuple((path.name, len(table)) for path, table in zip(paths, tables, strict=True))
    if len(tables) == 1:
        return tables[0], sizes
    try:
        return concatenate_datasets(tables), sizes
    except (ValueError, TypeError) as error:
        names = ", ".join(path.name for path in paths)
        raise TaskDataError(f"The columns of {names} do not fit together: {error}") from error


def _read_file(path: Path, spec: TaskSpec, partial: bool) -> Any:
    if path.suffix.lower() not in SUFFIXES:
        raise TaskDataError(f"Cannot read {path.name!r}: expected a file ending in {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise TaskDataError(f"There is no data file {path}.")
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    kind = path.suffix[1:].upper()
    try:
        return readers.get(path.suffix.lower(), _read_json)(path, spec, partial)
    except TaskDataError as error:
        raise TaskDataError(f"{path.name}: {error}") from error
    # Of Arrow, JSON, UTF-8 and the disk; Arrow's are ValueErrors, TypeErrors, KeyErrors and more.
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError, NotImplementedError) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise TaskDataError(f"Cannot read {path.name!r} as {kind}: {problem}") from error


def _columns(names: Sequence[str], spec: TaskSpec, partial: bool) -> list[str]:
    """Return the columns to read of those that a file has."""
    wanted = spec.columns
    missing = {column: field for column, field in wanted.items() if column not in names}
    if missing and not partial:
        column, field = next(iter(missing.items()))
        hint = ""
        for letter, name in ((";", "semicolons"), ("\t", "tabs")):
            if len(names) == 1 and letter in names[0]:
                hint = f" It is separated by {name}; write commas."
        raise TaskDataError(f"the file has no column {column!r} ({field}); it has {', '.join(names)}.{hint}")
    for column in wanted:
        if list(names).count(column) > 1:
            raise TaskDataError(f"the file has two columns {column!r}; rename one of them.")
    return [column for column in wanted if column in names]


def _read_csv(path: Path, spec: TaskSpec, partial: bool) -> Any:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset
    from pyarrow import csv as arrow

    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            header = next(csv.reader(file))
        except StopIteration:
            raise TaskDataError("the file is empty; its first line names the columns.") from None
        except csv.Error as error:
            raise TaskDataError(f"the first line does not name columns ({error}).") from error
    columns = _columns(header, spec, partial)
    if not columns:
        raise TaskDataError(f"the file has none of the columns {', '.join(spec.columns)}.")
    try:
        table = arrow.read_csv(
            path,
            read_options=arrow.ReadOptions(block_size=min(max(path.stat().st_size, 2**20), _CSV_BLOCK)),
            parse_options=arrow.ParseOptions(newlines_in_values=True),
            # CSV has no types, and texts like "null" or 2020-01-01 must stay what they are.
            convert_options=arrow.ConvertOptions(
                include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), null_values=[""]
            ),
        )
    except pa.ArrowInvalid as error:
        if "straddling" not in str(error):
            raise
        raise TaskDataError(
            f"a row is larger than {_CSV_BLOCK // 2**20} MiB, or a quotation mark is not closed. Write it as JSON "
            "lines, or close it."
        ) from error
    return Dataset(table)


def _read_parquet(path: Path, spec: TaskSpec, partial: bool) -> Any:
    import pyarrow as pa
    from datasets import Dataset
    from pyarrow import parquet

    limit = max(_ALWAYS_FITS, _MOST_GROWTH * path.stat().st_size)
    with parquet.ParquetFile(path) as file:
        columns = _columns(file.schema_arrow.names, spec, partial)
        metadata = file.metadata
        # What is said to be in it, before anything is unpacked, and then what is in it.
        said = sum(
            group.column(number).total_uncompressed_size
            for group in (metadata.row_group(n) for n in range(metadata.num_row_groups))
            for number in range(group.num_columns)
            if group.column(number).path_in_schema.split(".")[0] in columns
        )
        _require_size(said, limit)
        batches, size = [], 0
        for batch in file.iter_batches(batch_size=64, columns=columns):
            size += batch.nbytes
            _require_size(size, limit)
            batches.append(batch)
        schema = pa.schema([file.schema_arrow.field(name) for name in columns], metadata=file.schema_arrow.metadata)
    table = pa.Table.from_batches(batches, schema=batches[0].schema if batches else schema)
    features = Dataset(table.slice(0, 0).replace_schema_metadata(schema.metadata)).features
    table = table.replace_schema_metadata(schema.metadata).combine_chunks()
    for place, name in enumerate(columns):
        if name in spec.name_columns and _is_plain_name(table.schema.field(name).type):
            if getattr(features[name], "names", None) is not None:
                continue  # numbers that stand for the names of a ClassLabel
            table = table.set_column(place, name, table[name].cast(pa.string()))
    return Dataset(table)


def _require_size(size: int, limit: int) -> None:
    if size > limit:
        raise TaskDataError(
            f"its columns unpack to more than {limit // 2**20:,} MiB, {_MOST_GROWTH} times the size of the file and "
            "more. No text packs so well: check where it comes from."
        )


def _is_plain_name(kind: Any) -> bool:
    from pyarrow import types

    return bool(
        types.is_integer(kind)
        or types.is_boolean(kind)
        or types.is_temporal(kind)
        or types.is_large_string(kind)
        or types.is_dictionary(kind)
    )


def _read_json(path: Path, spec: TaskSpec, partial: bool) -> Any:
    import pyarrow as pa
    from datasets import Dataset

    names: dict[str, None] = {}
    builder = _Columns(spec)
    for place, row in _json_rows(path):
        if not isinstance(row, dict):
            raise TaskDataError(f"{place}: expected one object per row, either one per line or in a list.")
        names.update(dict.fromkeys(row))
        builder.add(row, place)
    if not builder.num_rows:
        raise TaskDataError("the file has no rows.")
    columns = _columns(list(names), spec, partial)
    if not columns:
        raise TaskDataError(f"the rows have none of the columns {', '.join(spec.columns)}.")
    tables = [table.select(columns) for table in builder.tables()]
    return Dataset(pa.concat_tables(tables, promote_options="permissive").combine_chunks())


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row with its place; no more than one line, or the text of a list, is in memory."""
    decoder = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique)
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        start = ""
        while not start.strip():
            start = file.readline()
            if not start:
                return
        file.seek(0)
        if start.lstrip().startswith("["):
            yield from _listed(file.read(), decoder)
            return
        # Not str.splitlines: JSON strings may hold U+2028 and its like.
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = decoder.decode(line.strip())
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error
                yield f"line {number}", row


def _listed(text: str, decoder: json.JSONDecoder) -> Iterator[tuple[str, Any]]:
    place, number, space = text.index("[") + 1, 0, " \t\r\n"

    def skip(place: int) -> int:
        while place < len(text) and text[place] in space:
            place += 1
        return place

    place = skip(place)
    while text[place : place + 1] != "]":
        row, place = decoder.raw_decode(text, place)
        yield f"row {number}", row
        number += 1
        place = skip(place)
        if text[place : place + 1] == ",":
            place = skip(place + 1)
        elif text[place : place + 1] != "]":
            raise TaskDataError(f"expected a comma or the end of the list after row {number - 1}.")
    if text[place + 1 :].strip():
        raise TaskDataError("there is more text after the end of the list.")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return row


class _Columns:
    """Collects rows into Arrow tables, batch by batch: as Python objects they would take many times the room."""

    def __init__(self, spec: TaskSpec) -> None:
        self._names, self._texts = spec.name_columns, spec.text_columns
        self._values: dict[str, list[Any]] = {name: [] for name in spec.columns}
        self._types: dict[str, type] = {}
        self._tables: list[Any] = []
        self._characters = 0
        self.num_rows = 0

    def add(self, row: Mapping[str, Any], place: str) -> None:
        """Take the columns of a row, or say what is wrong with one."""
        for name, values in self._values.items():
            value = row.get(name)
            if name in self._names:
                value = self._name(value, name, place)
            elif name in self._texts and not isinstance(value, (str, type(None))):
                raise TaskDataError(
                    f"{place}, column {name!r}: expected a text, found {_shown(value)}. Write it in quotes."
                )
            self._characters += len(value) if isinstance(value, str) else 8
            values.append(value)
        self.num_rows += 1
        if len(next(iter(self._values.values()))) >= _BATCH_ROWS or self._characters > _BATCH_CHARACTERS:
            self._flush()

    def _name(self, value: Any, name: str, place: str) -> str | None:
        if value is None:
            return None
        # bool is a kind of int.
        kind = next((kind for kind in (str, bool, int) if isinstance(value, kind)), None)
        if kind is None:
            raise TaskDataError(
                f"{place}, column {name!r}: ids and labels are non-empty strings or whole numbers, found "
                f"{_shown(value)}. Write it in quotes."
            )
        if self._types.setdefault(name, kind) is not kind:
            raise TaskDataError(
                f"{place}, column {name!r}: found {_shown(value)}, where rows before it have values of another type "
                f"({self._types[name].__name__}). Are 1 and '1' the same? Write all of them in quotes."
            )
        return str(value).lower() if kind is bool else str(value)

    def _flush(self) -> None:
        import pyarrow as pa
        from datasets import Dataset

        columns = {}
        for name, values in self._values.items():
            if name in self._names or name in self._texts:
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
