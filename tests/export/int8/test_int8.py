"""The INT8 graph: what is written fuses, and agrees with float32."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from edgepress.export.calibration.ranges import calibrate
from edgepress.export.graph.onnx_graph import attribute
from edgepress.export.int8.bias_correction import correct_biases
from edgepress.export.int8.dialect import DIALECTS, dialect
from edgepress.export.int8.int8_plan import plan_int8
from edgepress.export.int8.qdq_writer import write_qdq
from edgepress.export.receipt import count_macs, int8_receipt
from edgepress.runtime import InputError
from edgepress.runtime.engine_registry import import_backend
from edgepress.runtime.target import target
from edgepress.runtime.tensors import Arrays
from helpers.int8_graphs import (
    LEVELS,
    PICTURES,
    SAME,
    WEIGHTS,
    X86,
    all_fused,
    batches_for,
    network,
    quantize,
    residual,
    sqnr_db,
)

# ---------------------------------------------------------------- what fuses


@pytest.mark.processor
@pytest.mark.parametrize("speech", [name for name in DIALECTS if "x86" in name])
def test_every_convolution_add_and_gemm_fuses(speech: str) -> None:
    made = quantize(residual(), speech)
    all_fused(made, 10)
    assert made.receipt.int8_share == 1
    kernels = made.receipt.kernels
    assert kernels["QLinearConv"] == 6
    assert kernels["QLinearAdd"] == 2
    assert kernels["QGemm"] == 1
    assert "Conv" not in kernels
    assert "Relu" not in kernels
    assert len(made.quantized.absorbed) == 5
    weights = [n for n in made.model.graph.initializer if n.name.endswith("_codes")]
    largest = max(np.abs(numpy_helper.to_array(n).astype(int)).max() for n in weights if n.dims[1:])
    assert largest <= dialect(speech).weight_limit


def test_the_arm_dialect_is_int8_around_its_zero_points() -> None:
    made = quantize(residual(), "onnxruntime-arm")
    values = {t.name: numpy_helper.to_array(t) for t in made.model.graph.initializer}
    points = {
        node.input[0]: values[node.input[2]]
        for node in made.model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    codes = {name: values[name] for name in points if name in values}
    weights = [one for one in codes.values() if one.dtype == np.int8]
    biases = [one for one in codes.values() if one.dtype == np.int32]
    assert len(weights) == 6, "two of the seven layers share theirs"
    assert len(weights) + len(biases) == len(codes)
    assert max(np.abs(one.astype(int)).max() for one in weights) == 127
    for name, one in codes.items():
        assert points[name].dtype == one.dtype
        assert not points[name].any()
    activations = {name: points[name] for name in points.keys() - codes.keys()}
    assert {one.dtype.name for one in activations.values()} == {"int8"}
    assert all(one.shape == () for one in activations.values()), "one for all channels"
    for name in ("r0", "r1", "r2", "k3", "k4"):
        assert points[f"{name}_codes"] == -128, "the lowest code is 0, which a ReLU ends at"
    assert points["x"] not in (-128, 127), "pictures lie on both sides of 0"


def test_every_node_of_the_arm_dialect_fuses_where_int8_codes_stay_as_they_are() -> None:
    """ONNX Runtime on Arm leaves int8 codes alone; on x86 it has to be told to.

    On its own it makes uint8 of some of them there, and what lies between the two stays float.
    Source: QDQIsInt8Allowed in its core/optimizer/qdq_transformer.
    """
    made = quantize(residual(), "onnxruntime-arm")
    kernels, found = as_on_arm(made.quantized.model, next(iter(batches_for(residual())(4))))
    assert kernels["QLinearConv"] == 6
    assert kernels["QLinearAdd"] == 2
    assert kernels["QLinearGlobalAveragePool"] == 1
    assert kernels["QGemm"] == 1
    assert kernels["QuantizeLinear"] == 1, "of the pictures"
    assert kernels["DequantizeLinear"] == 1, "of the map that goes out"
    assert not {"Conv", "Add", "Relu", "Clip", "Gemm", "GlobalAveragePool"} & kernels.keys()
    for name, value in made.found["none"].items():
        assert sqnr_db(value, found[name]) > 30, name
    lost = [one for one in made.receipt.nodes if one.reason.startswith("asked for INT8")]
    assert made.receipt.asked_int8 == made.receipt.fused_int8 + len(lost) == 10
    assert (not lost) is (target("onnxruntime-cpu").dialect == "onnxruntime-arm")
    assert {one.precision for one in lost} <= {"float32"}


def as_on_arm(model: bytes, feeds: Arrays) -> tuple[Counter[str], Arrays]:
    """Operators that ONNX Runtime makes of a graph where int8 codes are allowed, and outputs."""
    import_backend("onnxruntime")  # a bare import sends telemetry
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    with TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(options.optimized_model_filepath)
    outputs = dict(
        zip((one.name for one in session.get_outputs()), session.run(None, feeds), strict=True)
    )
    return Counter(node.op_type for node in optimized.graph.node), outputs


def test_an_absorbed_clip_has_no_code_beyond_its_bound() -> None:
    made = quantize(residual())
    values = {t.name: numpy_helper.to_array(t) for t in made.model.graph.initializer}
    for name in ("k3", "k4"):
        assert values[f"{name}_zero_point"] == 0
        assert np.float32(255) * values[f"{name}_scale"] <= 6


@pytest.mark.processor
@pytest.mark.parametrize(
    ("activation", "absorbed"),
    [
        ("Relu(c)", 1),
        ("Clip(c, zero, six)", 1),
        ("Clip(c, minus, one)", 1),
        ("Clip(c, zero)", 1),
        ("Clip(c, , one)", 1),
        ("Clip(c)", 1),
        ("Clip(c, one, six)", 0),
        ("LeakyRelu(c)", 0),
    ],
)
def test_activations_are_absorbed_where_codes_can_do_their_work(
    activation: str, absorbed: int
) -> None:
    graph = network(
        f"({PICTURES}) => (float[N,8,16,16] y)"
        f"{{ c = Conv <{SAME}> (x, stem, b8) r = {activation} y = Conv <{SAME}> (r, w1, b8) }}"
    )
    made = quantize(graph)
    assert made.receipt.fused_int8 == made.receipt.asked_int8
    assert len(made.quantized.absorbed) == absorbed
    assert absorbed == 0 or "Clip" not in made.receipt.kernels


LAYERS = {
    "no bias": f"({PICTURES}) => (float[N,8,16,16] y) {{ y = Conv <{SAME}> (x, stem) }}",
    "one dimension": "(float[N,8,32] x) => (float[N,8,28] y)"
    "{ c = Conv(x, line1, b8) r = Relu(c) y = Conv(r, line2) }",
    "three dimensions": "(float[N,3,8,8,8] x) => (float[N,8,4,4,4] y)"
    "{ c = Conv(x, cube1, b8) r = Relu(c) y = Conv(r, cube2) }",
    "gemm, transposed and not": "(float[N,8] x) => (float[N,5] y)"
    "{ a = Gemm(x, head, b12) r = Relu(a) y = Gemm <transB=1> (r, head_t, b5) }",
    "gemm without a bias": "(float[N,8] x) => (float[N,12] y) { y = Gemm(x, head) }",
    "gemm with one bias": "(float[N,8] x) => (float[N,12] y) { y = Gemm(x, head, one) }",
    "matrices": "(float[N,7,8] x) => (float[N,7,12] y) { y = MatMul(x, head) }",
    "squeeze and excite": f"({PICTURES}) => (float[N,8,14,14] y) {{ c = Conv(x, stem, b8)"
    " p = GlobalAveragePool(c) q = Conv(p, point) g = Sigmoid(q) m = Mul(c, g)"
    " y = Conv(m, point) }",
    "doubled": f"({PICTURES}) => (float[N,8,14,14] y)"
    "{ c = Conv(x, stem) a = Add(c, c) y = Conv(a, point) }",
    "concatenated": f"({PICTURES}) => (float[N,8,14,14] y) {{ c = Conv(x, stem) r = Relu(c)"
    " k = Concat <axis=1> (r, c) s = Slice(k, i0, i8, i1) y = Conv(s, point) }",
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_every_kind_fuse_on_arm_as_on_x86(name: str) -> None:
    graph = network(LAYERS[name])
    made = quantize(graph, "onnxruntime-arm")
    kernels, _ = as_on_arm(made.quantized.model, next(iter(batches_for(graph)(4))))
    wanted = quantize(graph).receipt.kernels
    apart = {"Transpose"}  # layouts are another matter
    assert {k: n for k, n in kernels.items() if k not in apart} == {
        k: n for k, n in wanted.items() if k not in apart
    }


@pytest.mark.parametrize("opset", [13, 18, 21])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_every_kind_fuse(name: str, opset: int) -> None:
    made = quantize(network(LAYERS[name], opset=opset))
    assert made.receipt.fused_int8 == made.receipt.asked_int8 > 0
    assert made.receipt.int8_share == 1


@pytest.mark.parametrize("speech", [X86, "tensorrt"])
def test_a_bias_that_a_layer_had_not_is_added_as_it_is(speech: str) -> None:
    graph = network("(float[N,8] x) => (float[N,12] y) { y = Gemm <beta=0.5> (x, head) }")
    ranges, its = calibrate(graph, batches_for(graph)), dialect(speech)
    written = write_qdq(graph, ranges, plan_int8(graph, ranges, its), its)
    assert [bool(unit.bias) for unit in written.units] == [True]
    nodes = onnx.load_model_from_string(written.model).graph.node
    (gemm,) = (node for node in nodes if node.op_type == "Gemm")
    assert attribute(gemm, "beta", 1.0) == 1.0


# ---------------------------------------------------------------- what moves

MOVES = {
    "Pad": ("m = Pad(a, channels)", "ten"),
    "Slice": ("m = Slice(r, starts, ends, last, steps)", "w1"),
    "MaxPool": ("m = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (a)", "w1"),
    "Reshape": ("q = Reshape(r, split) m = Reshape(q, joined)", "w1"),
    "Transpose": ("m = Transpose <perm=[0,1,3,2]> (r)", "w1"),
    "Gather": ("m = Gather <axis=1> (r, reverse)", "w1"),
    "Split": ("m, rest = Split <axis=1> (r, parts)", "half"),
    "Unsqueeze": ("q = Unsqueeze(r, i1) m = Squeeze(q, i1)", "w1"),
    "DepthToSpace": ("m = DepthToSpace <blocksize=2> (r)", "quarter"),
    "SpaceToDepth": ("m = SpaceToDepth <blocksize=2> (r)", "four"),
    "Resize": ('m = Resize <mode="nearest"> (r, , scales)', "w1"),
    "shape of the batch": (
        "s = Shape(r) n = Slice(s, i0, i1) t = Concat <axis=0> (n, tail) m = Reshape(r, t)",
        "w1",
    ),
}


@pytest.mark.parametrize("speech", [X86, "onnxruntime-arm"])
@pytest.mark.parametrize("name", MOVES)
def test_codes_are_moved_as_they_are(name: str, speech: str) -> None:
    nodes, weights = MOVES[name]
    text = (
        f"({PICTURES}) => (float[N,8,h,w] y) {{ a = Conv <{SAME}> (x, stem, b8) r = Relu(a)"
        f" {nodes} y = Conv <{SAME}> (m, {weights}) }}"
    )
    made = quantize(network(text, opset=13), speech)
    if "x86" in speech:
        all_fused(made, 2)
    assert len(made.quantized.moved) == nodes.count(" = ") - 3 * (name == "shape of the batch")
    makers = {name: node for node in made.model.graph.node for name in node.output}
    for node in made.model.graph.node:
        if node.name in made.quantized.moved:
            source = makers[node.input[0]]
            assert source.op_type == "QuantizeLinear" or source.name in made.quantized.moved
    told = {node.name: node for node in made.receipt.nodes}
    assert all(told[name].reason == "moves codes" for name in made.quantized.moved)


@pytest.mark.parametrize(
    "node",
    [
        'm = Resize <mode="linear"> (r, , scales)',
        "m, index = MaxPool <kernel_shape=[2,2]> (r)",
        'm = Pad <mode="reflect"> (r, pads)',
        "m = Pad(r, pads, one)",
    ],
)
def test_what_makes_new_values_stays_float(node: str) -> None:
    made = quantize(
        network(
            f"({PICTURES}) => (float[N,8,h,w] y) {{ a = Conv <{SAME}> (x, stem, b8) r = Relu(a)"
            f" {node} y = Conv <{SAME}> (m, w1) }}"
        )
    )
    all_fused(made, 2)
    assert made.quantized.moved == ()


# ---------------------------------------------------------------- outputs, sharing, odd graphs


def test_tensors_that_are_read_and_given_out() -> None:
    graph = network(
        f"({PICTURES}) => (float[N,8,16,16] raw, float[N,8,16,16] r, float[N,8,16,16] t,"
        " float[N,3,16,16] s, float[N,8,16,16] y) {"
        " s = Sin(x)"
        f" raw = Conv <{SAME}> (s, stem, b8)"
        f" a = Conv <{SAME}> (raw, w1, b8)"
        " r = Relu(a)"
        " t = Transpose <perm=[0,1,3,2]> (r)"
        f" y = Conv <{SAME}> (t, w2) }}"
    )
    made = quantize(graph)
    all_fused(made, 3)
    for level in LEVELS:
        np.testing.assert_array_equal(made.found[level]["s"], made.wanted["s"])


def test_an_input_that_is_given_out_comes_out_untouched() -> None:
    graph = network(
        f"({PICTURES}) => (float[N,8,14,14] y, float[N,3,16,16] x) {{ y = Conv(x, stem) }}"
    )
    made = quantize(graph)
    all_fused(made, 1)
    np.testing.assert_array_equal(made.found["all"]["x"], made.wanted["x"])


def test_layers_that_share_weights_go_on_sharing_them() -> None:
    graph = network(
        f"({PICTURES}) => (float[N,8,16,16] y) {{ a = Conv <{SAME}> (x, stem, b8) r = Relu(a)"
        f" b = Conv <{SAME}> (r, w1, b8) q = Relu(b) y = Conv <{SAME}> (q, w1, b8) }}"
    )
    made = quantize(graph)
    all_fused(made, 3)
    held = [t for t in made.model.graph.initializer if tuple(t.dims) == WEIGHTS["w1"].shape]
    assert len(held) == 1


def test_several_inputs_of_several_types() -> None:
    graph = network(
        f"({PICTURES}, uint8[N,3,16,16] z) => (float[N,8,16,16] y) {{ f = Cast <to=1> (z)"
        f" a = Conv <{SAME}> (x, stem) b = Conv <{SAME}> (f, stem) s = Add(a, b) r = Relu(s)"
        f" y = Conv <{SAME}> (r, w1) }}"
    )
    made = quantize(graph)
    all_fused(made, 4)
    assert [one.dtype for one in made.graph.inputs] == ["float32", "uint8"]


@pytest.mark.parametrize("speech", DIALECTS)
def test_channels_that_come_last_and_go_back_around_every_layer(speech: str) -> None:
    """As TensorFlow's exporters write it: a Transpose before and behind every convolution."""
    first, last = "<perm=[0,3,1,2]>", "<perm=[0,2,3,1]>"
    graph = network(
        "(float[N,16,16,3] x) => (float[N,12] y) {"
        f" t0 = Transpose {first} (x) c0 = Conv <{SAME}> (t0, stem, b8) n0 = Transpose {last} (c0)"
        " r0 = Relu(n0)"
        f" t1 = Transpose {first} (r0) c1 = Conv <{SAME}> (t1, w1, b8) n1 = Transpose {last} (c1)"
        " r1 = Relu(n1)"
        f" t2 = Transpose {first} (r1) c2 = Conv <{SAME}> (t2, w2) n2 = Transpose {last} (c2)"
        f" a = Add(n2, r0) r2 = Relu(a) t3 = Transpose {first} (r2)"
        " p = GlobalAveragePool(t3) f = Flatten(p) y = Gemm(f, head, b12) }"
    )
    made = quantize(graph, speech)
    layers = [node for node in made.receipt.nodes if node.op_type in ("Conv", "Gemm")]
    asked = {unit.node for unit in made.quantized.units}
    fewer = {"tensorrt": 3, "tensorrt-rtx": 1}  # no stem of 3 channels; matrix products alone
    assert len(asked & {node.name for node in layers}) == fewer.get(speech, 4)
    if speech == X86:
        assert {node.precision for node in layers} == {"int8"}, layers


