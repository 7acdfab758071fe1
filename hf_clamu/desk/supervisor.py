"""The one worker process of a desk: started when requests wait for it, and again when it died.

It is a process of its own, so that it outlives the server and the server outlives it. What it has done is in the files
of the model; what is left to do is in those of the requests.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import IO

from hf_clamu.desk.office import DeskModel, Office
from hf_clamu.errors import ClamuError
from hf_clamu.operations.intake.received import Outcome, now_text
from hf_clamu.operations.intake.working import is_worked_on
from hf_clamu.storage import is_plain_file

__all__ = ["Supervisor"]

_SECONDS_BETWEEN_LOOKS = 0.5
_MOST_DEATHS = 3
_MOST_CHARACTERS = 2000  # of the log that a reason shows
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
        self._end = threading.Event()

    @property
    def is_busy(self) -> bool:
        """Whether there is a worker that has not been seen to end."""
        return self._worker is not None

    def stop(self) -> None:
        """Stop looking. A worker that runs goes on to its end."""
        self._end.set()
        self.join()

    def run(self) -> None:
        """Look until it is stopped."""
        while not self._end.wait(_SECONDS_BETWEEN_LOOKS):
            # A disk that is full or a folder that is replaced: the next look may find it mended.
            with contextlib.suppress(ClamuError, OSError):
                self.look()

    def look(self) -> None:
        """Start a worker if requests wait and none lives; give up on requests that killed it three times."""
        if self._worker is not None:
            if self._worker.poll() is None:
                return
            self._worker, model = None, self._at
            if model is not None:
                self._count_death(model)
        for model in self._office.models.values():
            # What is damaged in one model must not keep the others waiting.
            with contextlib.suppress(ClamuError, OSError):
                if _waiting(model) and not is_worked_on(model.book.folder):
                    self._start(model)
                    return

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
