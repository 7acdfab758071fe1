"""Results of verification, audit and attack on a model, kept by the state that they are of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_clamu.errors import CheckpointFormatError
from hf_clamu.exact import canonical_json
from hf_clamu.operations.intake.folders import make_private, requests_of
from hf_clamu.storage import is_plain_file, read_json, write_atomically

__all__ = ["FINDINGS", "read_findings", "record_finding"]

# What may be found out about a state, and what gives it.
FINDINGS = {"verification": "clamu verify", "audit": "clamu audit", "attack": "clamu attack"}
_FOLDER = "findings"
_MOST_BYTES = 1 << 26


def read_findings(model: str, state: str) -> dict[str, Any]:
    """Return what was found out about a state of a model: what `--json` of the commands in `FINDINGS` prints.

    Args:
        model (`str`): folder or Hub id.
        state (`str`): state digest.

    Raises:
        CheckpointFormatError: if the file is damaged.
    """
    path = _path(model, state)
    if not is_plain_file(path):
        return {}
    try:
        values = read_json(path, _MOST_BYTES)
        if not isinstance(values, dict) or not values.keys() <= FINDINGS.keys():
            raise ValueError("it has other keys than findings have")
    except ValueError as error:
        raise CheckpointFormatError(f"{path} holds no findings ({error}). Remove it, and verify again.") from error
    return values


def record_finding(model: str, state: str, kind: str, values: Mapping[str, Any]) -> Path:
    """Keep what was found out about a state of a model; an earlier result of the same kind is replaced.

    Args:
        model (`str`): folder or Hub id.
        state (`str`): state digest.
        kind (`str`): a key of `FINDINGS`.
        values (*mapping*): JSON-able.
    """
    if kind not in FINDINGS:
        raise ValueError(f"a finding is one of {', '.join(FINDINGS)}, not {kind!r}")
    path = _path(model, state)
    make_private(requests_of(model), _FOLDER)
    write_atomically(path, canonical_json({**read_findings(model, state), kind: dict(values)}))
    return path


def _path(model: str, state: str) -> Path:
    if not re.fullmatch("[0-9a-f]{64}", state):
        raise ValueError(f"a state digest has 64 hexadecimal digits, not {state[:80]!r}")
    return requests_of(model) / _FOLDER / f"{state}.json"