@pytest.mark.parametrize("shape", ["4,3,16,16", "N,3,h,w"])
def test_fixed_batches_and_free_sizes(shape: str) -> None:
    out = shape.replace("3", "8", 1) if shape[0] == "4" else "N,8,p,q"
    graph = network(
        f"(float[{shape}] x) => (float[{out}] y) {{ a = Conv <{SAME}> (x, stem) r = Relu(a)"
        f" y = Conv <{SAME}> (r, w1) }}"
    )
    made = quantize(graph)
    all_fused(made, 2)
    assert made.graph.inputs[0].shape == ((4, 3, 16, 16) if shape[0] == "4" else ("N", 3, "h", "w"))


@pytest.mark.parametrize(
    "text",
    [
        f"({PICTURES}) => (float[N,3,16,16] y) {{ y = Sin(x) }}",
        "(double[N,8] x) => (double[N,12] y) { h = Cast <to=11> (head) y = MatMul(x, h) }",
        "(float[12,8] x) => (float[12,12] y) { y = Gemm(x, head, rows) }",
        "(float[N,8] x) => (float[N,12] y) { y = Gemm <alpha=0.5> (x, head) }",
        f"({PICTURES}, float[8,3,3,3] w) => (float[N,8,14,14] y) {{ y = Conv(x, w) }}",
    ],
    ids=["no layer", "double", "a bias for each row", "alpha", "weights come in"],
)
def test_nothing_to_quantize_leaves_the_graph_as_it_is(text: str) -> None:
    graph = network(text)
    spoken = dialect(X86)
    if len(graph.inputs) == 2 or graph.inputs[0].dtype == "float64":
        shapes = {"x": (2, 3, 16, 16), "w": (8, 3, 3, 3)}
        if graph.inputs[0].dtype == "float64":
            shapes = {"x": (2, 8)}
        feeds = {s.name: np.ones(shapes[s.name], s.dtype) for s in graph.inputs}
    else:
        feeds = next(iter(batches_for(graph)(4)))
    ranges = calibrate(graph, lambda size: [feeds])
    plan = plan_int8(graph, ranges, spoken)
    quantized = write_qdq(graph, ranges, plan, spoken)
    assert quantized.units == ()
    assert quantized.model == graph.model
    receipt = int8_receipt(graph, count_macs(graph, feeds), quantized, plan)
    assert (receipt.asked_int8, receipt.fused_int8, receipt.int8_share) == (0, 0, 0)
    assert all(node.precision == "float32" for node in receipt.nodes)
    same, shifts = correct_biases(graph, quantized, lambda size: [feeds], largest_tensor=1)
    assert (same, shifts) == (quantized, {})


