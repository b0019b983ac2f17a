"""Ends: the floats in which an answer of the network is judged.

What it does: a float output is an end itself. An output of whole numbers (ArgMax, the indices of
TopK or NonMaxSuppression) says nothing of noise, which it either survives or does not; there the
floats that it was made of are the end, as the node reads them that makes whole numbers of them. So
are they for an output of as many values as the picture has objects (NonMaxSuppression, NonZero): a
little noise makes one more, and nothing stands beside it to be compared with.

When it is exact: always, it only looks. A size that it cannot tell to be one for all pictures, such
as that of a slice between two places that are computed, is taken for one that is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from ...runtime.tensors import Array, Arrays
from ..calibration.ranges import element_types
from ..graph.onnx_graph import Graph, Walk, all_names, fresh_name, give_out
from .dialect import DIALECTS

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
_SIZES = ("Shape", "Size")  # they read floats, and none of their values
_ON_CODES = frozenset({"Clip", "Concat"}).union(*(one.moving for one in DIALECTS.values()))
"""Operators that codes go through as codes."""

_CHOOSING = ("NonMaxSuppression", "NonZero", "Compress", "Unique")
"""Operators that give as many values as they find."""

_SIZED_BY = {
    **dict.fromkeys(("Range", "ConstantOfShape"), 0),
    **dict.fromkeys(("Reshape", "Expand", "Slice", "Tile", "Pad", "Split", "TopK", "OneHot"), 1),
    **dict.fromkeys(("Resize", "MaxUnpool"), 2),
}
"""Which inputs tell an operator the sizes of what it gives, the first of them."""


@dataclass(frozen=True)
class ExposedModel:
    """A model that gives out its ends.

    Attributes:
        model: Its bytes.
        tensors: Names of its tensors, by the name of the end.
    """

    model: bytes
    tensors: Mapping[str, str]

    def pick(self, outputs: Arrays, feeds: Arrays) -> Arrays:
        """The ends, from what the model gave for ``feeds``."""
        values: dict[str, Array] = {**feeds, **outputs}
        return {name: values[tensor] for name, tensor in self.tensors.items()}


@dataclass(frozen=True)
class FloatEnds:
    """Where a network ends in floats.

    Attributes:
        outputs: Names of the outputs that are floats.
        reads: For the others: name of the node that reads the floats and which input of it, by a
            name for people.
    """

    outputs: tuple[str, ...]
    reads: Mapping[str, tuple[str, int]]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all ends."""
        return (*self.outputs, *self.reads)

    @staticmethod
    def of(graph: Graph) -> FloatEnds:
        """Those of a float32 network."""
        model = graph.proto()
        walk, kinds, loose = Walk(model), element_types(model), of_no_fixed_size(model)
        floats = tuple(
            spec.name
            for spec in graph.outputs
            if spec.dtype.startswith("float") and spec.name not in loose
        )
        reads: dict[str, tuple[str, int]] = {}
        waiting = [spec.name for spec in reversed(graph.outputs) if spec.name not in floats]
        seen = set(waiting)
        while waiting:
            node = walk.producer.get(waiting.pop())
            if node is None or (node.op_type in _SIZES and node.input[0] not in loose):
                continue
            for place, name in enumerate(node.input):
                if kinds.get(name) in _FLOATS and name not in loose:
                    if name not in walk.constants:
                        reads[f"{name}, which {node.name} reads"] = (node.name, place)
                elif name not in seen:
                    seen.add(name)
                    waiting.append(name)
        return FloatEnds(floats, reads)

    def shown(self, model: bytes) -> ExposedModel:
        """A model of the network, in whatever precision, that gives out all ends.

        Args:
            model: Its nodes have the names that they have in the float32 network.
        """
        tensors = {name: name for name in self.outputs}
        if not self.reads:
            return ExposedModel(model, tensors)
        proto = onnx.load_model_from_string(model)
        nodes = {node.name: node for node in proto.graph.node}
        for name, (node, place) in self.reads.items():
            tensors[name] = nodes[node].input[place]
        _dequantize(proto, tensors)
        inputs = {value.name for value in proto.graph.input}
        give_out(proto, [one for one in tensors.values() if one not in inputs])
        return ExposedModel(proto.SerializeToString(), tensors)


def _dequantize(model: onnx.ModelProto, tensors: dict[str, str]) -> None:
    """Let a model make floats of tensors that are codes: what only moves values reads such."""
    makers, taken = Walk(model).producer, all_names(model)
    for end, name in tensors.items():
        maker = makers.get(name)
        while maker is not None and maker.op_type in _ON_CODES:
            maker = makers.get(maker.input[0])
        if maker is not None and maker.op_type == "QuantizeLinear":
            tensors[end] = fresh_name(taken, f"{name}_shown")
            inputs = [name, *maker.input[1:]]
            model.graph.node.append(
                onnx.helper.make_node("DequantizeLinear", inputs, [tensors[end]])
            )


def of_no_fixed_size(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the tensors whose sizes depend on values of the inputs, not on their sizes alone."""
    told = {value.name for value in model.graph.input}  # what depends on those values
    loose: set[str] = set()
    for node in model.graph.node:
        sizes = set(node.input[_SIZED_BY.get(node.op_type, len(node.input)) :])
        counted = node.op_type in _SIZES
        chosen = told.intersection(node.input if node.op_type in _CHOOSING else sizes)
        if chosen or (not counted and loose.intersection(node.input)):
            loose.update(node.output)
        if (loose if counted else told).intersection(node.input):
            told.update(node.output)
    return frozenset(loose)


def comparable(exact: Array, found: Array) -> tuple[Array, Array]:
    """Two arrays to compare, flat and float64, without what is infinite in both alike.

    A mask puts infinity where nothing may be chosen; it is neither signal nor noise.
    """
    one, other = exact.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    alike = np.isinf(one) & (one == other)
    return (one[~alike], other[~alike]) if alike.any() else (one, other)
