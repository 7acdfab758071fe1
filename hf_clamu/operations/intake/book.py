"""All requests of a model: a private folder beside it, a file for each, changed by one process at a time."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hf_clamu.errors import CheckpointFormatError, RunInProgressError, TaskDataError, TaskNotFoundError
from hf_clamu.exact import canonical_json
from hf_clamu.operations.intake.folders import make_private, requests_of
from hf_clamu.operations.intake.received import (
    Outcome,
    ReceivedRequest,
    file_name_of,
    is_text,
    make_request,
    now_text,
    today,
)
from hf_clamu.operations.intake.working import is_worked_on, read_work
from hf_clamu.storage import read_json
from hf_clamu.storage.durable import sync_folder, write_together
from hf_clamu.storage.locking import FileLock

__all__ = ["Asked", "RequestBook"]

_FOLDER = "received"
_MOST_BYTES = 1 << 24  # of a file
_SECONDS_TO_WAIT = 60.0  # for another process that changes a file


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What somebody asks for.

    Args:
        tasks (*tuple* of `str`): the tasks.
        name (`str`, *optional*): what the request is called; a name is made if there is none.
        received, due (`str`, *optional*): days in ISO 8601, see `make_request`.
    """

    tasks: tuple[str, ...]
    name: str | None = None
    received: str | None = None
    due: str | None = None


class RequestBook:
    """The requests of a model.

    Args:
        folder (`Path`): see `requests_of`; made when a request is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / "changes.lock")
        # By path: what tells a file from the one that replaces it, and what it held.
        self._known: dict[Path, tuple[tuple[int, int, int], ReceivedRequest]] = {}

    @classmethod
    def of(cls, model: str) -> RequestBook:
        """Return the requests of a model, a folder or a Hub id."""
        return cls(requests_of(model))

    def read(self) -> list[ReceivedRequest]:
        """Return all requests: open ones first, and of these what is due first.

        Raises:
            CheckpointFormatError: if a file is damaged.
        """
        kept = map(self._read, (self.folder / _FOLDER).glob("[0-9a-f]*.json"))
        found = [one for one in kept if one is not None]
        return sorted(found, key=lambda one: (not one.is_open, one.due if one.is_open else "", one.received, one.name))

    def done_before(self, name: str) -> ReceivedRequest | None:
        """Return the request of this name, if others had done already what it asks for; its outcome has a receipt."""
        if not is_text(name):  # nobody could take it in
            return None
        known = self._read(self._path(name))
        outcome = None if known is None else known.outcome
        return known if outcome is not None and outcome.status == "done already" and outcome.receipt else None

    def _read(self, path: Path) -> ReceivedRequest | None:
        """Read a file, unless it is the one that was read before; `None` if it was struck out meanwhile."""
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        key = (status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._known.get(path)
        if known is None or known[0] != key:
            try:
                known = self._known[path] = (key, _read(path))
            except CheckpointFormatError:
                if os.path.lexists(path):
                    raise
                return None
        return known[1]

    def add(
        self, asked: Sequence[Asked], *, answered: Collection[str] = (), most_open: int | None = None
    ) -> list[ReceivedRequest]:
        """Take in requests, all or none; one that is open already, with the same tasks, is not taken in again.

        Args:
            asked (*sequence* of `Asked`): what is asked for, with the ids of the ledger.
            answered (*collection* of `str`): names of requests that have receipts; none gets such a name, for what has
                a receipt counts as done.
            most_open (`int`, *optional*): how many requests may be open then.

        Returns:
            *list* of `ReceivedRequest`: them all, as they are kept.

        Raises:
            TaskDataError: if a name is taken, the request was answered, an open one names the task, or too many would
                be open.
        """
        with self._changing():
            self._remove_unfinished()
            known = {one.name: one for one in self.read()}
            taken = {task_id: one.name for one in known.values() if one.is_open for task_id in one.tasks}
            names, numbers = {*known, *answered}, itertools.count(1)
            result, new = [], []
            for one in asked:
                before = known.get(one.name or "") or _same(one, known.values(), taken)
                if before is not None:
                    if sorted(before.tasks) != sorted(set(one.tasks)):
                        raise TaskDataError(
                            f"There is a request {one.name!r} already, for other tasks. Give this one another id."
                        )
                if before is not None and before.is_open:
                    result.append(before)
                    continue
                if before is not None or one.name in answered:
                    raise TaskDataError(f"Request {one.name!r} was answered already. Give what came now another id.")
                name = one.name or _next_name(names, numbers)
                request = make_request(name, tuple(dict.fromkeys(one.tasks)), received=one.received, due=one.due)
                for task_id in request.tasks:
                    if task_id in taken:
                        raise TaskDataError(f"Task {task_id!r} is in the open request {taken[task_id]!r} already.")
                known[name] = request
                names.add(name)
                taken |= dict.fromkeys(request.tasks, name)
                result.append(request)
                new.append(request)
            _require_few(sum(one.is_open for one in known.values()), len(new), most_open)
            try:
                self._write(new)
            except BaseException:  # a full disk, mostly: all or none
                for request in new:
                    self._path(request.name).unlink(missing_ok=True)
                raise
            return result

    def order(self, names: Collection[str] | None = None) -> list[ReceivedRequest]:
        """Give open requests to the worker; what failed is tried again.

        Args:
            names (*collection* of `str`, *optional*): which; all that are open by default.
        """

        def ordered(request: ReceivedRequest) -> ReceivedRequest:
            return replace(request, ordered=now_text(), outcome=None)

        return self._change(names, lambda one: one.is_open, ordered)

    def waiting(self) -> list[ReceivedRequest]:
        """Return what waits for the worker, not in the midst of a change: requests of one file are one batch."""
        if not (self.folder / _FOLDER).is_dir():
            return []
        with self._changing():
            return [one for one in self.read() if one.is_waiting]

    def settle(self, name: str, outcome: Outcome) -> None:
        """Note what became of a request; one that was removed meanwhile stays removed."""
        self._change([name], lambda one: True, lambda one: replace(one, outcome=outcome))

    def settle_waiting(self, outcome_of: Callable[[ReceivedRequest], Outcome]) -> list[ReceivedRequest]:
        """Take back what waits for the worker.

        Args:
            outcome_of (*callable*): gives what became of a request.
        """

        def settled(request: ReceivedRequest) -> ReceivedRequest:
            return replace(request, outcome=outcome_of(request))

        return self._change(None, lambda one: one.is_waiting, settled)

    def remove(self, names: Collection[str], *, only_open: bool = False) -> list[ReceivedRequest]:
        """Strike requests out; what they asked for is not done, and receipts stay.

        Args:
            names (*collection* of `str`): which.
            only_open (`bool`): refuse those that are answered, for whoever saw them open a moment ago.

        Returns:
            *list* of `ReceivedRequest`: what they were.

        Raises:
            TaskNotFoundError: if there is no such request, or it is answered and may not be.
            RunInProgressError: if the worker has it.
        """
        with self._changing():
            known = {one.name: one for one in self.read()}
            # A run that was told to stop may save its result yet.
            is_busy = is_worked_on(self.folder)
            work = read_work(self.folder) if is_busy else None
            had = () if work is None else work.requests
            for name in names:
                if name not in known:
                    raise TaskNotFoundError(f"There is no request {name!r}. List them with clamu queue list.")
                if is_busy and (known[name].is_waiting or name in had):
                    raise RunInProgressError(f"The worker has request {name!r}: wait until it is done or has failed.")
                if only_open and not known[name].is_open:
                    raise TaskNotFoundError(f"Request {name!r} is answered meanwhile, and was not struck out.")
            for name in names:
                self._path(name).unlink()
            sync_folder(self.folder / _FOLDER)
            return [known[name] for name in names]

    def _change(
        self,
        names: Collection[str] | None,
        concerns: Callable[[ReceivedRequest], bool],
        changed: Callable[[ReceivedRequest], ReceivedRequest],
    ) -> list[ReceivedRequest]:
        if not (self.folder / _FOLDER).is_dir():
            return []
        with self._changing():
            result = [changed(one) for one in self._named(names) if concerns(one)]
            self._write(result)
            return result

    def _named(self, names: Collection[str] | None) -> list[ReceivedRequest]:
        """Return the requests of these names that there are; no other file is read, for there may be thousands."""
        if names is None:
            return self.read()
        kept = [self._read(self._path(name)) for name in dict.fromkeys(names)]
        return [one for one in kept if one is not None]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Keep other processes and threads out; they need moments, so they are waited for."""
        make_private(self.folder, _FOLDER)
        until = time.monotonic() + _SECONDS_TO_WAIT
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(self._lock.held())
                    break
                except RunInProgressError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.02)
            yield

    def _remove_unfinished(self) -> None:
        """Delete what a process that died while it took requests in had written and not moved to its place."""
        for path in (self.folder / _FOLDER).glob(".*.partial"):
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / _FOLDER / file_name_of(name)

    def _write(self, requests: Iterable[ReceivedRequest]) -> None:
        files = {file_name_of(one.name): canonical_json(one.to_dict()) for one in requests}
        write_together(self.folder / _FOLDER, files)


