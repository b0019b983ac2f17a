"""Where quantizers go: which tensors become codes, at which scale, and which nodes move codes.

A pure decision on the float32 graph; :mod:`edgepress.export.int8.qdq_writer` writes what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Set
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import onnx

from ..calibration.ranges import Ranges
from ..graph.onnx_graph import Walk, attribute, clip_bounds, is_standard
from ..graph.precision_plan import PrecisionPlan
from .activation_products import has_weights, is_product
from .dialect import Dialect
from .quantizers import PerTensor, activation_quantizer, symmetric_quantizer
from .residual_additions import skip_inputs
from .shared_concat_scales import (
    channels_of,
    joined_concats,
    joins_of_channels,
    represents_within,
    shared_quantizers,
    unmoved_origin,
)

_Reads: TypeAlias = dict[str, frozenset[str]]


@dataclass(frozen=True)
class QuantizerPlacement:
    """Which tensors become codes.

    Attributes:
        quantizers: By tensor name, named as in the float32 graph.
        absorbed: The ReLU or Clip that a node's output quantizer does the work of, by node name.
        moving: Names of nodes that move codes.
        coded: Tensors that exist as codes only: INT8 kernels give them, or codes were moved.
        reads: Tensors that an INT8 node reads as codes, by node name.
        rounded: Tensors that float32 nodes, too, read as their codes say.
        joining: Names of concatenations that put codes together, all of one scale, or each channel
            at its own where only floats are made of them.
    """

    quantizers: dict[str, PerTensor]
    absorbed: dict[str, onnx.NodeProto]
    moving: frozenset[str]
    coded: frozenset[str]
    reads: dict[str, frozenset[str]]
    rounded: frozenset[str] = frozenset()
    joining: frozenset[str] = frozenset()

    @property
    def read_as_codes(self) -> frozenset[str]:
        """Tensors that everything reads as their codes say."""
        return self.coded | self.rounded


def _reads(
    walk: Walk,
    elements: Mapping[str, int],
    plan: PrecisionPlan,
    dialect: Dialect,
    apart: Set[str],
) -> _Reads:
    """The inputs of INT8 nodes that are read as codes, by node name; the rest are weights.

    What comes out of a concatenation named in ``apart`` has no scale of its own to be read at.
    """
    int8 = [node for node in walk.model.graph.node if plan.is_int8(node)]
    if dialect.weight_only:
        return {node.name: frozenset[str]() for node in int8}
    found: _Reads = {}
    for node in int8:
        read = [node.input[0]] if has_weights(node, walk, dialect) else node.input
        found[node.name] = frozenset(
            n for n in read if n not in walk.producer or walk.producer[n].name not in apart
        )
    if dialect.at_inputs:
        convolutions = {node.name for node in int8 if node.op_type == "Conv"}
        for name, skip in skip_inputs(walk, elements, convolutions).items():
            if name in found:
                found[name] = frozenset([skip])
    return found


ChooseQuantizer: TypeAlias = Callable[[str, "tuple[float, float] | None"], PerTensor]
"""The quantizer of a tensor, given the bounds of the activation function it shall absorb."""


def quantizers_by_ranges(ranges: Ranges, dialect: Dialect) -> ChooseQuantizer:
    """Quantizers as calibration's ranges tell them."""

    def choose(name: str, clip: tuple[float, float] | None) -> PerTensor:
        seen = ranges.tensors[name]
        if dialect.symmetric:
            return symmetric_quantizer(seen.magnitude)
        return activation_quantizer(seen.low, seen.high, dialect, clip)

    return choose


def place_quantizers_by_ranges(
    walk: Walk, ranges: Ranges, plan: PrecisionPlan, dialect: Dialect
) -> QuantizerPlacement:
    """`place_quantizers` with the quantizers that calibration's ranges tell."""
    alone, known = quantizers_by_ranges(ranges, dialect), ranges.tensors
    movable = _movable(walk, known, dialect)
    apart = joins_of_channels(walk, plan, dialect, movable)
    shared = shared_quantizers(walk, known, plan, dialect, movable, apart)
    products = [
        n for n in walk.model.graph.node if is_product(n, walk, dialect) and plan.is_int8(n)
    ]
    factors = {unmoved_origin(name, walk, movable) for n in products for name in n.input}
    around_zero = factors | channels_of(walk, apart, movable)

    def choose(name: str, clip: tuple[float, float] | None) -> PerTensor:
        origin = unmoved_origin(name, walk, movable)
        given = shared.get(origin)
        if given is not None and represents_within(given, clip, dialect):
            return given
        if origin in around_zero and clip is None and known[origin].low < 0:
            # There is nothing to subtract before scales of channels, or those of two factors.
            return replace(symmetric_quantizer(known[origin].magnitude), signed=True)
        return alone(name, clip)

    elements = ranges.elements
    return place_quantizers(
        walk, ranges.tensors, plan, dialect, choose, elements=elements, apart=apart
    )


