"""Concatenations of codes: where all that is put together has one scale, the codes are.

What it does: a tensor that nothing but a concatenation in INT8 reads takes the scale of what that
gives, on the way through what only moves values, too; behind an activation function only where its
codes then end as that function does. A concatenation whose inputs all have its output's scale puts
codes together, and nothing is quantized behind it: elsewhere an engine rescales each of its inputs,
or the whole of its output.
When it is exact: it is never less exact than a quantizer in front and another behind, whose
rounding it spares.
When it refuses: a tensor that others read keeps its own scale, which is finer.
Source: QLinearConcat of ONNX Runtime (onnxruntime/contrib_ops/cpu/quantization/qlinear_concat.cc),
which copies what has the output's scale and looks up the rest, code by code; OpenVINO's low
precision transformations (ConcatTransformation).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx

from ..graph import Walk, clip_bounds
from ..plan import PrecisionPlan
from ..ranges import TensorRange
from . import Dialect
from .quantizers import PerTensor, activation_quantizer

JOINING = "Concat"
_ALIKE = 1e-6  # relative; what is seen at a Clip's end is that end


def parts_of(
    walk: Walk, plan: PrecisionPlan, dialect: Dialect, movable: Collection[str]
) -> dict[str, str]:
    """By tensor, the output of a concatenation in INT8 of which it is a part and nothing else.

    Args:
        walk: The float32 graph.
        plan: Which nodes are INT8.
        dialect: What the engine fuses.
        movable: Names of nodes that can move codes.
    """
    found: dict[str, str] = {}
    if JOINING not in dialect.elementwise:
        return found
    for node in reversed(walk.model.graph.node):
        if _joins(node, walk, plan):
            whole = found.get(node.output[0], node.output[0])
        elif node.name in movable and len(node.output) == 1 and node.output[0] in found:
            whole = found[node.output[0]]
        else:
            continue
        for name in node.input[:1] if node.op_type != JOINING else node.input:
            if name in walk.producer and walk.only_consumer(name) is not None:
                found[name] = whole
    return found


def quantizer_of(
    seen: TensorRange, parts: Iterable[str], walk: Walk, dialect: Dialect
) -> PerTensor:
    """The quantizer of what a concatenation gives, which its parts share.

    Args:
        seen: Its range.
        parts: Tensors that are part of it and nothing else.
        walk: The float32 graph.
        dialect: Type of the codes.
    """
    makers = [walk.producer[name] for name in parts]
    clips = [clip_bounds(maker, walk) for maker in makers if maker.op_type == "Clip"]
    ends = [clip[1] for clip in clips if clip is not None and clip[1] >= (1 - _ALIKE) * seen.high]
    return activation_quantizer(seen.low, seen.high, dialect, (-np.inf, min(ends, default=np.inf)))


def holds(quantizer: PerTensor, clip: tuple[float, float] | None, dialect: Dialect) -> bool:
    """Whether a quantizer represents nothing outside of the bounds of an activation function."""
    if clip is None:
        return True
    ends = (np.array(dialect.codes) - quantizer.zero_point).astype(np.float32) * quantizer.scale
    return bool(ends[0] >= clip[0] and ends[1] <= clip[1])


def joins(walk: Walk, plan: PrecisionPlan, quantizers: Mapping[str, PerTensor]) -> frozenset[str]:
    """Names of concatenations in INT8 that put codes together, since all have one scale.

    Args:
        walk: The float32 graph.
        plan: Which nodes are INT8.
        quantizers: By tensor.
    """
    return frozenset(
        node.name
        for node in walk.model.graph.node
        if _joins(node, walk, plan) and _have_one(node, quantizers)
    )


def _joins(node: onnx.NodeProto, walk: Walk, plan: PrecisionPlan) -> bool:
    """Whether a node puts tensors together in INT8, and its quantizer absorbs no function."""
    joining = node.op_type == JOINING and plan.is_int8(node)
    return joining and walk.folded_activation(node) is None


def _have_one(node: onnx.NodeProto, quantizers: Mapping[str, PerTensor]) -> bool:
    given = quantizers.get(node.output[0])
    if given is None or given.ends is not None:
        return False
    read = [quantizers.get(name) for name in node.input]
    return all(
        one is not None and (one.scale, one.zero_point) == (given.scale, given.zero_point)
        for one in read
    )
