"""INT8 networks as other tools write them, small, node by node; for the tests of transcoding."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepress.export.int8.dialect import dialect
from edgepress.runtime.engines.onnxruntime import optimized_model
from helpers.int8_graphs import X86

LARGEST = dialect(X86).weight_limit
"""Of the codes of weights: other tools, too, halve it for a processor that else would saturate."""


class Net:
    """An INT8 network, written node by node; activations are (N, C, 16, 16)."""

    def __init__(self, seed: int = 0, *, channels: int = 4, largest: int = LARGEST) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.channels, self.largest = channels, largest
        self.count = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def constant(self, value: Any, *, as_node: bool = False) -> str:
        tensor = numpy_helper.from_array(np.asarray(value), self.name("k"))
        if as_node:
            self.nodes.append(helper.make_node("Constant", [], [tensor.name], value=tensor))
        else:
            self.constants.append(tensor)
        return tensor.name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        out = self.name(kind.lower())
        self.nodes.append(helper.make_node(kind, inputs, [out], name=f"n_{out}", **attributes))
        return out

    def pair(
        self,
        x: str,
        scale: Any,
        zero: Any = 0,
        kind: str = "int8",
        *,
        as_node: bool = False,
        axis: int = 1,
    ) -> str:
        """QuantizeLinear and DequantizeLinear on an activation."""
        scale = np.asarray(scale, np.float32)
        zero = np.broadcast_to(np.asarray(zero, kind), scale.shape)
        parts = [self.constant(scale, as_node=as_node), self.constant(zero, as_node=as_node)]
        along = {"axis": axis} if scale.ndim else {}
        codes = self.op("QuantizeLinear", x, *parts, **along)
        return self.op("DequantizeLinear", codes, *parts, **along)

    def weights(self, *shape: int, stored: str = "codes") -> str:
        """Dequantized weights: from ``codes``, or from ``floats`` behind both quantizers."""
        codes = self.rng.integers(-127, 128, shape)
        codes = np.rint(codes * self.largest / 127).astype(np.int8)
        scale = self.rng.uniform(0.5, 1.5, shape[0]).astype(np.float32) / self.largest
        scale /= np.float32(np.sqrt(np.prod(shape[1:])))
        parts = [self.constant(scale), self.constant(np.zeros(shape[0], np.int8))]
        if stored == "codes":
            first = self.constant(codes)
        else:
            value = codes * scale.reshape(-1, *[1] * (len(shape) - 1))
            first = self.op("QuantizeLinear", self.constant(value), *parts, axis=0)
        return self.op("DequantizeLinear", first, *parts, axis=0)

    def conv(self, x: str, inputs: int, outputs: int, *, group: int = 1, **how: Any) -> str:
        weights = self.weights(outputs, inputs // group, 3, 3, **how)
        bias = self.constant(self.rng.normal(0, 0.2, outputs).astype(np.float32))
        return self.op("Conv", x, weights, bias, pads=[1, 1, 1, 1], group=group)

    def write(self, path: Path, out: str, *, opset: int = 18) -> str:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", self.channels, 16, 16])],
            [onnx.ValueInfoProto(name=out)],
            self.constants,
        )
        imports = [helper.make_opsetid("", opset)]
        imports += [
            helper.make_opsetid(domain, 1) for domain in {n.domain for n in self.nodes} - {""}
        ]
        model = helper.make_model(graph, opset_imports=imports, ir_version=10)
        model = onnx.shape_inference.infer_shapes(model)
        path.write_bytes(model.SerializeToString())
        return str(path)


def kernels(model: bytes) -> Counter[str]:
    rewritten = onnx.load_model_from_string(optimized_model(model, "all"))
    return Counter(node.op_type for node in rewritten.graph.node)


def as_tensorrt_wants(net: Net, **how: Any) -> str:
    """Symmetric int8, on the inputs of convolutions only, as ModelOpt writes it."""
    x = net.pair("x", 0.03)
    y = net.pair(net.op("Relu", net.conv(x, 4, 8, **how)), 0.03)
    y = net.pair(net.op("Relu", net.conv(y, 8, 8, **how)), 0.03)
    return net.op("GlobalAveragePool", y)


def residual(net: Net) -> str:
    """A residual sum of which only the skip input has a quantizer."""
    x = net.pair("x", 0.03)
    y = net.pair(net.op("Relu", net.conv(x, 4, 4)), 0.03)
    z = net.op("Relu", net.op("Add", net.conv(y, 4, 4), y))
    return net.op("GlobalAveragePool", net.pair(z, 0.04))


def depthwise(net: Net) -> str:
    """Scales for each channel in front of a depthwise convolution, as NNCF writes it."""
    y = net.conv(net.pair("x", 0.03), 4, 8)
    y = net.op("Clip", y, net.constant(np.float32(0)), net.constant(np.float32(6)))
    y = net.pair(y, np.linspace(0.004, 6 / 255, 8), 0, "uint8")
    y = net.op("Relu", net.conv(y, 8, 8, group=8))
    y = net.pair(y, 0.01, 0, "uint8")
    return net.op("GlobalAveragePool", y)


def small_network(path: Path) -> Path:
    """Conv, ReLU6, depthwise Conv, a residual sum, pool and Gemm."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> onnx.TensorProto:
        fan_in = np.sqrt(np.prod(shape[1:]))
        value = (rng.normal(0, 1, shape) / fan_in).astype(np.float32)
        return onnx.numpy_helper.from_array(value)

    names = {"w0": (8, 3, 3, 3), "w1": (8, 1, 3, 3), "w2": (8, 8, 1, 1), "w3": (5, 8)}
    biases = {"b0": 8, "b1": 8, "b2": 8, "b3": 5}
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> net (float[N,3,16,16] x) => (float[N,5] y) '
        "{ c0 = Conv <pads=[1,1,1,1]> (x, w0, b0) r0 = Clip(c0, low, high)"
        "  c1 = Conv <pads=[1,1,1,1], group=8> (r0, w1, b1) r1 = Clip(c1, low, high)"
        "  c2 = Conv(r1, w2, b2) s = Add(c2, r0) r2 = Relu(s) g = GlobalAveragePool(r2)"
        "  f = Flatten(g) y = Gemm <transB=1> (f, w3, b3) }"
    )
    for name, shape in names.items():
        tensor = weights(*shape)
        tensor.name = name
        model.graph.initializer.append(tensor)
    for name, size in biases.items():
        value = rng.normal(0, 0.1, size).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    for name, bound in (("low", 0), ("high", 6)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(bound), name))
    onnx.save(model, path)
    return path


def pictures() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(16)]


def quantize_static(float32: Path, out: Path, **how: Any) -> bytes:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    batches = iter(pictures())

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            return next(batches, None)

    settings = {
        "per_channel": True,
        "activation_type": QuantType.QUInt8,
        "quant_format": QuantFormat.QDQ,
        **how,
    }
    quantize(str(float32), str(out), Reader(), **settings)
    return out.read_bytes()


def check_tensorrt_reads(model: bytes) -> None:
    """What NVIDIA's documentation asks of an INT8 graph."""
    graph = onnx.load_model_from_string(model)
    onnx.checker.check_model(graph, full_check=True)
    constants = {one.name: numpy_helper.to_array(one) for one in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            assert zero.dtype == np.int8, node.name
            assert not zero.any(), node.name
    assert not [name for name, value in constants.items() if value.dtype == np.int32]
