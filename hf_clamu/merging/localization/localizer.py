"""The masks of all clusters of one merged delta, spread over the processes and kept in the journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from hf_clamu.exact import PackedMask, digest_json, digest_tensors, pack_mask, packed_size
from hf_clamu.merging.localization.arguments import LocalizationArguments
from hf_clamu.merging.localization.base import MaskInputs, Weights
from hf_clamu.merging.localization.registry import LOCALIZATIONS
from hf_clamu.merging.localization.search import GLOBAL_GRID, best_alpha, candidate_alphas, trial_arguments
from hf_clamu.training import LearnedMask, TaskTrainer

__all__ = ["ClusterVector", "Localizer", "MaskProblem"]

# Gives the integer sum of the task vectors of a cluster's members.
ClusterVector = Callable[[Sequence[str]], Weights]


@dataclass(frozen=True, kw_only=True)
class MaskProblem:
    """What masks are made for.

    Args:
        delta (`Weights`): the merged delta, integers.
        clusters (*tuple* of *tuple* of `str`): member ids.
        arguments (`LocalizationArguments`): method and settings.
        run_seed (`int`): the seed of the recipe.
        cluster_vector (`ClusterVector`): gives the local vectors, for methods that need them.
        vector_digests (*mapping* of `str` to `str`): SHA-256 of each task's vector, so that a mask in the journal is
            known to be of these vectors.
        task_masks (*mapping* of `str` to `Weights`): packed mask of each task, for methods that keep them.
    """

    delta: Weights
    clusters: tuple[tuple[str, ...], ...]
    arguments: LocalizationArguments
    run_seed: int
    cluster_vector: ClusterVector
    vector_digests: Mapping[str, str] = field(default_factory=dict)
    task_masks: Mapping[str, Weights] = field(default_factory=dict)

    @property
    def num_tasks(self) -> int:
        """Tasks in all clusters."""
        return sum(map(len, self.clusters))

    @cached_property
    def delta_digest(self) -> str:
        """SHA-256 of the merged delta."""
        return digest_tensors(self.delta)


class Localizer:
    """Finds alpha and the masks of all clusters.

    Args:
        trainer (`TaskTrainer`): live model and data.
        problem (`MaskProblem`): what the masks are made for.
    """

    def __init__(self, trainer: TaskTrainer, problem: MaskProblem) -> None:
        self._trainer = trainer
        self._problem = problem
        self._method = LOCALIZATIONS[problem.arguments.localization]
        self._merged_alpha: float | None = None
        self._theta_1: Weights = {}

    def run(self) -> tuple[float, tuple[PackedMask, ...]]:
        """Return alpha and the mask of each cluster (none if the method makes none).

        With `scaling="auto"` every alpha of the grid is localized, and `best_alpha` chooses. Where masks are learned,
        that takes a share of their steps each, unless the settings want all, and the chosen one is learned in full.
        """
        problem, arguments = self._problem, self._problem.arguments
        if not self._method.makes_masks and arguments.global_scaling != "same":
            return self._unmasked_alpha(), ()
        alphas = candidate_alphas(arguments.scaling, problem.num_tasks)
        trial = trial_arguments(arguments, len(alphas))
        masks = self._masks(alphas, trial)
        alpha = best_alpha(self._trainer, problem.delta, problem.clusters, masks)
        return alpha, (masks if trial is arguments else self._masks([alpha], arguments))[alpha]

    def global_alpha(self, alpha: float) -> float:
        """Return the scaling coefficient of the global model.

        With `global_scaling="auto"` the scores of the tasks choose it; 0, the base model, is one of the grid. For
        `"average"` it is 1/T, and scores that are measured later may bring it to 0, see `at_least_base`.

        Args:
            alpha (`float`): the one under the masks.
        """
        is_same = self._problem.arguments.global_scaling == "same" or not self._method.makes_masks
        return alpha if is_same else self._unmasked_alpha()

    def _unmasked_alpha(self) -> float:
        problem, scaling = self._problem, self._problem.arguments.global_scaling
        assert scaling is not None, "settings that are made have a value"
        alphas = candidate_alphas(1.0 if scaling == "average" else scaling, problem.num_tasks, GLOBAL_GRID)
        return best_alpha(self._trainer, problem.delta, problem.clusters, dict.fromkeys(alphas, ()))

    def _masks(self, alphas: Sequence[float], arguments: LocalizationArguments) -> dict[float, tuple[PackedMask, ...]]:
        """Return the masks of all clusters under each alpha."""
        if not self._method.makes_masks:
            return dict.fromkeys(alphas, ())
        if self._method.keeps_task_masks:
            return dict.fromkeys(alphas, tuple(map(self._joined, self._problem.clusters)))
        return self._shared_masks(alphas, arguments)

    def _joined(self, members: Sequence[str]) -> PackedMask:
        """Make the mask of a cluster of its members' masks; every process has them, and alpha does not matter."""
        mask = self._method.join([self._problem.task_masks[task_id] for task_id in members])
        if len(members) > 1 and self._trainer.journal is not None:
            mask = self._trainer.journal.write("union", {}, mask, is_timed=False).tensors()
        return PackedMask(bits=mask)

    def _shared_masks(
        self, alphas: Sequence[float], arguments: LocalizationArguments
    ) -> dict[float, tuple[PackedMask, ...]]:
        """Make masks with all processes; each of them gets all masks."""
        clusters, workers = self._problem.clusters, self._trainer.workers
        own: dict[int, Weights] = {}
        numbers = self._trainer.share(range(len(clusters)))
        for number in self._trainer.progress(numbers, f"localize {self._method.name}"):
            own[number] = self._cluster_masks(clusters[number], alphas, arguments)
        owners = {number: rank for rank, made in enumerate(workers.gather(sorted(own))) for number in made}
        masks: dict[float, list[PackedMask]] = {alpha: [] for alpha in alphas}
        for number in range(len(clusters)):
            packed = own[number] if number in own else self._blank_masks(alphas)
            workers.broadcast_(packed, owners[number])
            for index, alpha in enumerate(alphas):
                masks[alpha].append(self._unpacked(packed, index))
        return {alpha: tuple(of_alpha) for alpha, of_alpha in masks.items()}

    def _cluster_masks(
        self, members: tuple[str, ...], alphas: Sequence[float], arguments: LocalizationArguments
    ) -> Weights:
        """Return the packed masks of one cluster under each alpha, from the journal if it has them."""
        problem, journal = self._problem, self._trainer.journal
        facts: dict[str, Any] = {
            "alphas": list(alphas),
            "delta": problem.delta_digest,
            "method": self._method.name,
            **({} if arguments is problem.arguments else {"mask_steps": arguments.mask_steps}),
            "data": {task_id: self._trainer.encoded(task_id).digest for task_id in members},
            "vectors": {task_id: problem.vector_digests.get(task_id) for task_id in members},
        }
        stage = f"masks/{digest_json(facts)}"
        if journal is not None:
            for part in journal.parts(stage):
                return part.tensors()
        # Once per cluster, not per alpha: it may cost retraining every member.
        vector = problem.cluster_vector(members) if self._method.needs_cluster_vectors else {}
        masks: Weights = {}
        for index, alpha in enumerate(alphas):
            mask = self._method.mask(self._inputs(members, vector, alpha, arguments))
            learned = mask if isinstance(mask, LearnedMask) else LearnedMask(mask)
            masks |= {_key(index, name): pack_mask(bits) for name, bits in learned.bits.items()}
            if learned.factors is not None:
                masks[_factors_key(index)] = torch.tensor([learned.factors[name] for name in sorted(learned.factors)])
        # Mapped from the file, where there is one: all masks together may be larger than the model.
        return masks if journal is None else journal.write(stage, {}, masks).tensors()

    def _inputs(
        self, members: tuple[str, ...], vector: Weights, alpha: float, arguments: LocalizationArguments
    ) -> MaskInputs:
        return MaskInputs(
            trainer=self._trainer,
            members=members,
            arguments=arguments,
            run_seed=self._problem.run_seed,
            delta=self._problem.delta,
            vector=vector,
            merged=lambda: self._merged(alpha),
        )

    def _blank_masks(self, alphas: Sequence[float]) -> Weights:
        delta, blank = self._problem.delta, {}
        for index in range(len(alphas)):
            for name, steps in delta.items():
                blank[_key(index, name)] = torch.zeros(packed_size(steps.numel()), dtype=torch.uint8)
            if self._method.has_factors(self._problem.arguments):
                blank[_factors_key(index)] = torch.zeros(len(delta))
        return blank

    def _unpacked(self, packed: Weights, index: int) -> PackedMask:
        """Return the mask under one of the alphas."""
        delta, factors = self._problem.delta, packed.get(_factors_key(index))
        return PackedMask(
            bits={name: packed[_key(index, name)] for name in delta},
            factors=None if factors is None else dict(zip(sorted(delta), factors.tolist(), strict=True)),
        )

    def _merged(self, alpha: float) -> Weights:
        # Kept for the next cluster, which asks for the same one unless alpha is searched.
        if self._merged_alpha != alpha:
            codec = self._trainer.codec
            self._theta_1 = {
                name: codec.apply(theta, self._problem.delta[name], alpha, theta.dtype)
                for name, theta in self._trainer.workspace.theta_0.items()
            }
            self._merged_alpha = alpha
        return self._theta_1


def _key(index: int, name: str) -> str:
    return f"{index}/{name}"


def _factors_key(index: int) -> str:
    return str(index)
