"""Adding one task vector: encode, digest, add; against one pass of `torch.add_` over the same bytes."""

from __future__ import annotations

import torch

from hf_clamu.exact import DeltaAccumulator, FixedPoint, digest_tensors, encode_vector, fraction_bits_for
from tests.benchmarks.rows import Row, Size, ratios, times

# The sum of the learning rates of 20 steps at 5e-5, and how far a usual weight moves then.
_MOVEMENT, _USUAL = 1e-3, 2e-4


def shapes_of(config: dict) -> dict[str, torch.Size]:
    """Shapes of a GPT-2's parameters; no weights are made."""
    import transformers

    last = config["vocab_size"] - 1
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config, bos_token_id=last, eos_token_id=last))
    return {name: parameter.shape for name, parameter in sorted(model.named_parameters())}


def measure(size: Size, rounds: int) -> list[Row]:
    codec, buffers = FixedPoint(fraction_bits=fraction_bits_for(_MOVEMENT)), {}
    shapes = shapes_of(size.gpt2)
    theta_0 = {name: 0.02 * torch.randn(shape) for name, shape in shapes.items()}
    theta = {name: x + _USUAL * torch.randn(x.shape).clamp_(-5, 5) for name, x in theta_0.items()}
    other = {name: x.clone() for name, x in theta.items()}
    total = DeltaAccumulator(shapes)
    vector = encode_vector(codec, theta.items(), theta_0, buffers=buffers)
    narrow = {name: n.clone() for name, n in vector.steps.items()}

    def whole() -> None:
        total.add(encode_vector(codec, theta.items(), theta_0, buffers=buffers))

    def encode() -> None:
        for name, x in theta.items():
            codec.encode_into(x, theta_0[name], narrow[name])

    def pass_of_add() -> None:
        for name, x in other.items():
            x.add_(theta[name])

    found = times(
        [pass_of_add, whole, encode, lambda: digest_tensors(vector.steps), lambda: total.add(vector)], rounds
    )
    base = found[0]
    against = "`torch.add_` on the same bytes"
    rows = [Row(what="add one task vector", against=against, values=ratios(found[1], base), target=5)]
    for name, seconds in zip(("encode alone", "SHA-256 alone", "add alone"), found[2:], strict=True):
        rows.append(Row(what=f"… {name}", against=against, values=ratios(seconds, base)))
    return rows
