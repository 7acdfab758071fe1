"""Clusters of tasks whose vectors point the same way."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping

import numpy as np
import torch

from hf_clamu.exact import TaskVector
from hf_clamu.merging.clustering.base import ClusteringInputs, ClusteringMethod
from hf_clamu.merging.clustering.spectral import SpectralMethod
from hf_clamu.training import derive_seed

__all__ = ["SKETCH_SIZE", "SketchMethod", "StableKMeans", "TaskVectorClustering", "sketch"]

SKETCH_SIZE = 1024
# The length of a direction, and at most so many passes of k-means.
_LENGTH, _MOST_PASSES = 1 << 14, 100


class SketchMethod(ClusteringMethod):
    """Groups tasks by sketches of their vectors; subclasses say how."""

    feature_source = "task_vector"
    feature_dtype = torch.int64

    def vector_feature(self, vector: TaskVector, run_seed: int) -> torch.Tensor:
        """Return the sketch."""
        return sketch(vector, run_seed)


class TaskVectorClustering(SketchMethod, SpectralMethod):
    """By an integer sketch of each task vector, whose cosines approximate those of the vectors."""

    name = "task_vectors"
    summary = "integer sketches"


class StableKMeans(SketchMethod):
    """Spherical k-means of sketches, whose start hardly changes when a task leaves or comes.

    k-means++ draws its first centres among the tasks, by their distance from the centres before. Here every task draws
    a number of its own for each centre, by its id, and the smallest number over distance is taken (an exponential
    race, which gives the chances of k-means++). So the others draw as before when a task leaves, and unless it was a
    centre, k-means starts where it started and seldom moves anybody. Everything is integers, or correctly rounded
    operations on single float64 numbers: no environment shows.

    Source: k-means++ (Arthur and Vassilvitskii, 2007); spherical k-means (Dhillon and Modha, 2001); weighted
    consistent sampling (Cohen and Kaplan, 2007).
    """

    name = "stable_kmeans"
    summary = "k-means of integer sketches; requests move few others"

    def labels(self, inputs: ClusteringInputs, count: int) -> Mapping[str, Hashable]:
        """Return the number of the nearest centre, once nobody moves any more."""
        assert inputs.features is not None, "there is a sketch for every task"
        rows_TD = _directions(inputs.features)
        centres_KD = rows_TD[_first_centres(rows_TD, inputs, count)]
        nearest_T = _nearest_centres(rows_TD, centres_KD)
        for _ in range(_MOST_PASSES):
            for number in np.unique(nearest_T):  # a centre that nobody is near stays where it is
                centres_KD[number] = rows_TD[nearest_T == number].sum(0)
            before, nearest_T = nearest_T, _nearest_centres(rows_TD, centres_KD)
            if np.array_equal(before, nearest_T):
                break
        return dict(zip(inputs.task_ids, nearest_T.tolist(), strict=True))


def _directions(sketches: torch.Tensor) -> np.ndarray:
    """Return the sketches at the same length, as integers; a sketch of zeros stays one."""
    # Python's integers: squares of a sketch may not fit 64 bits, and sums of float64 depend on their order.
    lengths = [math.isqrt(sum(value * value for value in row)) or 1 for row in sketches.tolist()]
    scaled = sketches.numpy().astype(np.float64) * _LENGTH / np.array(lengths, dtype=np.float64)[:, None]
    return np.rint(scaled).astype(np.int64)


def _first_centres(rows: np.ndarray, inputs: ClusteringInputs, count: int) -> list[int]:
    """Return the numbers of the tasks where k-means starts; fewer than `count` if there are fewer directions.

    Args:
        rows (`numpy.ndarray` of shape `(tasks, size)`): directions.
        inputs (`ClusteringInputs`): the tasks.
        count (`int`): centres.
    """
    distance_T = np.full(len(rows), _LENGTH**2, dtype=np.int64)
    chosen: list[int] = []
    for number in range(count):
        races = {
            task: _exponential(derive_seed(inputs.run_seed, "centre", str(number), inputs.task_ids[task])) / distance
            for task, distance in enumerate(distance_T.tolist())
            if distance > 0
        }
        if not races:
            break
        chosen.append(min(races, key=races.__getitem__))
        distance_T = np.minimum(distance_T, _LENGTH**2 - rows @ rows[chosen[-1]])
        distance_T[chosen] = 0
    return chosen


def _exponential(seed: int) -> float:
    """Return about `-log2(u)` of a number u in (0, 1] that a seed stands for: its exponent, and linear in between.

    A logarithm would depend on the C library.
    """
    fraction, exponent = math.frexp(((seed & (2**53 - 1)) + 1) / 2**53)
    return 2 * (1 - fraction) - exponent


def _nearest_centres(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the number of the centre with the largest cosine to each row, of equal ones the first."""
    lengths_K = np.sqrt((centres * centres).sum(1).astype(np.float64))
    cosines_TK = (rows @ centres.T) / np.where(lengths_K == 0, 1.0, lengths_K)
    return np.asarray(np.argmax(cosines_TK, axis=1))


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
