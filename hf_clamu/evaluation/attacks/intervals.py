"""Figures with intervals: areas under the curve, rates and means, for few rows and for extreme values, too.

No interval but that of a mean is drawn at random, and that one is seeded by its name: the same rows always give the
same digits.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import NormalDist

import torch

from hf_clamu.training import derive_seed

__all__ = ["LEVEL", "Estimate", "auc", "auc_value", "mean", "share", "true_positive_rate"]

# Of the intervals: how often they hold the true value.
LEVEL = 0.95
_RESAMPLES = 2000
# So many halvings leave nothing of an interval of floats.
_HALVINGS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A figure in [0, 1] with its interval.

    Args:
        value (`float`, *optional*): the figure; `None` if there are too few rows to tell.
        low, high (`float`): the interval.
        needs (`int`, *optional*): how many held-out rows the figure takes, if there are fewer.
    """

    value: float | None
    low: float
    high: float
    needs: int | None = None


def auc(members: Sequence[float], held_out: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return the area under the ROC curve: how often a member has the greater score, ties counting half.

    Args:
        members (*sequence* of `float`): scores of rows that were trained on, at least one.
        held_out (*sequence* of `float`): scores of rows that were not, at least one.
        level (`float`): of the interval.

    Source of the interval: Newcombe (2006), "Confidence intervals for an effect size measure based on the Mann-Whitney
    statistic", part 2, method 5: the areas whose own variance (of Hanley and McNeil) makes the one that was found
    likely. Unlike DeLong's it does not shrink to a point where all members have greater scores.
    """
    value = auc_value(members, held_out)
    quantile = NormalDist().inv_cdf((1 + level) / 2)

    def is_unlikely(area: float) -> bool:
        return (area - value) ** 2 > quantile**2 * _variance(area, len(members), len(held_out))

    return Estimate(value=value, low=_border(0.0, value, is_unlikely), high=_border(1.0, value, is_unlikely))


def auc_value(members: Sequence[float], held_out: Sequence[float]) -> float:
    """Return the area alone, as `auc` gives it."""
    ranked = sorted(held_out)
    # Twice the number of pairs, so that ties are whole numbers.
    won = sum(bisect_left(ranked, score) + bisect_right(ranked, score) for score in members)
    return won / (2 * len(members) * len(ranked))


def _variance(area: float, num_members: int, num_held_out: int) -> float:
    size = (num_members + num_held_out) / 2 - 1
    spread = 1 + size * (1 - area) / (2 - area) + size * area / (1 + area)
    return area * (1 - area) * spread / (num_members * num_held_out)


def _border(outside: float, inside: float, is_outside: Callable[[float], bool]) -> float:
    """Return where an interval ends between a value outside of it, or at its end, and one inside."""
    for _ in range(_HALVINGS):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if is_outside(middle) else (outside, middle)
    return inside


def share(hits: int, count: int, level: float = LEVEL) -> Estimate:
    """Return how large a part the hits are, with the exact interval of Clopper and Pearson.

    Args:
        hits (`int`): how many of them.
        count (`int`): of how many, at least one.
        level (`float`): of the interval.
    """
    tail = (1 - level) / 2
    return Estimate(
        value=hits / count, low=_share_low(hits, count, tail), high=1 - _share_low(count - hits, count, tail)
    )


def _share_low(hits: int, count: int, tail: float) -> float:
    """Return the rate under which so many hits or more have the probability `tail`."""
    if hits == 0:
        return 0.0
    return _border(0.0, hits / count, lambda rate: 1 - _at_most(hits - 1, count, rate) < tail)


def _at_most(hits: int, count: int, rate: float) -> float:
    """Return the probability of so many hits or fewer, of `count` that hit at a rate in (0, 1)."""
    return math.fsum(_exactly(number, count, rate) for number in range(hits + 1))


def _exactly(hits: int, count: int, rate: float) -> float:
    ways = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
    return math.exp(ways + hits * math.log(rate) + (count - hits) * math.log1p(-rate))


def true_positive_rate(
    members: Sequence[float], held_out: Sequence[float], false_positive_rate: float, level: float = LEVEL
) -> Estimate:
    """Return how many members are found where so many held-out rows at most are taken for members.

    The interval is exact for any scores. It knows that the threshold is estimated, too: the true one lies between two
    of the held-out scores (order statistics), and to either belongs an interval of Clopper and Pearson; each of the
    four ends fails with a quarter of what the level leaves.

    Args:
        members (*sequence* of `float`): scores of rows that were trained on, at least one.
        held_out (*sequence* of `float`): scores of rows that were not.
        false_positive_rate (`float`): in (0, 1). With fewer than its reciprocal of held-out rows there is no figure.
        level (`float`): of the interval.
    """
    ranked = [math.inf, *sorted(held_out, reverse=True), -math.inf]
    count, tail = len(held_out), (1 - level) / 4

    def found(allowed: int) -> int:
        """How many members lie above a threshold that at most so many held-out rows exceed."""
        return sum(score > ranked[allowed + 1] for score in members)

    # How many held-out rows exceed the true threshold: over `fewest`, and at most `most`, each but for `tail`.
    at_most = list(accumulate(_exactly(number, count, false_positive_rate) for number in range(count + 1)))
    fewest = sum(probability <= tail for probability in at_most) - 1
    most = min(sum(probability < 1 - tail for probability in at_most), count)
    low = _share_low(found(fewest), len(members), tail)
    high = 1 - _share_low(len(members) - found(most), len(members), tail)
    needs = math.ceil(round(1 / false_positive_rate, 9))
    if count < needs:
        return Estimate(value=None, low=low, high=high, needs=needs)
    allowed = math.floor(round(count * false_positive_rate, 9))
    return Estimate(value=found(allowed) / len(members), low=low, high=high)


def mean(values: Sequence[float], name: str, level: float = LEVEL) -> Estimate:
    """Return the mean of values in [0, 1] with the percentile interval of a seeded bootstrap.

    Args:
        values (*sequence* of `float`): at least one.
        name (`str`): seeds the bootstrap.
        level (`float`): of the interval.
    """
    generator = torch.Generator().manual_seed(derive_seed(0, "leakage-bootstrap", name))
    given = torch.tensor(values, dtype=torch.float64)
    means = [
        float(given[torch.randint(len(given), (len(given),), generator=generator)].mean()) for _ in range(_RESAMPLES)
    ]
    means.sort()
    cut = math.floor((1 - level) / 2 * _RESAMPLES)
    # fsum rounds once: equal rows in another order have the same mean.
    return Estimate(value=math.fsum(values) / len(values), low=means[cut], high=means[-1 - cut])
