"""What one would use instead of merging: models of many owners that are trained again, and a model per owner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hf_clamu.evaluation.approaches import label_probabilities
from hf_clamu.exact.digest import sha256_hex
from hf_clamu.merging import ClamuArguments
from hf_clamu.resources import size_of_files
from hf_clamu.tasks import EncodedTask, Example
from hf_clamu.training import TaskTrainer, derive_seed, deterministic, finetune

__all__ = ["OwnerModels", "ShardedModels", "finetune_together"]

_FROZEN = "frozen.safetensors"


def finetune_together(trainer: TaskTrainer, members: Sequence[str], arguments: ClamuArguments) -> None:
    """Finetune the base model on the rows of several tasks at once; the live model holds the result.

    Args:
        trainer (`TaskTrainer`): live model and data.
        members (*sequence* of `str`): the tasks.
        arguments (`ClamuArguments`): the settings; it takes as many steps as the members would take alone.
    """
    together = EncodedTask(
        task_id="+".join(members),
        train=tuple(example for task_id in members for example in trainer.encoded(task_id).train),
        validation=(),
        digest=None,
    )
    arguments = replace(arguments, finetune_steps=arguments.finetune_steps * len(members))
    finetune(trainer.workspace, together, arguments, trainer.codec)


class _TrainedModels:
    """Several models of one architecture, trained on rows of the owners and kept in a file each.

    Args:
        trainer (`TaskTrainer`): live model, with the adapter inside if there is one, and training data.
        arguments (`ClamuArguments`): how the owners are finetuned.
        held_out (*mapping* of `str` to *sequence* of `Example`): what is answered, by owner.
        folder (`Path`): gets the files.
    """

    clusters: tuple[tuple[str, ...], ...] = ()

    def __init__(
        self,
        trainer: TaskTrainer,
        arguments: ClamuArguments,
        held_out: Mapping[str, Sequence[Example]],
        folder: Path,
    ) -> None:
        self._trainer, self._arguments, self._held_out, self._folder = trainer, arguments, held_out, folder

    @property
    def stored_bytes(self) -> int:
        """The size of all files."""
        return size_of_files(self._folder)

    def _probabilities(self, task_id: str) -> torch.Tensor:
        """Return what the live model makes of an owner's held-out examples."""
        trainer = self._trainer
        return label_probabilities(trainer.workspace, self._held_out[task_id], trainer.tasks.spec.kind)

    def _keep(self, file: Path) -> dict[str, torch.Tensor]:
        """Write what the live model trains to a file, and return a copy of it."""
        parameters = self._trainer.workspace.parameters
        weights = {name: weight.detach().clone() for name, weight in parameters.items()}
        save_file(weights, file)
        return weights


class ShardedModels(_TrainedModels):
    """SISA without slices: an ordinary model per shard of the owners; the highest mean probability wins.

    A request trains the owner's shard again, from the base model and without it. With one shard this is joint
    finetuning with full retraining. Which owner an input is of need not be known.

    Args:
        trainer (`TaskTrainer`): live model and training data.
        arguments (`ClamuArguments`): how the owners are finetuned.
        held_out (*mapping* of `str` to *sequence* of `Example`): what is answered, by owner.
        folder (`Path`): gets a file per shard.
        num_shards (`int`): of about equally many owners each, drawn at random.

    Source: SISA training (Bourtoule et al., "Machine Unlearning", 2021).
    """

    needs_owner = False

    def __init__(
        self,
        trainer: TaskTrainer,
        arguments: ClamuArguments,
        held_out: Mapping[str, Sequence[Example]],
        folder: Path,
        *,
        num_shards: int,
    ) -> None:
        super().__init__(trainer, arguments, held_out, folder)
        drawn = sorted(trainer.tasks, key=lambda one: derive_seed(arguments.seed, "shard", one))
        self._shards = [drawn[number::num_shards] for number in range(num_shards)]
        self._weights: dict[int, dict[str, torch.Tensor]] = {}

    def build(self) -> None:
        """Train the model of every shard."""
        for number in self._trainer.progress(range(len(self._shards)), "train shards"):
            self._train(number)

    @property
    def task_ids(self) -> tuple[str, ...]:
        """The owners that are left."""
        return tuple(sorted(task_id for members in self._shards for task_id in members))

    def serve(self, task_id: str) -> None:
        """Do nothing: the models answer for everybody."""

    def answers(self, task_id: str) -> list[int]:
        """Return the label of each held-out example of an owner."""
        votes = torch.zeros(())
        for weights in self._weights.values():
            self._trainer.workspace.load(weights)
            votes = votes + self._probabilities(task_id)
        return [int(label) for label in votes.argmax(-1)]

    def forget(self, task_id: str) -> int:
        """Train the shard of an owner again without it; return the number of rows of the others there."""
        number = next(number for number, members in enumerate(self._shards) if task_id in members)
        self._shards[number].remove(task_id)
        self._train(number)
        return sum(len(self._trainer.encoded(one).train) for one in self._shards[number])

    def _train(self, number: int) -> None:
        file = self._folder / f"shard_{number}.safetensors"
        if not self._shards[number]:  # its last owner is forgotten
            self._weights.pop(number, None)
            file.unlink(missing_ok=True)
            return
        with deterministic(self._arguments.num_threads):
            finetune_together(self._trainer, self._shards[number], self._arguments)
        self._weights[number] = self._keep(file)


class OwnerModels(_TrainedModels):
    """A model of its own for each owner, or an adapter over one base model; a request deletes a file.

    The weights that no owner trains are in a file of their own.
    """

    needs_owner = True

    def build(self) -> None:
        """Finetune the base model on each owner alone."""
        self._files: dict[str, Path] = {}
        workspace = self._trainer.workspace
        state = workspace.model.state_dict()
        frozen = {name: weight for name, weight in state.items() if name not in workspace.parameters}
        if frozen:
            save_file({name: weight.clone() for name, weight in frozen.items()}, self._folder / _FROZEN)
        with deterministic(self._arguments.num_threads):
            for task_id in self._trainer.progress(self._trainer.tasks.task_ids, "finetune"):
                self._trainer.finetune(task_id)
                self._files[task_id] = self._folder / f"{sha256_hex(task_id.encode())[:16]}.safetensors"
                self._keep(self._files[task_id])

    @property
    def task_ids(self) -> tuple[str, ...]:
        """The owners that are left."""
        return tuple(self._files)

    def serve(self, task_id: str) -> None:
        """Read the owner's file into the live model."""
        self._trainer.workspace.load(load_file(self._files[task_id]))

    def answers(self, task_id: str) -> list[int]:
        """Return the label of each held-out example of an owner."""
        self.serve(task_id)
        return [int(label) for label in self._probabilities(task_id).argmax(-1)]

    def forget(self, task_id: str) -> int:
        """Delete the owner's file, which no row of another owner is needed for."""
        self._files.pop(task_id).unlink()
        return 0
