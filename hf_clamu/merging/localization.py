"""Localization: one binary mask per cluster, by five methods on the same clusters and the same merged delta."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import torch

from hf_clamu.errors import RecipeError
from hf_clamu.exact import digest_json, digest_tensors, pack_mask, packed_size
from hf_clamu.merging.sift import union
from hf_clamu.merging.stages import map_shared
from hf_clamu.training import MaskingArguments, TaskTrainer, train_mask
from hf_clamu.training.determinism import derive_seed

__all__ = [
    "ALPHA_GRID",
    "LAMBDA_GRID",
    "LOCALIZATIONS",
    "ClusterVector",
    "LocalizationArguments",
    "Localizer",
    "scaling_coefficient",
]

Localization = Literal["clamu", "sift", "tall", "emr", "global"]
LOCALIZATIONS: tuple[str, ...] = get_args(Localization)

# Multiples of 1/T that "auto" chooses from, for every method alike; "sum" (alpha = 1) comes last.
ALPHA_GRID: tuple[float | str, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, "sum")
# TALL's own grid, in the order of their code.
LAMBDA_GRID = (0.2, 0.3, 0.4, 0.5, 0.6)


@dataclass(frozen=True, kw_only=True)
class LocalizationArguments(MaskingArguments):
    """How masks are found and how strongly the merged delta is applied."""

    localization: Localization = field(
        default="clamu",
        metadata={
            "help": "clamu (learned masks), sift (finetuning under fixed random signs; an unmerge learns no mask), "
            "tall, emr, or global (no masks)."
        },
    )
    scaling: float | str = field(
        default=4.0,
        metadata={
            "help": "The scaling coefficient alpha: a multiple of 1/T (never above 1), 'sum' for alpha = 1, or 'auto' "
            "to choose from a fixed grid by the score of the merged tasks (validation examples where there are any). "
            "The default is for clamu; the paper of sift takes 1."
        },
    )

    tall_lambda: float = field(
        default=0.4,
        metadata={
            "help": "TALL's lambda for tasks that come without data; with data it is chosen from 0.2 to 0.6 by score."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tall_lambda < float("inf"):
            raise RecipeError(f"tall_lambda must be a number above 0, got {self.tall_lambda!r}.")
        if self.localization not in LOCALIZATIONS:
            raise RecipeError(f"localization must be one of {', '.join(LOCALIZATIONS)}, got {self.localization!r}.")
        if isinstance(self.scaling, str):
            if self.scaling not in ("sum", "auto"):
                raise RecipeError(f"scaling must be a number above 0, 'sum' or 'auto', got {self.scaling!r}.")
        else:
            object.__setattr__(self, "scaling", float(self.scaling))
            if not 0 < self.scaling < float("inf"):
                raise RecipeError(f"scaling must be a number above 0, 'sum' or 'auto', got {self.scaling!r}.")


def scaling_coefficient(scaling: float | str, num_tasks: int) -> float:
    """Return alpha for a multiple of 1/T, never above the plain sum.

    Args:
        scaling (`float` or `"sum"`): the multiple.
        num_tasks (`int`): T.

    Example:

    ```python
    >>> scaling_coefficient(4.0, 16), scaling_coefficient(4.0, 2), scaling_coefficient("sum", 16)
    (0.25, 1.0, 1.0)

    ```
    """
    return 1.0 if isinstance(scaling, str) else min(1.0, scaling / num_tasks)


# Gives the integer sum of the task vectors of a cluster's members.
ClusterVector = Callable[[Sequence[str]], dict[str, torch.Tensor]]


class Localizer:
    """Finds the masks of all clusters of one merged delta.

    Args:
        trainer (`TaskTrainer`): live model and data.
        delta (*dict* of `str` to `torch.Tensor`, integer): the merged delta.
        clusters (*tuple* of *tuple* of `str`): member ids.
        arguments (`LocalizationArguments`): method and settings.
        run_seed (`int`): the seed of the recipe.
        cluster_vector (`ClusterVector`): gives the local vectors that TALL and EMR need.
        vector_digests (*mapping* of `str` to `str`, *optional*): SHA-256 of each task's vector, so that a mask in the
            journal is known to be of these vectors.
        task_masks (*mapping* of `str` to *dict*, *optional*): packed mask of each task, for `sift`.
    """

    def __init__(
        self,
        trainer: TaskTrainer,
        delta: dict[str, torch.Tensor],
        clusters: tuple[tuple[str, ...], ...],
        arguments: LocalizationArguments,
        run_seed: int,
        cluster_vector: ClusterVector,
        vector_digests: Mapping[str, str] | None = None,
        task_masks: Mapping[str, dict[str, torch.Tensor]] | None = None,
    ) -> None:
        self._trainer = trainer
        self._workspace = trainer.workspace
        self._delta = delta
        self._clusters = clusters
        self._arguments = arguments
        self._run_seed = run_seed
        self._cluster_vector = cluster_vector
        self._vector_digests = vector_digests or {}
        self._task_masks = task_masks or {}
        self._merged_alpha: float | None = None
        self._theta_1: dict[str, torch.Tensor] = {}
        self._num_tasks = sum(len(members) for members in clusters)

    @cached_property
    def _delta_digest(self) -> str:
        return digest_tensors(self._delta)

    def run(self) -> tuple[float, tuple[dict[str, torch.Tensor], ...]]:
        """Return alpha and the packed mask of each cluster (none if the method is `global`).

        With `scaling="auto"` every alpha of the grid is localized in full, and the one with the highest mean score
        over the tasks is taken; a draw takes the lower loss, then the smaller alpha. The choice sees the given tasks
        alone. (The loss by itself chooses badly: it prefers a large alpha, whose model is surer and more often wrong.)
        """
        masks = self._masks(self._alphas())
        best: tuple[tuple[float, float], float] | None = None
        for alpha in masks:
            if len(masks) == 1:
                return alpha, masks[alpha]
            quality = self._quality(alpha, masks[alpha])
            if best is None or quality > best[0]:
                best = (quality, alpha)
        assert best is not None, "the grid is not empty"
        return best[1], masks[best[1]]

    def _alphas(self) -> list[float]:
        scaling = self._arguments.scaling
        values = ALPHA_GRID if scaling == "auto" else (scaling,)
        return sorted({scaling_coefficient(value, self._num_tasks) for value in values})

    def _masks(self, alphas: Sequence[float]) -> dict[float, tuple[dict[str, torch.Tensor], ...]]:
        """Return the packed masks of all clusters under each alpha."""
        method = self._arguments.localization
        if method == "global":
            return dict.fromkeys(alphas, ())
        if method == "sift":
            return dict.fromkeys(alphas, tuple(self._sift(members) for members in self._clusters))
        workers = self._trainer.workers
        own: dict[int, dict[str, torch.Tensor]] = {}
        numbers = self._trainer.share(range(len(self._clusters)))
        for number in self._trainer.progress(numbers, f"localize {method}"):
            own[number] = self._cluster_masks(self._clusters[number], alphas)
        owners = {number: rank for rank, found in enumerate(workers.gather(sorted(own))) for number in found}
        masks: dict[float, list[dict[str, torch.Tensor]]] = {alpha: [] for alpha in alphas}
        for number in range(len(self._clusters)):
            found = own[number] if number in own else self._blank_masks(alphas)
            workers.broadcast_(found, owners[number])
            for place, alpha in enumerate(alphas):
                masks[alpha].append({name: found[_key(place, name)] for name in self._delta})
        return {alpha: tuple(found) for alpha, found in masks.items()}

    def _cluster_masks(self, members: Sequence[str], alphas: Sequence[float]) -> dict[str, torch.Tensor]:
        """Return the packed masks of one cluster under each alpha, from the journal if it has them."""
        journal, method = self._trainer.journal, self._arguments.localization
        facts: dict[str, Any] = {"alphas": list(alphas), "delta": self._delta_digest, "method": method}
        facts["data"] = {task_id: self._trainer.encoded(task_id).digest for task_id in members}
        facts["vectors"] = {task_id: self._vector_digests.get(task_id) for task_id in members}
        stage = f"masks/{digest_json(facts)}"
        if journal is not None:
            for part in journal.parts(stage):
                return part.tensors()
        # Once per cluster, not per alpha: it may cost retraining every member.
        vector = {} if method == "clamu" else self._cluster_vector(members)
        masks: dict[str, torch.Tensor] = {}
        for place, alpha in enumerate(alphas):
            if method == "clamu":
                mask = self._clamu(self._merged(alpha), members)
            elif method == "emr":
                mask = self._emr(vector)
            else:
                mask = self._tall(self._merged(alpha), vector, members)
            masks |= {_key(place, name): pack_mask(bits) for name, bits in mask.items()}
        # Mapped from the file, where there is one: all masks together may be larger than the model.
        return masks if journal is None else journal.write(stage, {}, masks).tensors()

    def _blank_masks(self, alphas: Sequence[float]) -> dict[str, torch.Tensor]:
        return {
            _key(place, name): torch.zeros(packed_size(steps.numel()), dtype=torch.uint8)
            for place in range(len(alphas))
            for name, steps in self._delta.items()
        }

    def _merged(self, alpha: float) -> dict[str, torch.Tensor]:
        # Kept for the next cluster, which asks for the same one unless alpha is searched.
        if self._merged_alpha != alpha:
            codec = self._trainer.codec
            self._theta_1 = {
                name: codec.apply(theta, self._delta[name], alpha, theta.dtype)
                for name, theta in self._workspace.theta_0.items()
            }
            self._merged_alpha = alpha
        return self._theta_1

    def _clamu(self, theta_1: dict[str, torch.Tensor], members: Sequence[str]) -> dict[str, torch.Tensor]:
        """Learn the mask on the training data of all members (Algorithm 1, lines 17-25)."""
        examples = tuple(example for task_id in members for example in self._trainer.encoded(task_id).train)
        seed = derive_seed(self._run_seed, "mask", *members)
        return train_mask(self._workspace, theta_1, examples, self._arguments, seed)

    def _sift(self, members: Sequence[str]) -> dict[str, torch.Tensor]:
        """Join the members' masks; every process has them, and alpha does not matter.

        Source: SIFT-Masks (arXiv 2504.04626), which has a mask per task; for several tasks it is their union here.
        """
        mask = union([self._task_masks[task_id] for task_id in members])
        if len(members) == 1 or self._trainer.journal is None:
            return mask
        return self._trainer.journal.write("union", {}, mask, is_timed=False).tensors()

    def _emr(self, vector: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Keep the weights on which the cluster's merged model and the merged delta agree in sign.

        Source: EMR-Merging, the mask alone, as the ClAMU paper uses it (no rescaling): 1[tau_k * tau_bar > 0].
        """
        return {name: torch.sign(n) * torch.sign(self._delta[name]) > 0 for name, n in vector.items()}

    def _tall(
        self, theta_1: dict[str, torch.Tensor], vector: dict[str, torch.Tensor], members: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Keep the weights where the cluster's own movement outweighs what merging added.

        Source: TALL-masks, 1[|theta_0 - theta_k| > |theta_0 + alpha * tau_sum - theta_k| * lambda], theta_k being the
        average of the members' local models; lambda by validation score, a draw takes the smallest. Tasks without data
        have no score: lambda is the setting `tall_lambda` then.
        """
        workspace, codec = self._workspace, self._trainer.codec
        own: dict[str, torch.Tensor] = {}
        added: dict[str, torch.Tensor] = {}
        for name, n in vector.items():
            theta_0 = workspace.theta_0[name]
            theta_k = codec.apply(theta_0, n, 1.0 / len(members), theta_0.dtype)
            own[name] = (theta_0 - theta_k).abs_()
            added[name] = theta_k.neg_().add_(theta_1[name]).abs_()
        if not any(self._trainer.encoded(task_id).train for task_id in members):
            return {name: (own[name] > added[name] * self._arguments.tall_lambda).cpu() for name in own}
        best: tuple[float, dict[str, torch.Tensor]] | None = None
        for factor in LAMBDA_GRID:
            mask = {name: own[name] > added[name] * factor for name in own}
            workspace.load({name: torch.where(mask[name], theta_1[name], workspace.theta_0[name]) for name in mask})
            score = self._mean([self._trainer.measure_held_out(task_id).score for task_id in members])
            if best is None or score > best[0]:
                best = (score, mask)
        assert best is not None, "the grid is not empty"
        return {name: bits.cpu() for name, bits in best[1].items()}

    def _quality(self, alpha: float, masks: tuple[dict[str, torch.Tensor], ...]) -> tuple[float, float]:
        """Return the mean score over all tasks under their cluster's masked model, and minus the mean loss."""

        def measured(number: str) -> list[list[float]]:
            self._trainer.load_masked(self._delta, alpha, masks[int(number)] if masks else None)
            found = [self._trainer.measure_held_out(task_id) for task_id in self._clusters[int(number)]]
            return [[measurement.score, measurement.loss] for measurement in found]

        numbers = [str(number) for number in range(len(self._clusters))]
        found = [pair for pairs in map_shared(self._trainer, "quality", numbers, measured).values() for pair in pairs]
        return self._mean([score for score, _ in found]), -self._mean([loss for _, loss in found])

    @staticmethod
    def _mean(values: Sequence[float]) -> float:
        return math.fsum(values) / len(values)


def _key(place: int, name: str) -> str:
    return f"{place}/{name}"
