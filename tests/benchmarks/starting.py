"""What it takes to start: `import hf_clamu` and `clamu --help`, beyond an interpreter that does nothing."""

from __future__ import annotations

import subprocess
import sys

from tests.benchmarks.rows import Row, Size, times


def measure(size: Size, rounds: int) -> list[Row]:
    def run(*words: str) -> None:
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)

    nothing, imported, helped = times(
        [
            lambda: run("-c", "pass"),
            lambda: run("-c", "import hf_clamu"),
            lambda: run("-m", "hf_clamu.cli", "--help"),
        ],
        rounds,
    )
    more = [[one - other for one, other in zip(seconds, nothing, strict=True)] for seconds in (imported, helped)]
    against = "minus `python -c pass`"
    return [
        Row(what="`import hf_clamu`", against=against, values=more[0], target=0.3, unit=" s"),
        Row(what="`clamu --help`", against=against, values=more[1], target=0.8, unit=" s"),
    ]