def _read(path: Path) -> ReceivedRequest:
    try:
        request = ReceivedRequest.from_dict(read_json(path, _MOST_BYTES))
        if file_name_of(request.name) != path.name:
            raise ValueError("it is the file of another request")
    except (ValueError, FileNotFoundError) as error:
        raise CheckpointFormatError(f"{path} is no request ({error}). Repair or remove it.") from error
    return request


def _require_few(num_open: int, num_new: int, most_open: int | None) -> None:
    if most_open is not None and num_new and num_open > most_open:
        raise TaskDataError(
            f"Nothing was taken in: {num_open - num_new:,} requests are open and {num_new:,} came, and at most "
            f"{most_open:,} may be open at this desk. Carry out what is open, or take them in with clamu queue add."
        )


def _same(asked: Asked, known: Collection[ReceivedRequest], taken: dict[str, str]) -> ReceivedRequest | None:
    """Return the open request of exactly these tasks, if what is asked has no name: a form that was sent twice."""
    if asked.name is not None or not asked.tasks or asked.tasks[0] not in taken:
        return None
    before = next(one for one in known if one.name == taken[asked.tasks[0]])
    return before if sorted(before.tasks) == sorted(set(asked.tasks)) else None


def _next_name(known: Collection[str], numbers: Iterator[int]) -> str:
    """Return a name that no request has: the day and a number."""
    return next(name for number in numbers if (name := f"{today()}-{number:03d}") not in known)
