"""The clusterings by name. A new one of this package is a file beside this one and an entry here."""

from __future__ import annotations

from hf_clamu.merging.clustering.anchored import AnchoredClustering, PublicRowsClustering
from hf_clamu.merging.clustering.base import ClusteringMethod
from hf_clamu.merging.clustering.column import ColumnClustering
from hf_clamu.merging.clustering.features import FeatureClustering
from hf_clamu.merging.clustering.none import NoClustering
from hf_clamu.merging.clustering.random import RandomClustering
from hf_clamu.merging.clustering.task_vectors import StableKMeans, TaskVectorClustering
from hf_clamu.merging.registry import Registry

__all__ = ["CLUSTERINGS", "register_clustering"]

CLUSTERINGS: Registry[ClusteringMethod] = Registry(
    "clustering",
    [
        FeatureClustering(),
        TaskVectorClustering(),
        StableKMeans(),
        AnchoredClustering(),
        PublicRowsClustering(),
        RandomClustering(),
        ColumnClustering(),
        NoClustering(),
    ],
)


def register_clustering(method: ClusteringMethod) -> None:
    """Add a clustering, so that `ClamuArguments(clustering=NAME)` and recipes accept its name.

    Whatever loads, changes or verifies a model that was built with it must register it first.

    Args:
        method (`ClusteringMethod`): the method; its docstring says what must hold for requests to stay exact.

    Raises:
        ValueError: if the name is taken or no word, or the method lacks what it declares.
    """
    CLUSTERINGS.register(method)
