"""Comparing two saved models byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_clamu.checkpoint.layout import is_signature
from hf_clamu.exact import sha256_files

__all__ = ["VerificationReport", "compare_folders"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VerificationReport:
    """Whether two saved models are the same bytes.

    Args:
        identical (`bool`): every file is there in both, with the same bytes.
        files_compared (`int`): names of files in either folder.
        differences (*tuple* of `str`): names of files that differ or are in one folder only.
        additional (*tuple* of `str`): those of `differences` that a build does not write, such as notes of yours.
        seconds (`float`): how long building and comparing took.
        saved, rebuilt (*mapping* of `str` to `str`): the SHA-256 of each file of the saved model and of the built one.
    """

    identical: bool
    files_compared: int
    differences: tuple[str, ...]
    additional: tuple[str, ...] = ()
    seconds: float
    saved: Mapping[str, str] = field(default_factory=dict)
    rebuilt: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.identical

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {**asdict(self), "differences": list(self.differences), "additional": list(self.additional)}


def compare_folders(ours: Path, rebuilt: Path, *, seconds: float = 0.0) -> VerificationReport:
    """Compare two folders, every file of both but signatures.

    Args:
        ours (`Path`): the saved model.
        rebuilt (`Path`): the same model, rebuilt.
        seconds (`float`): goes into the report.
    """
    saved, expected = _digests(ours), _digests(rebuilt)
    names = sorted(saved.keys() | expected.keys())
    differences = tuple(name for name in names if saved.get(name) != expected.get(name))
    return VerificationReport(
        identical=not differences,
        files_compared=len(names),
        differences=differences,
        additional=tuple(name for name in differences if name not in expected),
        seconds=seconds,
        saved=saved,
        rebuilt=expected,
    )


def _digests(folder: Path) -> dict[str, str]:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    names = [name for name in names if not is_signature(name)]
    return dict(zip(names, sha256_files(folder / name for name in names), strict=True))
