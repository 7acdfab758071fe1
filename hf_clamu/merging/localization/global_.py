"""No localization: every cluster is served the merged delta on all weights."""

from __future__ import annotations

from hf_clamu.merging.localization.base import LocalizationMethod

__all__ = ["Global"]


class Global(LocalizationMethod):
    """Makes no masks."""

    name = "global"
    label = "global"
    summary = "no masks"
    makes_masks = False
