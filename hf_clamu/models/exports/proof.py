"""Proof that an export answers as the live model does: it is loaded once, as others will load it, and asked."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hf_clamu.base_models.library_calls import making_models, suppress_load_report
from hf_clamu.base_models.quantization.modules import adopt_layers, quantization_of
from hf_clamu.errors import ExactnessError, RecipeError
from hf_clamu.training import seeded

__all__ = ["logits_apart", "require_same_adapter", "require_same_checkpoint"]

_NUM_ROWS = 2
_NUM_TOKENS = 8
_IMAGE_SIZE = 64  # where a configuration names none
# How far logits may be apart, as a share of the largest: merging an adapter rounds its weights once.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_COARSE = 0.05  # of types with few digits


def require_same_checkpoint(live: Any, architecture: Any, folder: Path, *, same_weights: bool) -> None:
    """Load a plain checkpoint that was written, and compare it with the live model.

    Args:
        live (`ClamuModel`): with what was exported selected.
        architecture (`type`): the plain model's class.
        folder (`Path`): of the checkpoint.
        same_weights (`bool`): whether its weights are the live ones, bit for bit (no adapter was merged).

    Raises:
        ExactnessError: if it is another model.
    """
    attention = getattr(live.config, "_attn_implementation", None)
    options = {} if attention is None else {"attn_implementation": attention}
    with suppress_load_report(), making_models():
        found = architecture.from_pretrained(folder, dtype=live.dtype, **options).to(live.device)
    if same_weights:
        weights, own = found.state_dict(), live.state_dict()
        for name in sorted(own):
            if name not in weights or not torch.equal(weights[name], own[name].to(weights[name].dtype)):
                raise ExactnessError(f"The exported {name!r} is not what the live model has. {_WAY_OUT}")
    _require_same_answers(live, found)


def require_same_adapter(live: Any, architecture: Any, base: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Load an adapter that was written onto the base model with PEFT, and compare it with the live model.

    Args:
        live (`ClamuModel`): with what was exported selected.
        architecture (`type`): the plain model's class.
        base (*mapping* of `str` to `torch.Tensor`): the state of the plain base model.
        folder (`Path`): of the adapter.

    Raises:
        ExactnessError: if it is another model.
        RecipeError: if PEFT does not load it.
    """
    _require_same_answers(live, _with_adapter(live, architecture, base, folder))


def logits_apart(live: Any, architecture: Any, base: Mapping[str, torch.Tensor], folder: Path) -> float | None:
    """Load an adapter onto the base model with PEFT, and measure how far it answers from the live model.

    Args:
        live (`ClamuModel`): with what was exported selected.
        architecture (`type`): the plain model's class.
        base (*mapping* of `str` to `torch.Tensor`): the state of the plain base model.
        folder (`Path`): of the adapter.

    Returns:
        `float`: the largest distance of two logits of a few fixed inputs, as a share of the largest logit; `None` for
        an architecture that takes none of the inputs that its configuration suggests.

    Raises:
        RecipeError: if PEFT does not load it.
    """
    found = _answers(live, _with_adapter(live, architecture, base, folder))
    return None if found is None else found.apart / max(found.largest, torch.finfo(torch.float32).tiny)


def _with_adapter(live: Any, architecture: Any, base: Mapping[str, torch.Tensor], folder: Path) -> Any:
    """Return the base model with an adapter, as PEFT loads it."""
    from peft import PeftModel

    plain = _plain_base(live, architecture, base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with making_models():
                found = PeftModel.from_pretrained(plain, str(folder))
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise RecipeError(
                f"PEFT cannot load this adapter without hf_clamu ({' '.join(str(error).split())[:200]}). Export it "
                "merged into the base weights (merge=True)."
            ) from error
    return found


def _plain_base(live: Any, architecture: Any, base: Mapping[str, torch.Tensor]) -> Any:
    """Return the base model in memory of its own."""
    if quantization_of(live) is not None:
        with torch.device("meta"), making_models():
            quantized = architecture._from_config(copy.deepcopy(live.config))
        adopt_layers(quantized, live, copies=True)
        weights = {name for name, value in quantized.named_parameters() if value.is_floating_point()}
        quantized.load_state_dict({name: base[name] for name in weights}, strict=False)
        return quantized
    # Its random weights are replaced at once; the caller's generators must not move.
    with seeded(0), making_models():
        plain = architecture._from_config(copy.deepcopy(live.config)).to(live.device, live.dtype)
    plain.load_state_dict(base)
    return plain


class _Answers(NamedTuple):
    """How far the logits of two models are apart at most, and the largest one of the live model."""

    apart: float
    largest: float


@torch.no_grad()
def _answers(live: Any, found: Any) -> _Answers | None:
    with _evaluating(live):
        inputs = _inputs(live)
        try:
            expected = type(live).forward(live, **inputs).logits  # with its head, whatever an Auto class has set
        except (IndexError, RuntimeError, TypeError, ValueError):
            return None  # an architecture that takes none of the inputs that its configuration suggests
    answers = found.eval()(**inputs).logits
    if answers.shape != expected.shape:
        raise ExactnessError(
            f"The export answers with shape {tuple(answers.shape)}, the live model with {tuple(expected.shape)}. "
            f"{_WAY_OUT}"
        )
    expected, answers = expected.double(), answers.double()
    return _Answers(apart=(answers - expected).abs().max().item(), largest=expected.abs().max().item())


def _require_same_answers(live: Any, found: Any) -> None:
    answers = _answers(live, found)
    if answers is None:
        return
    allowed = _TOLERANCE.get(live.dtype, _COARSE) * max(1.0, answers.largest)
    if not answers.apart <= allowed:
        raise ExactnessError(
            f"The export's logits are {answers.apart:.3g} apart from those of the live model. {_WAY_OUT}"
        )


_WAY_OUT = "The export was removed. Export the other form (merge=), and report which architecture and adapter it was."


@contextmanager
def _evaluating(live: Any) -> Iterator[None]:
    training = [module for module in live.modules() if module.training]
    live.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _inputs(live: Any) -> dict[str, torch.Tensor]:
    """Return a few fixed inputs that the model's own configuration suggests."""
    config, device = live.config, live.device
    if live.main_input_name == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", None) or _IMAGE_SIZE
        height, width = (size, size) if isinstance(size, int) else tuple(size)[:2]
        shape = (_NUM_ROWS, getattr(vision, "num_channels", 3), height, width)
        steps = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        return {"pixel_values": torch.sin(steps).reshape(shape).to(device, live.dtype)}
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    special = {getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
    words = [index for index in range(min(text.vocab_size, 200)) if index not in special]
    rows = [
        [words[(7 * row + 5 * place + 1) % len(words)] for place in range(_NUM_TOKENS)] for row in range(_NUM_ROWS)
    ]
    if isinstance(config.eos_token_id, int):
        rows = [[*row[:-1], config.eos_token_id] for row in rows]  # some heads look for the end
    ids = torch.tensor(rows, device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if config.is_encoder_decoder and "Classification" not in type(live).__name__:
        inputs["decoder_input_ids"] = ids
    return inputs
