"""Write an INT8 graph: Q/DQ pairs where one engine fuses them into INT8 kernels.

A *unit* is an INT8 node together with the ReLU or Clip that its output quantizer absorbs. Each unit
reads dequantized inputs and, unless it may give float32 straight out, writes a quantized output;
what only moves values between two of them carries its input's scale along, so that the engine drops
the quantizers around it.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import numpy as np
import onnx
from onnx import numpy_helper

from ...runtime.tensors import Array
from ..calibration.ranges import Ranges
from ..graph.onnx_graph import (
    Graph,
    Walk,
    all_names,
    bias_of,
    fresh_name,
    read_with_bias,
    serialize,
    weight_channel_axis,
)
from ..graph.precision_plan import PrecisionPlan
from .activation_products import has_weights, is_product
from .dialect import Dialect
from .qdq_placement import QuantizerPlacement, place_quantizers_by_ranges
from .quantized_graph import QuantizedGraph, QuantizedNode
from .quantizers import PerChannel, PerTensor, bias_codes, weight_quantizer
from .stride_hoisting import Strides, are_moved


def write_qdq(
    graph: Graph,
    ranges: Ranges,
    plan: PrecisionPlan,
    dialect: Dialect,
    *,
    weight_method: str = "mse",
) -> QuantizedGraph:
    """Write ``graph`` with the nodes that ``plan`` says in INT8.

    Args:
        graph: The float32 network.
        ranges: Ranges of its tensors.
        plan: Which nodes.
        dialect: For which engine.
        weight_method: How weights' scales are chosen; see
            :func:`~edgepress.export.int8.quantizers.weight_quantizer`.
    """
    layout = place_quantizers_by_ranges(Walk(graph.proto()), ranges, plan, dialect)
    pack = partial(weight_quantizer, method=weight_method)
    return write_placement(graph, layout, plan, dialect, pack)


class QuantizeWeights(Protocol):
    """Quantizes weights: the weights, their axis of output channels, largest code, bias, scale."""

    def __call__(  # noqa: D102
        self,
        weights: Array,
        axis: int,
        limit: int,
        *,
        bias: Array | None = None,
        input_scale: float = 1.0,
    ) -> PerChannel: ...


def write_placement(
    graph: Graph,
    layout: QuantizerPlacement,
    plan: PrecisionPlan,
    dialect: Dialect,
    pack: QuantizeWeights,
) -> QuantizedGraph:
    """Write ``graph`` with quantizers that were decided on already.

    Args:
        graph: The float32 network.
        layout: Which tensors become codes.
        plan: Which nodes are INT8.
        dialect: For which engine.
        pack: Quantizes the weights of one node.
    """
    return _Writer(graph, layout, plan, dialect, pack).write()


class _Writer:
    def __init__(
        self,
        graph: Graph,
        layout: QuantizerPlacement,
        plan: PrecisionPlan,
        dialect: Dialect,
        pack: QuantizeWeights,
    ) -> None:
        self.source = graph.proto()
        self.walk = Walk(self.source)
        self.layout, self.plan, self.dialect, self.pack = layout, plan, dialect, pack
        self.names = all_names(self.source)
        self.codes: dict[str, str] = {}  # tensor -> its codes
        self.floats: dict[str, str] = {}  # tensor -> its dequantized codes
        self.copies: dict[str, str] = {}  # tensor -> a copy of its dequantized codes
        self.strides = Strides(self.names)
        self.packed: dict[tuple[str, bytes, bytes], list[str]] = {}  # weights already written
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.units: list[QuantizedNode] = []

    def write(self) -> QuantizedGraph:
        model = self.source
        for value in model.graph.input:
            if value.name in self.layout.quantizers:
                self._quantize(value.name, value.name)
        for name in sorted(self.layout.quantizers.keys() & self.walk.constants.keys()):
            self._encode(name)
        absorbed = {tail.name: name for name, tail in self.layout.absorbed.items()}
        moved: list[str] = []
        for node in model.graph.node:
            if node.name in absorbed:
                continue
            if node.name in self.layout.moving | self.layout.joining:
                self._move(node)
                moved.append(node.name)
            elif self.plan.is_int8(node):
                self._unit(node)
            else:
                self._float(node)
        self._drop_unread()
        constants = [*model.graph.initializer, *self.constants]
        used = {name for node in self.nodes for name in node.input} | self.walk.output_names
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend([tensor for tensor in constants if tensor.name in used])
        return QuantizedGraph(
            serialize(model), tuple(self.units), tuple(moved), absorbed, dict(self.codes)
        )

    def _drop_unread(self) -> None:
        """Dequantizers behind codes that are only moved or only read as codes."""
        read = {name for node in self.nodes for name in node.input} | self.walk.output_names
        self.nodes = [
            node
            for node in self.nodes
            if node.op_type != "DequantizeLinear" or node.output[0] in read
        ]

    def _add(self, op: str, inputs: list[str], output: str, axis: int | None = None) -> None:
        node = onnx.helper.make_node(op, inputs, [output], name=f"{op}_{output}")
        if axis is not None:
            node.attribute.append(onnx.helper.make_attribute("axis", axis))
        self.nodes.append(node)

    def _constant(self, name: str, value: Array) -> str:
        name = fresh_name(self.names, name)
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def _parameters(self, name: str, quantizer: PerTensor) -> list[str]:
        """Scale and zero point of the tensor ``name``, as constants."""
        scale = self._constant(f"{name}_scale", np.array(quantizer.scale, np.float32))
        return [scale, self._zero_point(f"{name}_zero_point", quantizer)]

    def _zero_point(self, name: str, quantizer: PerTensor) -> str:
        return self._constant(name, np.array(quantizer.zero_point, quantizer.kind(self.dialect)))

    def _quantize(self, name: str, source: str) -> str:
        """Codes of the tensor ``name`` from the floats ``source``, and what they stand for.

        Returns:
            The codes as the quantizer gives them, before any that may not occur are clipped.
        """
        quantizer = self.layout.quantizers[name]
        parameters = self._parameters(name, quantizer)
        made = self.codes[name] = fresh_name(self.names, f"{name}_codes")
        ends = quantizer.ends or quantizer.codes(self.dialect)
        if ends == quantizer.codes(self.dialect):
            self._add("QuantizeLinear", [source, *parameters], made)
        elif self.dialect.moves_codes:
            made = fresh_name(self.names, f"{name}_unclipped")
            self._add("QuantizeLinear", [source, *parameters], made)
            self._clip(made, np.array(ends, quantizer.kind(self.dialect)), self.codes[name])
        else:
            clipped = fresh_name(self.names, f"{name}_clipped")
            values = (np.array(ends) - quantizer.zero_point) * np.float64(quantizer.scale)
            self._clip(source, values.astype(np.float32), clipped)
            self._add("QuantizeLinear", [clipped, *parameters], made)
        self._dequantize(name, parameters)
        return made

    def _encode(self, name: str) -> None:
        """Codes of the constant ``name``, and what they stand for."""
        quantizer = self.layout.quantizers[name]
        codes = np.rint(self.walk.constant(name) / quantizer.scale) + quantizer.zero_point
        kept = np.clip(codes, *quantizer.codes(self.dialect)).astype(quantizer.kind(self.dialect))
        self.codes[name] = self._constant(f"{name}_codes", kept)
        self._dequantize(name, self._parameters(name, quantizer))

    def _clip(self, source: str, ends: Array, output: str) -> None:
        bounds = [self._constant(f"{output}_end", end) for end in ends]
        self._add("Clip", [source, *bounds], output)

    def _dequantize(self, name: str, parameters: list[str]) -> None:
        made = name in self.layout.read_as_codes and name not in self.walk.input_names
        gives_out = made and name in self.walk.output_names
        back = name if gives_out else fresh_name(self.names, f"{name}_dequantized")
        self._add("DequantizeLinear", [self.codes[name], *parameters], back)
        self.floats[name] = back

    def _before_quantizer(self, name: str) -> str:
        """What a node writes whose quantizer gives ``name``: the graph may give that out."""
        return fresh_name(self.names, f"{name}_raw") if name in self.walk.output_names else name

    def _unit(self, node: onnx.NodeProto) -> None:
        tail = self.layout.absorbed.get(node.name)
        out = node.output[0] if tail is None else tail.output[0]
        copy = _copy(node)
        reads = self.layout.reads[node.name]
        for i, name in enumerate(node.input):
            if name in reads:
                copy.input[i] = self.floats[name]
        if self.dialect.moves_strides and are_moved(node, self.walk):
            self.nodes += self.strides.take_before(copy)
        product = is_product(node, self.walk, self.dialect)
        weighted = has_weights(node, self.walk, self.dialect)
        bias, bias_scale = self._weights(node, copy) if weighted else ("", None)
        if out not in self.layout.coded:
            self.nodes.append(copy)
            self.units.append(
                QuantizedNode(node.name, node.op_type, out, out, bias, bias_scale, product)
            )
            if out in self.layout.quantizers:
                self._quantize(out, out)
            return
        last = self._before_quantizer(out)
        if self.layout.quantizers[out].ends is not None:
            tail = None  # the quantizer does all of it
        raw = last if tail is None else node.output[0]
        copy.output[0] = raw
        self.nodes.append(copy)
        if tail is not None:
            tail = _copy(tail)
            tail.output[0] = last
            self.nodes.append(tail)
        codes = self._quantize(out, last)
        self.units.append(
            QuantizedNode(node.name, node.op_type, codes, raw, bias, bias_scale, product)
        )

    def _weights(self, node: onnx.NodeProto, copy: onnx.NodeProto) -> tuple[str, Array | None]:
        """Quantize weights and bias of ``node``, and let ``copy`` read them."""
        stem = node.input[1]
        weights = self.walk.constant(stem)
        axis = weight_channel_axis(node)
        channels = int(weights.shape[axis])
        bias = bias_of(node, self.walk, channels)
        limit = self.dialect.weight_limit
        if self.dialect.float_bias:
            packed = self.pack(weights, axis, limit)
        else:
            scale_in = float(self.layout.quantizers[node.input[0]].scale)
            packed = self.pack(weights, axis, limit, bias=bias, input_scale=scale_in)
        zero_points = np.full(channels, packed.zero_point, packed.codes.dtype)
        key = (stem, packed.codes.tobytes(), packed.scale.tobytes())
        if key not in self.packed:  # layers that share weights go on sharing them
            self.packed[key] = [
                self._constant(f"{stem}_codes", packed.codes),
                self._constant(f"{stem}_scale", packed.scale),
                self._constant(f"{stem}_zero_point", zero_points),
            ]
        copy.input[1] = fresh_name(self.names, f"{stem}_dequantized")
        self._add("DequantizeLinear", self.packed[key], copy.input[1], axis)
        if node.op_type == "MatMul":
            return "", None
        stem = next(filter(None, node.input[2:]), f"{node.output[0]}_bias")
        if self.dialect.float_bias:
            read_with_bias(copy, self._constant(f"{stem}_float", bias))
            return copy.input[2], None
        scale_in = float(self.layout.quantizers[node.input[0]].scale)
        bias_scale = (scale_in * packed.scale.astype(np.float64)).astype(np.float32)
        parts = [
            self._constant(f"{stem}_codes", bias_codes(bias, scale_in, packed.scale)),
            self._constant(f"{stem}_scale", bias_scale),
            self._constant(f"{stem}_zero_point", np.zeros(channels, np.int32)),
        ]
        read_with_bias(copy, fresh_name(self.names, f"{stem}_dequantized"))
        self._add("DequantizeLinear", parts, copy.input[2], 0)
        return parts[0], bias_scale

    def _move(self, node: onnx.NodeProto) -> None:
        """Move the codes themselves: not every engine drops the quantizers around such a node.

        Or move what they stand for, for an engine that does, and that understands it better so.
        """
        copy = _copy(node)
        moved = len(node.input) if node.name in self.layout.joining else 1
        held = self.codes if self.dialect.moves_codes else self.floats
        for i, name in enumerate(node.input[:moved]):
            copy.input[i] = held.get(name, name)  # itself where each channel has its own scale
        if not self.dialect.moves_codes:
            self.nodes.append(copy)
            self.floats.update((name, name) for name in node.output)
            return
        if node.op_type == "Pad":  # what is zero as a float has a code of its own
            quantizer = self.layout.quantizers[node.output[0]]
            rest = list(node.input[3:])
            del copy.input[2:]
            copy.input.extend([self._zero_point(f"{node.output[0]}_pad", quantizer), *rest])
        for i, name in enumerate(node.output):
            copy.output[i] = self.codes[name] = fresh_name(self.names, f"{name}_codes")
        self.nodes.append(copy)
        for name in node.output:
            self._dequantize(name, self._parameters(name, self.layout.quantizers[name]))

    def _float(self, node: onnx.NodeProto) -> None:
        copy, apart = _copy(node), self._is_seized(node)
        for i, name in enumerate(node.input):
            # Elsewhere the float32 tensor itself is there to be read.
            if name in self.layout.read_as_codes:
                alone = not apart and not self._is_shared(name)
                copy.input[i] = self.floats[name] if alone else self._apart(name)
        self.nodes.append(copy)
        for i, name in enumerate(node.output):
            if name in self.layout.rounded:
                copy.output[i] = self._before_quantizer(name)
            if name in self.layout.quantizers:
                self._quantize(name, copy.output[i])

    def _is_seized(self, node: onnx.NodeProto) -> bool:
        """Whether the engine would run a node in INT8 that the plan leaves in float32."""
        data = list(node.input)
        if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            data = data[:1]
        elif node.op_type != "MatMul" and not self.layout.quantizers.keys() & set(node.output):
            return False  # these are seized between quantizers only
        elif node.op_type == "Where":
            data = data[1:]
        return node.op_type in self.dialect.seized and self.layout.read_as_codes.issuperset(data)

    def _is_shared(self, name: str) -> bool:
        """Whether two nodes read the floats of a coded tensor and the engine would make them twice.

        Each reader would get a dequantizer of its own, and Sigmoid and Mul no longer be one kernel.
        """
        readers = self.walk.consumers.get(name, [])
        floats = [
            n for n in readers if not self.plan.is_int8(n) and n.name not in self.layout.moving
        ]
        return self.dialect.splits_dequantizers and len(floats) > 1

    def _apart(self, name: str) -> str:
        """The dequantized tensor behind a sum of one term, a copy that ONNX Runtime keeps."""
        if name not in self.copies:
            self.copies[name] = fresh_name(self.names, f"{name}_float")
            self._add("Sum", [self.floats[name]], self.copies[name])
        return self.copies[name]


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
