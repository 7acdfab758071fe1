"""Spectral clustering of the cosines between features, one per task."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np

from hf_clamu.merging.clustering.base import ClusteringInputs, ClusteringMethod
from hf_clamu.training import derive_seed

__all__ = ["SpectralMethod", "affinity_matrix"]


class SpectralMethod(ClusteringMethod):
    """Groups tasks by the cosines of their features; subclasses say what those are.

    Source: ClAMU, Algorithm 1, lines 10-13 (spectral clustering of pairwise affinities).
    """

    depends_on_environment = True

    def labels(self, inputs: ClusteringInputs, count: int) -> Mapping[str, Hashable]:
        """Return the labels of scikit-learn."""
        assert inputs.features is not None, "there is a feature for every task"
        labels = _spectral_labels(inputs.features.numpy(), count, derive_seed(inputs.run_seed, "cluster"))
        return dict(zip(inputs.task_ids, labels.tolist(), strict=True))


def affinity_matrix(vectors: np.ndarray) -> np.ndarray:
    """Return `(1 + cosine) / 2` of every pair of rows.

    The paper's affinity is the cosine itself; spectral clustering needs non-negative affinities.

    Args:
        vectors (`numpy.ndarray` of shape `(tasks, size)`): one row per task.

    Returns:
        `numpy.ndarray` of shape `(tasks, tasks)`, float64 in [0, 1]. A row of zeros has affinity 1/2 to all.
    """
    rows = vectors.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(norms == 0, 1.0, norms)
    return np.asarray(np.clip((1.0 + rows @ rows.T) / 2.0, 0.0, 1.0))


def _spectral_labels(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    from sklearn.cluster import SpectralClustering
    from threadpoolctl import threadpool_limits

    # One thread: sums of a threaded BLAS depend on the number of cores.
    with threadpool_limits(limits=1):
        model = SpectralClustering(n_clusters=count, affinity="precomputed", random_state=seed % 2**32)
        return np.asarray(model.fit_predict(affinity_matrix(vectors)))
