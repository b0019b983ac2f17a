"""What an engine tells of itself, and the receipt that is read from it."""

from __future__ import annotations

import json

import pytest

from edgepress.runtime import EngineError
from edgepress.runtime.nvidia.engine_inspector import engine_layers

TOLD = {
    "Layers": [
        {
            "Name": "stem + Relu_r0",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Name": "r0", "Format/Datatype": "Row major linear FP16 format"}],
            "Metadata": "[ONNX Layer: stem]\x1e[ONNX Layer: Relu_r0]",
        },
        {
            "Name": "c1",
            "LayerType": "CaskConvolution",
            "Inputs": [
                {"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"},
                {"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"},
            ],
            "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}],
            "Metadata": "[ONNX Layer: c1]\x1e[ONNX Layer: Add_s]",
        },
        {"Name": "odd", "LayerType": "NoOp", "Inputs": [], "Outputs": [{"Datatype": "Half"}]},
    ],
    "Bindings": ["x", "y"],
}


def test_the_inspector_tells_types_and_origins() -> None:
    stem, inner, odd = engine_layers(json.dumps(TOLD))
    assert (stem.reads, stem.gives, stem.origins) == (("float32",), ("fp16",), ("stem", "Relu_r0"))
    assert (inner.computes_in, inner.origins) == ("int8", ("c1", "Add_s"))
    assert (odd.computes_in, odd.origins) == ("fp16", ())


def test_pictures_in_bytes_are_no_int8() -> None:
    read = {"Format/Datatype": "Row major linear UInt8 format"}
    (layer,) = engine_layers(json.dumps({"Layers": [
        {"Name": "cast", "LayerType": "Reformat", "Inputs": [read], "Outputs": [], "Metadata": ""},
    ]}))  # fmt: skip
    assert layer.computes_in == "uint8"


def test_an_inspector_that_tells_no_types_proves_nothing() -> None:
    """As TensorRT 10 has it where a shape is free."""
    pytest.importorskip("onnx")
    from edgepress.export.engine_views.tensorrt_view import TensorRtGraph
    from edgepress.export.receipt import tells_precision

    free = {"Name": "t", "Format/Datatype": "N/A due to dynamic shapes"}
    layer = {"Name": "conv", "LayerType": "CaskConvolution", "Metadata": "[ONNX Layer: conv]"}
    untold = json.dumps({"Layers": [{**layer, "Inputs": [free], "Outputs": [free]}]})
    assert not tells_precision(TensorRtGraph(engine_layers(untold)))
    assert tells_precision(TensorRtGraph(engine_layers(json.dumps(TOLD))))


@pytest.mark.parametrize("text", ["", "{}", '{"Layers": ["stem + Relu_r0"]}', "[]"])
def test_an_engine_without_details_tells_nothing(text: str) -> None:
    with pytest.raises(EngineError) as caught:
        engine_layers(text)
    assert caught.value.code == "E_BACKEND"


def test_a_receipt_is_read_from_what_the_inspector_tells() -> None:
    pytest.importorskip("onnx")
    from edgepress.export.engine_views.tensorrt_view import TensorRtGraph
    from edgepress.export.int8.quantized_graph import QuantizedNode

    seen = TensorRtGraph(engine_layers(json.dumps(TOLD)))
    assert seen.kernel_of(QuantizedNode("c1", "Conv", "c1", "c1")) == ("CaskConvolution int8", True)
    assert seen.kernel_of(QuantizedNode("Add_s", "Add", "s", "s")) == ("CaskConvolution int8", True)
    assert seen.kernel_of(QuantizedNode("stem", "Conv", "y", "y")) == (
        "CaskConvolution float32",
        False,
    )
    assert seen.kernel_of(QuantizedNode("gone", "Conv", "y", "y"))[1] is False
    assert seen.runs_in("Relu_r0") == "float32"
    assert seen.kernels() == {
        "CaskConvolution float32": 1, "CaskConvolution int8": 1, "NoOp fp16": 1
    }  # fmt: skip


def test_a_receipt_of_int8_tells_fp16_from_float32() -> None:
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    from edgepress.export import Graph
    from edgepress.export.engine_views.tensorrt_view import TensorRtGraph
    from edgepress.export.graph.precision_plan import NodePrecision, PrecisionPlan
    from edgepress.export.int8.quantized_graph import QuantizedGraph, QuantizedNode
    from edgepress.export.receipt import node_receipts

    names = ("stem", "Relu_r0", "c1", "Relu_c1", "Add_s", "odd", "untold", "kept")
    nodes = [
        helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], name=one) for i, one in enumerate(names)
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])] for name in ("t0", "t8")]
    graph = Graph(
        helper.make_model(helper.make_graph(nodes, "g", *ends)).SerializeToString(), (), ()
    )
    units = tuple(QuantizedNode(name, "Conv", name, name) for name in ("c1", "Add_s", "Relu_r0"))
    quantized = QuantizedGraph(b"", units, (), {"Relu_c1": "c1"})
    first = NodePrecision("float32", "reads the picture")
    plan = PrecisionPlan({"stem": first, "untold": NodePrecision("float32", "has no kernel")})
    halves = dict.fromkeys(("stem", "odd", "untold"), NodePrecision("fp16", "it fits into FP16"))
    half = PrecisionPlan({**halves, "kept": NodePrecision("float32", "kept by the recipe")})
    seen = TensorRtGraph(engine_layers(json.dumps(TOLD)))
    rows = {one.name: one for one in node_receipts(graph, {"odd": 7}, quantized, plan, seen, half)}
    assert {name: one.precision for name, one in rows.items()} == {
        "stem": "float32", "Relu_r0": "float32", "c1": "int8", "Relu_c1": "int8", "Add_s": "int8",
        "odd": "fp16", "untold": "fp16 as written", "kept": "float32",
    }  # fmt: skip
    assert rows["stem"].reason == "asked for fp16, the engine runs it in float32"
    told = "has no kernel; it fits into FP16; no layer of the engine tells of it"
    assert rows["untold"].reason == told
    assert (rows["odd"].macs, rows["kept"].reason) == (7, "kept by the recipe")
