"""`python -m examples.paper`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from hf_clamu.errors import ClamuError

from examples.paper.runner import measure_cells, say
from examples.paper.scale import SCALES, Scale


def main(arguments: list[str] | None = None) -> int:
    """Measure tables and figures of a scale."""
    parser = argparse.ArgumentParser(prog="python -m examples.paper", description=__doc__)
    parser.add_argument("what")
    parser.add_argument("--scale", default="local")
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--output", type=Path, default=Path("paper-results"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    scale = Scale.load(options.scale)
    folder = options.output / scale.name
    names = list(scale.experiments) if options.what == "all" else [options.what]
    cells = [cell for name in names for cell in scale.experiments[name].cells(scale.seeds)]
    seconds = measure_cells(scale, cells, folder, {}, options.jobs)
    say(f"{len(set(cells))} cells, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
