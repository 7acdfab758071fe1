"""Figures of attacks against other implementations, and their intervals against what they promise."""

from __future__ import annotations

import math
import random

import pytest
import scipy.stats
import sklearn.metrics

from hf_clamu.evaluation.attacks.intervals import auc, auc_value, mean, share, true_positive_rate


def _scores(seed, count, shift=0.0, decimals=None):
    drawn = random.Random(seed)
    values = [drawn.gauss(shift, 1.0) for _ in range(count)]
    return values if decimals is None else [round(value, decimals) for value in values]


@pytest.mark.parametrize("decimals", [None, 0])  # 0: most scores are tied
@pytest.mark.parametrize("sizes", [(5, 5), (40, 23), (300, 100)])
def test_figures_are_those_of_scikit_learn(sizes, decimals):
    members = _scores("members", sizes[0], 0.8, decimals)
    held_out = _scores("held out", sizes[1], 0.0, decimals)
    labels, scores = [1] * sizes[0] + [0] * sizes[1], members + held_out
    found = auc(members, held_out)
    assert found.value == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert 0 <= found.low < found.value < found.high <= 1
    false, true, _ = sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False)
    for rate in (0.01, 0.05, 0.2):
        estimate = true_positive_rate(members, held_out, rate)
        if sizes[1] < 1 / rate:
            assert (estimate.value, estimate.needs) == (None, round(1 / rate))
        else:
            expected = max(t for f, t in zip(false, true, strict=True) if f <= rate + 1e-12)
            assert estimate.value == pytest.approx(expected, abs=1e-12)
            assert estimate.low <= estimate.value <= estimate.high


@pytest.mark.parametrize("shift", [0.0, 1.2, 2.5])
def test_intervals_of_areas_hold_the_true_one(shift):
    """The area under two normal curves is known; the intervals of few rows hold it as often as they say, or nearly."""
    true = scipy.stats.norm.cdf(shift / math.sqrt(2))
    found = [auc(_scores(f"m{n}", 10, shift), _scores(f"h{n}", 7)) for n in range(400)]
    assert sum(one.low <= true <= one.high for one in found) >= 0.93 * len(found)
    # Not by being useless: under 0.6 wide in the middle, less at the end.
    assert sum(one.high - one.low for one in found) / len(found) < 0.6
    wide = auc(_scores("m", 400, shift), _scores("h", 400))
    assert wide.high - wide.low < 0.09


def test_an_area_of_one_is_not_certain():
    found = auc([5.0, 6.0, 7.0, 8.0, 9.0], [1.0, 2.0, 3.0, 4.0, 4.5])
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.5 < found.low < 0.95
    turned = auc([1.0, 2.0, 3.0, 4.0, 4.5], [5.0, 6.0, 7.0, 8.0, 9.0])
    assert (turned.value, turned.low) == (0.0, 0.0)
    assert turned.high == pytest.approx(1 - found.low)
    assert auc_value([1.0] * 5, [1.0] * 5) == 0.5


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 20), (199, 200), (123, 1000)])
@pytest.mark.parametrize("level", [0.95, 1 - 0.05 / 48])
def test_shares_have_the_interval_of_clopper_and_pearson(hits, count, level):
    expected = scipy.stats.binomtest(hits, count).proportion_ci(level, method="exact")
    found = share(hits, count, level)
    assert found.value == hits / count
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("rate", "sizes"), [(0.05, (30, 40)), (0.05, (30, 150)), (0.2, (12, 30))])
def test_intervals_of_rates_hold_the_true_one(rate, sizes):
    """The threshold is estimated from the held-out rows, and the interval knows."""
    shift = 1.5
    true = 1 - scipy.stats.norm.cdf(scipy.stats.norm.ppf(1 - rate) - shift)
    found = [
        true_positive_rate(_scores(f"m{n}", sizes[0], shift), _scores(f"h{n}", sizes[1]), rate) for n in range(400)
    ]
    assert sum(one.low <= true <= one.high for one in found) >= 0.95 * len(found)
    if sizes[1] == 150:
        assert sum(one.low > 0 for one in found) > 0.9 * len(found)


def test_too_few_held_out_rows_say_how_many_it_takes():
    found = true_positive_rate([9.0] * 20, [0.0] * 19, 0.05)
    assert (found.value, found.low, found.needs) == (None, 0.0, 20)
    assert found.high == 1.0
    assert true_positive_rate([9.0] * 20, [0.0] * 20, 0.05).value == 1.0
    assert true_positive_rate([1.0], [], 0.01).needs == 100


def test_means_are_drawn_by_name_and_the_same_every_time():
    values = [0.0, 0.25, 1.0, 0.5, 0.75, 0.0, 0.0, 1.0]
    found = mean(values, "one")
    assert found == mean(values, "one")
    assert found != mean(values, "two")
    assert found.value == sum(values) / len(values)
    assert found.low < found.value < found.high
    wider = mean(values, "one", 1 - 0.05 / 48)
    assert wider.low < found.low < found.high < wider.high
    # About two standard errors.
    error = scipy.stats.sem(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.2)
    assert mean([0.5], "one") == mean([0.5] * 3, "one")
