"""Work sharing, integer sums and failures between the processes of a run.

Accelerate and torch.distributed start the processes and carry the data. On top of that, a build hands out work one
item at a time from a shared counter (or deals it out in another way, to compare), adds integers over all processes,
and stops if one of them dies.
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Generic, TypeVar

import torch
from safetensors.torch import load, save

from hf_clamu.errors import WorkerError, first_line

__all__ = ["Workers", "split_backwards"]

T = TypeVar("T")

# Seconds. A process without a heartbeat for `_SILENCE_SECONDS` is considered dead.
_POLL_SECONDS, _BEAT_SECONDS, _SILENCE_SECONDS = 0.05, 5.0, 90.0
# A collective starts when all processes have reached it, so this bounds the transport alone.
_TRANSPORT = timedelta(minutes=30)
# The key of a tensor among JSON values.
_TENSOR = "safetensors"


class Workers:
    """The processes that work on a run together; made by `Workers.current`.

    All of them must call the methods in the same order, as with any collective operation.

    Attributes:
        rank (`int`): the number of this process.
        size (`int`): how many there are.
        device (`torch.device`): where this process trains.
    """

    def __init__(self, device: torch.device, *, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.device = device
        self.rank = rank
        self.size = size
        self._store = store
        self._group: Any = None
        self._meetings = 0
        self._queues = 0
        if size > 1:
            import torch.distributed as dist

            # Integer sums are on the CPU, whatever device trains.
            self._group = dist.new_group(backend="gloo", timeout=_TRANSPORT)
            self._stopped = threading.Event()
            self._heartbeat = threading.Thread(target=self._beat, daemon=True, name="clamu-heartbeat")
            self._heartbeat.start()
            # A thread that returns from the store while the interpreter ends would abort the process.
            atexit.register(self._stop_beating)

    _current: Workers | None = None

    @classmethod
    def current(cls) -> Workers:
        """Return the processes that `accelerate launch` or torchrun started, or this one alone."""
        if cls._current is None:
            cls._current = cls._of_launcher()
        return cls._current

    @classmethod
    def _of_launcher(cls) -> Workers:
        alone = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(alone)
        from accelerate import PartialState
        from torch.distributed import distributed_c10d

        state = PartialState(cpu=alone.type == "cpu")
        if state.num_processes == 1:
            return cls(alone)
        # The store of torch.distributed itself, for which torch has no public name.
        store = distributed_c10d.PrefixStore("clamu", distributed_c10d._get_default_store())
        return cls(state.device, rank=state.process_index, size=state.num_processes, store=store)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    # -- work ----------------------------------------------------------------------------------------------------

    def share(self, items: Sequence[T], *, backwards: bool = False) -> Sequence[T]:
        """Hand out items, each to one process: a free process takes the next one.

        Args:
            items (*sequence*): the same in all processes.
            backwards (`bool`): deal them out by `split_backwards` instead.

        Returns:
            *sequence*: iterating over it gives this process's items; its length is this process's fair share.
        """
        if backwards:
            share = [items[number] for number in split_backwards(len(items), self.size)[self.rank]]
            return share if self.size == 1 else _Dealt(share, self)
        if self.size == 1:
            return items
        self._queues += 1
        return _Queue(items, self, f"queue/{self._queues}")  # type: ignore[return-value]

    def next_number(self, queue: str) -> int:
        """Return the next number of a counter that all processes share, from 0."""
        self.raise_if_failed()
        return int(self._store.add(queue, 1)) - 1

    # -- data ----------------------------------------------------------------------------------------------------

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every process, in the order of their numbers; JSON-able, but for tensors in it."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        data = torch.frombuffer(bytearray(json.dumps(value, default=_as_text).encode()), dtype=torch.uint8)
        self.meet()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(data)]), group=self._group)
        longest = int(max(sizes))
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(parts, torch.nn.functional.pad(data, (0, longest - len(data))), group=self._group)
        texts = [bytes(part[: int(n)].numpy()) for part, n in zip(parts, sizes, strict=True)]
        return [json.loads(text, object_hook=_with_tensor) for text in texts]

    def sum_(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Add up integer tensors over all processes, in place."""
        if self.size == 1:
            return
        import torch.distributed as dist

        self.meet()
        for name in sorted(tensors):
            dist.all_reduce(tensors[name], group=self._group)

    def broadcast_(self, tensors: Mapping[str, torch.Tensor], source: int) -> None:
        """Copy the tensors of one process into those of all others."""
        if self.size == 1:
            return
        import torch.distributed as dist

        self.meet()
        for name in sorted(tensors):
            dist.broadcast(tensors[name], src=source, group=self._group)

    # -- failures ------------------------------------------------------------------------------------------------

    def meet(self) -> None:
        """Wait for all processes to reach this call.

        Raises:
            WorkerError: if one of them failed, or no longer answers.
        """
        if self.size == 1:
            return
        self._meetings += 1
        counter = f"meeting/{self._meetings}"
        with self._store_errors():
            self._store.add(counter, 1)
            self._wait(counter, self.size)
            # The first process has the store, where no launcher keeps it (srun, mpirun): it leaves last.
            if self.is_main:
                self._wait(f"{counter}/left", self.size - 1)
            else:
                self._store.add(f"{counter}/left", 1)

    def _wait(self, counter: str, number: int) -> None:
        seen: dict[int, tuple[int, float]] = {}
        while int(self._store.add(counter, 0)) < number:
            self.raise_if_failed()
            self._raise_if_silent(seen)
            time.sleep(_POLL_SECONDS)

    def in_turn(self, action: Callable[[], object]) -> None:
        """Run an action in one process after the other, as they may share a disk.

        Raises:
            WorkerError: if it failed in another one, or that no longer answers.
        """
        for rank in range(self.size):
            if rank == self.rank:
                action()
            self.meet()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Run a block; if it raises, all other processes are told and stop, too."""
        try:
            yield
        except WorkerError:
            raise
        except BaseException as error:
            if self.size > 1:
                reason = " ".join(str(error).split()) or type(error).__name__
                with self._store_errors():
                    self._store.set("failed", f"process {self.rank} of {self.size}: {reason}")
            raise

    def raise_if_failed(self) -> None:
        """Raise if another process failed.

        Raises:
            WorkerError: saying which one, and why.
        """
        if self._store.check(["failed"]):
            raise WorkerError(f"The run was stopped by {self._store.get('failed').decode()}")

    def _raise_if_silent(self, seen: dict[int, tuple[int, float]]) -> None:
        now = time.monotonic()
        for rank in range(self.size):
            beats = int(self._store.add(f"beats/{rank}", 0))
            if rank not in seen or seen[rank][0] != beats:
                seen[rank] = (beats, now)
            elif now - seen[rank][1] > _SILENCE_SECONDS:
                raise WorkerError(
                    f"Process {rank} of {self.size} has not answered for {_SILENCE_SECONDS:.0f} seconds: it was "
                    "killed or its machine is gone. Start the run again; it goes on from what is finished."
                )

    def _stop_beating(self) -> None:
        self._stopped.set()
        self._heartbeat.join(_BEAT_SECONDS)

    def _beat(self) -> None:
        while not self._stopped.wait(_BEAT_SECONDS):
            try:
                self._store.add(f"beats/{self.rank}", 1)
            except RuntimeError:
                return  # the processes that wait for this one notice

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise WorkerError(
                f"The first process of the run cannot be reached any more ({first_line(error)}). Start the "
                "run again; it goes on from what is finished."
            ) from error


class _Queue(Generic[T]):
    """The items of one process, where they are handed out one at a time."""

    def __init__(self, items: Sequence[T], workers: Workers, name: str) -> None:
        self._items = items
        self._workers = workers
        self._name = name

    def __len__(self) -> int:
        return -(-len(self._items) // self._workers.size)

    def __iter__(self) -> Iterator[T]:
        while (number := self._workers.next_number(self._name)) < len(self._items):
            yield self._items[number]


class _Dealt(Sequence[T]):
    """The items of one process, where they were dealt out; it stops if another process failed."""

    def __init__(self, items: Sequence[T], workers: Workers) -> None:
        self._items = items
        self._workers = workers

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: Any) -> Any:
        return self._items[number]

    def __iter__(self) -> Iterator[T]:
        for item in self._items:
            self._workers.raise_if_failed()
            yield item


def split_backwards(num_items: int, num_processes: int) -> list[list[int]]:
    """Deal out items in another way than a build, so that a comparison shows what an item leaves to the next one.

    Processes that are equally fast take items by turns in a build. Here an item goes to another process than the one
    whose turn it would be, and each process takes its items in the opposite order: the items before one in its process
    are never those that may be before it in a build, in any number of processes.

    Args:
        num_items (`int`): how many there are.
        num_processes (`int`): how many share them.

    Returns:
        *list* of *list* of `int`: what each process takes, in this order.
    """
    dealt: list[list[int]] = [[] for _ in range(num_processes)]
    for number in reversed(range(num_items)):
        turn, rank = divmod(number, num_processes)
        # Another distance in each turn separates items that were together, where there are more than two processes.
        distance = 1 + turn % (num_processes - 1) if num_processes > 1 else 0
        dealt[(rank + distance) % num_processes].append(number)
    return dealt


def _as_text(tensor: torch.Tensor) -> dict[str, str]:
    return {_TENSOR: base64.b64encode(save({"": tensor})).decode()}


def _with_tensor(value: dict[str, Any]) -> Any:
    text = value.get(_TENSOR) if len(value) == 1 else None
    return load(base64.b64decode(text))[""] if isinstance(text, str) else value
