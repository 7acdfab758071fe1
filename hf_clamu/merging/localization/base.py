"""What a localization declares and implements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from hf_clamu.exact import TaskVector
from hf_clamu.merging.localization.arguments import LocalizationArguments
from hf_clamu.training import LearnedMask, TaskTrainer

__all__ = ["LocalizationMethod", "MaskInputs", "Weights"]

# One tensor per parameter.
Weights = dict[str, torch.Tensor]
When = Literal["never", "with_data", "always"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskInputs:
    """What a localization may use for the mask of one cluster under one alpha.

    Args:
        trainer (`TaskTrainer`): live model and data; the live model may hold anything before and after.
        members (*tuple* of `str`): ids of the cluster's tasks, sorted.
        arguments (`LocalizationArguments`): the settings.
        run_seed (`int`): the seed of the recipe; derive others from it with `hf_clamu.training.derive_seed`.
        delta (`Weights`): the merged delta, integers.
        vector (`Weights`): the sum of the members' task vectors, integers; empty unless `needs_cluster_vectors`.
        merged (*callable*): gives `M0 + alpha * delta`, which is not to be changed.
    """

    trainer: TaskTrainer
    members: tuple[str, ...]
    arguments: LocalizationArguments
    run_seed: int
    delta: Weights
    vector: Weights
    merged: Callable[[], Weights]


class LocalizationMethod:
    """A way to make masks: subclass it, declare its properties, and register an instance.

    An unmerged model has the bytes of a model that never saw the forgotten tasks only if the masks are a function of
    the tasks that are merged now. So `mask` must depend on its inputs alone: on no global generator, time, number of
    processes, other cluster, or earlier call. Randomness comes from `derive_seed(run_seed, purpose, *members)`. A
    task's own mask must depend on its own vector alone, because it is kept while other tasks come and go.

    A saved model names its localization and nothing more, so the name stands for one exact behaviour, constants
    included: give a changed method another name.

    Attributes:
        name (`str`): the value of the setting `localization`.
        label (`str`): the name in figures; by default `name`.
        summary (`str`): a few words for the documentation.
        makes_masks (`bool`): whether there are masks; without, every cluster is served the global model.
        needs_cluster_vectors (`bool`): `mask` reads the sum of the members' vectors, which may cost retraining them.
        keeps_task_masks (`bool`): each task has a mask (`task_mask`), kept in the saved model, and the mask of a
            cluster is made of them (`join`); `mask` is not called.
        has_fixed_signs (`bool`): tasks are finetuned under one random sign per weight (`FixedSigns`).
        reads_data (`str`): whether masks are made by the tasks' data: `"never"`, `"with_data"` (where tasks have any)
            or `"always"` (tasks without data cannot be localized).
        depends_on_environment (`str`): whether libraries, threads or device can show in the masks, given the task
            vectors; the same three values. Wherever a model runs, they can.
        chooses (*tuple* of `str`): names of what is chosen by held-out scores, for the model card.
    """

    name: str
    label: str = ""
    summary: str
    makes_masks: bool = True
    needs_cluster_vectors: bool = False
    keeps_task_masks: bool = False
    has_fixed_signs: bool = False
    reads_data: When = "never"
    depends_on_environment: When = "never"
    chooses: tuple[str, ...] = ()

    def check(self) -> None:
        """Check that what is declared and what is implemented fit together.

        Raises:
            ValueError: naming what is missing.
        """
        needed = ("task_mask", "join") if self.keeps_task_masks else ("mask",) if self.makes_masks else ()
        for maker in needed:
            if getattr(type(self), maker) is getattr(LocalizationMethod, maker):
                raise ValueError(f"localization {self.name!r} declares masks, so it must implement {maker}.")

    def num_training_steps(self, arguments: LocalizationArguments) -> int:
        """Return how many training steps the mask of a cluster takes, to estimate the time of a build."""
        return 0

    def has_factors(self, arguments: LocalizationArguments) -> bool:
        """Return whether `mask` returns factors with these settings."""
        return False

    def mask(self, inputs: MaskInputs) -> Weights | LearnedMask:
        """Return the mask of a cluster: bool, one tensor per parameter of the delta, on the CPU.

        With a factor of alpha per parameter beside it, where `has_factors` says so, it is a `LearnedMask`.
        """
        raise NotImplementedError

    def task_mask(self, vector: TaskVector) -> Weights:
        """Return the mask of a task by its vector, packed by `hf_clamu.exact.pack_mask`; for `keeps_task_masks`."""
        raise NotImplementedError

    def join(self, masks: Sequence[Weights]) -> Weights:
        """Return the packed mask of a cluster by those of its members, sorted by id; for `keeps_task_masks`."""
        raise NotImplementedError
