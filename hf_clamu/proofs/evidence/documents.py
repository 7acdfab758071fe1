"""The documents that evidence is handed out as."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from hf_clamu.proofs.evidence.bom import evidence_bom
from hf_clamu.proofs.evidence.page import evidence_html

__all__ = ["DOCUMENTS"]


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


# By the ending of a file's name.
DOCUMENTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    ".html": evidence_html,
    ".cdx.json": evidence_bom,
    ".json": _json,
}
