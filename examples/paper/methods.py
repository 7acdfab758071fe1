"""Every method of the paper's tables, on some tasks of a study."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch

from examples.paper.adapters import LORA_RATES, train_adapter
from examples.paper.costs import stored_models
from examples.paper.scale import Cell
from examples.paper.study import Pool, Study
from hf_clamu.evaluation import finetune_together, label_probabilities, labels_of_examples
from hf_clamu.exact import ALL_WEIGHTS, PackedMask
from hf_clamu.merging import ALPHA_GRID, ClamuArguments, Localizer, MaskProblem, scaling_coefficient
from hf_clamu.merging.localization.sift import support, union
from hf_clamu.training import derive_seed

__all__ = ["Outcome", "run_cell"]

_TIES_KEEP = 0.2
T = TypeVar("T")
Weights = dict[str, torch.Tensor]
# Brings a model into the workspace, and the tasks that it serves.
Served = tuple[Sequence[str], Callable[[], None]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a method gives.

    Args:
        scores (*dict* of `str` to `float`): per task, on its reported examples.
        storage (`float`): weights that it keeps, in fp32 models (see `stored_models`).
        alpha (`float`, *optional*): the scaling coefficient that it chose.
        num_clusters (`int`, *optional*): clusters that there are.
    """

    scores: dict[str, float]
    storage: float
    alpha: float | None = None
    num_clusters: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values; the score is the mean over the tasks."""
        return {
            "score": math.fsum(self.scores.values()) / len(self.scores),
            "storage": self.storage,
            "alpha": self.alpha,
            "num_clusters": self.num_clusters,
            "scores": self.scores,
        }


def run_cell(study: Study, cell: Cell) -> Outcome:
    """Measure a method on the tasks of a cell."""
    return _Run(study, cell).outcome()


class _Run:
    def __init__(self, study: Study, cell: Cell) -> None:
        self.study = study
        self.cell = cell
        self.task_ids = study.subset(cell.num_tasks)
        self.pool: Pool = study.pool("sift" if cell.method.startswith("sift") else "global")
        self.trainer = self.pool.trainer
        self.workspace = self.trainer.workspace
        self.clusters = (
            study.clusters(self.task_ids, cell.clustering, cell.num_clusters) if cell.clustering else (self.task_ids,)
        )

    def outcome(self) -> Outcome:
        found: Outcome = getattr(self, f"_{self.cell.method}")()
        return found

    def _zero_shot(self) -> Outcome:
        return self._scored([(self.task_ids, self.workspace.reset)], storage=1)

    def _local(self) -> Outcome:
        scores = {task_id: self.pool.entries[task_id]["local"] for task_id in self.task_ids}
        return Outcome(scores=scores, storage=len(self.task_ids))

    def _central(self) -> Outcome:
        """One model, finetuned on the data of all tasks for as many steps as all local models together."""
        return self._scored([(self.task_ids, lambda: self._finetune(self.task_ids))], storage=1)

    def _sisa(self) -> Outcome:
        """A model per random shard of the tasks; the class with the highest mean probability wins.

        Source: SISA training (Bourtoule et al., 2021), without slices.
        """
        if self.study.setting.metric != "accuracy":
            raise ValueError("sisa votes over classes; leave it out of settings with a language model's head")
        votes: dict[str, torch.Tensor] = {}
        for members in self.clusters:
            self._finetune(members)
            for task_id in self.task_ids:
                found = label_probabilities(
                    self.workspace, self.trainer.reported(task_id), self.trainer.tasks.spec.kind
                )
                votes[task_id] = found + votes.get(task_id, 0.0)
        scores = {}
        for task_id, vote_BC in votes.items():
            labels_B = torch.tensor(labels_of_examples(self.trainer.reported(task_id)))
            scores[task_id] = (vote_BC.argmax(-1) == labels_B).float().mean().item()
        return Outcome(scores=scores, storage=len(self.clusters), num_clusters=len(self.clusters))

    def _average(self) -> Outcome:
        delta = self.pool.total(self.task_ids)
        alpha = self._alpha(1.0)
        return self._scored(self._merged(delta, alpha), storage=1, alpha=alpha)

    def _task_arithmetic(self) -> Outcome:
        delta = self.pool.total(self.task_ids)
        return self._tuned(lambda factor: self._merged(delta, self._alpha(factor)), storage=1)

    def _ties(self) -> Outcome:
        """Keep the largest 20 % of each vector, elect signs, add what agrees.

        Source: TIES-Merging (Yadav et al., 2023), trim, elect sign and disjoint sum.
        """
        elected = self.sum_of(self.trimmed())
        agreed = self.sum_of(
            {name: torch.where(torch.sign(n) == torch.sign(elected[name]), n, 0) for name, n in vector.items()}
            for vector in self.trimmed()
        )
        return self._tuned(lambda factor: self._merged(agreed, self._alpha(factor)), storage=1)

    def trimmed(self) -> Iterator[Weights]:
        """Yield each task vector with its smallest entries set to zero."""
        for task_id in self.task_ids:
            # Of one type: narrow integers would be compared as such.
            steps = {name: n.to(torch.int64) for name, n in self.pool.vector(task_id).steps.items()}
            sizes = torch.cat([n.reshape(-1).abs() for n in steps.values()])
            least = sizes.kthvalue(max(1, int(len(sizes) * (1 - _TIES_KEEP)))).values
            yield {name: torch.where(n.abs() > least, n, 0) for name, n in steps.items()}

    @staticmethod
    def sum_of(vectors: Iterator[Weights]) -> Weights:
        """Add up vectors."""
        total: Weights = {}
        for vector in vectors:
            for name, n in vector.items():
                total[name] = n.to(torch.int64) + total[name] if name in total else n.to(torch.int64)
        return total

    def _cluster_merged(self) -> Outcome:
        """A merged model per cluster; one multiple of 1/(members) for all of them."""
        deltas = [self.pool.total(members) for members in self.clusters]

        def served(factor: float | str) -> list[Served]:
            return [
                (members, self._loader(delta, scaling_coefficient(factor, len(members))))
                for members, delta in zip(self.clusters, deltas, strict=True)
            ]

        return self._tuned(served, storage=len(self.clusters))

    def _clamu(self) -> Outcome:
        """Learned masks under the settings as they are: no scaling coefficient is chosen."""
        return self._localized(self.study.arguments)

    def _clamu_tuned(self) -> Outcome:
        return self._localized(replace(self.study.arguments, scaling="auto"))

    def _emr(self) -> Outcome:
        return self._localized(replace(self.study.arguments, localization="emr", scaling="auto"))

    def _tall(self) -> Outcome:
        return self._localized(replace(self.study.arguments, localization="tall", scaling="auto"))

    def _localized(self, arguments: ClamuArguments) -> Outcome:
        delta = self.pool.total(self.task_ids)
        problem = MaskProblem(
            delta=delta,
            clusters=self.clusters,
            arguments=arguments,
            run_seed=self.study.seed,
            cluster_vector=self.pool.total,
        )
        alpha, masks = Localizer(self.trainer, problem).run()
        num_factors = sum(len(mask.factors or ()) for mask in masks)
        return self._scored(
            self._masked(delta, alpha, masks),
            storage=stored_models(len(masks), num_factors / self.workspace.num_parameters),
            alpha=alpha,
            num_clusters=len(masks),
        )

    def _lora(self, rank: int) -> Outcome:
        """An adapter per cluster in the place of a mask; one learning rate for all of them.

        The rates are tried with a share of the steps each, as alphas are for masks, and the best one is run in full.
        """
        arguments = self.study.arguments
        short = replace(arguments, mask_steps=max(1, arguments.mask_steps // len(LORA_RATES)))
        rate, _ = self._best(LORA_RATES, lambda rate: [served for served, _ in self._adapters(short, rank, rate)])
        adapters = self._adapters(arguments, rank, rate)
        weights = sum(size for _, size in adapters) / self.workspace.num_parameters
        return self._scored([served for served, _ in adapters], storage=1 + weights, num_clusters=len(adapters))

    def _adapters(self, arguments: ClamuArguments, rank: int, rate: float) -> list[tuple[Served, int]]:
        """Train an adapter for each cluster; return their models, and how many weights each has of its own."""
        found = []
        for members in self.clusters:
            examples = [example for task_id in members for example in self.trainer.encoded(task_id).train]
            seed = derive_seed(self.study.seed, "adapter", *members)
            weights, size = train_adapter(self.workspace, examples, arguments, rank=rank, rate=rate, seed=seed)
            found.append(((members, partial(self.workspace.load, weights)), size))
        return found

    def _lora_1(self) -> Outcome:
        return self._lora(1)

    def _lora_2(self) -> Outcome:
        return self._lora(2)

    def _lora_5(self) -> Outcome:
        return self._lora(5)

    def _sift(self) -> Outcome:
        """A mask per task: the support of its own vector, which was finetuned under the seed's signs."""
        self.clusters = tuple((task_id,) for task_id in self.task_ids)
        return self._by_support(stored=len(self.task_ids))

    def _sift_union(self) -> Outcome:
        """A mask per cluster, the union of its members'; theirs are kept, too, for unmerging without retraining."""
        return self._by_support(stored=len(self.task_ids) + len(self.clusters))

    def _by_support(self, stored: int) -> Outcome:
        delta = self.pool.total(self.task_ids)
        supports = ([support(self.pool.vector(task_id)) for task_id in members] for members in self.clusters)
        masks = tuple(PackedMask(bits=union(of_members)) for of_members in supports)
        return self._tuned(
            lambda factor: self._masked(delta, self._alpha(factor), masks), storage=stored_models(stored)
        )

    def _alpha(self, factor: float | str) -> float:
        return scaling_coefficient(factor, len(self.task_ids))

    def _merged(self, delta: Weights, alpha: float) -> list[Served]:
        return [(self.task_ids, self._loader(delta, alpha))]

    def _masked(self, delta: Weights, alpha: float, masks: Sequence[PackedMask]) -> list[Served]:
        return [
            (members, self._loader(delta, alpha, mask)) for members, mask in zip(self.clusters, masks, strict=True)
        ]

    def _loader(self, delta: Weights, alpha: float, mask: PackedMask = ALL_WEIGHTS) -> Callable[[], None]:
        return lambda: self.trainer.load_masked(delta, alpha, mask)

    def _finetune(self, members: Sequence[str]) -> None:
        finetune_together(self.trainer, members, self.pool.arguments)

    def _tuned(self, served: Callable[[float | str], list[Served]], *, storage: float) -> Outcome:
        """Choose the multiple of 1/T from the grid as a build does."""
        factor, models = self._best(_distinct(len(self.task_ids)), served)
        return self._scored(models, storage=storage, alpha=self._alpha(factor), num_clusters=len(self.clusters))

    def _best(self, values: Sequence[T], served: Callable[[T], list[Served]]) -> tuple[T, list[Served]]:
        """Return the value with the highest mean score on the tuning examples, and its models.

        A draw takes the lower loss, then the earlier value.
        """
        best: tuple[tuple[float, float], T, list[Served]] | None = None
        for value in values:
            found, models = [], served(value)
            for members, load in models:
                load()
                found += [self.trainer.measure_held_out(task_id) for task_id in members]
            quality = (math.fsum(one.score for one in found), -math.fsum(one.loss for one in found))
            if best is None or quality > best[0]:
                best = (quality, value, models)
        assert best is not None, "there is a value to choose"
        return best[1:]

    def _scored(self, served: list[Served], *, storage: float, **facts: Any) -> Outcome:
        """Measure the reported examples of all tasks.

        Args:
            served (*list* of `Served`): models with the tasks that they serve.
            storage (`float`): in fp32 models.
            facts: see `Outcome`.
        """
        scores = {}
        for members, load in served:
            load()
            scores |= {task_id: self.study.score(self.trainer, task_id) for task_id in members}
        return Outcome(scores=dict(sorted(scores.items())), storage=storage, **facts)


def _distinct(num_tasks: int) -> list[float | str]:
    """Return the multiples of the grid that give different alphas, by rising alpha."""
    by_alpha = {scaling_coefficient(factor, num_tasks): factor for factor in reversed(ALPHA_GRID)}
    return [by_alpha[alpha] for alpha in sorted(by_alpha)]
