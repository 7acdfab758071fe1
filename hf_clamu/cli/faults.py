"""What `clamu` says where something went wrong that nobody foresaw."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback

__all__ = ["FAULT", "out_of_memory", "report_fault"]

FAULT = 3  # the exit code


def report_fault(error: BaseException, *, show: bool) -> str:
    """Keep the traceback of an unforeseen exception, and return the one sentence for the user.

    It goes to stderr if that was asked for, here or by CLAMU_DEBUG=1, else to a file that nobody else can read: it may
    quote data.
    """
    text = "".join(traceback.format_exception(error))
    what = f"{type(error).__name__}: {' '.join(str(error).split()) or '(no text)'}"
    head = f"This is a fault of hf_clamu, please report it: {what}"
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


def out_of_memory(error: BaseException) -> str | None:
    """Return what to say of an exception that means that memory ran out; None for any other."""
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "ArrowMemoryError"):
        return (
            f"There is not enough memory: {text or 'an allocation failed'}. Take a smaller model, batch or data file."
        )
    if isinstance(error, RuntimeError) and "can't allocate memory" in text:
        return f"There is not enough memory: {text}. Take a smaller model, batch or data file."
    return None
