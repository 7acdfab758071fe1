"""The one worker process of a desk: started when requests wait for it, and again when it died.

It is a process of its own, so that it outlives the server and the server outlives it. What it has done is in the files
of the model; what is left to do is in those of the requests.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import IO

from hf_clamu.desk.office import DeskModel, Office
from hf_clamu.errors import ClamuError, RunInProgressError
from hf_clamu.operations.intake.received import Outcome, ReceivedRequest, now_text
from hf_clamu.operations.intake.working import Work, is_worked_on, read_work
from hf_clamu.storage import is_plain_file

__all__ = ["Supervisor"]

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_END = 10.0  # for a worker that is told to, before it is killed
_MOST_DEATHS = 3
_MOST_CHARACTERS = 2000  # of the log that a reason shows
_MOST_CHARACTERS_OF_A_NAME = 100  # of who stopped a run
# `python -m` would import what lies in the working directory, such as an evaluate.py beside the model.
_START = """
import sys
sys.path[:] = [*filter(None, sys.path), sys.argv.pop(1)]
from hf_clamu.cli import main
sys.exit(main())
"""
_PROGRAM = (sys.executable, "-c", _START, str(Path(__file__).parents[2]))


class Supervisor(threading.Thread):
    """Looks from time to time whether requests wait, and has them carried out.

    Args:
        office (`Office`): the models.
    """

    def __init__(self, office: Office) -> None:
        super().__init__(name="clamu-desk-supervisor", daemon=True)
        self._office = office
        self._worker: subprocess.Popen[bytes] | None = None
        self._at: DeskModel | None = None
        self._deaths: Counter[frozenset[str]] = Counter()
        self._kill_at: float | None = None  # of a worker that somebody stopped
        self._lock = threading.Lock()
        self._end = threading.Event()

    @property
    def is_busy(self) -> bool:
        """Whether there is a worker that has not been seen to end."""
        return self._worker is not None

    def stop(self) -> None:
        """Stop looking. A worker that runs goes on to its end, unless it was to end and did not."""
        self._end.set()
        self.join()
        if self._worker is not None and self._kill_at is not None:
            _kill(self._worker)

    def run(self) -> None:
        """Look until it is stopped."""
        while not self._end.wait(_SECONDS_BETWEEN_LOOKS):
            # A disk that is full or a folder that is replaced: the next look may find it mended.
            with contextlib.suppress(ClamuError, OSError):
                self.look()

    def look(self) -> None:
        """Start a worker if requests wait and none lives; give up on requests that killed it three times."""
        with self._lock:
            if self._worker is not None:
                if self._worker.poll() is None:
                    self._kill_if_it_hangs(self._worker)
                    return
                self._bury()
            for model in self._office.models.values():
                # What is damaged in one model must not keep the others waiting.
                with contextlib.suppress(ClamuError, OSError):
                    if _waiting(model) and not is_worked_on(model.book.folder):
                        self._start(model)
                        return

    def end_run(self, model: DeskModel, who: str | None = None) -> list[str]:
        """End the run on a model; what waits there is open again, and nobody takes it until somebody orders it.

        Args:
            model (`DeskModel`): one of the office.
            who (`str`, *optional*): who wants it, for the reason that is shown.

        Returns:
            *list* of `str`: names of the requests that were stopped.

        Raises:
            RunInProgressError: if another process started the worker; nothing is changed then.
        """
        with self._lock:
            worker = self._worker if self._at is model else None
            if worker is not None and worker.poll() is not None:
                worker = None
            folder = model.book.folder
            is_busy = is_worked_on(folder)
            work = read_work(folder) if is_busy else None
            if worker is None and is_busy:
                process = "" if work is None else f" (process {work.pid})"
                raise RunInProgressError(
                    f"This desk did not start the worker that has the requests{process}, so it was not stopped. Stop "
                    "it where it was started."
                )
            # First, so that nobody starts it again if this process ends here. What the worker still finishes it
            # notes over this.
            stopped = model.book.settle_waiting(lambda request: _stopped(request, work, who))
            if worker is not None:
                worker.terminate()
                self._kill_at = self._kill_at or time.monotonic() + _SECONDS_TO_END
            return [one.name for one in stopped]

    def _kill_if_it_hangs(self, worker: subprocess.Popen[bytes]) -> None:
        """Kill a worker that was told to end and did not."""
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            _kill(worker)

    def _bury(self) -> None:
        """Count the death of a worker, unless somebody wanted it."""
        was_stopped, model = self._kill_at is not None, self._at
        self._worker = self._at = self._kill_at = None
        if model is not None and not was_stopped:
            self._count_death(model)

    def _start(self, model: DeskModel) -> None:
        words = [*_PROGRAM, "queue", "run", model.source, "--waiting"]
        with _new_log(_log_of(model)) as log:
            self._worker = subprocess.Popen(
                [*words, *model.options.words()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C at the server is not meant for it
            )
        self._at = model

    def _count_death(self, model: DeskModel) -> None:
        """Count that a worker ended and left its requests waiting; say that they failed if it does so again."""
        left = frozenset(_waiting(model))
        if not left or is_worked_on(model.book.folder):
            self._deaths.clear()
            return
        self._deaths[left] += 1
        if self._deaths[left] < _MOST_DEATHS:
            return
        self._deaths.clear()
        reason = f"The worker stopped {_MOST_DEATHS} times without an answer. Its last words: {_last_words(model)}"
        for name in left:
            model.book.settle(name, Outcome(status="failed", time=now_text(), reason=reason))


def _waiting(model: DeskModel) -> list[str]:
    return [one.name for one in model.book.read() if one.is_waiting]


def _kill(worker: subprocess.Popen[bytes]) -> None:
    """Kill a worker with what it started: they are a group of their own."""
    if worker.poll() is None:
        os.killpg(worker.pid, signal.SIGKILL)


def _stopped(request: ReceivedRequest, work: Work | None, who: str | None) -> Outcome:
    """Return what became of a request whose run is stopped, from what the worker was doing."""
    by = f" by {who[:_MOST_CHARACTERS_OF_A_NAME]}" if who else " at the desk"
    if work is None or request.name not in work.requests:
        reason = f"Stopped{by} before the worker came to it."
    elif work.stage in ("publishing", "done"):
        reason = f"Stopped{by} while the result was saved: it may be there already. Carry it out again to finish it."
    else:
        reason = f"Stopped{by}; the model is as it was. Carried out again, it goes on from what is finished."
    return Outcome(status="failed", time=now_text(), reason=reason)


def _log_of(model: DeskModel) -> Path:
    return model.book.folder / "worker.log"


def _new_log(path: Path) -> IO[bytes]:
    """Open a file for what the worker says, in place of whatever is there: it may have come with the model."""
    try:
        path.unlink(missing_ok=True)
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    except OSError:  # it can do its work unheard
        return open(os.devnull, "wb")


def _last_words(model: DeskModel) -> str:
    path = _log_of(model)
    if not is_plain_file(path):
        return "none"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4 * _MOST_CHARACTERS))
        text = file.read().decode("utf-8", errors="replace")
    return " ".join(text[-_MOST_CHARACTERS:].split()) or "none"
