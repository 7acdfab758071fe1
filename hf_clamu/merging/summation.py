"""Sums of many task vectors, computed by all processes and kept in the journal.

Order, number of processes and interruptions do not show: vectors are added as integers.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from hf_clamu.exact import DeltaAccumulator, TaskVector, VectorSum, digest_json
from hf_clamu.merging.shared_work import drop_covered_parts, entries_of, without_rows
from hf_clamu.storage import Journal, Part
from hf_clamu.training import TaskTrainer

__all__ = ["TaskSums", "TaskWork", "sum_vectors"]


class TaskWork(Protocol):
    """What is done with each task before its vector is added.

    Args:
        description (`str`): names the work in the progress bar and the journal.
        is_last (`bool`): nothing that takes long comes afterwards, so the whole sum need not go to the journal before
            it goes to the saved model. A kill in between costs no more than one between two writes of the journal.
    """

    description: str
    is_last: bool

    def finish(self, task_id: str) -> tuple[TaskVector, dict[str, Any]]:
        """Return a task's vector and what is to be kept of it.

        That is what `TaskRecord.to_dict` returns, or more; tensors, too.
        """
        ...

    def is_sound(self, task_id: str, entry: Mapping[str, Any]) -> bool:
        """Whether what the journal keeps of a task is what finishing it would give now."""
        ...


class TaskSums:
    """Sums of task vectors by group of tasks, over all processes.

    Args:
        entries (*dict* of `str` to *dict*): what was kept of each task.
        total (`DeltaAccumulator`): the sum over all tasks.
        groups (*mapping* of *tuple* of `str` to *callable*): gives the sum of each group, mapped from a file; empty if
            there is one group, whose sum is the total.
    """

    def __init__(
        self,
        entries: dict[str, dict[str, Any]],
        total: DeltaAccumulator,
        groups: Mapping[tuple[str, ...], Callable[[], dict[str, torch.Tensor]]],
    ) -> None:
        self.entries = entries
        self.total = total
        self._groups = groups

    def of(self, members: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the sum over one of the groups, integer per parameter."""
        return self._groups[tuple(members)]()


@contextlib.contextmanager
def sum_vectors(trainer: TaskTrainer, groups: Sequence[tuple[str, ...]], work: TaskWork) -> Iterator[TaskSums]:
    """Finish tasks and add up their vectors, per group and in all.

    Memory is one sum, whatever the number of tasks and groups: a group that is not worked on is on disk.

    Args:
        trainer (`TaskTrainer`): knows the processes and the journal.
        groups (*sequence* of *tuple* of `str`): the tasks, each in one group.
        work (`TaskWork`): finishes one task.
    """
    with contextlib.ExitStack() as stack:
        scratch = None
        if len(groups) > 1:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="clamu-sums-"))
            scratch = Journal(Path(folder))
        yield _Summing(trainer, groups, work, scratch).run()


