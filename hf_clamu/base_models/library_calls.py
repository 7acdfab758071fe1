"""What surrounds our calls of transformers: one thread at a time makes a model, and none reports on it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers

from hf_clamu.exact import Guard

__all__ = ["is_loaded_by", "making_models", "suppress_load_report"]

# Always the last lock that a thread takes: nothing inside waits for another one.
_GUARD = Guard()


def is_loaded_by(auto_class: str, architecture: Any) -> bool:
    """Whether an Auto class of transformers gives models of an architecture.

    Transformers has no public name for this table.

    Args:
        auto_class (`str`): its name.
        architecture (`type`): a model class of transformers.
    """
    config_class = getattr(architecture, "config_class", None)
    if config_class is None:
        return False
    found = getattr(transformers, auto_class)._model_mapping.get(config_class, ())
    return architecture in (found if isinstance(found, (list, tuple)) else (found,))


@contextmanager
def making_models() -> Iterator[None]:
    """Make or load models while no other thread does.

    While transformers makes a model, it replaces methods of its own classes (`PreTrainedModel.tie_weights`, functions
    of `torch.nn.init`) and the default type. Two threads that overlap restore each other's replacement: from then on
    no model of the process ties its weights. Hold this around the library's call alone.
    """
    with _GUARD.lock:
        yield


@contextmanager
def suppress_load_report() -> Iterator[None]:
    """Hide transformers' bars and its report on weights; other warnings still show.

    The report says that a head is new and should be trained. That is what tasks are finetuned for, and a saved model
    brings the head, whose digest is checked.
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
