"""Lets the tests of the specification import what makes its vectors."""

import sys
from pathlib import Path

# `tests.spec` is no part of the package. Last, so that the installed package is the one that is tested.
sys.path.append(str(Path(__file__).parents[2]))
