"""The learning rate where a recipe leaves it open: one rule, of the base model and of what is trained."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.merging import ClamuArguments
from hf_clamu.training import Workers

__all__ = ["with_learning_rate"]

_logger = logging.getLogger(__name__)

# The rate times the width, where all weights are trained: 1.6e-3 at 64, 2.6e-4 at 384, 1.3e-4 at 768.
_ALL_WEIGHTS = 0.1
# The same of adapters, whose rate is no higher than the limit: 1e-2 up to 400, 5.2e-3 at 768.
_ADAPTERS, _LIMIT_OF_ADAPTERS = 4.0, 1e-2


def with_learning_rate(
    arguments: ClamuArguments, model: Any, space: PeftSpace | None, *, announce: bool = False
) -> ClamuArguments:
    """Return settings with a number for the learning rate; settings that name one stay as they are.

    It depends on the width of the model and on whether tasks are finetuned through an adapter, and on nothing else.
    The saved model has the number, so requests and a build from its settings repeat it.

    Args:
        arguments (`ClamuArguments`): the settings.
        model (`transformers.PreTrainedModel`): the base model; its weights do not matter.
        space (`PeftSpace`, *optional*): the adapter that tasks are finetuned through.
        announce (`bool`): log what was chosen, once for all processes.
    """
    if arguments.learning_rate != "auto":
        return arguments
    width = _width(model)
    if space is None:
        rate, where = _ALL_WEIGHTS / width, "by the width of the model"
    else:
        rate, where = min(_LIMIT_OF_ADAPTERS, _ADAPTERS / width), f"for {space.peft_type} in a model of the width"
    rate = float(f"{rate:.1e}")  # a number that recipes can name
    if announce and Workers.current().is_main:
        _logger.info("learning_rate %.1e, %s %d", rate, where, width)
    return replace(arguments, learning_rate=rate)


def _width(model: Any) -> int:
    """Return the hidden size, or where the configuration has none the smaller side of the largest matrix."""
    width = getattr(model.config, "hidden_size", None)
    if isinstance(width, int) and width > 0:
        return width
    sides: list[tuple[int, int]] = [
        (len(weight), weight[0].numel()) for weight in model.parameters() if weight.dim() > 1
    ]
    largest = max(sides, key=lambda pair: (pair[0] * pair[1], pair))
    return min(largest)
