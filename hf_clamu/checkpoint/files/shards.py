"""Tensors in one file, or above a size in shards with the Hub's index file; the boundaries follow from the tensors."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath

import torch

from hf_clamu.checkpoint.files.tensors import read_tensor_file
from hf_clamu.checkpoint.ledger import read_json
from hf_clamu.errors import CheckpointFormatError, RecipeError
from hf_clamu.exact import canonical_json
from hf_clamu.storage import save_tensors
from hf_clamu.storage.sizes import parse_size

__all__ = [
    "check_shards",
    "index_of",
    "read_shards",
    "read_tensors_at",
    "reshard",
    "save_shards",
    "shard_bytes",
    "split_names",
]


def shard_bytes(size: int | str) -> int:
    """Return the bytes that a shard may have at most.

    Args:
        size (`int` or `str`): bytes, or a size with its unit, such as `"5GB"`.

    Raises:
        RecipeError: if it is none.
    """
    found = parse_size(size, "max_shard_size") if isinstance(size, str) else size
    if type(found) is not int or found < 1:
        raise RecipeError(
            f"max_shard_size must be a number of bytes from 1 on, or a size such as '5GB', got {size!r}."
        )
    return found


def split_names(sizes: Mapping[str, int], max_bytes: int) -> list[list[str]]:
    """Return which tensors go into which shard: by name, as many as fit, and one that is larger alone.

    Nothing else decides it, neither the storage of the tensors nor a release of a library: the boundaries are saved
    bytes.

    Args:
        sizes (*mapping* of `str` to `int`): bytes of each tensor.
        max_bytes (`int`): of a shard.

    Example:

    ```python
    >>> split_names({"a": 3, "b": 1, "c": 9, "d": 2}, 4)
    [['a', 'b'], ['c'], ['d']]

    ```
    """
    shards: list[list[str]] = [[]]
    taken = 0
    for name in sorted(sizes):
        if shards[-1] and taken + sizes[name] > max_bytes:
            shards.append([])
            taken = 0
        shards[-1].append(name)
        taken += sizes[name]
    return shards


def save_shards(path: Path, tensors: Mapping[str, torch.Tensor], max_bytes: int) -> None:
    """Write tensors to a safetensors file, or if they are larger to shards beside its place and their index.

    Args:
        path (`Path`): the file, such as `delta.safetensors`; shards are then `delta-00001-of-00002.safetensors`, …,
            the index `delta.safetensors.index.json`.
        tensors (*mapping* of `str` to `torch.Tensor`): by name.
        max_bytes (`int`): of a shard.

    Raises:
        OSError: if they cannot be written.
    """
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    shards = split_names(sizes, max_bytes)
    if len(shards) == 1:
        save_tensors(path, tensors)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        shard = f"{path.stem}-{number:05d}-of-{len(shards):05d}{path.suffix}"
        save_tensors(path.with_name(shard), {name: tensors[name] for name in names})
        weight_map |= dict.fromkeys(names, shard)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    index_of(path).write_bytes(canonical_json(index))


def reshard(path: Path, max_bytes: int) -> None:
    """Write a file again in shards, or shards in others, if its tensors ask for that.

    Args:
        path (`Path`): the file that they stand for.
        max_bytes (`int`): of a shard.

    Raises:
        CheckpointFormatError: if a file is missing or damaged.
        OSError: if they cannot be written.
    """
    index = index_of(path)
    held = _weight_map(index) if index.is_file() else {}
    old = sorted(set(held.values())) or [path.name]
    tensors = read_shards(index, path.with_name) if held else read_tensor_file(path)
    wanted = split_names({name: tensor.nbytes for name, tensor in tensors.items()}, max_bytes)
    if wanted == [sorted(name for name in tensors if held.get(name, path.name) == shard) for shard in old]:
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        save_shards(Path(scratch) / path.name, tensors, max_bytes)
        del tensors
        for name in (*old, index.name):
            path.with_name(name).unlink(missing_ok=True)
        for new in sorted(Path(scratch).iterdir()):
            new.rename(path.with_name(new.name))


def index_of(path: Path) -> Path:
    """Return the place of the index of a file's shards."""
    return path.with_name(f"{path.name}.index.json")


def read_tensors_at(path: Path, listed: Collection[str]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file at the top of a saved model, or of its shards.

    Args:
        path (`Path`): the file.
        listed (*collection* of `str`): the files of the model.

    Raises:
        CheckpointFormatError: if a file is missing or damaged.
    """
    index = index_of(path)
    return read_shards(index, path.with_name) if index.name in listed else read_tensor_file(path)


def read_shards(index: Path, place_of: Callable[[str], Path]) -> dict[str, torch.Tensor]:
    """Return the tensors of all shards that an index names, by sorted names.

    Args:
        index (`Path`): the index.
        place_of (*callable*): returns where a shard is.

    Raises:
        CheckpointFormatError: if the index or a shard is damaged, or they are of two models.
    """
    weight_map = _weight_map(index)
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        found = read_tensor_file(place_of(shard))
        if found.keys() != {name for name, held in weight_map.items() if held == shard}:
            raise CheckpointFormatError(
                f"{index.with_name(shard)} holds other tensors than {index.name} says. Take an undamaged copy."
            )
        tensors |= found
    return {name: tensors[name] for name in sorted(tensors)}


def check_shards(path: Path, folder: Path, listed: Collection[str]) -> None:
    """Check that the shards of a file are those that its index names, if it has one.

    Args:
        path (`Path`): the file that they stand for.
        folder (`Path`): of the saved model.
        listed (*collection* of `str`): the files of the model.

    Raises:
        CheckpointFormatError: if the index names another file, or there are files that it does not name.
    """
    index, inside = index_of(path), path.parent.relative_to(folder)
    start = f"{path.stem}-"
    given = {Path(name).name for name in listed if Path(name).parent == inside and Path(name).suffix == path.suffix}
    shards = {name for name in given if name == path.name or name.startswith(start)}
    if (inside / index.name).as_posix() not in listed:
        named = {path.name}
    else:
        named = set(_weight_map(index).values())
        outside = sorted(named - given)
        if outside:
            raise _no_file(index, outside[0])
    spare = sorted(shards - named)
    if spare:
        raise CheckpointFormatError(
            f"{path.with_name(spare[0])} is listed, but {index.name} does not name it. Take an undamaged copy."
        )


def _weight_map(index: Path) -> dict[str, str]:
    """Return which shard holds which tensor."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointFormatError(f"{index} does not say which shard holds which tensor. Take an undamaged copy.")
    for shard in found.values():
        if not isinstance(shard, str) or PurePosixPath(shard).name != shard or "\\" in shard:
            raise _no_file(index, shard)
    return found


def _no_file(index: Path, shard: object) -> CheckpointFormatError:
    return CheckpointFormatError(f"{index} names {shard!r}, which is no file of this model. Take an undamaged copy.")
