"""What calibration remembers of one tensor: extremes and a histogram, in memory that does not grow.

The histogram's bins have one width, doubled (and neighbours merged) whenever a value falls outside,
so that one pass over the pictures is enough and zero always lies on an edge.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import InputError
from ...runtime.tensors import Array
from .entropy_threshold import Histogram, MagnitudeHistogram, entropy_magnitude, entropy_range

_BINS = 8192
_LEVELS = 256  # of the quantizer that a range is chosen for
_TAIL = 1e-4  # share of the values that the percentile method leaves out at each end
_FAR = 0.01  # of the largest value; where hardly any lies beyond it, that one is an outlier
_SHRINK = (np.linspace(1.0, 0.9, 11), np.linspace(0.88, 0.3, 30))  # ends that are tried
_SAMPLES = 65_536  # a picture's values that the histogram takes; the extremes see all of them


class Observer:
    """Extremes and histogram of one tensor over any number of batches.

    Args:
        name: Of the tensor.
        method: What its ranges are to be chosen by: ``entropy`` needs bins of its own.
    """

    def __init__(self, name: str, method: str = "mse") -> None:
        self.name = name
        self._octaves = MagnitudeHistogram() if method == "entropy" else None
        self.minimum, self.maximum = np.inf, -np.inf
        self.finite = True
        self._counts: NDArray[np.int64] = np.zeros(_BINS, np.int64)
        self._width = 0.0
        self._zero = 0  # index of the first bin at or above zero

    def update(self, values: Array, first: int = 0) -> None:
        """Take one batch, ``(N, ...)`` of any float type, whose first picture has this number.

        A tensor with infinite values is legitimate (a mask); it is told by ``finite``, and has no
        histogram.

        Raises:
            InputError: ``E_NAN`` where a value is NaN.
        """
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if np.isnan(low) or np.isnan(high):
            rows = np.isnan(values).reshape(values.shape[0] if values.ndim else 1, -1).any(1)
            which = first + int(np.flatnonzero(rows)[0])
            raise InputError(
                "E_NAN",
                f"the tensor '{self.name}' is NaN on calibration picture {which}, counted from 0.",
                mend="Check the pictures, the preprocessing and the weights.",
                path=self.name,
            )
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.finite = self.finite and bool(np.isfinite(low) and np.isfinite(high))
        if not self.finite:
            return
        pictures = values.shape[0] if values.ndim else 1
        step = -(-values.size // (_SAMPLES * pictures))
        if step > 1 and step % 2 == 0:
            step += 1  # an odd stride does not stay in one column of a map
        flat = values.reshape(-1)[::step]
        if self._octaves is not None:
            self._octaves.add(flat)
        self._cover(low, high)
        index = np.floor(flat * np.float32(1.0 / self._width)).astype(np.int32) + self._zero
        np.clip(index, 0, _BINS - 1, out=index)
        self._counts += np.bincount(index, minlength=_BINS)

    def histogram(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centres and weights (summing to 1) of the bins that are not empty."""
        used = np.flatnonzero(self._counts)
        weights = self._counts[used].astype(np.float64)
        centres = (used - self._zero + 0.5) * self._width
        return centres.astype(np.float64), weights / np.sum(weights)

    @property
    def outlying(self) -> bool:
        """Whether less than one value in 10,000 is a hundredth as large as the largest."""
        largest = max(-self.minimum, self.maximum)
        if not self.finite or largest <= 0 or not self._counts.any():
            return False
        centres, weights = self.histogram()
        far = np.abs(centres) > _FAR * largest
        return bool(weights[far].sum() < _TAIL)

    def bins(self) -> Histogram:
        """What the entropy method looks at.

        Raises:
            ValueError: For an observer that was made for another method.
        """
        if self._octaves is None:
            raise ValueError(f"the observer of '{self.name}' was not made for entropy")
        return self._octaves.bins()

    def _cover(self, low: float, high: float) -> None:
        if self._width == 0.0:
            span = max(abs(low), abs(high), 1e-30)
            self._zero = 0 if low >= 0 else _BINS // 2
            self._width = 1.001 * span / (_BINS - self._zero)
        if low < 0 and self._zero == 0:
            self._merge()
            positive = self._counts[: _BINS // 2]
            self._counts = np.concatenate([np.zeros(_BINS // 2, np.int64), positive])
            self._zero = _BINS // 2
        while high >= (_BINS - self._zero) * self._width or -low > self._zero * self._width > 0:
            self._merge()

    def _merge(self) -> None:
        """Twice the width, half the resolution, the same zero."""
        pairs = self._counts.reshape(-1, 2).sum(axis=1)
        merged = np.zeros(_BINS, np.int64)
        start = self._zero - self._zero // 2
        merged[start : start + _BINS // 2] = pairs
        self._counts, self._width = merged, self._width * 2


def clip_range(observer: Observer, method: str) -> tuple[float, float]:
    """The range to be quantized: where to clip, so that the least is lost.

    Args:
        observer: What was seen.
        method: ``minmax`` (clip nothing), ``percentile`` (leave out one value in 10,000 at each
            end), ``mse`` (the least mean squared error of rounding and clipping together, by
            search over both ends; at most 70 % of an end are cut off) or ``entropy`` (see
            :mod:`edgepress.export.calibration.entropy_threshold`; for an observer that was made for
            it).

    Returns:
        Low and high with ``low <= 0 <= high``.
    """
    low, high = min(observer.minimum, 0.0), max(observer.maximum, 0.0)
    if method == "minmax" or low == high:
        return low, high
    if method == "entropy":
        return entropy_range(observer.bins(), low, high)
    centres, weights = observer.histogram()
    if method == "percentile":
        total = np.cumsum(weights)
        first = int(np.searchsorted(total, _TAIL))
        last = min(int(np.searchsorted(total, 1 - _TAIL)), len(centres) - 1)
        return (
            max(low, min(0.0, float(centres[first]))),
            min(high, max(0.0, float(centres[last]))),
        )
    shrink = np.concatenate(_SHRINK)

    def best(ranges: list[tuple[float, float]]) -> float:
        errors = [_squared_error(centres, weights, *ends) for ends in ranges]
        return float(shrink[int(np.argmin(errors))])

    at_low = at_high = best([(low * a, high * a) for a in shrink])
    if low < 0.0 < high:
        for _ in range(2):  # then each end by itself
            before = at_low
            at_high = best([(low * at_low, high * a) for a in shrink])
            at_low = best([(low * a, high * at_high) for a in shrink])
            if at_low == before:
                break
    return low * at_low, high * at_high


def clip_magnitude(observer: Observer, method: str) -> float:
    """The largest magnitude to be represented, by codes that are symmetric around zero.

    Args:
        observer: What was seen.
        method: As for :func:`clip_range`.
    """
    largest = max(-min(observer.minimum, 0.0), max(observer.maximum, 0.0))
    if method == "minmax" or largest == 0:
        return largest
    if method == "entropy":
        return entropy_magnitude(observer.bins(), largest)
    centres, weights = observer.histogram()
    if method == "percentile":
        order = np.argsort(np.abs(centres))
        total = np.cumsum(weights[order])
        last = min(int(np.searchsorted(total, 1 - _TAIL)), len(centres) - 1)
        return min(largest, abs(float(centres[order[last]])))
    ends = [largest * shrink for shrink in np.concatenate(_SHRINK)]
    errors = [_symmetric_error(centres, weights, end) for end in ends]
    return float(ends[int(np.argmin(errors))])


def _symmetric_error(
    centres: NDArray[np.float64], weights: NDArray[np.float64], end: float
) -> float:
    scale = max(end / (_LEVELS // 2 - 1), 1e-38)
    code = np.clip(np.rint(centres / scale), 1 - _LEVELS // 2, _LEVELS // 2 - 1)
    return float(weights @ (centres - code * scale) ** 2)


def _squared_error(
    centres: NDArray[np.float64], weights: NDArray[np.float64], low: float, high: float
) -> float:
    scale = max((high - low) / (_LEVELS - 1), 1e-38)
    zero = np.rint(-low / scale)
    code = np.clip(np.rint(centres / scale) + zero, 0, _LEVELS - 1)
    return float(weights @ (centres - (code - zero) * scale) ** 2)
