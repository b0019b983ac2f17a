"""Entropy ranges: clip where the codes keep most of what a tensor's distribution tells.

What it does: for every pair of ends that is tried, the distribution of the values, those outside
moved to the outermost kept ones, is compared with the one that codes give back, each code's share
spread evenly over what it stands for. The ends with the least Kullback-Leibler divergence win. An
exact zero is not compared: every quantizer gives it back.

Where it differs from its source: bins are as wide as their values are large (256 an octave), not of
one width. One outlier of a million therefore does not push all other values into one bin, and small
ends are judged as finely as large ones. Ends are found for each sign, and no more than a tenth of
the values is clipped.

When it is exact: it sees every value that it is given, whatever their order, in memory that does
not grow; nothing within 28 octaves of the largest is merged with zero.

Source: Migacz 2017, "8-bit inference with TensorRT", GTC, the slides on calibration.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...runtime.tensors import Array

_MANTISSA = 8  # bits of it that tell bins apart: 256 an octave
_CUT = 23 - _MANTISSA
_OCTAVES = 28
_BINS = _OCTAVES << _MANTISSA
_ENDS = [2.0 ** (-step / 4) for step in range(4 * (_OCTAVES - 8) + 1)]  # shares that are tried
_CLIPPED = 0.1  # share of the values that may lie outside
_SAMPLES = 16  # values that a bin holds on average, or it is joined with its neighbour
_COARSEST = 5  # times that bins are joined
_STEPS, _SYMMETRIC_STEPS = 255, 127


class MagnitudeHistogram:
    """How many values have which magnitude, in bins of a constant share of their own size."""

    def __init__(self) -> None:
        self._counts = np.zeros((2, _BINS + 1), np.int64)  # the last of each row: zero, or nearly
        self._top = 0  # the bin of the largest magnitude, by the leading bits of a float32

    def add(self, values: Array) -> None:
        """Take finite values, of any shape and float type."""
        bits = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32)
        keys = ((bits & np.uint32(0x7FFFFFFF)) >> np.uint32(_CUT)).astype(np.int32)
        self._rise(int(keys.max(initial=0)))
        index = np.minimum(self._top - keys, _BINS)
        index[keys == 0] = _BINS
        index += (bits >> np.uint32(31)).astype(np.int32) * (_BINS + 1)
        counts = np.bincount(index, minlength=self._counts.size)
        self._counts += counts.reshape(self._counts.shape)

    def _rise(self, top: int) -> None:
        """Make room for larger values; what falls off at the other side counts as zero."""
        up = min(top - self._top, _BINS)
        if up <= 0:
            return
        moved = np.zeros_like(self._counts)
        moved[:, up:_BINS] = self._counts[:, : _BINS - up]
        moved[:, _BINS] = self._counts[:, _BINS - up :].sum(axis=1)
        self._counts, self._top = moved, top

    def bins(self) -> Histogram:
        """The bins that are not empty; neighbours are joined where values are few."""
        counts, keys = self._counts[:, :_BINS], np.maximum(self._top - np.arange(_BINS), 0)
        total = int(self._counts.sum())
        joined = 1
        for _ in range(_COARSEST):
            if total >= _SAMPLES * np.count_nonzero(counts):
                break
            counts, joined = counts.reshape(2, -1, 2).sum(axis=2), joined * 2
        low, high = _value(keys[joined - 1 :: joined]), _value(keys[::joined] + 1)
        above, below = (np.flatnonzero(row) for row in counts)
        above = above[::-1]  # bins lie from the largest magnitude to the least
        return Histogram(
            np.concatenate([-low[below], low[above]]),
            np.concatenate([-high[below], high[above]]),
            np.concatenate([counts[1, below], counts[0, above]]) / max(total, 1),
        )


@dataclass(frozen=True)
class Histogram:
    """A distribution without its zeros.

    Attributes:
        inner: The end of each bin that is nearer to zero, rising, ``(B,)``.
        outer: The other, ``(B,)``.
        shares: Of all values, zeros included, ``(B,)``.
    """

    inner: NDArray[np.float64]
    outer: NDArray[np.float64]
    shares: NDArray[np.float64]

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """``(B,)``."""
        return (self.inner + self.outer) / 2

    @cached_property
    def widths(self) -> NDArray[np.float64]:
        """``(B,)``."""
        return np.abs(self.outer - self.inner)


def entropy_range(bins: Histogram, low: float, high: float) -> tuple[float, float]:
    """Where to clip for codes of 8 bits with a zero point.

    Args:
        bins: What was seen.
        low: Its least value, or 0.
        high: Its largest, or 0.
    """

    def best(ranges: list[tuple[float, float]]) -> tuple[float, float]:
        lost = [code_divergence(bins, *ends, (ends[1] - ends[0]) / _STEPS) for ends in ranges]
        return ranges[int(np.argmin(lost))]

    largest = max(-low, high)
    found = best([(max(low, -largest * a), min(high, largest * a)) for a in _ENDS])
    if low < 0.0 < high:
        for _ in range(2):
            before = found
            found = best([found, *((found[0], high * a) for a in _ENDS)])
            found = best([found, *((low * a, found[1]) for a in _ENDS)])
            if found == before:
                break
    return found


def entropy_magnitude(bins: Histogram, largest: float) -> float:
    """Where to clip for codes from -127 to 127 whose zero point is 0.

    Args:
        bins: What was seen.
        largest: The largest magnitude of it.
    """
    ends = [largest * a for a in _ENDS]
    lost = [code_divergence(bins, -end, end, end / _SYMMETRIC_STEPS) for end in ends]
    return ends[int(np.argmin(lost))]


def code_divergence(bins: Histogram, low: float, high: float, step: float) -> float:
    """What codes lose: the Kullback-Leibler divergence in nats.

    Args:
        bins: The distribution.
        low: What lies below counts as the least bin that does not.
        high: What lies above counts as the highest bin that does not.
        step: Between two codes.

    Returns:
        Infinity where too much is clipped, or nothing of one sign is left of what there is.
    """
    inner, shares = bins.inner, bins.shares
    first, last = np.searchsorted(inner, low), np.searchsorted(inner, high, side="right")
    below, above = float(shares[:first].sum()), float(shares[last:].sum())
    if first >= last or below + above > _CLIPPED:
        return np.inf
    if (below and inner[first] > 0) or (above and inner[last - 1] < 0):
        return np.inf
    wanted, widths = shares[first:last].copy(), bins.widths[first:last]
    codes = np.rint(bins.centres[first:last] / step).astype(np.int64)
    codes -= codes[0]
    mass, width = np.bincount(codes, wanted), np.bincount(codes, widths)
    kept = 1.0 - below - above  # with the zeros, which are the same on both sides
    given = mass[codes] * widths / width[codes] / kept
    zeros = max(1.0 - float(shares.sum()), 0.0)
    wanted[0] += below
    wanted[-1] += above
    return float(wanted @ np.log(wanted / given) + zeros * np.log(kept))


def _value(keys: NDArray[np.int64]) -> NDArray[np.float64]:
    """The least magnitude whose leading bits are ``keys``."""
    values = (keys.astype(np.uint32) << np.uint32(_CUT)).view(np.float32).astype(np.float64)
    return np.minimum(values, float(np.finfo(np.float32).max))
