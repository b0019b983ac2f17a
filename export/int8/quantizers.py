"""Scales and zero points, of activations and of weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .dialect import Dialect

BIAS_LIMIT = 2**31 - 1
"""Largest magnitude of a bias's code."""

_LEVELS = 255  # steps between the lowest and the highest code
_SYMMETRIC_LEVELS = 127  # steps between zero and the highest code, where codes are symmetric
_SMALLEST_SCALE = 1e-18  # below it a product of two scales leaves float32's normal range
_CACHED = 2**16  # values that a search over scales goes through while they lie in the cache


@dataclass(frozen=True)
class PerTensor:
    """One scale and zero point for a whole activation: ``x ~ (q - zero_point) * scale``.

    Attributes:
        scale: The step.
        zero_point: The code of 0.
        ends: The first and the last code that may occur, where those do all that an activation
            function in front did, which then need not be written; ``None`` where the type's own
            ends are meant and such a function stays.
        signed: Whether the codes are int8 in a dialect of uint8, too.
    """

    scale: np.float32
    zero_point: int
    ends: tuple[int, int] | None = None
    signed: bool = False

    def kind(self, dialect: Dialect) -> str:
        """The type of its codes."""
        return "int8" if self.signed else dialect.activation

    def codes(self, dialect: Dialect) -> tuple[int, int]:
        """The lowest and the highest of its codes."""
        return (-128, 127) if self.signed else dialect.codes


@dataclass(frozen=True)
class PerChannel:
    """Quantized weights with one scale for each output channel.

    Attributes:
        codes: int8 or uint8, the weights' own shape.
        scale: float32, one entry for each output channel.
        zero_point: The code of 0, the same for all channels; 0 for int8.
    """

    codes: NDArray[np.int8] | NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero_point: int = 0


def activation_quantizer(
    low: float, high: float, dialect: Dialect, clip: tuple[float, float] | None = None
) -> PerTensor:
    """The quantizer of an activation.

    Args:
        low: Lower end of the range; nothing below it is represented.
        high: Upper end.
        dialect: Type of the codes.
        clip: Bounds of a Clip or ReLU in front, which the quantizer shall absorb: the codes then
            represent nothing outside of them, which is when ONNX Runtime drops the node. They
            differ, and 0 lies between them.
    """
    floor, ceiling = clip or (-np.inf, np.inf)
    low, high = max(min(low, 0.0), floor), min(max(high, 0.0), ceiling)
    if high - low < _LEVELS * _SMALLEST_SCALE:  # nothing but zeros were seen: any scale will do
        low, high = (0.0, min(_LEVELS, ceiling)) if ceiling > 0 else (max(-_LEVELS, floor), 0.0)
    scale = np.float32(max((high - low) / _LEVELS, _SMALLEST_SCALE))
    zero = int(np.clip(np.rint(-low / float(scale)), 0, _LEVELS))
    bounds: list[float] = [float(scale)]
    if zero < _LEVELS:
        bounds.append(ceiling / (_LEVELS - zero))
    if zero:
        bounds.append(-floor / zero)
    if min(bounds) < scale:
        scale = np.nextafter(np.float32(min(bounds)), np.float32(0), dtype=np.float32)
        scale = max(scale, np.float32(_SMALLEST_SCALE))
    return PerTensor(scale, zero + dialect.lowest)


def symmetric_quantizer(magnitude: float) -> PerTensor:
    """The quantizer of an activation whose codes are -127 to 127 and whose zero point is 0.

    Args:
        magnitude: Largest magnitude that is represented; 0 for a tensor of nothing but zeros, for
            which any scale will do.
    """
    scale = magnitude / _SYMMETRIC_LEVELS
    return PerTensor(np.float32(scale if scale >= _SMALLEST_SCALE else 1.0), 0)


def weight_quantizer(
    weights: NDArray[np.float32],
    axis: int,
    limit: int,
    *,
    method: str = "mse",
    bias: NDArray[np.float32] | None = None,
    input_scale: float = 1.0,
) -> PerChannel:
    """Symmetric int8 weights, a scale for each output channel.

    Args:
        weights: Any shape with the output channels on ``axis``.
        axis: Axis of the output channels.
        limit: Largest code.
        method: ``minmax``, or ``mse`` for the scale with the least squared error among 100 % to
            70 % of it.
        bias: One value for each output channel. Its codes are int32 at ``input_scale * scale``, so
            that a channel with weights next to zero needs a scale that its bias still fits into.
        input_scale: Scale of the activation that the weights multiply.
    """
    rows = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1).astype(np.float64)
    largest = np.abs(rows).max(axis=1, initial=0.0)
    floor = np.full(len(rows), _SMALLEST_SCALE)
    if bias is not None:
        floor = np.maximum(floor, np.abs(bias.astype(np.float64)) / (input_scale * 2.0**30))
    whole = np.maximum(largest / limit, floor)
    best = whole.copy()
    if method == "mse":
        step = max(1, _CACHED // max(1, rows.shape[1]))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            best[part] = _least_error(rows[part], whole[part], floor[part], limit)
    scale32 = best.astype(np.float32)
    shape = [1] * weights.ndim
    shape[axis] = -1
    codes = np.clip(np.rint(weights / scale32.reshape(shape)), -limit, limit).astype(np.int8)
    return PerChannel(codes, scale32)


def _least_error(
    rows: NDArray[np.float64], whole: NDArray[np.float64], floor: NDArray[np.float64], limit: int
) -> NDArray[np.float64]:
    """For each row the scale with the least squared error."""
    error, best = np.full(len(rows), np.inf), whole.copy()
    for shrink in np.linspace(1.0, 0.7, 31):
        scale = np.maximum(whole * shrink, floor)[:, None]
        loss = ((np.clip(np.rint(rows / scale), -limit, limit) * scale - rows) ** 2).sum(axis=1)
        better = loss < error
        error[better], best[better] = loss[better], scale[better, 0]
    return best


def bias_codes(
    bias: NDArray[np.float32], input_scale: float, weight_scale: NDArray[np.float32]
) -> NDArray[np.int32]:
    """A bias as int32 codes at the scale of the products it is added to."""
    scale = input_scale * weight_scale.astype(np.float64)
    codes = np.rint(bias.astype(np.float64) / scale)
    return np.clip(codes, -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)
