"""Deprecated: `predict` is in `hf_clamu`."""

from __future__ import annotations

import warnings

from hf_clamu.serving.prediction import predict

__all__ = ["predict"]

warnings.warn("hf_clamu.prediction is deprecated: from hf_clamu import predict", DeprecationWarning, stacklevel=2)
