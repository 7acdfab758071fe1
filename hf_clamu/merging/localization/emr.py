"""EMR-Merging: masks by the signs of the cluster's own vector."""

from __future__ import annotations

import torch

from hf_clamu.merging.localization.base import LocalizationMethod, MaskInputs, Weights

__all__ = ["Emr"]


class Emr(LocalizationMethod):
    """Keeps the weights on which the cluster's own vector and the merged delta agree in sign.

    Source: EMR-Merging, the mask alone, as the ClAMU paper uses it (no rescaling): 1[tau_k * tau_bar > 0].
    """

    name = "emr"
    label = "EMR"
    summary = "equal signs"
    needs_cluster_vectors = True

    def mask(self, inputs: MaskInputs) -> Weights:
        """Compare the signs."""
        return {name: torch.sign(n) * torch.sign(inputs.delta[name]) > 0 for name, n in inputs.vector.items()}
