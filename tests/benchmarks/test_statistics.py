"""The statistics against published values and against samples whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgepress.benchmarks.latency.comparison import which_is_faster
from edgepress.benchmarks.statistics import (
    bootstrap_median,
    mann_whitney_u,
    percentile,
    percentile_floor,
    percentile_interval,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(
    successes: int, count: int, low: float, high: float
) -> None:
    assert wilson(successes, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_stays_in_bounds_and_refuses_what_is_no_share() -> None:
    assert wilson(5, 5)[1] == 1.0
    assert wilson(0, 5)[0] == 0.0
    for successes, count in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="no share"):
            wilson(successes, count)


@pytest.mark.parametrize(
    ("share", "floor"), [(0.5, 11), (0.9, 64), (0.95, 130), (0.99, 662), (0.999, 6636)]
)
def test_percentile_floors_are_those_of_mlperf(share: float, floor: int) -> None:
    assert percentile_floor(share) == floor


def test_percentile_is_the_nearest_rank() -> None:
    samples = np.array([15.0, 20, 35, 40, 50])
    assert [percentile(samples, share) for share in (0.05, 0.3, 0.4, 0.5, 1.0)] == [
        15,
        20,
        20,
        35,
        50,
    ]
    assert percentile(np.arange(1.0, 101), 0.99) == 99


def test_percentile_interval_takes_the_published_ranks() -> None:
    # Ranks of the 95 % interval of the median, Hollander and Wolfe's table: n = 10 gives 2 and 9
    assert percentile_interval(np.arange(1.0, 11), 0.5) == (2, 9)
    assert percentile_interval(np.arange(1.0, 101), 0.5) == (40, 61)
    assert percentile_interval(np.arange(1.0, 6), 0.5) is None
    assert percentile_interval(np.arange(1.0, 101), 0.999) is None


def test_percentile_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    truth = np.log(2)  # the median of the exponential distribution
    intervals = [percentile_interval(generator.exponential(size=101), 0.5) for _ in range(1000)]
    covered = sum(low <= truth <= high for low, high in filter(None, intervals))
    assert 0.94 <= covered / 1000 <= 0.98


def test_bootstrap_is_seeded_and_covers() -> None:
    generator = np.random.default_rng(0)
    samples = generator.normal(3, 1, 200)
    assert bootstrap_median(samples, seed=1) == bootstrap_median(samples, seed=1)
    assert bootstrap_median(samples, seed=1) != bootstrap_median(samples, seed=2)
    hits = 0
    for _ in range(100):
        low, high = bootstrap_median(generator.normal(3, 1, 60))
        hits += low <= 3 <= high
    assert hits >= 88
    assert bootstrap_median([2.0]) == (2.0, 2.0)


def test_mann_whitney_agrees_with_the_textbook() -> None:
    # Values of scipy.stats.mannwhitneyu(a, b, method="asymptotic"), its documentation's example
    males, females = [19, 22, 16, 29, 24], [20, 11, 17, 12]
    u, p = mann_whitney_u(males, females)
    assert u == 17
    assert p == pytest.approx(0.11134688653314041)
    u, p = mann_whitney_u([1, 2, 2, 3], [2, 4, 4, 5])
    assert u == 2
    z = (8 - 2 - 0.5) / math.sqrt(16 / 12 * (9 - 30 / 56))  # three values of 2, two of 4
    assert p == pytest.approx(math.erfc(z / math.sqrt(2)))
    assert mann_whitney_u([1, 1], [1, 1])[1] == 1.0
    with pytest.raises(ValueError, match="at least one"):
        mann_whitney_u([], [1])


@pytest.mark.parametrize(
    ("ratio", "low", "high", "p", "noise", "faster"),
    [
        (2.0, 1.9, 2.1, 1e-6, 0.01, "a"),
        (0.5, 0.48, 0.52, 1e-6, 0.01, "b"),
        (1.02, 1.01, 1.03, 1e-6, 0.01, "neither"),  # under the least effect
        (1.10, 1.08, 1.12, 1e-6, 0.15, "neither"),  # under this machine's noise
        (1.10, 0.99, 1.20, 1e-6, 0.01, "neither"),  # the interval holds 1
        (1.10, 1.08, 1.12, 0.2, 0.01, "neither"),  # chance
    ],
)
def test_verdict_needs_size_interval_and_significance(
    ratio: float, low: float, high: float, p: float, noise: float, faster: str
) -> None:
    assert which_is_faster(ratio, low, high, p, noise) == faster
