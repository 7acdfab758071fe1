"""Clusters of tasks whose vectors point the same way."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import torch

from hf_clamu.exact import TaskVector
from hf_clamu.merging.clustering.base import ClusteringInputs, ClusteringMethod
from hf_clamu.merging.clustering.spectral import SpectralMethod
from hf_clamu.training import derive_seed, derive_seeds

__all__ = ["SKETCH_SIZE", "SketchMethod", "StableKMeans", "TaskVectorClustering", "sketch"]

SKETCH_SIZE = 1024
# The length of a direction, and at most so many passes of k-means.
_LENGTH, _MOST_PASSES = 1 << 14, 100
# Tasks that are computed with at a time, so that memory is for what is kept of each.
_AT_ONCE = 4096


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
        centres_KD = rows_TD[_first_centres(rows_TD, inputs, count)].astype(np.int64)
        nearest_T = _nearest_centres(rows_TD, centres_KD)
        for _ in range(_MOST_PASSES):
            for number in np.unique(nearest_T):  # a centre that nobody is near stays where it is
                centres_KD[number] = rows_TD[nearest_T == number].sum(0, dtype=np.int64)
            before, nearest_T = nearest_T, _nearest_centres(rows_TD, centres_KD)
            if np.array_equal(before, nearest_T):
                break
        return dict(zip(inputs.task_ids, nearest_T.tolist(), strict=True))


def _directions(sketches: torch.Tensor) -> np.ndarray:
    """Return the sketches at the same length, as integers; a sketch of zeros stays one."""
    directions_TD = np.empty(tuple(sketches.shape), dtype=np.int16)  # of at most 2^14, for no number exceeds its row
    for part in _parts(len(sketches)):
        rows = sketches[part].numpy()
        lengths = [math.isqrt(square) or 1 for square in _squared_lengths(rows)]
        directions_TD[part] = np.rint(rows.astype(np.float64) * _LENGTH / np.array(lengths, dtype=np.float64)[:, None])
    return directions_TD


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + _AT_ONCE) for start in range(0, count, _AT_ONCE))


def _squared_lengths(rows: np.ndarray) -> list[int]:
    """Return the exact sum of squares of each row of int64, which may not fit 64 bits."""
    # v = high * 2^42 + middle * 2^21 + low; sums of products of two of them fit for up to two million columns.
    low, middle, high = rows & 0x1FFFFF, (rows >> 21) & 0x1FFFFF, rows >> 42
    pairs = ((low, low), (low, middle), (middle, middle), (low, high), (middle, high), (high, high))
    shifts = (0, 22, 42, 43, 64, 84)  # those of two different ones are there twice
    sums = [np.einsum("td,td->t", *pair).tolist() for pair in pairs]
    return [sum(part << shift for part, shift in zip(parts, shifts, strict=True)) for parts in zip(*sums, strict=True)]


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
        if not (distance_T > 0).any():
            break
        seeds = derive_seeds(inputs.run_seed, "centre", str(number), each=inputs.task_ids)
        with np.errstate(divide="ignore", invalid="ignore"):  # who is a centre already never wins
            races_T = np.where(distance_T > 0, _exponential(seeds) / distance_T, np.inf)
        chosen.append(int(np.argmin(races_T)))
        distance_T = np.minimum(distance_T, _LENGTH**2 - _products(rows, rows[chosen[-1:]])[:, 0].astype(np.int64))
        distance_T[chosen] = 0
    return chosen


def _exponential(seeds: Sequence[int]) -> np.ndarray:
    """Return about `-log2(u)` of the u in (0, 1] that each seed stands for: its exponent, and linear in between.

    A logarithm would depend on the C library.
    """
    low_bits = np.array(seeds, dtype=np.int64) & (2**53 - 1)
    fractions, exponents = np.frexp((low_bits + 1) / 2**53)
    return np.asarray(2 * (1 - fractions) - exponents)


def _nearest_centres(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the number of the centre with the largest cosine to each row, of equal ones the first."""
    lengths_K = np.sqrt(np.array([float(square) for square in _squared_lengths(centres)]))
    cosines_TK = _products(rows, centres) / np.where(lengths_K == 0, 1.0, lengths_K)
    return np.asarray(np.argmax(cosines_TK, axis=1))


def _products(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the inner products, float64.

    They are exact, whatever the order of the sums: a product and each part of it is at most the length of a direction
    times that of the sum of all, less than 2^53 for ten million tasks.
    """
    columns_DK = centres.T.astype(np.float64)
    return np.concatenate([rows[part].astype(np.float64) @ columns_DK for part in _parts(len(rows))])


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
