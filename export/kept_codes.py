"""Weights that lie on a grid already: find it, and give the codes they were.

Source: dequantized weights are ``code * scale`` exactly to float32's rounding; whatever channel was
multiplied on the way (a folded BatchNormalization) or moved (a Transpose) still lies on a grid.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from .dialects.quantizers import PerChannel, weight_quantizer
from .graph import Walk, attribute

_OFF_GRID = 2e-3  # of a step; float16 scales and folded factors round that much


def channel_axis(node: onnx.NodeProto) -> int:
    """Axis of the output channels in the weights of a Conv, Gemm or MatMul."""
    transposed = node.op_type == "MatMul" or (
        node.op_type == "Gemm" and not attribute(node, "transB", 0)
    )
    return 1 if transposed else 0


def on_grid(walk: Walk, node: onnx.NodeProto, limit: int) -> bool:
    """Whether every channel of a node's weights is whole multiples, up to ``limit``, of a step."""
    rows = _rows(walk.constant(node.input[1]), channel_axis(node))
    return bool((_largest_codes(rows, limit) > 0).all())


def keep_codes(
    weights: NDArray[np.float32],
    axis: int,
    limit: int,
    *,
    bias: NDArray[np.float32] | None = None,
    input_scale: float = 1.0,
) -> PerChannel:
    """The codes that weights have on their grid; a channel that has none is quantized to its range.

    Args:
        weights: Any shape with the output channels on ``axis``.
        axis: Axis of the output channels.
        limit: Largest code.
        bias: One value for each output channel, whose code has to fit into int32; ``None`` where it
            stays float32.
        input_scale: Scale of the activation that the weights multiply.
    """
    fresh = weight_quantizer(
        weights, axis, limit, method="minmax", bias=bias, input_scale=input_scale
    )
    rows = _rows(weights, axis)
    largest = _largest_codes(rows, limit)
    reach = np.abs(rows).max(axis=1, initial=0.0)
    kept = np.where(largest > 0, reach / np.maximum(largest, 1), 0.0).astype(np.float32)
    needed = np.zeros(len(kept))
    if bias is not None:
        needed = np.abs(bias.astype(np.float64)) / (input_scale * 2.0**30)
    usable = (kept > 1e-18) & (kept >= needed)
    scale = np.where(usable, kept, fresh.scale).astype(np.float32)
    shape = [1] * weights.ndim
    shape[axis] = -1
    codes = np.rint(weights.astype(np.float64) / scale.reshape(shape))
    lowest = -128 if limit == 127 else -limit
    return PerChannel(np.clip(codes, lowest, limit).astype(np.int8), scale)


def _rows(weights: NDArray[np.float32], axis: int) -> NDArray[np.float64]:
    rows = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    return rows.astype(np.float64)


def _largest_codes(rows: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """The code of each row's largest magnitude on the row's coarsest grid; 0 where it has none."""
    reach = np.abs(rows).max(axis=1, initial=0.0)
    found = np.zeros(len(rows), np.int64)
    found[reach == 0] = 1
    for largest in range(1, limit + 1 + (limit == 127)):
        (left,) = np.nonzero(found == 0)
        if not len(left):
            break
        steps = rows[left] * (largest / reach[left])[:, None]
        fits = np.abs(steps - np.rint(steps)).max(axis=1) < _OFF_GRID
        fits &= np.rint(steps).max(axis=1) <= limit  # -128 is a code, 128 is none
        found[left[fits]] = largest
    return found