class _Summing:
    """One pass over the tasks of all groups: the sum of the current group in memory, those of the others on disk."""

    def __init__(
        self, trainer: TaskTrainer, groups: Sequence[tuple[str, ...]], work: TaskWork, scratch: Journal | None
    ) -> None:
        self._trainer = trainer
        self._workers = trainer.workers
        self._groups = groups
        self._work = work
        self._scratch = scratch
        self._may_end_unsaved = work.is_last and len(groups) == 1
        self._journal = trainer.journal or scratch
        self._parameters = sorted(trainer.workspace.shapes)
        if self._journal is not None:
            self._journal.make()
        # Of the group that is worked on: the sum, what is kept of its tasks, and the parts on disk that it covers.
        self._sum = self._empty()
        self._entries: dict[str, dict[str, Any]] = {}
        self._parts: dict[int, list[Part]] = {number: [] for number in range(len(groups))}
        self._is_unsaved, self._is_whole = False, True

    def run(self) -> TaskSums:
        done = self._adopt()
        order = [
            (number, task_id)
            for number, members in enumerate(self._groups)
            for task_id in sorted(members, key=self._size, reverse=True)
            if task_id not in done
        ]
        current, has_ended = 0, False
        self._load(current)
        try:
            for number, task_id in self._trainer.progress(self._trainer.share(order), self._work.description):
                if number != current:
                    self._save(current)
                    current = number
                    self._load(current)
                vector, entry = self._work.finish(task_id)
                # A sum that holds half of a vector, because an interrupt came just here, must not be written.
                self._is_whole = False
                self._sum.add(vector)
                self._entries[task_id] = entry
                self._is_whole = self._is_unsaved = True
                if self._journal is not None and self._journal.is_due:
                    self._save(current)
            has_ended = True
        finally:
            # Interrupted or not: what is finished is kept.
            if not (has_ended and self._may_end_unsaved):
                self._save(current)
        self._trainer.release_vectors()
        return self._gathered()

    def _size(self, task_id: str) -> int:
        # Large ones first, so that the last ones to finish are small.
        tasks = self._trainer.tasks
        return tasks.num_examples(task_id) if task_id in tasks else 0

    def _empty(self) -> DeltaAccumulator:
        # With a journal there is a disk for it, and memory is for the model.
        folder = None if self._journal is None else self._journal.folder
        return DeltaAccumulator(self._trainer.workspace.shapes, folder, least_bits=self._trainer.codec.least_bits)

    def _stage(self, group: int) -> str:
        return f"{self._work.description}/{digest_json(list(self._groups[group]))[:16]}"

    def _adopt(self) -> set[str]:
        """Choose parts of earlier runs that hold no task twice, each for one process; return the tasks in them."""
        if self._trainer.journal is None:
            return set()
        own = {
            part.path.name: (group, part)
            for group in self._parts
            for part in self._trainer.journal.parts(self._stage(group))
            if part.entries.keys() <= set(self._groups[group])
            if all(self._work.is_sound(task_id, entry) for task_id, entry in part.entries.items())
        }
        # Processes on other machines may see other parts.
        seen: dict[str, tuple[int, list[str]]] = {}
        for rank, listed in enumerate(self._workers.gather({n: sorted(part.entries) for n, (_, part) in own.items()})):
            for name, task_ids in listed.items():
                seen.setdefault(name, (rank, task_ids))
        done: set[str] = set()
        # A part may stand beside the ones that it was to replace: the largest one counts.
        for name, (rank, task_ids) in sorted(seen.items(), key=lambda item: (-len(item[1][1]), item[0])):
            if done.isdisjoint(task_ids):
                done |= set(task_ids)
                if rank == self._workers.rank:
                    group, part = own[name]
                    self._parts[group].append(part)
        return done

    def _load(self, group: int) -> None:
        """Continue a group with what this process has of it on disk."""
        self._sum.release()  # before there is another one
        self._sum, self._entries, self._is_unsaved = self._empty(), {}, False
        for part in self._parts[group]:
            self._sum.add(self._vector(part))
            self._entries |= entries_of(part)

    def _vector(self, part: Part) -> VectorSum:
        bounds = (dict(zip(self._parameters, entry["bounds"], strict=True)) for entry in part.entries.values())
        tensors = part.tensors()
        return VectorSum.of({name: tensors[name] for name in self._parameters}, bounds)

    def _save(self, group: int) -> None:
        """Write the group that is worked on; earlier parts of it are covered then."""
        if self._journal is None or not (self._is_unsaved and self._is_whole):
            return
        entries, rows = without_rows(self._entries)
        part = self._journal.write(self._stage(group), entries, self._sum.narrowed(copy=False) | rows, is_sum=True)
        self._parts[group] = drop_covered_parts(self._journal, self._parts[group], part)
        self._is_unsaved = False

    def _gathered(self) -> TaskSums:
        entries = dict(self._entries)
        for parts in self._parts.values():
            for part in parts:
                if not part.entries.keys() <= entries.keys():
                    entries |= entries_of(part)
        for others in self._workers.gather(entries):
            entries |= others
        if len(self._groups) == 1:
            # In memory already, and with it what was adopted.
            self._reduce(self._groups[0], entries)
            return TaskSums(entries, self._sum, {})
        assert self._scratch is not None, "several groups are summed on disk"
        total = self._empty()
        sums: dict[tuple[str, ...], Callable[[], dict[str, torch.Tensor]]] = {}
        for group, members in enumerate(self._groups):
            self._load(group)
            self._reduce(members, entries)
            total.add(self._sum)
            sums[members] = self._scratch.write(f"group/{group}", {}, self._sum.narrowed(copy=False)).tensors
        return TaskSums(entries, total, sums)

    def _reduce(self, members: Sequence[str], entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Add up the sums of all processes."""
        if self._workers.size == 1:
            return  # it is the sum already; adding up widens it to 32 bits
        bounds = (dict(zip(self._parameters, entries[task_id]["bounds"], strict=True)) for task_id in members)
        self._sum.reduce(self._workers.sum_, bounds)