def test_a_transposed_convolution_stays_float_between_int8_layers() -> None:
    graph = network(
        f"({PICTURES}) => (float[N,8,32,32] y) {{ a = Conv <{SAME}> (x, stem, b8) r = Relu(a)"
        f" t = ConvTranspose <strides=[2,2]> (r, up) y = Conv <{SAME}> (t, w1) }}"
    )
    made = quantize(graph)
    all_fused(made, 2)
    told = {node.op_type: node for node in made.receipt.nodes}
    assert told["ConvTranspose"].precision == "float32"
    assert "no INT8 kernel" in told["ConvTranspose"].reason
    assert 0 < made.receipt.int8_share < 1


def test_a_masked_tensor_stays_float() -> None:
    graph = network(
        f"({PICTURES}) => (float[N,8,14,14] y) {{ m = Add(x, mask) s = Softmax(m)"
        " y = Conv(s, stem) }"
    )
    made = quantize(graph)
    all_fused(made, 1)
    told = {node.op_type: node.precision for node in made.receipt.nodes}
    assert told == {"Add": "float32", "Softmax": "float32", "Conv": "int8"}


def test_what_stands_behind_the_last_layer_stays_float() -> None:
    graph = network(
        f"({PICTURES}) => (float[N,8,14,14] y) {{ a = Conv(x, stem, b8) s = Sigmoid(a)"
        " y = Mul(a, s) }"
    )
    made = quantize(graph)
    all_fused(made, 1)
    assert made.operators().count("Sum") == 1, "two readers share one copy, and become one kernel"
    assert made.receipt.kernels["QuickGelu"] == 1
    told = {node.op_type: node.reason for node in made.receipt.nodes}
    assert "no INT8 layer reads" in told["Sigmoid"]
    assert "no INT8 layer reads" in told["Mul"]


