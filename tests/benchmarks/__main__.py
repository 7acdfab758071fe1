"""All benchmarks, or some: what is fast, what is slow, and how it grows.

    python -m tests.benchmarks                       # all; writes docs/benchmarks.md
    python -m tests.benchmarks vectors switching     # some; prints them
    python -m tests.benchmarks --write vectors       # some; replaces them on the page
    python -m tests.benchmarks --json
    python -m tests.benchmarks --size smoke --rounds 1

Each part runs in a process of its own, and divides times that were measured in turn in that process. Run them alone on
a quiet machine. mergekit is looked for beside this Python, on the PATH and in CLAMU_MERGEKIT; without it its line is
left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from tests.benchmarks import pages
from tests.benchmarks.rows import Row, Size

PARTS = {
    "vectors": "Task vectors",
    "merging": "Merging saved checkpoints",
    "switching": "Switching clusters",
    "training": "Training steps",
    "requests": "Requests",
    "audits": "Audits",
    "serving": "Serving",
    "starting": "Starting",
    "growth": "Growth",
    "many": "Many tasks",
}
_SMALL = {"n_layer": 2, "n_embd": 128, "n_head": 4, "n_positions": 64}
SIZES = {
    "gpt2": Size(
        gpt2={"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257},
        small=_SMALL,
        tokens=(4, 64),
        checkpoints=16,
        tasks=500,
        merged=100,
        adapters=500,
        many=10_000,
        journal=160,
        growth=[(10, 4), (100, 4), (500, 4), (10, 20), (100, 20), (500, 20), (100, 100), (500, 100)],
    ),
    "smoke": Size(
        gpt2={"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 32, "vocab_size": 101},
        small={**_SMALL, "n_layer": 1, "n_embd": 32},
        tokens=(2, 8),
        checkpoints=2,
        tasks=4,
        merged=4,
        adapters=4,
        many=40,
        journal=4,
        growth=[(4, 2)],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; by default all")
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON, and leave the docs alone")
    parser.add_argument("--write", action="store_true", help="replace the parts that were measured in the docs")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [one for one in options.parts if one not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    size = SIZES[options.size]
    if options.one:
        _quiet()
        print(json.dumps(measure(options.parts[0], size, options.rounds)))  # noqa: T201
        return
    found: dict[str, Any] = {}
    for part in options.parts or PARTS:
        command = [sys.executable, "-m", "tests.benchmarks", part, "--one", "--size", options.size]
        started = time.perf_counter()
        done = subprocess.run(
            [*command, "--rounds", str(options.rounds)], stdout=subprocess.PIPE, text=True, check=True
        )
        found[part] = json.loads(done.stdout.splitlines()[-1])
        print(f"{part}: {time.perf_counter() - started:.0f} s", file=sys.stderr)  # noqa: T201
    if options.json:
        print(json.dumps({"machine": pages.machine(), "size": options.size, "parts": found}, indent=1))  # noqa: T201
        return
    sections = {PARTS[part]: _section(part, values) for part, values in found.items()}
    commit = subprocess.run(["git", "log", "-1", "--format=%cs"], stdout=subprocess.PIPE, text=True, check=True)
    date = commit.stdout.strip()
    if options.write:
        again = f"Measured again by `python -m tests.benchmarks --write {' '.join(found)}`, code of {date}."
        pages.write_sections(
            "benchmarks.md", "benchmarks", {one: f"{text}\n\n{again}" for one, text in sections.items()}
        )
        return
    text = "\n\n".join(f"### {heading}\n\n{section}" for heading, section in sections.items())
    if options.parts or options.size != "gpt2":
        print(text)  # noqa: T201
        return
    note = (
        f"`python -m tests.benchmarks` on {pages.machine()}, code of {date}. Medians of "
        f"{options.rounds} rounds (least to most); every number says what it is divided by. Both times of a ratio are "
        "measured in turn, in one process, for absolute times of shared machines are noise."
    )
    pages.write("benchmarks.md", "benchmarks", f"{note}\n\n{text}")


def _quiet() -> None:
    """Keep bars off the terminal, which draw time of their own."""
    import transformers
    from huggingface_hub.utils import disable_progress_bars

    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()


def measure(part: str, size: Size, rounds: int) -> Any:
    """Measure one part in this process."""
    module = importlib.import_module(f"tests.benchmarks.{part}")
    if part == "growth":
        return module.measure_growth(size)
    return [row.to_dict() for row in module.measure(size, rounds)]


def _section(part: str, values: list[dict[str, Any]]) -> str:
    if part == "growth":
        return _growth(values)
    rows = [Row(**value) for value in values]
    found = pages.table(["what", "divided by", "median", "target", "met"], [row.cells() for row in rows])
    return "\n\n".join([found, *(f"{row.what}: {row.note}." for row in rows if row.note)])


def _growth(values: Sequence[dict[str, Any]]) -> str:
    lines = []
    for one in values:
        parts = one["parts"]
        lines.append(
            [
                one["tasks"],
                one["clusters"],
                f"{one['seconds']:.1f}",
                *(f"{1000 * parts.get(name, 0) / one['tasks']:.0f}" for name in ("features", "finetune")),
                f"{1000 * parts.get('localize', 0) / one['clusters']:.0f}",
                f"{one['unmerge_seconds']:.1f}",
                f"{one['build']:.1f}",
                f"{one['disk']:.2f}",
                f"{one['ledger'] / 1024 / one['tasks']:.1f}",
            ]
        )
    columns = ["tasks", "clusters", "build, s", "features, ms per task", "finetuning, ms per task"]
    columns += [
        "masks, ms per cluster",
        "unmerge of one, s",
        "memory, models",
        "saved, models",
        "ledger, KiB per task",
    ]
    weights = values[0]["weights"]
    note = (
        f"One build each of a GPT-2 with {weights:,} weights, clusters by features, masks by ClAMU, 2 steps per task "
        "and cluster, with a journal; memory is anonymous memory beyond the loaded base model."
    )
    return f"{pages.table(columns, lines)}\n\n{note}"


if __name__ == "__main__":
    main()
