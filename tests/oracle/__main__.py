"""Record what the package does, and compare two records.

    python -m tests.oracle record OUT.json [--quick] [--write]
    python -m tests.oracle compare A.json B.json [--texts] [--except PATTERN]
    python -m tests.oracle models DIR            saved models, archives and unfinished runs, by this version
    python -m tests.oracle interchange DIR       what this version makes of them, as one JSON object
    python -m tests.oracle definitions OUT.json  a hash of every definition

The package is the one of this tree. `--package TREE`, or a PYTHONPATH that has one, takes that of another tree with
the script of this one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.oracle import comparing
from tests.oracle.cells import cells

GOLDEN = Path(__file__).with_name("golden.json")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=Path, help="tree of the package to run, instead of this one")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("record", help="record what the package does")
    one.add_argument("out", type=Path, nargs="?")
    one.add_argument("--quick", action="store_true", help="each value once instead of each pair of values")
    one.add_argument("--write", action="store_true", help="write golden.json as well; goes with --quick")
    one.add_argument("--only", help="part of the names of the cells to run")
    one = commands.add_parser("compare", help="list the differences of two records; exit 1 if there are any")
    one.add_argument("first", type=Path)
    one.add_argument("second", type=Path)
    one.add_argument("--texts", action="store_true", help="messages and annotations count, too")
    one.add_argument("--except", dest="leave_out", action="append", default=[], help="section/cell/step/file pattern")
    for name in ("models", "interchange", "definitions"):
        one = commands.add_parser(name)
        one.add_argument("out", type=Path)
    options = parser.parse_args()
    if options.command == "compare":
        return compare(options)
    tree = choose_package(options.package)
    if options.command == "definitions":
        from tests.oracle.definitions import definitions

        write(options.out, {"definitions": definitions(tree / "hf_clamu")})
        return 0
    started = time.perf_counter()
    if options.command == "record":
        found = record(tree, quick=options.quick or options.write, only=options.only)
        if options.out is not None:
            write(options.out, found)
        if options.write:
            from tests.oracle.golden import golden

            write(GOLDEN, golden(found))
    else:
        from tests.oracle import models

        with workplace() as (folder, hub):
            if options.command == "models":
                models.write_models(options.out.resolve(), folder, hub)
            else:
                json.dump(models.interchange(options.out.resolve(), folder, hub), sys.stdout, indent=1, sort_keys=True)
                sys.stdout.write("\n")
    sys.stderr.write(f"{options.command}: {time.perf_counter() - started:.0f} s\n")
    return 0


def compare(options: argparse.Namespace) -> int:
    first, second = (json.loads(path.read_text(encoding="utf-8")) for path in (options.first, options.second))
    if "definitions" in first:
        counts, lines = comparing.compare_definitions(first["definitions"], second["definitions"])
        summary = ", ".join(f"{name} {count}" for name, count in counts.items())
    else:
        patterns = tuple(options.leave_out)
        lines = list(comparing.differences(first, second, texts=options.texts, leave_out=patterns))
        summary = f"{len(lines)} differences"
        if not options.texts:
            soft = len(list(comparing.differences(first, second, texts=True, leave_out=patterns))) - len(lines)
            summary += f"; {soft} of texts and annotations are not counted (--texts)"
    sys.stdout.write("\n".join([*lines, summary]) + "\n")
    return 1 if lines else 0


def record(tree: Path, *, quick: bool, only: str | None = None) -> dict[str, Any]:
    """Run the cells and all beside them."""
    with workplace() as (folder, hub):
        from tests.oracle import calls, chains, interface, refusals, steps

        bench = steps.Bench(folder, hub)
        chosen = [cell for cell in cells(quick=quick) if only is None or only in cell.name]
        for number, cell in enumerate(chosen):
            started = time.perf_counter()
            chains.run_chain(bench, cell)
            steps.say(f"{number + 1}/{len(chosen)} {cell.name} {time.perf_counter() - started:.1f} s")
        if only is None:
            calls.run_calls(bench, quick=quick)
            refusals.run_refusals(bench)
            bench.record |= interface.interface(tree)
        bench.record["about"] = about(tree)
        return bench.record


@contextlib.contextmanager
def workplace() -> Iterator[tuple[Path, Any]]:
    """A temporary folder and a double of the Hub."""
    from tests.oracle.double import start_hub

    os.umask(0o022)
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="oracle-") as name:
        hub = start_hub(Path(name) / "home")
        work = Path(name).resolve() / "work"
        work.mkdir()
        try:
            yield work, hub
        finally:
            os.chdir(here)
            hub.stop()


def choose_package(tree: Path | None) -> Path:
    """Put the tree whose package is to run first on the path; it is that of the working directory by default."""
    given = (
        [tree]
        if tree is not None
        else [Path(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    )
    for place in [*given, Path(__file__).parents[2]]:
        if (place / "hf_clamu" / "__init__.py").is_file():
            sys.path.insert(0, str(place.resolve()))
            return place.resolve()
    raise SystemExit("There is no package hf_clamu in the tree that was named.")


def about(tree: Path) -> dict[str, Any]:
    """Return which package ran on what."""
    import subprocess

    import torch
    import transformers

    import hf_clamu

    assert Path(hf_clamu.__file__).is_relative_to(tree), f"{hf_clamu.__file__} is not of {tree}"
    commit = subprocess.run(["git", "-C", str(tree), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
