"""TALL-masks: masks by how far the cluster's own model and the merged model are apart."""

from __future__ import annotations

from statistics import fmean

import torch

from hf_clamu.merging.localization.base import LocalizationMethod, MaskInputs, Weights

__all__ = ["LAMBDA_GRID", "Tall"]

# TALL's own grid, in the order of their code.
LAMBDA_GRID = (0.2, 0.3, 0.4, 0.5, 0.6)


class Tall(LocalizationMethod):
    """Keeps the weights where the cluster's own movement outweighs what merging added.

    Source: TALL-masks, 1[|theta_0 - theta_k| > |theta_0 + alpha * tau_sum - theta_k| * lambda], theta_k being the
    average of the members' local models; lambda by validation score, the smallest of equals. Tasks without data
    have no score: lambda is the setting `tall_lambda` then.
    """

    name = "tall"
    label = "TALL"
    summary = "movement against what merging added"
    needs_cluster_vectors = True
    reads_data = "with_data"
    depends_on_environment = "with_data"
    chooses = ("lambda",)

    def mask(self, inputs: MaskInputs) -> Weights:
        """Choose lambda where there are data, and compare the distances."""
        trainer = inputs.trainer
        theta_1, (own, added) = inputs.merged(), _distances(inputs)
        if not any(trainer.encoded(task_id).train for task_id in inputs.members):
            return {name: (own[name] > added[name] * inputs.arguments.tall_lambda).cpu() for name in own}
        workspace = trainer.workspace
        best: tuple[float, Weights] | None = None
        for factor in LAMBDA_GRID:
            mask = {name: own[name] > added[name] * factor for name in own}
            workspace.load({name: torch.where(mask[name], theta_1[name], workspace.theta_0[name]) for name in mask})
            score = fmean(trainer.measure_held_out(task_id).score for task_id in inputs.members)
            if best is None or score > best[0]:
                best = (score, mask)
        assert best is not None, "the grid is not empty"
        return {name: bits.cpu() for name, bits in best[1].items()}


def _distances(inputs: MaskInputs) -> tuple[Weights, Weights]:
    """Return |theta_0 - theta_k| and |theta_1 - theta_k|."""
    theta_1, codec = inputs.merged(), inputs.trainer.codec
    own: Weights = {}
    added: Weights = {}
    for name, n in inputs.vector.items():
        theta_0 = inputs.trainer.workspace.theta_0[name]
        theta_k = codec.apply(theta_0, n, 1.0 / len(inputs.members), theta_0.dtype)
        own[name] = (theta_0 - theta_k).abs_()
        added[name] = theta_k.neg_().add_(theta_1[name]).abs_()
    return own, added
