"""A command on a real terminal: a pseudo-terminal, which is one to the program."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Shown", "on_a_terminal"]

_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Shown:
    """What a terminal got.

    Args:
        code (`int`): the exit code.
        raw (`str`): everything, with the codes that colour text and move the cursor.
    """

    code: int
    raw: str

    @property
    def text(self) -> str:
        """Without these codes."""
        return _CODES.sub("", self.raw).replace("\r\n", "\n")


def on_a_terminal(
    *words: str | Path,
    cwd: Path,
    size: tuple[int, int] = (30, 100),
    stdout: bool = True,
    code: str = "",
    **variables: str,
) -> Shown:
    """Run a command whose stderr is a terminal.

    Args:
        words (`str` or `Path`): the command, without `clamu`.
        cwd (`Path`): where.
        size (*tuple* of `int`): lines and columns.
        stdout (`bool`): the terminal is stdout, too; otherwise that is thrown away.
        code (`str`): Python to run instead of the command.
        variables (`str`): of the environment, instead of a usual terminal's.
    """
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    usual = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
    with subprocess.Popen(
        [sys.executable, *(["-c", code] if code else ["-m", "hf_clamu.cli"]), *map(str, words)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=follower if stdout else subprocess.DEVNULL,
        stderr=follower,
        env={**usual, "TERM": "xterm-256color", "PYTHONUTF8": "1", **variables},
    ) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        os.close(leader)
    return Shown(process.returncode, shown.decode())
