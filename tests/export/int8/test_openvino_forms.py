"""The dialect openvino: the forms that keep layers in INT8, and what is told of files without."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
if importlib.util.find_spec("openvino") is None:  # importing it here would send telemetry
    pytest.skip("the extra openvino is not installed", allow_module_level=True)
import onnx
from onnx import numpy_helper

from edgepress.export import Graph, calibrate, dialect, plan_int8, write_qdq
from edgepress.export.inspection.why_slow import why_slow
from edgepress.export.int8.bias_correction import correct_biases
from edgepress.export.sensitivity.measure import Int8Network, measure_times, with_node_noise
from edgepress.export.sensitivity.node_profile import profile_graphs
from edgepress.export.transcode.transcode import transcode
from edgepress.runtime import EngineOptions
from edgepress.runtime.engines.openvino import executed_graph
from helpers.openvino_nets import OURS, SIZE, Net, pictures, quantized, run, sqnr_db


def bottleneck(width: int = 16) -> Graph:
    """As ResNet-50 goes from stage to stage: two layers with strides over single values."""
    net = Net()
    x = net.relu(net.conv("x", "stem", 3, width))
    y = net.conv(net.relu(net.conv(x, "a", width, width)), "b", width, width)
    x = net.relu(net.add("Add", [x, y], "before"))
    y = net.relu(net.conv(x, "c", width, width, 1, stride=2))
    y = net.conv(net.relu(net.conv(y, "d", width, width)), "e", width, 2 * width, 1)
    x = net.relu(net.add("Add", [net.conv(x, "f", width, 2 * width, 1, stride=2), y], "sum"))
    net.head(x, 2 * width)
    return net.graph()


def test_strides_over_single_values_keep_their_layers_in_int8() -> None:
    graph = bottleneck()
    made, receipt = quantized(graph)
    assert receipt.fused_int8 == receipt.asked_int8
    assert receipt.kernels["Convolution u8"] == 7
    assert "Pooling f32" not in receipt.kernels
    written = onnx.load_model_from_string(made.model).graph.node
    assert sum(one.op_type == "MaxPool" for one in written) == 1  # both layers read the same
    x = pictures()
    told = run("openvino", made.model, x)
    assert sqnr_db(run("onnxruntime", made.model, x), told) > 30
    batches = [{"x": pictures()}]
    better, _ = correct_biases(graph, made, lambda size: batches, largest_tensor=16 * SIZE**2)
    wanted = run("onnxruntime", graph.model, x)
    assert sqnr_db(wanted, run("openvino", better.model, x)) > sqnr_db(wanted, told) > 20


def test_files_of_other_tools_are_told_and_mended(tmp_path: Path) -> None:
    """As NNCF and quantize_static write a ResNet-50."""
    theirs, path = replace(OURS, moves_strides=False), tmp_path / "theirs.onnx"
    made, receipt = quantized(bottleneck(), theirs)
    fell = {one.name for one in receipt.nodes if one.reason.startswith("asked for INT8")}
    assert fell >= {"n_c", "n_f"}
    path.write_bytes(made.model)
    found = why_slow(str(path), OURS, engine="openvino")
    assert {one.node for one in found.fallen} >= {"n_c", "n_f"}
    told = {one.node: one.findings[0].rule for one in found.fallen}
    assert told["n_c"] == told["n_f"] == "strides over single values"
    mended = transcode(str(path), OURS, engine="openvino")
    rules = [one.rule for one in mended.changes]
    assert rules.count("strides over single values") == 2
    seen = executed_graph(mended.model, EngineOptions())
    assert {one.precision for one in seen if one.kind == "Convolution"} == {"u8"}


def test_strides_stay_where_other_layers_read_all_values() -> None:
    """As in ResNet-8: a layer over 3x3 reads the same sum."""
    net = Net()
    stem = net.relu(net.conv("x", "stem", 3, 16))
    x = net.relu(net.add("Add", [net.conv(stem, "a", 16, 16), stem], "before"))
    y = net.conv(net.relu(net.conv(x, "b", 16, 32, stride=2)), "c", 32, 32)
    net.head(net.relu(net.add("Add", [net.conv(x, "d", 16, 32, 1, stride=2), y], "sum")), 32)
    made, receipt = quantized(net.graph())
    assert receipt.fused_int8 == receipt.asked_int8
    assert "MaxPool" not in [
        one.op_type for one in onnx.load_model_from_string(made.model).graph.node
    ]
    assert not any(name.startswith("Pooling f32") for name in receipt.kernels)


def dense(width: int = 16) -> Graph:
    """As DenseNet does it: each layer normalizes all that was there before, and adds to it."""
    net = Net()
    x = net.add("MaxPool", [net.relu(net.conv("x", "stem", 3, width))], "pool", kernel_shape=[2, 2])
    for i in range(3):
        channels = width * (i + 1)
        names = [net.constant(f"n{i}_{k}", np.ones(channels, np.float32)) for k in range(4)]
        y = net.relu(net.add("BatchNormalization", [x, *names], f"normal{i}"))
        x = net.add("Concat", [x, net.conv(y, f"grown{i}", channels, width)], f"all{i}", axis=1)
    names = [net.constant(f"last_{k}", np.ones(4 * width, np.float32)) for k in range(4)]
    net.head(net.relu(net.add("BatchNormalization", [x, *names], "normal")), 4 * width)
    return net.graph()


def test_channels_keep_their_scales_where_only_floats_are_made_of_them() -> None:
    graph = dense()
    made, receipt = quantized(graph)
    assert receipt.fused_int8 == receipt.asked_int8
    assert sum(n for name, n in receipt.kernels.items() if name.startswith("Concat")) == 3
    assert not any(name.startswith("Convert") for name in receipt.kernels)
    assert receipt.kernels["FakeQuantize f32"] == 1  # that of the input
    written = onnx.load_model_from_string(made.model)
    together = {one.output[0] for one in written.graph.node if one.op_type == "Concat"}
    readers = [one.op_type for one in written.graph.node if together & set(one.input)]
    assert set(readers) == {"BatchNormalization", "Concat"}
    zeros = {one.name: numpy_helper.to_array(one) for one in written.graph.initializer}
    assert zeros["grown0_zero_point"].dtype == np.int8
    assert zeros["stem_relu_zero_point"].dtype == np.uint8
    x = pictures()
    told = run("openvino", made.model, x)
    assert sqnr_db(run("onnxruntime", made.model, x), told) > 30
    assert sqnr_db(run("onnxruntime", graph.model, x), told) > 25


def test_codes_that_a_layer_reads_have_one_scale() -> None:
    net = Net()
    stem = net.relu(net.conv("x", "stem", 3, 16))
    both = net.add("Concat", [net.conv(stem, "a", 16, 8), stem], "both", axis=1)
    y = net.conv(both, "b", 24, 16)
    names = [net.constant(f"n{k}", np.ones(24, np.float32)) for k in range(4)]
    z = net.relu(net.add("BatchNormalization", [both, *names], "normal"))
    net.head(net.relu(net.add("Add", [net.conv(z, "c", 24, 16), y], "sum")), 16)
    made, receipt = quantized(net.graph())
    assert receipt.fused_int8 == receipt.asked_int8
    assert "both" in made.codes


def attention(width: int = 16) -> Graph:
    """As a transformer's block: queries by keys, weights by values."""
    net = Net()
    x = net.add(
        "MaxPool", [net.conv("x", "stem", 3, width)], "p", kernel_shape=[4, 4], strides=[4, 4]
    )
    rows = net.constant("rows", np.array([0, width, -1]))
    tokens = net.add(
        "Transpose", [net.add("Reshape", [x, rows], "lined")], "tokens", perm=[0, 2, 1]
    )
    for name in "qkv":
        weights = net.rng.normal(0, width**-0.5, (width, width)).astype(np.float32)
        net.add("MatMul", [tokens, net.constant(f"{name}_w", weights)], name)
    turned = net.add("Transpose", ["k"], "turned", perm=[0, 2, 1])
    share = net.add("Softmax", [net.add("MatMul", ["q", turned], "scores")], "share", axis=-1)
    mixed = net.add("Transpose", [net.add("MatMul", [share, "v"], "mixed")], "back", perm=[0, 2, 1])
    shape = net.constant("shape", np.array([0, width, 4, 4]))
    net.head(net.conv(net.add("Reshape", [mixed, shape], "map"), "last", width, width), width)
    return net.graph()


