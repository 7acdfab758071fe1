"""Exit codes and sentences for exceptions, expected and unexpected."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import traceback

from hf_clamu.errors import ClamuError, ExactnessError, ScoreDropError, SignatureError, sentence_of
from hf_clamu.known_names import hint_for

__all__ = ["FAULT", "INTERRUPTED", "refusal"]

# Exit codes.
FAULT = 3
INTERRUPTED = 130


def refusal(error: BaseException, *, show_traceback: bool) -> tuple[int, str, str]:
    """Return the exit code for an exception, its kind and its sentence.

    Args:
        error (`BaseException`): what a command raised.
        show_traceback (`bool`): print the traceback of an unexpected one on stderr.
    """
    kind = type(error).__name__
    if isinstance(error, (ExactnessError, ScoreDropError, SignatureError)):
        return 1, kind, str(error)
    if isinstance(error, (ClamuError, OSError)):
        return 2, kind, sentence_of(error)
    message = getattr(error, "format_message", None)
    if message is not None:  # usage errors of typer's parser
        command = getattr(getattr(error, "ctx", None), "command_path", "clamu")
        text = message().replace("Value error, ", "")
        return 2, "UsageError", f"{text}{_choice_hint(text)} See {command} --help."
    memory = _out_of_memory(error)
    if memory is not None:
        return 2, "MemoryError", memory
    return FAULT, kind, _report_fault(error, show=show_traceback)


def _choice_hint(message: str) -> str:
    """Return a sentence with the nearest of the values that an option takes, if it got another one."""
    found = re.search(r"'([^']*)' is not one of (.*)", message)
    return hint_for(found[1], re.findall(r"'([^']*)'", found[2]), lists=False) if found else ""


def _report_fault(error: BaseException, *, show: bool) -> str:
    """Keep the traceback of an unexpected exception, and return the one sentence for the user.

    It goes to stderr if that was asked for, here or by CLAMU_DEBUG=1, and otherwise to a file that only the user can
    read: it may quote data.
    """
    text = "".join(traceback.format_exception(error))
    summary = f"{type(error).__name__}: {' '.join(str(error).split()) or '(no text)'}"
    head = f"This is a fault of hf_clamu, please report it: {summary}"
    if show or os.environ.get("CLAMU_DEBUG", "0") not in ("", "0"):
        sys.stderr.write(text)
        return head
    try:
        handle, path = tempfile.mkstemp(prefix="clamu-fault-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return f"{head} (--debug shows the traceback.)"
    return f"{head} (The traceback is in {path}; --debug shows it.)"


def _out_of_memory(error: BaseException) -> str | None:
    """Return what to say of an exception that means that memory ran out; None for any other."""
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "ArrowMemoryError"):
        return (
            f"There is not enough memory: {text or 'an allocation failed'}. Take a smaller model, batch or data file."
        )
    if isinstance(error, RuntimeError) and "can't allocate memory" in text:
        return f"There is not enough memory: {text}. Take a smaller model, batch or data file."
    return None
