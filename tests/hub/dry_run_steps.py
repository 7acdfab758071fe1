"""What the tests of dry runs let the client's process do: commands in a folder."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

os.environ["HF_TOKEN"] = "hf_owner"


def run(folder: Path, *words: str) -> tuple[int, str, str]:
    """Run a command in a folder; return its exit code, and what it wrote to stdout and stderr."""
    from hf_clamu.cli import main

    before, out, err = Path.cwd(), io.StringIO(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    finally:
        os.chdir(before)
    return code, out.getvalue(), err.getvalue()
