"""`python -m tests.spec --write` makes the test vectors of docs/spec anew."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.spec import vectors

    if sys.argv[1:] != ["--write"]:
        sys.exit("python -m tests.spec --write makes docs/spec/vectors anew; tests/spec/test_spec.py checks them.")
    vectors.write()
