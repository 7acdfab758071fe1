"""Random settings and requests: exact, or refused before any training."""

from __future__ import annotations

import pytest

from tests.differential.coverage import Coverage
from tests.differential.sequence import Sequence
from tests.differential.space import AXES, draw

# What peft, transformers and torch warn of is theirs; a warning of ours would be an error elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore")


def _ran(seed, folder):
    outcome = Sequence(seed, draw(seed), folder).run()
    assert not outcome.failures, Coverage.describe(outcome)
    return outcome


@pytest.mark.parametrize("seed", range(20))
def test_what_is_left_is_built_without(seed, tmp_path):
    outcome = _ran(seed, tmp_path)
    assert outcome.num_comparisons or outcome.refusals


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20, 520))
def test_what_is_left_is_built_without_many_times(seed, tmp_path):
    _ran(seed, tmp_path)


def test_every_value_is_drawn():
    drawn = [draw(seed) for seed in range(1000)]
    for axis, values in AXES.items():
        assert {str(value) for value in values} <= {str(one[axis]) for one in drawn}


def test_a_seed_is_a_sequence():
    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
