"""What `clamu verify`, `clamu audit` and `clamu attack` printed, recognised by its content.

They come from files that anybody may have written: what does not have their form is refused, and what names owners or
folders is left out of the result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hf_clamu.errors import RecipeError

__all__ = ["Finding", "finding_of"]

_DIGEST = re.compile("[0-9a-f]{64}")
_AUDIT_VERDICTS, _CHECK_VERDICTS = ("proven", "refuted", "not proven"), ("passed", "failed", "not shown")
_MODELS = ("before", "model", "rebuilt")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A result of a check on a state of a model.

    Args:
        kind (`str`): `"verification"`, `"audit"` or `"attack"`.
        state (`str`): digest of the state that it is about.
        before (`str`, *optional*): of an audit of two states, the digest of the first.
        tasks (*tuple* of `str`): ids of the tasks that were attacked.
        result (*dict*): JSON-able; names nobody.
    """

    kind: str
    state: str
    result: dict[str, Any]
    before: str | None = None
    tasks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what a document says of it."""
        return {"kind": self.kind, "state": self.state, "result": self.result}


def finding_of(values: Any, where: str) -> Finding:
    """Return what a command printed with `--json` as a finding.

    Args:
        values (*JSON-able*): what it printed, or wrote with `clamu verify --report`.
        where (`str`): what the values are called in a message.

    Raises:
        RecipeError: if it is of none of the commands.
    """
    why = "other entries than these have"
    if isinstance(values, dict):
        for has, read in _READERS:
            if has(values):
                try:
                    return read(values)
                except (KeyError, TypeError, ValueError) as error:
                    why = f"an entry is missing or not as they print it: {error}"
                    break
        if "error" in values:
            why = "it says that the command failed"
    raise RecipeError(
        f"{where} is not what clamu verify, clamu audit or clamu attack print with --json ({why}). Run one of them on "
        "this model, and give what it printed."
    )


def _verification(values: Mapping[str, Any]) -> Finding:
    identical = values["identical"] if "identical" in values else values["verdict"] == "identical"
    differences, additional = _texts(values["differences"]), _texts(values["additional"])
    if type(identical) is not bool or identical != (not differences):
        raise ValueError("identical")
    result = {
        "identical": identical,
        "files_compared": _count(values["files_compared"]),
        "differences": differences,
        "additional": additional,
        "files": {name: _digest(sha256) for name, sha256 in sorted(dict(values["saved"]).items())},
    }
    return Finding(kind="verification", state=_digest(values["state_digest"]), result=result)


def _audit(values: Mapping[str, Any]) -> Finding:
    checks = [{key: _text(one[key]) for key in ("name", "verdict", "text")} for one in values["checks"]]
    if values["verdict"] not in _AUDIT_VERDICTS or any(one["verdict"] not in _CHECK_VERDICTS for one in checks):
        raise ValueError("verdict")
    before = values.get("digests", {}).get("before")
    result = {"verdict": values["verdict"], "of": "model" if before is None else "change", "checks": checks}
    before = None if before is None else _digest(before)
    return Finding(kind="audit", state=_digest(values["state_digest"]), result=result, before=before)


def _attack(values: Mapping[str, Any]) -> Finding:
    tasks, between = tuple(_texts(values["tasks"])), values["tasks_between"]
    leaks = list(_leaks(values))
    if not tasks or values["equals_rebuilt"] not in (True, False, None):
        raise ValueError("tasks or equals_rebuilt")
    result = {
        "num_tasks": len(tasks),
        "num_members": _count(values["num_members"]),
        "num_held_out": _count(values["num_held_out"]),
        "equals_rebuilt": values["equals_rebuilt"],
        "tasks_between": None if between is None else {key: _count(between[key]) for key in ("left", "joined")},
        "membership": [row for leak in leaks for row in _membership(*leak)],
        "extraction": [row for leak in leaks for row in _extraction(*leak)],
    }
    return Finding(kind="attack", state=_digest(values["state_digest"]), result=result, tasks=tasks)


def _leaks(values: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    yield "base", "served", values["base"]
    models = values["models"]
    if "model" not in models or not set(models) <= set(_MODELS):
        raise ValueError("models")
    for name in _MODELS:
        for weights, leak in models.get(name, {}).items():
            yield name, _text(weights), leak
    for how, leak in values["pair"].items():
        yield "pair", _text(how), leak


def _membership(model: str, weights: str, leak: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for attack, told in leak["membership"].items():
        tpr = {_text(rate): _estimate(one) for rate, one in told["tpr"].items()}
        yield {"model": model, "weights": weights, "attack": _text(attack), "auc": _estimate(told["auc"]), "tpr": tpr}


def _extraction(model: str, weights: str, leak: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if leak["extraction"] is not None:
        parts = {key: _estimate(leak["extraction"][key]) for key in ("strength", "held_out", "whole")}
        yield {"model": model, "weights": weights, **parts}


def _estimate(values: Mapping[str, Any]) -> list[float | None]:
    """Return value and interval of 95 %."""
    numbers = [values[key] for key in ("value", "low", "high")]
    if not all(one is None or type(one) in (int, float) for one in numbers):
        raise ValueError("value, low or high")
    return numbers


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{str(value)[:40]!r} is no count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is no text")
    return value


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list):
        raise ValueError("no list")
    return [_text(one) for one in values]


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError("state_digest or another SHA-256")
    return value


_Reader = tuple[Callable[[Mapping[str, Any]], bool], Callable[[Mapping[str, Any]], Finding]]
_READERS: tuple[_Reader, ...] = (
    (lambda values: "files_compared" in values, _verification),
    (lambda values: "checks" in values and "verdict" in values, _audit),
    (lambda values: "num_members" in values and "models" in values, _attack),
)
