"""Rows of Parquet, with a bound on what a file may unpack to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.reading.tables import columns_to_read
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["parquet_rows", "read_parquet"]

# Text of a language model packs four to one; a file that grows more than this is made to fill the memory.
_MOST_GROWTH = 64


_ALWAYS_FITS = 2**30


def read_parquet(path: Path, spec: TaskSpec, partial: bool) -> Any:
    """Return the wanted columns as a `datasets.Dataset`; ids and labels become texts."""
    import pyarrow as pa
    from datasets import Dataset

    table = _table(path, lambda names: columns_to_read(names, spec, partial))
    features = Dataset(table.slice(0, 0)).features
    table = table.combine_chunks()
    for index, name in enumerate(table.column_names):
        if name in spec.name_columns and _is_plain_name(table.schema.field(name).type):
            if getattr(features[name], "names", None) is not None:
                continue  # numbers that stand for the names of a ClassLabel
            table = table.set_column(index, name, table[name].cast(pa.string()))
    return Dataset(table)


def parquet_rows(path: Path) -> list[dict[str, Any]]:
    """Return all rows with all columns, as they are."""
    rows: list[dict[str, Any]] = _table(path, list).to_pylist()
    return rows


def _table(path: Path, choose: Callable[[list[str]], list[str]]) -> Any:
    """Return the columns that are chosen of those that the file has."""
    import pyarrow as pa
    from pyarrow import parquet

    limit = max(_ALWAYS_FITS, _MOST_GROWTH * path.stat().st_size)
    with parquet.ParquetFile(path) as file:
        columns = choose(file.schema_arrow.names)
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
    return table.replace_schema_metadata(schema.metadata)


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
