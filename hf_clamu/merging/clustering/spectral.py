"""Spectral clustering of the cosines between features, one per task."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np

from hf_clamu.merging.clustering.base import ClusteringInputs, ClusteringMethod
from hf_clamu.training import derive_seed

__all__ = ["MOST_DENSE", "SpectralMethod", "affinity_matrix", "spectral_embedding"]

# Up to so many tasks the affinities are a matrix, as they always were, so that clusters of saved models stay what they
# are. More tasks take the way whose time grows with their number. See docs/decisions/0016.
MOST_DENSE = 2000
# What an eigenvalue of 0 is rounded to at most; the largest is 1.
_NOTHING = 1e-10


class SpectralMethod(ClusteringMethod):
    """Groups tasks by the cosines of their features; subclasses say what those are.

    Source: ClAMU, Algorithm 1, lines 10-13 (spectral clustering of pairwise affinities).
    """

    depends_on_environment = True

    def labels(self, inputs: ClusteringInputs, count: int) -> Mapping[str, Hashable]:
        """Return the labels of scikit-learn."""
        assert inputs.features is not None, "there is a feature for every task"
        from threadpoolctl import threadpool_limits

        vectors, seed = inputs.features.numpy(), derive_seed(inputs.run_seed, "cluster") % 2**32
        # One thread: sums of a threaded BLAS depend on the number of cores.
        with threadpool_limits(limits=1):
            labels = (_dense_labels if len(vectors) <= MOST_DENSE else _embedded_labels)(vectors, count, seed)
        return dict(zip(inputs.task_ids, labels.tolist(), strict=True))


def affinity_matrix(vectors: np.ndarray) -> np.ndarray:
    """Return `(1 + cosine) / 2` of every pair of rows.

    The paper's affinity is the cosine itself; spectral clustering needs non-negative affinities.

    Args:
        vectors (`numpy.ndarray` of shape `(tasks, size)`): one row per task.

    Returns:
        `numpy.ndarray` of shape `(tasks, tasks)`, float64 in [0, 1]. A row of zeros has affinity 1/2 to all.
    """
    rows = _directions(vectors)
    return np.asarray(np.clip((1.0 + rows @ rows.T) / 2.0, 0.0, 1.0))


def spectral_embedding(vectors: np.ndarray, size: int) -> np.ndarray:
    """Return the leading generalised eigenvectors of the affinities and their degrees, without the affinities.

    They are a product: `A = Z Z^T` with `Z = [1, X] / sqrt(2)` and X the directions of the rows. So the eigenvectors
    of `D^-1/2 A D^-1/2 = Y Y^T` follow from those of `Y^T Y`, whose size is that of a row, and time and memory are
    linear in the tasks.

    Args:
        vectors (`numpy.ndarray` of shape `(tasks, size)`): one row per task.
        size (`int`): eigenvectors to return.

    Returns:
        `numpy.ndarray` of shape `(tasks, at most size)`, float64: solutions u of `A u = lambda D u`, the largest
        lambda first; those of lambda = 0, which tell nothing apart, are left out.

    Source: Shi and Malik (2000), normalised cuts; von Luxburg (2007), "A tutorial on spectral clustering".
    """
    scaled_TZ = np.empty((len(vectors), vectors.shape[1] + 1))
    scaled_TZ[:, 0], scaled_TZ[:, 1:] = 1.0, _directions(vectors)
    scaled_TZ /= np.sqrt(2.0)
    root_T1 = np.sqrt(scaled_TZ @ scaled_TZ.sum(0))[:, None]
    scaled_TZ /= root_T1
    values_E, vectors_ZE = np.linalg.eigh(scaled_TZ.T @ scaled_TZ)
    leading = np.flatnonzero(values_E > _NOTHING)[::-1][:size]
    embedding_TE = scaled_TZ @ (vectors_ZE[:, leading] / np.sqrt(values_E[leading]))
    return np.asarray(embedding_TE / root_T1)


def _directions(vectors: np.ndarray) -> np.ndarray:
    """Return the rows at length 1, float64; a row of zeros stays one."""
    rows = vectors.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(norms == 0, 1.0, norms)
    return np.asarray(rows)


def _dense_labels(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    from sklearn.cluster import SpectralClustering

    model = SpectralClustering(n_clusters=count, affinity="precomputed", random_state=seed)
    return np.asarray(model.fit_predict(affinity_matrix(vectors)))


def _embedded_labels(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    # Its values are about 1 over the tasks. Rounded, for tasks that are alike are not to be told apart by the last
    # bits of a sum; there may be fewer clusters then.
    embedding_TE = (spectral_embedding(vectors, count) * len(vectors)).round(9)
    different = min(count, len(np.unique(embedding_TE, axis=0)))
    return np.asarray(KMeans(different, n_init=10, random_state=seed).fit_predict(embedding_TE))
