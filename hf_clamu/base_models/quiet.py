"""Keeps transformers from reporting on what we have it load and save."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_report"]


@contextmanager
def without_report() -> Iterator[None]:
    """Hide transformers' bars and its report on weights; other warnings still show.

    The report says that a head is new and wants training. It is: that is what tasks are finetuned for, and a saved
    model brings the head, whose digest is checked.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars  # type: ignore[attr-defined]
    from transformers.utils import logging as theirs

    logger = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    had_bars, hub_had_bars = theirs.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logger.addFilter(keep)
    theirs.disable_progress_bar()
    # That hides the Hub's bars, too, and a large download without one looks like a standstill.
    if hub_had_bars:
        enable_progress_bars()
    try:
        yield
    finally:
        logger.removeFilter(keep)
        if had_bars:
            theirs.enable_progress_bar()
            if not hub_had_bars:
                from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

                disable_progress_bars()
