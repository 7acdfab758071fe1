"""What a clustering declares and implements."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from hf_clamu.exact import TaskVector
from hf_clamu.training import TaskTrainer

__all__ = ["ClusteringInputs", "ClusteringMethod"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusteringInputs:
    """What a clustering may use.

    Args:
        task_ids (*tuple* of `str`): the tasks, in the order of their ids.
        run_seed (`int`): the seed of the recipe; derive others from it with `hf_clamu.training.derive_seed`.
        features (`torch.Tensor` of shape `(tasks, size)`, *optional*): the method's own feature of each task.
        keys (*mapping* of `str` to `str`): the data's own cluster of each task, where the data name one.
        limit (`int`): the setting `num_clusters`, which may be more than there are tasks.
    """

    task_ids: tuple[str, ...]
    run_seed: int
    features: torch.Tensor | None
    keys: Mapping[str, str]
    limit: int


class ClusteringMethod:
    """A way to group tasks: subclass it, declare its properties, and register an instance.

    An unmerged model has the bytes of a model that never saw the forgotten tasks only if the clusters are a function
    of the tasks that are merged now. So `labels` must depend on its inputs alone: on no global generator, time,
    number of processes, or earlier call. Randomness comes from `derive_seed(run_seed, purpose, ...)`. A feature
    must depend on its own task alone, because it is kept while other tasks come and go.

    A saved model names its clustering and nothing more, so the name stands for one exact behaviour, constants
    included: give a changed method another name.

    Attributes:
        name (`str`): the value of the setting `clustering`.
        summary (`str`): a few words for the documentation.
        feature_source (`str`): what a feature per task is made of, to cluster by: `"none"`, `"data"` (`data_feature`,
            before finetuning) or `"task_vector"` (`vector_feature`, after it).
        feature_dtype (`torch.dtype`, *optional*): of the features in the saved model; needed if there are any.
        uses_base_features (`bool`): the feature is the mean of the base model's, of the task's training examples.
        needs_data (`bool`): tasks without data cannot be clustered.
        needs_public_rows (`bool`): the build needs rows that belong to nobody; `trainer.anchors` comes from them.
        needs_keys (`bool`): the data must name a cluster per task.
        names_clusters (`bool`): a label is text that depends on its task alone, and names the cluster; `labels` is
            called however many clusters there are. Without, a cluster is named by the hashes of its members.
        depends_on_environment (`bool`): libraries, threads or device can show in the features or labels.
    """

    name: str
    summary: str
    feature_source: Literal["none", "data", "task_vector"] = "none"
    feature_dtype: torch.dtype | None = None
    uses_base_features: bool = False
    needs_data: bool = False
    needs_public_rows: bool = False
    needs_keys: bool = False
    names_clusters: bool = False
    depends_on_environment: bool = False

    def check(self) -> None:
        """Check that what is declared and what is implemented fit together.

        Raises:
            ValueError: naming what is missing.
        """
        if (self.feature_source == "none") != (self.feature_dtype is None):
            raise ValueError(
                f"clustering {self.name!r}: feature_source and feature_dtype are declared together, or neither is."
            )
        for source, maker in (("data", "data_feature"), ("task_vector", "vector_feature")):
            if self.feature_source == source and getattr(type(self), maker) is getattr(ClusteringMethod, maker):
                raise ValueError(f"clustering {self.name!r} declares features, so it must implement {maker}.")

    def num_clusters(self, limit: int, num_tasks: int, keys: Iterable[str | None]) -> int:
        """Return how many clusters there are to be.

        Args:
            limit (`int`): the setting `num_clusters`.
            num_tasks (`int`): tasks to group.
            keys (*iterable* of `str` or `None`): the data's own cluster of each task.
        """
        return min(limit, num_tasks)

    def data_feature(self, trainer: TaskTrainer, task_id: str) -> torch.Tensor:
        """Return the feature of a task by its data, for `feature_source = "data"`.

        Args:
            trainer (`TaskTrainer`): live model and data.
            task_id (`str`): the task.
        """
        raise NotImplementedError

    def vector_feature(self, vector: TaskVector, run_seed: int) -> torch.Tensor:
        """Return the feature of a task by its vector, for `feature_source = "task_vector"`.

        Args:
            vector (`TaskVector`): the integer task vector.
            run_seed (`int`): the seed of the recipe.
        """
        raise NotImplementedError

    def fits_anchors(self, anchors: Mapping[str, torch.Tensor], count: int | None) -> bool:
        """Whether a saved model may have these anchors; a method that needs public rows says which.

        Args:
            anchors (*mapping* of `str` to `torch.Tensor`): from its file; empty if there is none.
            count (`int`, *optional*): size of the tasks' features, if there are tasks.
        """
        return not anchors

    def labels(self, inputs: ClusteringInputs, count: int) -> Mapping[str, Hashable]:
        """Return any label for each task; equal labels make a cluster.

        Unless the method `names_clusters`, it is not called where every task is a cluster of its own, or one cluster
        holds all.

        Args:
            inputs (`ClusteringInputs`): the tasks.
            count (`int`): clusters: what `num_clusters` returns.
        """
        raise NotImplementedError
