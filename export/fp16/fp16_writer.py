"""Write a graph in FP16, and the same in float32 with every tensor rounded, which can be run.

What it does: nodes of the plan get FP16 inputs, weights and outputs; a cast stands where a tensor
changes hands, once for all that read it so. The graph's inputs and outputs stay float32, so that
nothing outside changes. Behind codes of an INT8 graph no cast is needed: their dequantizer gives
FP16 by itself (opset 19), as TensorRT wants it for its fusions.

ONNX Runtime has few FP16 kernels on the CPU and drops the casts around the others, so that nothing
ever overflows there. :func:`fp16_simulation` therefore keeps floats and rounds each FP16 tensor, to
infinity where it is too large: what is measured on it is what an FP16 engine computes, if that adds
up in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ...runtime.errors import InputError
from ...runtime.tensors import Array
from ..graph.onnx_graph import all_names, attribute, fresh_name, opset_of, serialize
from ..graph.precision_plan import PrecisionPlan
from .fp16_plan import FP16_LARGEST, FloatTensors, fp16_nodes, rounded_to_fp16

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_HALF_SCALES = 19  # the opset whose quantizers take FP16
_LEAST_SCALE = 2.0**-16  # below it FP16 keeps less than eight digits of a scale
_SMALLEST = np.float16(2.0**-24)
_INFINITE = np.float16(np.inf)
_ROOM = 1 + 2.0**-9  # a code of 127 times this is still rounded to 127


@dataclass(frozen=True)
class Fp16Graph:
    """A graph in FP16.

    Attributes:
        model: The bytes of the ONNX file.
        casts: How many casts stand in it that the float32 graph does not have.
        clamped: How many values of a constant were beyond FP16, by its name.
        nodes: Names of the nodes that compute in FP16.
    """

    model: bytes
    casts: int
    clamped: dict[str, int]
    nodes: frozenset[str]


def write_fp16(model: bytes, plan: PrecisionPlan) -> Fp16Graph:
    """Write a model with the nodes that ``plan`` says in FP16.

    Args:
        model: The float32 graph, or the same with quantizers in it (a dialect with ``at_inputs``).
        plan: FP16 or float32, by the names of the float32 graph's nodes.

    Raises:
        InputError: ``E_OPSET`` for a graph with quantizers of an opset before 19.
    """
    return _Writer(onnx.load_model_from_string(model), plan).write()


def scales_below_fp16(model: bytes) -> dict[str, str]:
    """Nodes whose activations have a scale that FP16 cannot hold, and why they stay float32.

    Weights are no matter: their codes are written anew for a scale that FP16 can hold.
    """
    proto = onnx.load_model_from_string(model)
    constants = {one.name: one for one in proto.graph.initializer}
    small: set[str] = set()
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear":
            scale = numpy_helper.to_array(constants[node.input[1]])
            if node.input[0] not in constants and float(scale.min()) < _LEAST_SCALE:
                small.update(node.output)
    return {
        node.name: "a scale of its codes is too small for FP16"
        for node in proto.graph.node
        if any(name in small for name in node.input)
    }


def fp16_simulation(model: bytes) -> bytes:
    """An FP16 graph in float32, each FP16 tensor rounded; it runs in ONNX Runtime.

    Tensors keep their names.
    """
    proto = onnx.load_model_from_string(model)
    kinds = FloatTensors.of(proto).kinds
    half = {name for name, kind in kinds.items() if kind == TensorProto.FLOAT16}
    taken, nodes = all_names(proto), list[onnx.NodeProto]()
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            value = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for node in proto.graph.node:
        for item in node.attribute:
            if node.op_type == "Cast" and item.name == "to" and item.i == TensorProto.FLOAT16:
                item.i = TensorProto.FLOAT
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in half:
                node.output[i] = fresh_name(taken, f"{name}_exact")
                narrow = fresh_name(taken, f"{name}_rounded")
                nodes.append(_cast(node.output[i], narrow, TensorProto.FLOAT16))
                nodes.append(_cast(narrow, name, TensorProto.FLOAT))
                nodes[-1].name = f"Widen_{name}"  # the graph has casts of its own
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto.SerializeToString()


class _Writer:
    def __init__(self, model: onnx.ModelProto, plan: PrecisionPlan) -> None:
        self.model, self.floats = model, FloatTensors.of(model)
        self.walk = self.floats.walk
        self.wanted = fp16_nodes(plan)
        self.names = all_names(model)
        self.native: set[str] = set()  # tensors that are FP16 under their own name
        self.halves: dict[str, str] = {}  # float32 tensor or constant -> its FP16 form
        self.singles: dict[str, str] = {}  # FP16 tensor -> its float32 form
        self.dequantizers: dict[str, onnx.NodeProto] = {}  # written where they are read
        self.packed: dict[tuple[str, str], tuple[str, str]] = {}  # codes and scales in FP16
        self.constants: list[onnx.TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.clamped: dict[str, int] = {}
        self.casts = 0

    def write(self) -> Fp16Graph:
        graph = self.model.graph
        used: set[str] = set()
        quantized = any(node.op_type in _QUANTIZERS for node in graph.node)
        if quantized and opset_of(self.model) < _HALF_SCALES:
            raise InputError(
                "E_OPSET",
                f"the INT8 graph is of opset {opset_of(self.model)}; quantizers that give FP16 are "
                f"part of {_HALF_SCALES}.",
                mend=f"Export the float32 network in opset {_HALF_SCALES} or later: edgepress "
                "export --opset N; compress takes that file as well.",
            )
        for node in list(graph.node):
            if node.op_type == "DequantizeLinear":
                self.dequantizers[node.output[0]] = node
            elif node.op_type == "QuantizeLinear":
                self._quantize(node)
            elif node.name in self.wanted:
                self._half(node)
                used.add(node.name)
            else:
                self._single(node)
        for name in self.walk.output_names:  # a dequantizer that gives an output
            if name in self.dequantizers and name not in self.singles:
                self.singles[name] = name
                self.nodes.append(self.dequantizers[name])
        read = {name for node in self.nodes for name in node.input} | self.walk.output_names
        kept = [one for one in [*graph.initializer, *self.constants] if one.name in read]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(kept)
        return Fp16Graph(serialize(self.model), self.casts, self.clamped, frozenset(used))

    def _half(self, node: onnx.NodeProto) -> None:
        takes = set(self.floats.inputs(node))
        for i, name in enumerate(node.input):
            if name in takes:
                node.input[i] = self._as_half(name)
            elif name in self.native or name in self.dequantizers:
                node.input[i] = self._as_single(name)
        if node.op_type == "Cast":
            for item in node.attribute:
                if item.name == "to" and item.i == TensorProto.FLOAT:
                    item.i = TensorProto.FLOAT16
        self.nodes.append(node)
        gives_half = set(self.floats.outputs(node))
        for i, name in enumerate(node.output):
            if name not in gives_half:
                continue
            if name in self.walk.output_names:  # the graph gives out float32
                node.output[i] = self.halves[name] = fresh_name(self.names, f"{name}_half")
                self._cast(node.output[i], name, TensorProto.FLOAT)
            else:
                self.native.add(name)

    def _single(self, node: onnx.NodeProto) -> None:
        for i, name in enumerate(node.input):
            if name in self.native or name in self.dequantizers:
                node.input[i] = self._as_single(name)
        self.nodes.append(node)

    def _quantize(self, node: onnx.NodeProto) -> None:
        source, scale = node.input[0], self._value(node.input[1])
        if source in self.native and float(scale.min()) >= _LEAST_SCALE:
            node.input[1] = self._constant(f"{node.input[1]}_half", scale.astype(np.float16))
        elif source in self.native or source in self.dequantizers:
            node.input[0] = self._as_single(source)
        self.nodes.append(node)

    def _as_half(self, name: str) -> str:
        if name in self.native:
            return name
        if name not in self.halves:
            if name in self.walk.constants:
                self.halves[name] = self._half_constant(name)
            elif name in self.dequantizers:
                self.halves[name] = self._dequantize_to_half(self.dequantizers[name])
            else:
                self.halves[name] = fresh_name(self.names, f"{name}_half")
                self._cast(name, self.halves[name], TensorProto.FLOAT16)
        return self.halves[name]

    def _as_single(self, name: str) -> str:
        if name not in self.singles:
            if name in self.dequantizers:
                self.singles[name] = name
                self.nodes.append(self.dequantizers[name])
            else:
                self.singles[name] = fresh_name(self.names, f"{name}_float")
                self._cast(name, self.singles[name], TensorProto.FLOAT)
        return self.singles[name]

    def _dequantize_to_half(self, node: onnx.NodeProto) -> str:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = fresh_name(self.names, f"{node.name}_half")
        key = (node.input[0], node.input[1])
        if key not in self.packed:  # layers that share weights go on sharing them
            codes, scale = node.input[0], self._value(node.input[1])
            if codes in self.walk.constants:
                value = self._value(codes)
                anew, scale = scales_for_fp16(value, scale, attribute(node, "axis", 1))
                if not np.array_equal(anew, value):
                    codes = self._constant(f"{codes}_half", anew)
            name = self._constant(f"{node.input[1]}_half", scale.astype(np.float16))
            self.packed[key] = (codes, name)
        copy.input[0], copy.input[1] = self.packed[key]
        copy.output[0] = fresh_name(self.names, f"{node.output[0]}_half")
        self.nodes.append(copy)
        return copy.output[0]

    def _half_constant(self, name: str) -> str:
        value = self._value(name)
        beyond = int(np.count_nonzero(np.isfinite(value) & (np.abs(value) > FP16_LARGEST)))
        if beyond:
            self.clamped[name] = beyond
        return self._constant(f"{name}_half", rounded_to_fp16(value))

    def _value(self, name: str) -> Array:
        return numpy_helper.to_array(self.walk.constants[name])

    def _constant(self, name: str, value: Array) -> str:
        name = fresh_name(self.names, name)
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def _cast(self, source: str, target: str, kind: int) -> None:
        self.casts += 1
        self.nodes.append(_cast(source, target, kind))


def scales_for_fp16(codes: Array, scale: Array, axis: int) -> tuple[Array, Array]:
    """Weights for scales that FP16 can hold.

    The codes are rounded anew for what becomes of a scale, so that no more is lost than by any
    other of that size: also where it is below FP16's normal numbers, as those of channels are that
    hardly do anything. There it is rounded up, or the largest codes would not fit.

    Args:
        codes: int8, any shape.
        scale: float32, one for all or one for each entry of ``axis``.
        axis: Axis of the scales.

    Returns:
        The codes, and the scales as FP16.
    """
    half = np.maximum(scale.astype(np.float16), _SMALLEST)
    short = half.astype(np.float64) * _ROOM < scale
    half = np.where(short, np.nextafter(half, _INFINITE), half)
    shape = [1] * codes.ndim
    if scale.ndim:
        shape[axis % codes.ndim] = -1
    ratio = (scale.astype(np.float64) / half.astype(np.float64)).reshape(shape)
    return np.rint(codes * ratio).astype(codes.dtype), half.astype(np.float16)


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [source], [target], name=f"Cast_{target}", to=kind)