def place_quantizers(
    walk: Walk,
    known: Container[str],
    plan: PrecisionPlan,
    dialect: Dialect,
    choose: ChooseQuantizer,
    *,
    keep: Set[str] = frozenset(),
    own: Set[str] = frozenset(),
    elements: Mapping[str, int] | None = None,
    apart: Set[str] = frozenset(),
) -> QuantizerPlacement:
    """Decide which tensors become codes.

    The inputs of every INT8 node do, and its output unless it may give float32 and no INT8 node
    reads it. What only moves values between two of them carries its input's scale along. A dialect
    that wants codes at the inputs only gets no others.

    Args:
        walk: The float32 graph.
        known: Tensors that may become codes.
        plan: Which nodes are INT8.
        dialect: What the engine fuses.
        choose: The quantizer of each.
        keep: Tensors that become codes even where no INT8 node needs it, and that everything reads
            as the codes say.
        own: Tensors with a scale of their own, to which no codes of another are moved.
        elements: Values that each tensor holds, by which a dialect that wants codes at the inputs
            tells a residual addition.
        apart: Names of concatenations whose channels keep their scales.
    """
    nodes = list(walk.model.graph.node)
    int8 = [node for node in nodes if plan.is_int8(node)]
    reads = _reads(walk, elements or {}, plan, dialect, apart)
    wanted: set[str] = {name for node in int8 for name in reads[node.name]}
    if dialect.at_inputs:
        made = {name: choose(name, None) for name in sorted(wanted)}
        return QuantizerPlacement(made, {}, frozenset(), frozenset(), reads)
    tails = {node.name: walk.folded_activation(node) for node in int8}
    gives = {
        node.name: tail.output[0] if (tail := tails[node.name]) is not None else node.output[0]
        for node in int8
    }
    able = _movable(walk, known, dialect)
    movable = {n.name for n in nodes if n.name in able and own.isdisjoint(n.output)}
    moving = _moves(walk, movable, plan, wanted, set(gives.values()))
    wanted |= {
        gives[node.name]
        for node in int8
        if not (node.op_type in dialect.free_output or node.name in apart)
        or gives[node.name] in keep
    }
    absorbed: dict[str, onnx.NodeProto] = {}
    quantizers: dict[str, PerTensor] = {}
    coded: set[str] = set()
    for node in nodes:
        if node.name in moving:
            given = quantizers.get(node.input[0]) or choose(node.input[0], None)
            quantizers.update(dict.fromkeys([node.input[0], *node.output], given))
            coded.update(node.output)
        elif node.name in gives and gives[node.name] in wanted:
            tail, output = tails[node.name], gives[node.name]
            clip = clip_bounds(tail, walk) if tail is not None else None
            quantizers[output] = choose(output, clip)
            coded.add(output)
            if tail is not None:
                absorbed[node.name] = tail
    rounded = {name for name in keep if name in walk.producer or name in walk.input_names}
    rounded -= {tail.input[0] for tail in absorbed.values()}
    for name in (wanted | rounded) - quantizers.keys():
        quantizers[name] = choose(name, None)
    return QuantizerPlacement(
        quantizers,
        absorbed,
        frozenset(moving),
        frozenset(coded),
        reads,
        frozenset(rounded),
        joined_concats(walk, plan, quantizers) | apart,
    )


def _movable(walk: Walk, known: Container[str], dialect: Dialect) -> frozenset[str]:
    """Names of nodes that can move codes, where codes of what they read and give are known."""
    return frozenset(
        node.name
        for node in walk.model.graph.node
        if only_moves(node, walk, dialect)
        and all(name in known for name in [node.input[0], *node.output])
    )


def _moves(
    walk: Walk, able: Set[str], plan: PrecisionPlan, wanted: set[str], made: set[str]
) -> set[str]:
    """Nodes that move codes: those between where codes are made and where they are wanted.

    Args:
        walk: The float32 graph.
        able: Names of nodes that can move codes.
        plan: Which nodes are INT8.
        wanted: Tensors that INT8 nodes read; what is found to be wanted besides is added.
        made: Tensors that INT8 nodes give; what is moved is added.
    """
    demanded, movable = set(wanted), set[str]()
    for node in reversed(walk.model.graph.node):
        if node.name in able and any(name in demanded for name in node.output):
            movable.add(node.name)
            demanded.add(node.input[0])
    moving: set[str] = set()
    for node in walk.model.graph.node:
        if node.name not in movable:
            continue
        source = node.input[0]
        # A float tensor that everybody wants as codes is quantized once, before it is moved.
        early = all(
            plan.is_int8(reader) or reader.name in movable for reader in walk.consumers[source]
        )
        if source in made or source in wanted or early:
            moving.add(node.name)
            made.update(node.output)
            wanted.update([source, *node.output])
    return moving


def only_moves(node: onnx.NodeProto, walk: Walk, dialect: Dialect) -> bool:
    """Whether all that a node gives are values that it reads, and 0, so that codes can be moved."""
    if not is_standard(node) or node.op_type not in dialect.moving:
        return False
    if node.op_type == "Resize" and (
        attribute(node, "mode", b"nearest") != b"nearest"
        or attribute(node, "coordinate_transformation_mode") == b"tf_crop_and_resize"
    ):
        return False
    if node.op_type == "MaxPool" and len(node.output) > 1:
        return False
    return node.op_type != "Pad" or pads_with_zero(node, walk)


def pads_with_zero(node: onnx.NodeProto, walk: Walk) -> bool:
    """Whether a Pad adds nothing but zeros."""
    if attribute(node, "mode", b"constant") != b"constant" or len(node.input) < 2:
        return False
    value = node.input[2] if len(node.input) > 2 else ""
    return not value or (value in walk.constants and not np.any(walk.constant(value)))
