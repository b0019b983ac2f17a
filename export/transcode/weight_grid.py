"""Weights that lie on a grid already: find it, and give the codes they were.

What it does: dequantized weights are ``code * scale`` exactly, to float32's rounding; whatever
channel was multiplied on the way (a folded BatchNormalization) or moved (a Transpose) still lies on
a grid. Codes that int8, as far as the dialect uses it, does not hold become uint8 around a zero
point where its kernels take that.

When it is exact: always, where every channel has a grid and one of the two types holds its codes.

When it refuses: never; a channel that has no grid, or too many codes, is quantized to its range.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from ..graph.onnx_graph import Walk, weight_channel_axis
from ..int8.dialect import Dialect
from ..int8.quantizers import PerChannel, weight_quantizer

_OFF_GRID = 2e-3  # of a step; float16 scales and folded factors round that much
_MOST = 255  # codes on one side of 0
_SAMPLE = 32  # weights of a channel that are looked at before all are


def has_grid(walk: Walk, node: onnx.NodeProto) -> bool:
    """Whether every channel of a node's weights is whole multiples of a step, few enough."""
    rows = _rows(walk.constant(node.input[1]), weight_channel_axis(node))
    return bool((_largest_codes(rows) > 0).all())


def is_kept(walk: Walk, node: onnx.NodeProto, dialect: Dialect) -> bool:
    """Whether the dialect holds the codes that a node's weights are."""
    rows = _rows(walk.constant(node.input[1]), weight_channel_axis(node))
    largest = _largest_codes(rows)
    if not (largest > 0).all():
        return False
    return _type_for(_codes(rows, largest), dialect.weight_limit, dialect.uint8_weights) is not None


def keep_codes(
    weights: NDArray[np.float32],
    axis: int,
    limit: int,
    *,
    bias: NDArray[np.float32] | None = None,
    input_scale: float = 1.0,
    uint8_weights: bool = False,
) -> PerChannel:
    """The codes that weights have on their grid; a channel that has none is quantized to its range.

    Args:
        weights: Any shape with the output channels on ``axis``.
        axis: Axis of the output channels.
        limit: Largest code of int8.
        bias: One value for each output channel, whose code has to fit into int32; ``None`` where it
            stays float32.
        input_scale: Scale of the activation that the weights multiply.
        uint8_weights: Whether codes that int8 does not hold may become uint8.
    """
    fresh = weight_quantizer(
        weights, axis, limit, method="minmax", bias=bias, input_scale=input_scale
    )
    rows = _rows(weights, axis)
    largest = _largest_codes(rows)
    reach = np.abs(rows).max(axis=1, initial=0.0)
    kept = np.where(largest > 0, reach / np.maximum(largest, 1), 0.0)
    needed = np.zeros(len(kept))
    if bias is not None:
        needed = np.abs(bias.astype(np.float64)) / (input_scale * 2.0**30)
    usable = (kept > 1e-18) & (kept >= needed)
    given = _codes(rows, largest)
    held = _type_for(given[usable], limit, uint8_weights)
    if held and held[0] == "uint8" and not usable.all() and not limit <= held[1] <= 255 - limit:
        held = None  # what is quantized anew lies on both sides of 0
    if held is None:  # some channels have more codes than there is room for
        usable &= np.array([_type_for(row, limit, False) is not None for row in given])
        held = ("int8", 0)
    kind, zero = held
    if kind == "int8":  # the finer the step, the less the bias's code has to be rounded
        finer = np.minimum(limit // np.maximum(largest, 1), kept / np.maximum(needed, 1e-18) // 1)
        kept = kept / np.maximum(finer, 1)
    scale = np.where(usable, kept, fresh.scale).astype(np.float32)
    shape = [1] * weights.ndim
    shape[axis] = -1
    codes = np.rint(weights.astype(np.float64) / scale.reshape(shape)) + zero
    ends = np.iinfo(kind)
    return PerChannel(np.clip(codes, ends.min, ends.max).astype(kind), scale, zero)


def _rows(weights: NDArray[np.float32], axis: int) -> NDArray[np.float64]:
    rows = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    return rows.astype(np.float64)


def _type_for(
    codes: NDArray[np.float64], limit: int, uint8_weights: bool
) -> tuple[str, int] | None:
    """The type that holds codes, and its zero point."""
    low, high = float(codes.min(initial=0.0)), float(codes.max(initial=0.0))
    if (-128 if limit == 127 else -limit) <= low and high <= limit:
        return "int8", 0
    if not uint8_weights or high - low > _MOST:
        return None
    return "uint8", 128 if low >= -128 and high <= 127 else -int(low)


def _codes(rows: NDArray[np.float64], largest: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rows as multiples of their steps."""
    reach = np.abs(rows).max(axis=1, initial=0.0)
    return np.rint(rows * (largest / np.where(reach > 0, reach, 1.0))[:, None])


def _largest_codes(rows: NDArray[np.float64]) -> NDArray[np.int64]:
    """The code of each row's largest magnitude on the row's coarsest grid; 0 where it has none."""
    reach = np.abs(rows).max(axis=1, initial=0.0)
    found = np.zeros(len(rows), np.int64)
    found[reach == 0] = 1
    few = rows[:, :: max(1, rows.shape[1] // _SAMPLE)]
    for largest in range(1, _MOST + 1):
        (left,) = np.nonzero(found == 0)
        if not len(left):
            break
        step = reach / largest
        left = left[_fit(few[left], step[left])]  # most of them go here, and cheaply
        found[left[_fit(rows[left], step[left])]] = largest
    return found


def _fit(rows: NDArray[np.float64], step: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether rows are whole multiples of their steps."""
    steps = rows / step[:, None]
    return np.abs(steps - np.rint(steps)).max(axis=1, initial=0.0) < _OFF_GRID