def test_an_activation_behind_a_float_output_is_told_as_float() -> None:
    graph = network("(float[N,8] x) => (float[N,12] y) { a = Gemm(x, head, b12) y = Relu(a) }")
    made = quantize(graph)
    all_fused(made, 1)
    assert made.quantized.absorbed == {}
    assert [node.precision for node in made.receipt.nodes] == ["int8", "float32"]


def test_nodes_kept_in_float_stay_so() -> None:
    names = [node.name for node in residual().proto().graph.node if node.op_type == "Conv"]
    made = quantize(residual(), keep_float=[names[1]])
    all_fused(made, 9)
    told = {node.name: node for node in made.receipt.nodes}
    assert told[names[1]].reason == "kept in float32 by the recipe"
    assert made.receipt.kernels["QLinearConv"] == 5
    assert 0.5 < made.receipt.int8_share < 1


@pytest.mark.parametrize(
    ("nodes", "kept"),
    [
        (f"y0 = Conv <{SAME}> (a, w1, b8) m = Relu(y0)", "Conv_y0"),
        ("s = Sigmoid(a) m = Mul(a, s)", "Sigmoid_s Mul_m"),
        ("m = Softmax <axis=1> (a)", ""),
        ("m = ConvTranspose(a, up)", ""),
        ("m = AveragePool <kernel_shape=[2,2]> (a)", "AveragePool_m"),
        ("m = MatMul(a, a)", ""),
    ],
)
def test_the_engine_does_not_seize_what_the_plan_leaves_in_float(nodes: str, kept: str) -> None:
    graph = network(
        f"({PICTURES}) => (float[N,8,h,w] y)"
        f"{{ a = Conv <{SAME}> (x, stem, b8) {nodes} y = Conv <{SAME}> (m, w1) }}"
    )
    made = quantize(graph, keep_float=kept.split())
    all_fused(made, 2)
    assert sum(n for op, n in made.receipt.kernels.items() if op.startswith("QLinear")) == 2


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        quantize(residual(), keep_float=["Conv_c33"])
    assert caught.value.code == "E_RECIPE"
    assert "Conv_c3" in caught.value.mend


def test_axis_of_the_scales_is_that_of_the_output_channels() -> None:
    made = quantize(network(LAYERS["gemm, transposed and not"]))
    axes = [
        attribute(node, "axis")
        for node in made.model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0].startswith("head")
    ]
    assert axes == [1, 0]


def test_the_same_input_gives_the_same_bytes() -> None:
    assert quantize(residual()).quantized.model == quantize(residual()).quantized.model
