"""Full-range weights saturate where the processor's flags say so: what the dialects stand on."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepress.runtime import open_engine
from edgepress.runtime.engines.openvino import executed_graph
from edgepress.runtime.target import onnxruntime_dialect, openvino_dialect

pytestmark = pytest.mark.processor
node = helper.make_node
CHANNELS, PIXEL, WEIGHT = 64, 255, 127
"""Two such products do not fit into 16 bits, which is where kernels without VNNI add them."""


SUM = CHANNELS * PIXEL * WEIGHT


def largest_of(engine: str, model: bytes) -> float:
    x = np.full((1, CHANNELS, 4, 4), PIXEL, np.float32)
    with open_engine(engine)(model) as opened:
        (found,) = opened.run({"x": x}).values()
    return float(found.max())


def network(layer: list[onnx.NodeProto]) -> bytes:
    """A layer between ``codes``, which are the values of the input, and ``y``."""
    constants = {
        "w": np.full((16, CHANNELS, 1, 1), WEIGHT, np.int8),
        "one": np.float32(1),
        "step": np.float32(SUM / 200),
        "zero": np.uint8(0),
        "none": np.int8(0),
    }
    graph = helper.make_graph(
        [node("QuantizeLinear", ["x", "one", "zero"], ["codes"]), *layer],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16, 4, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


@pytest.mark.skipif(
    "EDGEPRESS_TESTS_PROCESSOR" in os.environ, reason="ONNX Runtime cannot be held to a processor"
)
def test_onnx_runtime_saturates_where_the_dialect_has_half_the_range() -> None:
    scales = ["one", "zero", "w", "one", "none", "step", "zero"]
    model = network(
        [
            node("QLinearConv", ["codes", *scales], ["made"]),
            node("DequantizeLinear", ["made", "step", "zero"], ["y"]),
        ]
    )
    exact = largest_of("onnxruntime", model) == pytest.approx(SUM)
    assert exact == (onnxruntime_dialect() != "onnxruntime-x86")


@pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra openvino is not installed"
)
def test_openvino_saturates_where_the_dialect_has_half_the_range() -> None:
    model = network(
        [
            node("DequantizeLinear", ["codes", "one", "zero"], ["values"]),
            node("DequantizeLinear", ["w", "one", "none"], ["kernel"]),
            node("Conv", ["values", "kernel"], ["y"], name="conv"),
        ]
    )
    (layer,) = (one for one in executed_graph(model) if one.kind == "Convolution")
    assert layer.precision == "u8"
    exact = largest_of("openvino", model) == SUM
    assert exact == (openvino_dialect() == "openvino")
