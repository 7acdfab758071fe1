"""One setting under one seed: every task finetuned once, and what the methods need of that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from examples.paper.bases import load_setting_base
from examples.paper.measures import Measure
from examples.paper.scale import Setting
from examples.paper.sources import load_setting_tasks
from hf_clamu.exact import DeltaAccumulator, TaskVector, digest_json
from hf_clamu.merging import ClamuArguments, cluster_tasks
from hf_clamu.merging.clustering.task_vectors import sketch
from hf_clamu.operations.context import open_trainer
from hf_clamu.storage import Archive, write_atomically
from hf_clamu.tasks import EncodedTask, Example, TaskDataset
from hf_clamu.training import TaskTrainer, derive_seed

__all__ = ["Pool", "Study"]


class _Trainer(TaskTrainer):
    """Shows every other validation example alone, for tuning; the rest are what is reported."""

    def encoded(self, task_id: str) -> EncodedTask:
        whole = super().encoded(task_id)
        return replace(whole, validation=whole.validation[0::2])

    def reported(self, task_id: str) -> tuple[Example, ...]:
        """Return the examples that neither training nor tuning sees."""
        return super().encoded(task_id).validation[1::2]


@dataclass
class Pool:
    """The vectors of all tasks under one way of finetuning, in an archive on the disk.

    Args:
        trainer (`TaskTrainer`): live model and data.
        arguments (`ClamuArguments`): how they were finetuned.
        folder (`Path`): of the archive.
        entries (*dict*): per task, what is kept beside its vector.
    """

    trainer: _Trainer
    arguments: ClamuArguments
    folder: Path
    entries: dict[str, dict[str, Any]]

    def vector(self, task_id: str) -> TaskVector:
        """Return a task's vector; its digest is checked."""
        shapes, entry = self.trainer.workspace.shapes, self.entries[task_id]
        bounds = dict(zip(sorted(shapes), entry["bounds"], strict=True))
        return Archive(self.folder).read(task_id, entry["digest"], bounds, shapes)

    def total(self, task_ids: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the integer sum of the vectors of some tasks."""
        total = DeltaAccumulator(self.trainer.workspace.shapes)
        for task_id in task_ids:
            total.add(self.vector(task_id))
        return total.narrowed()


class Study:
    """The tasks of one setting under one seed.

    Args:
        setting (`Setting`): data, base model and settings.
        seed (`int`): of the data's cut, the finetuning and the clusters.
        folder (`Path`): keeps the task vectors, so that a run that was stopped goes on.
        paths (*mapping* of `str` to `str`): local files of sources that are not on the Hub.
        progress (`Progress`): shows how far it is.
    """

    def __init__(self, setting: Setting, seed: int, folder: Path, paths: dict[str, str], progress: Any) -> None:
        self.setting = setting
        self.seed = seed
        self.folder = folder
        self.progress = progress
        self.arguments = setting.settings(seed)
        self.tasks: TaskDataset = load_setting_tasks(setting.data, seed, paths)
        self.base = load_setting_base(setting, self.tasks, folder.parent / "bases", seed, paths)
        # One for all pools: what the model holds when it is made is M0.
        self._workspace = open_trainer(
            self.base.model, self.base.processor, self.tasks, self.arguments, progress
        ).workspace
        self._pools: dict[str, Pool] = {}
        self.measure = Measure(setting.metric)
        # Any number of tasks is the start of one order, which depends on the ids alone.
        self.order = sorted(self.tasks, key=lambda one: (derive_seed(seed, "paper-order", one), one))

    def subset(self, num_tasks: int) -> tuple[str, ...]:
        """Return the first tasks of the seeded order, sorted by id."""
        if num_tasks > len(self.order):
            raise ValueError(f"{self.setting.title}: {num_tasks} tasks are asked for, and {len(self.order)} are there")
        return tuple(sorted(self.order[:num_tasks]))

    def pool(self, localization: str = "global") -> Pool:
        """Return all tasks, finetuned as a localization wants it: SIFT constrains signs, the others do not."""
        kind = "sift" if localization == "sift" else "plain"
        if kind not in self._pools:
            arguments = replace(self.arguments, localization="sift" if kind == "sift" else "global")
            self._pools[kind] = self._finetuned(kind, arguments)
        return self._pools[kind]

    def _finetuned(self, kind: str, arguments: ClamuArguments) -> Pool:
        trainer = _Trainer(self._workspace, self.tasks, self.base.processor, arguments, arguments.codec)
        pool = Pool(trainer=trainer, arguments=arguments, folder=self.folder / kind, entries={})
        for task_id in self.progress(self.order, f"finetune {self.setting.title} ({kind})"):
            path = pool.folder / f"{digest_json([task_id])}.json"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                entry = self._entry(pool, task_id)
                write_atomically(path, json.dumps(entry).encode())
            pool.entries[task_id] = json.loads(path.read_text(encoding="utf-8"))
        return pool

    def _entry(self, pool: Pool, task_id: str) -> dict[str, Any]:
        trainer = pool.trainer
        feature = trainer.feature(task_id)
        vector = trainer.finetune(task_id)
        Archive(pool.folder).write(task_id, vector)
        return {
            "digest": vector.digest,
            "bounds": [vector.bounds[name] for name in sorted(vector.bounds)],
            "local": self.score(trainer, task_id),  # the live model holds the local model now
            "feature": feature.tolist(),
            "sketch": sketch(vector, self.seed).tolist(),
        }

    def score(self, trainer: _Trainer, task_id: str) -> float:
        """Return the live model's score on a task's reported examples."""
        return self.measure(trainer.workspace, trainer.reported(task_id), self)

    def clusters(self, task_ids: tuple[str, ...], clustering: str, num_clusters: int) -> tuple[tuple[str, ...], ...]:
        """Group tasks as a build of them would."""
        arguments = replace(self.arguments, clustering=clustering, num_clusters=num_clusters)
        features, keys = None, None
        method = arguments.clustering_method
        if method.needs_keys:
            keys = {one: str(self.tasks.cluster_key(one)) for one in task_ids}
        elif method.feature_source == "data":
            features = torch.tensor([self.pool().entries[one]["feature"] for one in task_ids], dtype=torch.float32)
        elif method.feature_source == "task_vector":
            features = torch.tensor([self.pool().entries[one]["sketch"] for one in task_ids])
        return cluster_tasks(arguments, task_ids, self.seed, task_features=features, keys=keys)
