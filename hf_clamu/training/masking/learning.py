"""Learning one binary mask per cluster, as an optimizer step on the live weights.

The live weights always hold `M0 + mask * alpha * tau_bar`, so the backward pass gives `dL/dM`. By the straight-through
estimator the gradient of the mask is `dL/dM * alpha * tau_bar`; one in-place update moves the scores and rewrites
the weights. No parametrised graph, no second copy of the model.

The paper's step of a score is `s -= rate * dL/dM * alpha * tau_bar * sigmoid(s) * (1 - sigmoid(s))`. Scores start at
0, where the last two factors make 1/4, and a mask is the sign of its scores. If the rate is so small that scores stay
near 0, the masks are therefore those of `s -= dL/dM * alpha * tau_bar`, which has no rate. A larger rate makes the
steps of a score shorter the further it is from 0.

The sum of the gradients is dominated by the steps whose gradient is longest: a few steps of high loss undo what many
steps have learned. With `mask_gradient_norm` "unit" (not in the paper) the gradient `dL/dM` of each step is divided by
its length over all weights, so that every step counts alike.

With a factor `c` per tensor (not in the paper) the weights are `M0 + c * mask * alpha * tau_bar`; see `MaskFactors`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from hf_clamu.tasks import Example
from hf_clamu.training.batching import sample_batches
from hf_clamu.training.determinism import seeded
from hf_clamu.training.masking.arguments import MaskingArguments, scaling_share
from hf_clamu.training.masking.factors import MaskFactors
from hf_clamu.training.masking.step import MaskStep
from hf_clamu.training.workspace import Workspace

__all__ = ["LearnedMask", "train_mask"]


@dataclass(frozen=True, slots=True)
class LearnedMask:
    """The mask of a cluster, and with it perhaps a factor per parameter.

    Args:
        bits (*dict* of `str` to `torch.Tensor`, bool): per parameter, on the CPU.
        factors (*dict* of `str` to `float`, *optional*): what alpha is multiplied by, each a float32 value.
    """

    bits: dict[str, torch.Tensor]
    factors: dict[str, float] | None = None


def train_mask(
    workspace: Workspace,
    theta_1: Mapping[str, torch.Tensor],
    examples: Sequence[Example],
    arguments: MaskingArguments,
    seed: int,
) -> LearnedMask:
    """Learn the binary mask of one cluster.

    Args:
        workspace (`Workspace`): the live model; it holds the masked model afterwards.
        theta_1 (*mapping* of `str` to `torch.Tensor`): `M0 + alpha * tau_bar`.
        examples (*sequence* of `Example`): the cluster's training data, in canonical order.
        arguments (`MaskingArguments`): steps, batch size, learning rate, schedule and factors.
        seed (`int`): derived from the cluster's member ids.

    Returns:
        `LearnedMask`: `1[s > 0]` per parameter.

    Source: ClAMU, Algorithm 1, lines 17-25. Scores start at 0, so the first mask is empty.
    """
    workspace.reset()
    scores = {name: torch.zeros_like(theta, dtype=torch.float32) for name, theta in workspace.theta_0.items()}
    ends = {name: (theta, theta_1[name]) for name, theta in workspace.theta_0.items()}
    step = MaskStep(arguments.mask_learning_rate)
    factors = None if arguments.mask_factors == "none" else MaskFactors(workspace.theta_0)
    with seeded(seed), workspace.training():
        batch: dict[str, torch.Tensor] | None = None
        batches = sample_batches(examples, arguments.mask_batch_size, arguments.mask_steps, seed)
        for number, batch_examples in enumerate(batches):
            shares = scaling_share(arguments, number), scaling_share(arguments, number + 1)
            if batch is None or batch_examples is not examples:
                batch = workspace.batch(batch_examples)
            workspace.forward(batch).loss.backward()
            with torch.no_grad():
                weight = 1.0 if arguments.mask_gradient_norm == "raw" else 1 / _gradient_norm(workspace)
                share = weight * shares[0]
                if factors is None:
                    for name, gradient in _gradients(workspace):
                        moved = (share, shares[1])
                        step(workspace.parameters[name].detach(), gradient, scores[name], ends[name], moved)
                else:
                    factors.move(
                        {
                            name: share * step.move(gradient, scores[name], ends[name], share * factors.values[name])
                            for name, gradient in _gradients(workspace)
                        }
                    )
                    for name, parameter in workspace.parameters.items():
                        share = shares[1] * factors.values[name]
                        step.write(parameter.detach(), scores[name], ends[name], share)
    bits = {name: (score > 0).cpu() for name, score in scores.items()}
    return LearnedMask(bits, None if factors is None else factors.values)


def _gradient_norm(workspace: Workspace) -> float:
    """Return the length of the gradient of all weights; infinite where nothing can be divided by it."""
    gradients = [parameter.grad for parameter in workspace.parameters.values() if parameter.grad is not None]
    if not gradients:
        return math.inf
    lengths = torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients])
    length = float(torch.linalg.vector_norm(lengths, dtype=torch.float64))
    return length if 0 < length < math.inf else math.inf


def _gradients(workspace: Workspace) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the gradients that there are, and free each afterwards."""
    for name, parameter in workspace.parameters.items():
        if parameter.grad is not None:
            yield name, parameter.grad
            parameter.grad = None
