"""The statistics of timings and scores, each from its textbook formula; numpy only, seeded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
"""Bootstrap resamples behind every interval of a median."""


def wilson(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share.

    Args:
        successes: How many of ``count`` were right.
        count: At least 1.
        confidence: Of the two-sided interval.

    Returns:
        Low and high, in ``0 .. 1``.

    Raises:
        ValueError: Where ``successes`` is not in ``0 .. count``, or ``count`` is 0.
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"{successes} of {count} is no share")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / count
    spread = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / spread
    half = z / spread * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == count else min(1.0, centre + half)
    return low, high


def percentile(samples: NDArray[np.float64], share: float) -> float:
    """The smallest sample that at least ``share`` of the samples do not exceed (nearest rank).

    Args:
        samples: ``(n,)``, n at least 1, in any order.
        share: In ``0 .. 1``, e.g. 0.99.
    """
    rank = max(1, math.ceil(share * len(samples) - 1e-9))
    return float(np.partition(samples, rank - 1)[rank - 1])


def percentile_interval(
    samples: NDArray[np.float64], share: float, confidence: float = 0.95
) -> tuple[float, float] | None:
    """An interval of a percentile from order statistics: no distribution is assumed.

    The ranks are those whose binomial tails are at most half of ``1 - confidence`` each.

    Args:
        samples: ``(n,)``, in any order.
        share: In ``0 .. 1``, e.g. 0.5.
        confidence: Of the two-sided interval; the interval covers at least that.

    Returns:
        Low and high, or ``None`` where there are too few samples for that confidence.
    """
    count = len(samples)
    below = np.cumsum(
        _binomial(count, share)
    )  # below[k] = P(at most k samples under the percentile)
    tail = (1 - confidence) / 2
    low = int(np.searchsorted(below, tail, side="right"))  # 1-based rank of the lower end
    high = int(np.searchsorted(below, 1 - tail, side="left")) + 1  # and of the upper end
    if low < 1 or high > count:
        return None
    ordered = np.sort(samples)
    return float(ordered[low - 1]), float(ordered[high - 1])


def percentile_floor(share: float, confidence: float = 0.99) -> int:
    """The fewest samples of which a percentile may be reported: MLPerf's early-stopping rule.

    It is the smallest count at which one sample over the bound still shows, with this confidence,
    that at most ``1 - share`` of all are over it: 11 for p50, 64 for p90, 130 for p95, 662 for p99,
    6,636 for p99.9.
    """
    count = 2
    while share**count + count * (1 - share) * share ** (count - 1) > 1 - confidence:
        count += 1
    return count


def bootstrap_median(
    values: Sequence[float] | NDArray[np.float64], seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """A bootstrap (percentile) interval of the median.

    Args:
        values: ``(n,)``, n at least 1.
        seed: Of the resampling.
        confidence: Of the two-sided interval.

    Returns:
        Low and high.
    """
    samples = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    medians = np.empty(RESAMPLES)
    step = max(1, 1_000_000 // len(samples))
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        chosen = generator.integers(0, len(samples), size=(rows, len(samples)))
        medians[start : start + rows] = np.median(samples[chosen], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return float(low), float(high)


def mann_whitney_u(
    a: Sequence[float] | NDArray[np.float64], b: Sequence[float] | NDArray[np.float64]
) -> tuple[float, float]:
    """Mann and Whitney's U test, two-sided, by the normal approximation.

    Args:
        a: One sample, ``(n,)``.
        b: The other, ``(m,)``.

    Returns:
        U of ``a`` (the pairs in which ``a`` is larger, ties as half) and the p-value, corrected for
        ties and continuity; 1 where all values are equal.

    Raises:
        ValueError: Where a sample is empty.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    n, m = len(first), len(second)
    if not n or not m:
        raise ValueError("both samples need at least one value")
    pooled = np.concatenate([first, second])
    _, inverse, counts = np.unique(pooled, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    u = float(ranks[:n].sum() - n * (n + 1) / 2)
    total = n + m
    ties = float((counts.astype(np.float64) ** 3 - counts).sum())
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1))) if total > 1 else 0.0
    if variance <= 0:
        return u, 1.0
    distance = max(0.0, abs(u - n * m / 2) - 0.5)
    return u, math.erfc(distance / math.sqrt(2 * variance))


def _binomial(count: int, share: float) -> NDArray[np.float64]:
    """Probabilities of 0 .. count successes, ``(count + 1,)``."""
    if share <= 0 or share >= 1:
        result = np.zeros(count + 1)
        result[0 if share <= 0 else count] = 1.0
        return result
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    k = np.arange(count + 1)
    chosen = logs[count] - logs - logs[::-1]
    return np.exp(chosen + k * math.log(share) + (count - k) * math.log1p(-share))
