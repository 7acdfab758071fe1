"""Settings that a recipe leaves open: one rule each, and none that looks at data."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.exact import fraction_bits_for
from hf_clamu.merging import ClamuArguments
from hf_clamu.training import Workers

__all__ = ["resolved_arguments"]

_logger = logging.getLogger(__name__)

# The rate times the width, where all weights are trained: 1.6e-3 at 64, 2.6e-4 at 384, 1.3e-4 at 768.
_ALL_WEIGHTS = 0.1
# The same of adapters, whose rate is no higher than the limit: 1e-2 up to 400, 5.2e-3 at 768.
_ADAPTERS, _LIMIT_OF_ADAPTERS = 4.0, 1e-2
# Where no learning rates bound how far weights move. A step of 2**-28 is below what float32 tells apart in weights of
# 2**-5 and more.
_FINE_BITS = 28
# For checkpoints from elsewhere: half a step, 2**-21, is 1/128 of a movement of 2**-14 (6e-5, a handful of steps at
# 2e-5), and movements below 2**-5 fit int16. float16 tells apart steps of 2**-20 in weights of 2**-10 and more.
_BITS_FROM_ELSEWHERE = 20


def resolved_arguments(
    arguments: ClamuArguments,
    model: Any,
    space: PeftSpace | None,
    *,
    from_elsewhere: bool = False,
    announce: bool = False,
) -> ClamuArguments:
    """Return settings with nothing left open; what they name stays as it is.

    The learning rate depends on the width of the model and on whether tasks are finetuned through an adapter; the grid
    on the learning rates of all steps, see `fraction_bits_for`. Where they tell nothing it is 2**-20 for checkpoints
    from elsewhere, and 2**-28 for products of adapters. Linear digests are kept where tasks are finetuned through an
    adapter, whose parameters are few. Nothing depends on data or on the number of tasks. The saved model has what was
    chosen, so requests and a build from its settings repeat it.

    Args:
        arguments (`ClamuArguments`): the settings.
        model (`transformers.PreTrainedModel`): the base model; the values of its weights do not matter.
        space (`PeftSpace`, *optional*): the adapter that tasks are finetuned through.
        from_elsewhere (`bool`): tasks were finetuned elsewhere, in a way that is not known.
        announce (`bool`): log what was chosen, once for all processes.
    """
    said = []
    if arguments.learning_rate == "auto":
        rate, reason = _learning_rate(model, space)
        arguments = replace(arguments, learning_rate=rate)
        said += [] if from_elsewhere else [f"learning_rate {rate:.1e}, {reason}"]  # of tasks that are added later
    if arguments.fraction_bits == "auto":
        bits, reason = _fraction_bits(arguments, space, from_elsewhere)
        arguments = replace(arguments, fraction_bits=bits)
        said.append(f"fraction_bits {bits}, {reason}")
    if arguments.linear_digest == "auto":
        arguments = replace(arguments, linear_digest=space is not None and space.is_live)
    if announce and Workers.current().is_main:
        for line in said:
            _logger.info("%s", line)
    return arguments


def _learning_rate(model: Any, space: PeftSpace | None) -> tuple[float, str]:
    """Return the learning rate and why."""
    width = _width(model)
    if space is None:
        rate, reason = _ALL_WEIGHTS / width, "by the width of the model"
    else:
        rate, reason = min(_LIMIT_OF_ADAPTERS, _ADAPTERS / width), f"for {space.peft_type} in a model of the width"
    return float(f"{rate:.1e}"), f"{reason} {width}"  # a number that recipes can name


def _fraction_bits(arguments: ClamuArguments, space: PeftSpace | None, from_elsewhere: bool) -> tuple[int, str]:
    """Return the bits behind the binary point of the grid and why."""
    if from_elsewhere:
        return _BITS_FROM_ELSEWHERE, "as nothing says how far checkpoints from elsewhere moved"
    if space is not None and not space.is_live:
        return _FINE_BITS, f"as products of {space.peft_type} move weights by more than the learning rates tell"
    total = arguments.total_learning_rate
    return fraction_bits_for(total), f"by the sum of the learning rates of all steps, {total:.2e}"


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