def test_products_of_activations_run_in_int8() -> None:
    graph = attention()
    made, receipt = quantized(graph)
    nodes = {one.name: one for one in receipt.nodes}
    assert {nodes["n_scores"].precision, nodes["n_mixed"].precision} == {"int8"}, receipt.nodes
    assert receipt.int8_share == 1
    assert [one.node for one in made.units if one.product] == ["n_scores", "n_mixed"]
    zeros = {
        t.name: numpy_helper.to_array(t)
        for t in onnx.load_model_from_string(made.model).graph.initializer
    }
    assert zeros["q_zero_point"].dtype == np.int8
    assert zeros["share_zero_point"].dtype == np.uint8
    x = pictures()
    told, wanted = run("openvino", made.model, x), run("onnxruntime", graph.model, x)
    assert sqnr_db(wanted, told) > 20
    batches = [{"x": pictures()}]
    better, _ = correct_biases(graph, made, lambda size: batches, largest_tensor=16 * SIZE**2)
    assert sqnr_db(wanted, run("openvino", better.model, x)) > 20


def test_products_of_a_given_file_stay_in_int8(tmp_path: Path) -> None:
    made, _ = quantized(attention())
    path = tmp_path / "given.onnx"
    path.write_bytes(made.model)
    again = transcode(str(path), OURS, engine="openvino")
    before, after = (
        Counter(f"{one.kind} {one.precision}" for one in executed_graph(model, EngineOptions()))
        for model in (made.model, again.model)
    )
    assert before == after
    assert again.int8_nodes == len(made.units)
    plain = transcode(str(path), dialect("onnxruntime-x86-vnni"))
    kept = {one.where: one.what for one in plain.kept_float}
    assert kept["n_scores"] == kept["n_mixed"] == "its weights are not constant"


def test_products_are_blamed_and_decided_like_layers() -> None:
    graph = attention()
    ranges = calibrate(graph, lambda size: [{"x": pictures()}])
    plan = plan_int8(graph, ranges, OURS)
    whole = Int8Network(graph, ranges, plan, OURS, write_qdq(graph, ranges, plan, OURS))
    blame = with_node_noise(
        measure_times(whole, "openvino", {"x": pictures(1)}), whole, [{"x": pictures(4)}]
    )
    products = [one for one in blame.nodes if one.name in ("n_scores", "n_mixed")]
    assert [len(one.reads) for one in products] == [2, 2]
    assert not any(one.damage for one in products)  # no weights
    assert {one.name for one in blame.tensors} >= {"q", "share", "v"}


def test_the_time_of_a_stride_belongs_to_its_layer() -> None:
    graph = bottleneck()
    made, _ = quantized(graph)
    seen = profile_graphs("openvino", graph, [made.model], {"x": pictures(1)})[0]
    assert seen.nodes.keys() <= {one.name for one in graph.proto().graph.node}
    assert not any("MaxPool" in name for kernel in seen.kernels for name in kernel)
