"""One form for a processor's files: their bytes do not depend on how a tokenizer was loaded or last called."""

from __future__ import annotations

import json
from pathlib import Path

from hf_clamu.exact import canonical_json

__all__ = ["normalized_bytes"]

# What from_pretrained records of its own call, and releases of libraries.
_VOLATILE_PROCESSOR_KEYS = (
    "_commit_hash",
    "is_local",
    "local_files_only",
    "name_or_path",
    "special_tokens_map_file",
    "tokenizer_file",
    "transformers_version",
)


def normalized_bytes(path: Path) -> bytes:
    """Return what `save_processor` would have written for a file of a tokenizer or image processor.

    Args:
        path (`Path`): the file, perhaps of the processor's own `save_pretrained`.

    Raises:
        ValueError: if it is not such a file.
    """
    if path.name == "tokenizer.json":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return bytes(tokenizer.to_str(pretty=True).encode())
    values = json.loads(path.read_bytes())
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object.")
    return canonical_json({key: value for key, value in values.items() if key not in _VOLATILE_PROCESSOR_KEYS})
