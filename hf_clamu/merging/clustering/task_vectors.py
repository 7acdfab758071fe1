"""Clusters of tasks whose vectors point the same way."""

from __future__ import annotations

import torch

from hf_clamu.exact import TaskVector
from hf_clamu.merging.clustering.spectral import SpectralMethod
from hf_clamu.training import derive_seed

__all__ = ["SKETCH_SIZE", "TaskVectorClustering", "sketch"]

SKETCH_SIZE = 1024


class TaskVectorClustering(SpectralMethod):
    """By an integer sketch of each task vector, whose cosines approximate those of the vectors."""

    name = "task_vectors"
    summary = "integer sketches"
    feature_source = "task_vector"
    feature_dtype = torch.int64

    def vector_feature(self, vector: TaskVector, run_seed: int) -> torch.Tensor:
        """Return the sketch."""
        return sketch(vector, run_seed)


def sketch(vector: TaskVector, run_seed: int) -> torch.Tensor:
    """Compress a task vector to integers whose cosines approximate those of the vectors (a count sketch).

    Every weight goes, with a random sign, to one of 1,024 sums; places and signs come from the run seed and the
    parameter's name.

    Args:
        vector (`TaskVector`): the integer task vector.
        run_seed (`int`): the seed of the recipe.

    Returns:
        `torch.Tensor` of shape `(1024,)`, int64.
    """
    total = torch.zeros(SKETCH_SIZE, dtype=torch.int64)
    for name, steps in vector.steps.items():
        generator = torch.Generator().manual_seed(derive_seed(run_seed, "sketch", name))
        draws = torch.randint(0, 2 * SKETCH_SIZE, (steps.numel(),), generator=generator)
        signs = draws.bitwise_and(1).mul_(2).sub_(1)
        total.index_add_(0, draws.bitwise_right_shift_(1), steps.reshape(-1).to(torch.int64).mul(signs))
    return total
