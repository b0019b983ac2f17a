"""Probes: small graphs that show what one layer takes inside a network.

A layer alone is not what it is inside: an engine changes the layout of tensors at the borders of a
graph, and every call costs something. So a probe holds the layer several times side by side, on one
input, the results added up and read by a last small layer; a probe with more of them less a probe
with one is the layer itself, as it is with its neighbours in the engine's own layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..calibration.ranges import calibrate
from ..graph.onnx_graph import IR_VERSION, Graph, name_nodes, specs
from .dialect import dialect
from .int8_plan import plan_int8
from .qdq_writer import write_qdq

_OPSET = 18
_LAST = 8  # channels of the last layer


@dataclass(frozen=True)
class ProbedLayer:
    """A layer as a probe holds it.

    Attributes:
        op_type: ``Conv``, ``ConvTranspose`` or ``MatMul``.
        in_shape: Shape of its input, ``(1, C, H, W)`` for a convolution, ``(..., C)`` otherwise.
        out_width: Channels that it makes.
        groups: Of a convolution.
        kernel: Sides of the kernel.
        stride: Side by side.
        padding: On both ends of each side.
        dilation: Side by side.
    """

    op_type: str
    in_shape: tuple[int, ...]
    out_width: int
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()


def layer_probe(layer: ProbedLayer, copies: int, *, int8_dialect: str | None = None) -> bytes:
    """The probe that holds a layer so many times, with random weights.

    Args:
        layer: The layer.
        copies: How often.
        int8_dialect: The dialect to write it in; ``None`` for float32.
    """
    draw = np.random.default_rng(0)
    tensors: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, shape: Sequence[int]) -> str:
        values = draw.standard_normal(tuple(shape)).astype(np.float32) * 0.1
        tensors.append(numpy_helper.from_array(values, name))
        return name

    def add(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    convolution = layer.op_type != "MatMul"
    in_width = layer.in_shape[1] if convolution else layer.in_shape[-1]
    made: list[str] = []
    for number in range(copies):
        if convolution:
            shape = (layer.out_width, in_width // layer.groups, *layer.kernel)
            if layer.op_type == "ConvTranspose":
                shape = (in_width, layer.out_width // layer.groups, *layer.kernel)
            weight, bias = constant(f"w{number}", shape), constant(f"b{number}", shape[:1])
            if layer.op_type == "ConvTranspose":
                bias = constant(f"c{number}", (layer.out_width,))
            made.append(
                add(
                    layer.op_type,
                    ["x", weight, bias],
                    f"y{number}",
                    group=layer.groups,
                    kernel_shape=list(layer.kernel),
                    strides=list(layer.stride),
                    pads=[*layer.padding, *layer.padding],
                    dilations=list(layer.dilation),
                )
            )
        else:
            weight = constant(f"w{number}", (in_width, layer.out_width))
            if len(layer.in_shape) == 2:
                bias = constant(f"b{number}", (layer.out_width,))
                made.append(add("Gemm", ["x", weight, bias], f"y{number}"))
            else:
                made.append(add("MatMul", ["x", weight], f"y{number}"))
    total = made[0]
    for number, other in enumerate(made[1:]):
        total = add("Add", [total, other], f"s{number}")
    if convolution:
        ones = [1] * len(layer.kernel)
        weight, bias = constant("w", (_LAST, layer.out_width, *ones)), constant("b", (_LAST,))
        add("Conv", [total, weight, bias], "out", kernel_shape=ones)
    else:
        add("MatMul", [total, constant("w", (layer.out_width, _LAST))], "out")
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(layer.in_shape))],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model = onnx.shape_inference.infer_shapes(model)
    model.ir_version = IR_VERSION
    name_nodes(model)
    data = model.SerializeToString()
    if int8_dialect is None:
        return data
    return _quantized(
        Graph(data, specs(model.graph.input), specs(model.graph.output)), int8_dialect
    )


def _quantized(graph: Graph, name: str) -> bytes:
    """The probe in INT8, with the ranges of random inputs."""
    (spec,) = graph.inputs
    shape = tuple(int(size) for size in spec.shape)
    feeds = {spec.name: np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    ranges = calibrate(graph, lambda _: [feeds], method="minmax")
    speech = dialect(name)
    return write_qdq(graph, ranges, plan_int8(graph, ranges, speech), speech).model
