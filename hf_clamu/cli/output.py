"""What the commands print: the result on stdout, in the format that was asked for, everything else on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

from hf_clamu.checkpoint.layout import LEDGER_NAME
from hf_clamu.cli.terminal.agent import agent_text
from hf_clamu.cli.terminal.bars import aside
from hf_clamu.cli.terminal.formats import current_format
from hf_clamu.cli.terminal.screen import colored, fitted_table
from hf_clamu.errors import RecipeError
from hf_clamu.escaping import escape, escape_cell

__all__ = [
    "emit",
    "emit_error",
    "is_main_process",
    "is_saved_model",
    "note",
    "quieten",
    "require_empty_output",
    "table",
    "log_as_notes",
]


_LONGEST_LINE = 3000


def is_main_process() -> bool:
    """Whether this is the process that writes and answers, of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def emit(
    as_json: bool,
    payload: Mapping[str, Any],
    human: Callable[[], str],
    *,
    quiet: Iterable[str] | None = None,
    then: Sequence[str] = (),
) -> None:
    """Print the result of a command on stdout; of several processes the main one does.

    Args:
        as_json (`bool`): print one JSON object, whatever `--format` says.
        payload (*mapping*): the result, for programs.
        human (*callable*): returns the result as readable lines.
        quiet (*iterable* of `str`, *optional*): the paths or ids that `--format quiet` prints, a line each; by default
            `output` of the payload.
        then (*sequence* of `str`): what to do next: commands that work as they are; `next` in the payload.
    """
    if not is_main_process():
        return
    form = "json" if as_json else current_format()
    payload = {**payload, "next": list(then)} if then else payload
    if form == "quiet":
        lines = [str(payload["output"])] if quiet is None and payload.get("output") else quiet or ()
        text = "\n".join(map(escape_cell, lines))
        if text:
            _print(text, "stdout", plain=True)
    elif form == "agent":
        _print(agent_text(payload), "stdout", plain=True)
    elif form == "json":
        _print(json.dumps(payload, sort_keys=True, ensure_ascii=False, indent=2), "stdout", plain=True)
    else:
        _print("\n".join([human(), *([f"Next: {'; '.join(then)}"] if then else [])]), "stdout")


def emit_error(as_json: bool, kind: str, message: str) -> None:
    """Print one readable line on stderr, and as JSON an object on stdout, too."""
    line = " ".join(message.split())
    if len(line) > _LONGEST_LINE:  # it quotes a value of the user
        line = f"{line[: _LONGEST_LINE - 200]} … {line[-200:]}"
    who = "clamu" if int(os.environ.get("WORLD_SIZE", "1")) == 1 else f"clamu [process {os.environ.get('RANK')}]"
    _print(f"{who}: {line}", "stderr")
    if (as_json or current_format() == "json") and is_main_process():
        _print(json.dumps({"error": {"type": kind, "message": line}}, ensure_ascii=False), "stdout", plain=True)


def _print(text: str, name: Literal["stdout", "stderr"], *, plain: bool = False) -> None:
    with aside():
        stream: TextIO = getattr(sys, name)
        # Lone surrogates, of file names and of JSON, and characters that the terminal's encoding lacks.
        encoding = stream.encoding or "utf-8"
        text = escape(text).encode(encoding, "backslashreplace").decode(encoding)
        stream.write((text if plain else colored(text, stream)) + "\n")
        stream.flush()  # now: a closed pipe should raise here, where `main` handles it


def note(text: str) -> None:
    """Print a line of progress on stderr."""
    _print(text, "stderr")


class _Notes(logging.Handler):
    """Prints each line once, in the main process: every process reads the same data, some of it twice."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if is_main_process() and text not in self._said:
            self._said.add(text)
            note(f"Warning: {text}" if record.levelno >= logging.WARNING else text)


@contextmanager
def log_as_notes() -> Iterator[None]:
    """Print what hf_clamu logs as lines on stderr, whatever other libraries make of the logging module."""
    logger, notes = logging.getLogger("hf_clamu"), _Notes()
    level = logger.level
    logger.addHandler(notes)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.setLevel(level)
        logger.removeHandler(notes)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """Return rows as aligned text: the columns numbered in `left` to the left, the others to the right.

    On a terminal it folds long cells, so that it is no wider than that.
    """
    columns, *rows = [[escape_cell(cell) for cell in row] for row in [columns, *rows]]
    fitted = fitted_table(columns, rows, left, sys.stdout)
    if fitted is not None:
        return fitted
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = []
    for row in [columns, ["-" * width for width in widths], *rows]:
        cells = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def quieten() -> None:
    """Keep the libraries' bars and notices off stderr; ours, and those of downloads, show where it is a terminal."""
    import transformers
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    shows_bars = sys.stderr.isatty() and not are_progress_bars_disabled()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()  # which may hide the Hub's, too
    if shows_bars:
        enable_progress_bars()
    else:
        disable_progress_bars()


def require_empty_output(output: Path, *, overwrite: bool | None = None) -> None:
    """Refuse a folder that may not be written to, before hours of work and not after them.

    Args:
        output (`Path`): the folder.
        overwrite (`bool`, *optional*): a saved model in it may be replaced; `None` where a command has no such option.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        hint = "" if overwrite is None else ", or --overwrite to replace the model in it"
        raise RecipeError(f"{output} already exists and is not empty. Give a new folder (--output){hint}.")
    if not is_saved_model(output):
        raise RecipeError(f"{output} holds no ClAMU model, so it will not be replaced. Give a new folder (--output).")


def is_saved_model(folder: Path) -> bool:
    """Whether a folder holds a saved model, sound or not."""
    return (folder / LEDGER_NAME).is_file()
