"""Random settings and requests, each sequence from a seed of its own.

    python -m tests.differential --seed 17                        one sequence, and what it did
    python -m tests.differential --seed 0 --count 500             many; what was covered
    python -m tests.differential --seed 17 --set archive=false    another value than drawn (JSON, or a word)
    python -m tests.differential --count 50 --set space=peft --set peft_merging=product
    python -m tests.differential --space                          the values that are drawn from

The exit code is 0 if every sequence was exact, or refused before any training.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.differential.coverage import Coverage
from tests.differential.space import AXES, draw


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.differential", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="instead of what is drawn")
    parser.add_argument("--space", action="store_true", help="print the values that are drawn from")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the files of a single sequence here")
    options = parser.parse_args()
    if options.space:
        print(json.dumps(AXES, indent=2, ensure_ascii=False))  # noqa: T201
        return 0
    changes = dict(_setting(one) for one in options.set)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from tests.differential.sequence import Sequence

    _quiet()
    coverage, started = Coverage(), time.perf_counter()
    for seed in range(options.seed, options.seed + options.count):
        configuration = draw(seed, changes)
        if options.count == 1:
            print(json.dumps(configuration, indent=2, ensure_ascii=False))  # noqa: T201
        with tempfile.TemporaryDirectory(prefix="clamu-differential-") as scratch:
            folder = options.keep or Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            outcome = Sequence(seed, configuration, folder).run()
        coverage.add(outcome)
        if options.count == 1 or outcome.failures:
            print(coverage.describe(outcome), flush=True)  # noqa: T201
        if options.count > 1 and (seed - options.seed) % 20 == 19:
            print(f"{coverage.summary()}, {time.perf_counter() - started:.0f} s", flush=True)  # noqa: T201
    if options.count > 1:
        print(coverage.table())  # noqa: T201
    print(coverage.summary())  # noqa: T201
    return 1 if coverage.failed else 0


def _setting(given: str) -> tuple[str, Any]:
    name, _, value = given.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _quiet() -> None:
    import warnings

    import datasets
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


if __name__ == "__main__":
    sys.exit(main())
