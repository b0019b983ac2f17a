"""Small networks written layer by layer, and their INT8 for OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgepress.export import Graph, Receipt, calibrate, dialect, int8_receipt, plan_int8, write_qdq
from edgepress.export.graph.normalize import normalize
from edgepress.export.int8.dialect import Dialect
from edgepress.export.int8.quantized_graph import QuantizedGraph
from edgepress.export.receipt import count_macs
from edgepress.runtime import open_engine
from edgepress.runtime.target import openvino_dialect
from edgepress.runtime.tensors import Array

OURS = dialect(openvino_dialect())
SIZE = 16
node = helper.make_node


class Net:
    """Writes a graph layer by layer; weights from a seed."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(node(op, list(inputs), [output], name=f"n_{output}", **attributes))
        return output

    def conv(
        self,
        source: str,
        output: str,
        c_in: int,
        c_out: int,
        k: int = 3,
        group: int = 1,
        stride: int = 1,
    ) -> str:
        fan = k * k * c_in // group
        weights = self.rng.normal(0, (2 / fan) ** 0.5, (c_out, c_in // group, k, k))
        w = self.constant(f"{output}_w", weights.astype(np.float32))
        b = self.constant(f"{output}_b", self.rng.normal(0, 0.1, c_out).astype(np.float32))
        how = {"pads": [k // 2] * 4, "group": group, "strides": [stride, stride]}
        return self.add("Conv", [source, w, b], output, **how)

    def relu(self, source: str) -> str:
        return self.add("Relu", [source], f"{source}_relu")

    def relu6(self, source: str) -> str:
        if not any(one.name == "six" for one in self.constants):
            self.constant("zero", np.float32(0))
            self.constant("six", np.float32(6))
        return self.add("Clip", [source, "zero", "six"], f"{source}_relu6")

    def head(self, source: str, channels: int, classes: int = 10) -> str:
        pooled = self.add("GlobalAveragePool", [source], "pooled")
        flat = self.add("Flatten", [pooled], "flat")
        weights = self.rng.normal(0, 0.3, (classes, channels)).astype(np.float32)
        w = self.constant("head_w", weights)
        b = self.constant("head_b", self.rng.normal(0, 0.1, classes).astype(np.float32))
        return self.add("Gemm", [flat, w, b], "y", transB=1)

    def graph(self, shape: tuple[Any, ...] = ("N", 10)) -> Graph:
        made = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            self.constants,
        )
        opset = [helper.make_opsetid("", 18)]
        return normalize(
            helper.make_model(made, opset_imports=opset, ir_version=10), source="a test"
        )


def resnet(width: int = 16) -> Graph:
    net = Net()
    x = net.relu(net.conv("x", "stem", 3, width))
    x = net.add("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    for i in range(3):
        y = net.relu(net.conv(x, f"a{i}", width, width))
        y = net.conv(y, f"b{i}", width, width)
        x = net.relu(net.add("Add", [x, y], f"sum{i}"))
    net.head(x, width)
    return net.graph()


def mobilenet(width: int = 16) -> Graph:
    net = Net()
    x = net.relu6(net.conv("x", "stem", 3, width))
    for i in range(2):
        y = net.relu6(net.conv(x, f"expand{i}", width, 2 * width, 1))
        y = net.relu6(net.conv(y, f"depth{i}", 2 * width, 2 * width, 3, 2 * width))
        y = net.conv(y, f"project{i}", 2 * width, width, 1)
        x = net.add("Add", [x, y], f"sum{i}")
    gate = net.add("GlobalAveragePool", [x], "squeezed")
    gate = net.add("Sigmoid", [net.conv(gate, "gate", width, width, 1)], "gated")
    net.head(net.add("Mul", [x, gate], "scaled"), width)
    return net.graph()


def pictures(count: int = 16) -> Array:
    return np.random.default_rng(1).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def quantized(graph: Graph, into: Dialect = OURS) -> tuple[QuantizedGraph, Receipt]:
    ranges = calibrate(graph, lambda size: [{"x": pictures()}])
    plan = plan_int8(graph, ranges, into)
    made = write_qdq(graph, ranges, plan, into)
    macs = count_macs(graph, {"x": pictures(1)})
    return made, int8_receipt(graph, macs, made, plan, "openvino", feeds={"x": pictures(1)})


def run(engine: str, model: bytes, x: Array) -> Array:
    with open_engine(engine)(model) as opened:
        return next(iter(opened.run({"x": x}).values()))


def sqnr_db(exact: Array, found: Array) -> float:
    return float(10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum()))
