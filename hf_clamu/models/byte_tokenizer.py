"""Deprecated: `byte_tokenizer` is in `hf_clamu`."""

from __future__ import annotations

import warnings

from hf_clamu.base_models.byte_tokenizer import byte_tokenizer

__all__ = ["byte_tokenizer"]

warnings.warn(
    "hf_clamu.models.byte_tokenizer is deprecated: from hf_clamu import byte_tokenizer",
    DeprecationWarning,
    stacklevel=2,
)
