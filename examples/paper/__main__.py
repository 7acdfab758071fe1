"""`python -m examples.paper`: measure tables and figures, draw them, and write a page of them."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from examples.paper.runner import Results, measure_cells, measure_extra, say
from examples.paper.scale import SCALES, Cell, Scale
from hf_clamu.errors import ClamuError

_DOCS = Path(__file__).parents[2] / "docs"


def main(words: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.paper", description=__doc__)
    parser.add_argument(
        "what", nargs="+", help="all, report, or names of tables and figures (figure2, table1, cost …)"
    )
    parser.add_argument("--scale", default="local", help=f"one of {', '.join(SCALES)}, or a YAML file")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="SOURCE=FILE",
        help="a local file of a source that is not read from the Hub; a FILE alone is TOFU's",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("paper-results"), help="keeps results; a run goes on there"
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--page", type=Path, help="the page that `report` and `all` write; by default paper.md beside the results"
    )
    place.add_argument("--docs", action="store_true", help="write docs/paper.md and its figures")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    options = parser.parse_args(words)
    writes_page = bool({"all", "report"} & set(options.what))
    if options.docs and not writes_page:
        parser.error("--docs goes with report or all, which write the page")
    try:
        scale = Scale.load(options.scale)
        paths = dict(word.split("=", 1) if "=" in word else ("tofu", word) for word in options.data)
        whole = [name for name, one in scale.experiments.items() if one.in_all] if "all" in options.what else []
        names = [*dict.fromkeys([*whole, *(one for one in options.what if one not in ("all", "report"))])]
        unknown = [one for one in names if one not in scale.experiments]
        if unknown:
            parser.error(f"scale {scale.name} has no {unknown[0]!r}; it has {', '.join(scale.experiments)}")
        folder = options.output / scale.name
        started = time.perf_counter()
        # Cells that several tables share are measured once.
        cells: dict[Cell, None] = {}
        for name in names:
            cells |= dict.fromkeys(scale.cells(scale.experiments[name]))
        measure_cells(scale, cells, folder, paths, options.jobs)
        for name in names:
            measure_extra(name, scale, folder, paths)
        if names:
            say(f"{', '.join(names)}: {time.perf_counter() - started:.0f} s; results are in {Results(folder).folder}")
        if writes_page:
            from examples.paper.page import write_page

            page = _DOCS / "paper.md" if options.docs else options.page or folder / "paper.md"
            left_out = write_page(page, page.parent / "images" / "paper", scale, folder)
            say(f"wrote {page}" + (f" without {', '.join(left_out)} (not measured)" if left_out else ""))
    except ClamuError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
