"""Concatenations of codes: where all that is put together has one scale, the codes are.

What it does: tensors that a concatenation in INT8 puts together share one quantizer with what it
gives, through what only moves values, too. A tensor that nothing else reads takes it whatever its
own range is: its codes are read at that scale and no other. One that others read as well does where
that makes its codes hardly coarser. Behind an activation function a tensor takes it only where its
codes then end as that function does. A concatenation whose inputs all have its output's scale puts
codes together, and nothing is quantized behind it: elsewhere an engine rescales each of its inputs,
or the whole of its output.
When it is exact: never; it spares the rounding of a second quantizer, and coarsens codes by a fifth
at most.
When it refuses: a tensor that others read keeps its own scale where the shared one is coarser than
that, and one that the network gives out does.
Source: QLinearConcat of ONNX Runtime (onnxruntime/contrib_ops/cpu/quantization/qlinear_concat.cc),
which copies what has the output's scale and looks up the rest, code by code; OpenVINO's low
precision transformations (ConcatTransformation).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from ..calibration.ranges import TensorRange
from ..graph.onnx_graph import Walk, attribute, clip_bounds
from ..graph.precision_plan import PrecisionPlan
from .dialect import Dialect
from .quantizers import PerTensor, activation_quantizer

JOINING = "Concat"
_COARSER = 1.2  # times, that codes become for what else reads a tensor: 1.6 dB of its noise
_ALIKE = 1e-6  # relative; what is seen at a Clip's end is that end


@dataclass
class _Group:
    """Tensors that share a quantizer.

    Attributes:
        low: Lower end of what it represents.
        high: Upper end.
        members: By tensor, how wide its own range is; 0 for one that is read in the group alone.
    """

    low: float
    high: float
    members: dict[str, float]

    def and_also(self, other: _Group) -> _Group:
        """Both as one."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        return _Group(low, high, {**self.members, **other.members})

    def without_coarse(self) -> _Group:
        """The members whose codes are not made too coarse by the range of all."""
        most = (self.high - self.low) / _COARSER
        kept = {name: width for name, width in self.members.items() if not 0 < width < most}
        return _Group(self.low, self.high, kept)


def shared_quantizers(
    walk: Walk,
    seen: Mapping[str, TensorRange],
    plan: PrecisionPlan,
    dialect: Dialect,
    movable: Collection[str],
    apart: Collection[str],
) -> dict[str, PerTensor]:
    """By tensor that is not moved from another, the quantizer that it shares.

    Args:
        walk: The float32 graph.
        seen: Ranges of its tensors.
        plan: Which nodes are INT8.
        dialect: What the engine fuses.
        movable: Names of nodes that can move codes.
        apart: Names of concatenations whose channels keep their scales.
    """
    groups: dict[str, _Group] = {}
    nodes = walk.model.graph.node if JOINING in dialect.elementwise else ()
    for node in nodes:
        if not _joins(node, walk, plan) or node.name in apart:
            continue
        whole = _group(node.output[0], groups, seen)
        for name in dict.fromkeys(node.input):
            origin = unmoved_origin(name, walk, movable)
            known = origin in walk.producer and origin in seen
            if not known or origin in whole.members or origin in walk.output_names:
                continue
            part = _group(origin, groups, seen)
            if _is_alone(name, origin, walk):
                part = _Group(part.low, part.high, {**part.members, origin: 0.0})
                both = whole.and_also(part).without_coarse()
                if node.output[0] not in both.members:
                    continue
            else:
                both = whole.and_also(part)
                if both.without_coarse().members != both.members:
                    continue
            for member in {**whole.members, **part.members}:
                groups.pop(member, None)
            groups.update(dict.fromkeys(both.members, both))
            whole = both
    return {
        name: _quantizer(group, walk, dialect)
        for name, group in groups.items()
        if len(group.members) > 1
    }


def joins_of_channels(
    walk: Walk, plan: PrecisionPlan, dialect: Dialect, movable: Collection[str]
) -> frozenset[str]:
    """Names of concatenations whose channels keep their scales: nothing reads codes behind them.

    Args:
        walk: The float32 graph.
        plan: Which nodes are INT8.
        dialect: What the engine fuses.
        movable: Names of nodes that can move codes.
    """
    found: set[str] = set()
    for node in reversed(walk.model.graph.node) if dialect.joins_channels else ():
        readers = walk.consumers.get(node.output[0], [])
        alike = _joins(node, walk, plan) and attribute(node, "axis") == 1
        if not alike or node.output[0] in walk.output_names or not readers:
            continue
        if all(r.name in found or not (plan.is_int8(r) or r.name in movable) for r in readers):
            found.add(node.name)
    return frozenset(found)


def channels_of(walk: Walk, joining: Collection[str], movable: Collection[str]) -> frozenset[str]:
    """Tensors, not moved from another, whose channels some concatenations put together.

    Those are among them that such concatenations give, which have no quantizer.

    Args:
        walk: The float32 graph.
        joining: Names of the concatenations.
        movable: Names of nodes that can move codes.
    """
    nodes = [node for node in walk.model.graph.node if node.name in joining]
    return frozenset(unmoved_origin(name, walk, movable) for node in nodes for name in node.input)


def unmoved_origin(name: str, walk: Walk, movable: Collection[str]) -> str:
    """The tensor whose values ``name`` holds, before they were moved."""
    maker = walk.producer.get(name)
    while maker is not None and maker.name in movable:
        name = maker.input[0]
        maker = walk.producer.get(name)
    return name


def _is_alone(name: str, origin: str, walk: Walk) -> bool:
    """Whether nothing reads a tensor but what moves it to one concatenation, and that."""
    while name != origin and walk.only_consumer(name) is not None:
        maker = walk.producer[name]
        if len(maker.output) > 1:
            return False
        name = maker.input[0]
    return walk.only_consumer(name) is not None


def _group(name: str, groups: Mapping[str, _Group], seen: Mapping[str, TensorRange]) -> _Group:
    """The group of a tensor, or it alone."""
    low, high = seen[name].low, seen[name].high
    return groups.get(name) or _Group(low, high, {name: high - low})


def _quantizer(group: _Group, walk: Walk, dialect: Dialect) -> PerTensor:
    """What the members of a group share."""
    makers = [walk.producer[name] for name in group.members]
    clips = [clip_bounds(maker, walk) for maker in makers if maker.op_type == "Clip"]
    least = (1 - _ALIKE) * group.high
    ends = [clip[1] for clip in clips if clip is not None and clip[1] >= least]
    ceiling = min(ends, default=np.inf)
    return activation_quantizer(group.low, group.high, dialect, (-np.inf, ceiling))


def represents_within(
    quantizer: PerTensor, clip: tuple[float, float] | None, dialect: Dialect
) -> bool:
    """Whether a quantizer represents nothing outside of the bounds of an activation function."""
    if clip is None:
        return True
    steps = np.array(quantizer.codes(dialect)) - quantizer.zero_point
    ends = steps.astype(np.float32) * quantizer.scale
    return bool(ends[0] >= clip[0] and ends[1] <= clip[1])


def joined_concats(
    walk: Walk, plan: PrecisionPlan, quantizers: Mapping[str, PerTensor]
) -> frozenset[str]:
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
    return all(one is not None and _meaning(one) == _meaning(given) for one in read)


def _meaning(quantizer: PerTensor) -> tuple[float, int, bool]:
    return float(quantizer.scale), quantizer.zero_point, quantizer.signed
