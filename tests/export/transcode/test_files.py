"""INT8 files written in the wrong dialect: what is found, what is rewritten, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepress.__main__ import main
from edgepress.export.inspection.inspect_file import inspect_onnx
from edgepress.export.inspection.why_slow import why_slow
from edgepress.export.int8.dialect import dialect
from edgepress.export.transcode.transcode import Transcoded, transcode
from edgepress.export.transcode.weight_grid import keep_codes
from edgepress.runtime import BoundError, EngineError, EngineOptions, InputError
from edgepress.runtime.engines.onnxruntime import OnnxRuntimeEngine, optimized_model, profile
from helpers import int8_graphs
from helpers.int8_nets import Net, as_tensorrt_wants, depthwise, kernels, residual

X86 = dialect(int8_graphs.X86)
pytestmark = pytest.mark.processor


def rules(found: Transcoded) -> set[str]:
    return {change.rule for change in found.changes}


def fell_out(path: str) -> dict[str, str]:
    """The first rule that each fallen node breaks."""
    return {n.node: n.findings[0].rule for n in why_slow(path, X86, runs=3).fallen}


def test_symmetric_int8_of_inputs_only_becomes_uint8_kernels(tmp_path: Path) -> None:
    net = Net()
    path = net.write(tmp_path / "a.onnx", as_tensorrt_wants(net))
    assert kernels(Path(path).read_bytes())["QLinearConv"] == 0
    assert set(fell_out(path).values()) == {"zero point behind an activation function"} | (
        {"missing output quantizer"} & set(fell_out(path).values())
    )
    found = transcode(path, X86)
    assert kernels(found.model)["QLinearConv"] == 2
    assert {"int8 activation", "zero point behind an activation function"} <= rules(found)
    assert found.equality.layer_steps <= 1.01
    assert found.equality.layers >= 3


def without_zero_points(path: Path) -> None:
    """The same file in opset 21: quantizers say their type, and the zero point is left out as 0."""
    model = onnx.load_model(path)
    model.opset_import[0].version = 21
    constants = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            kind = constants[node.input.pop(2)].data_type
            if node.op_type == "QuantizeLinear":
                node.attribute.append(helper.make_attribute("output_dtype", kind))
    onnx.save_model(model, path)


def test_why_slow_reads_the_type_of_quantizers_without_a_zero_point(tmp_path: Path) -> None:
    net = Net()
    file = Path(net.write(tmp_path / "a.onnx", as_tensorrt_wants(net)))
    told = [one.to_dict() for one in why_slow(str(file), X86, runs=3).fallen]
    without_zero_points(file)
    again = [one.to_dict() for one in why_slow(str(file), X86, runs=3).fallen]

    def rules_of(fallen: list[dict[str, object]]) -> dict[object, tuple[object, ...]]:
        return {one["node"]: (one["rule"], one["why"], one["also"]) for one in fallen}

    assert rules_of(again) == rules_of(told) != {}
    plain = Net()
    y = plain.pair(plain.conv(plain.pair("x", 0.03), 4, 8), 0.05)
    file = Path(plain.write(tmp_path / "b.onnx", y))
    without_zero_points(file)
    assert set(fell_out(str(file)).values()) == {"int8 activation"}
    assert kernels(transcode(str(file), X86).model)["QLinearConv"] == 1


def test_weights_behind_both_quantizers_and_constants_in_nodes_are_read(tmp_path: Path) -> None:
    net = Net()
    y = net.pair(net.conv(net.pair("x", 0.03, as_node=True), 4, 8, stored="floats"), 0.05)
    path = net.write(tmp_path / "a.onnx", net.op("Relu", y))
    found = transcode(path, X86)
    assert kernels(found.model)["QLinearConv"] == 1
    assert found.equality.layer_steps <= 1.01


def test_an_output_quantizer_is_filled_in_through_a_residual_sum(tmp_path: Path) -> None:
    net = Net(1)
    path = net.write(tmp_path / "a.onnx", residual(net))
    assert "missing output quantizer" in fell_out(path).values()
    found = transcode(path, X86)
    assert kernels(found.model)["QLinearConv"] == 2
    assert kernels(found.model)["QLinearAdd"] == 1
    assert "missing output quantizer" in rules(found)
    assert found.equality.layer_steps <= 1.01


def test_an_output_quantizer_is_filled_in_through_a_pool(tmp_path: Path) -> None:
    net = Net(2)
    y = net.op("Relu", net.conv(net.pair("x", 0.03), 4, 8))
    y = net.pair(net.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]), 0.02, 0, "uint8")
    path = net.write(tmp_path / "a.onnx", net.pair(net.conv(y, 8, 4), 0.05))
    found = transcode(path, X86)
    assert kernels(found.model)["QLinearConv"] == 2
    assert "missing output quantizer" in rules(found)
    assert found.equality.layer_steps <= 1.01


def test_where_nothing_tells_a_scale_the_node_stays_float_and_is_named(tmp_path: Path) -> None:
    net = Net(3)
    y = net.conv(net.pair("x", 0.03), 4, 8)
    path = net.write(tmp_path / "a.onnx", net.op("Softmax", y))
    found = transcode(path, X86)
    assert [change.where for change in found.kept_float] == [f"n_{y}"]
    assert "nothing in the given file tells a scale" in found.kept_float[0].what
    assert not any(kernel.startswith("QLinear") for kernel in kernels(found.model))


def test_scales_for_each_channel_go_into_the_weights_exactly(tmp_path: Path) -> None:
    net = Net(4)
    path = net.write(tmp_path / "a.onnx", depthwise(net))
    told = why_slow(path, X86, runs=3)
    assert "per-channel activation" in told.by_rule
    found = transcode(path, X86)
    assert kernels(found.model)["QLinearConv"] == 2
    (change,) = [c for c in found.changes if c.rule == "per-channel activation"]
    assert "went into the weights" in change.what
    assert found.equality.layer_steps <= 1.01
    assert found.equality.output_cosine > 0.9999


def test_scales_for_each_channel_become_one_where_a_full_convolution_reads(tmp_path: Path) -> None:
    net = Net(5)
    y = net.op("Relu", net.conv(net.pair("x", 0.03), 4, 8))
    y = net.pair(y, np.linspace(0.01, 0.02, 8), 0, "uint8")
    path = net.write(tmp_path / "a.onnx", net.pair(net.conv(y, 8, 4), 0.05))
    found = transcode(path, X86)
    (change,) = [c for c in found.changes if c.rule == "per-channel activation"]
    assert "one scale" in change.what
    assert kernels(found.model)["QLinearConv"] == 2
    assert found.equality.layer_steps <= 1.01


def test_codes_end_where_the_clip_did_at_the_same_scale(tmp_path: Path) -> None:
    net = Net(6)
    y = net.conv(net.pair("x", 0.03), 4, 8)
    y = net.op("Clip", y, net.constant(np.float32(0)), net.constant(np.float32(2)))
    path = net.write(tmp_path / "a.onnx", net.pair(y, 2 / 127.5))  # symmetric int8 up to 2
    found = transcode(path, X86)
    assert "codes that end early" in rules(found)
    assert kernels(found.model)["QLinearConv"] == 1
    (clip,) = [
        n for n in onnx.load_model_from_string(found.model).graph.node if n.op_type == "Clip"
    ]
    assert "unclipped" in clip.input[0]  # it works on codes, behind the INT8 kernel
    assert found.equality.layer_steps <= 1.01


def test_a_float_bias_of_gemm_becomes_int32(tmp_path: Path) -> None:
    net = Net(7)
    y = net.op("Relu", net.conv(net.pair("x", 0.03), 4, 8))
    y = net.op("GlobalAveragePool", net.pair(y, 0.02, 0, "uint8"))
    y = net.op("Flatten", net.pair(y, 0.01, 0, "uint8"))
    bias = net.constant(net.rng.normal(0, 1, 5).astype(np.float32))
    out = net.op("Gemm", y, net.weights(5, 8), bias, transB=1)
    path = net.write(tmp_path / "a.onnx", out)
    assert fell_out(path) == {f"n_{out}": "float bias of Gemm"}
    found = transcode(path, X86)
    assert kernels(found.model)["QGemm"] == 1
    assert found.equality.layer_steps <= 1.01


def test_codes_clipped_to_fewer_levels_are_followed(tmp_path: Path) -> None:
    net = Net(8)
    scale, zero = net.constant(np.float32(0.03)), net.constant(np.uint8(0))
    y = net.op("Relu", net.conv(net.pair("x", 0.03), 4, 8))
    codes = net.op("QuantizeLinear", y, scale, zero)
    codes = net.op("Clip", codes, net.constant(np.uint8(0)), net.constant(np.uint8(127)))
    y = net.op("DequantizeLinear", codes, scale, zero)
    path = net.write(tmp_path / "a.onnx", net.pair(net.conv(y, 8, 4), 0.05))
    found = transcode(path, X86)
    assert kernels(found.model)["QLinearConv"] == 2
    assert found.equality.layer_steps <= 1.01


def test_codes_that_somebody_reads_before_they_are_clipped_are_refused(tmp_path: Path) -> None:
    net = Net(8)
    scale, zero = net.constant(np.float32(0.03)), net.constant(np.uint8(0))
    codes = net.op("QuantizeLinear", net.op("Relu", "x"), scale, zero)
    fewer = net.op("Clip", codes, net.constant(np.uint8(0)), net.constant(np.uint8(7)))
    both = [net.op("DequantizeLinear", one, scale, zero) for one in (codes, fewer)]
    path = net.write(tmp_path / "a.onnx", net.op("Add", *both))
    with pytest.raises(InputError) as caught:
        transcode(path, X86)
    assert caught.value.code == "E_OP"
    assert "(Clip) computes on codes" in caught.value.message


def test_weights_on_no_grid_are_not_cut_off_beside_uint8(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(-20, 201, (3, 64)) * 0.01
    weights[:, :2] = 2.0, -0.2
    weights[2] = rng.normal(size=64)
    found = keep_codes(weights.astype(np.float32), 0, 127, uint8_weights=True)
    meant = (found.codes.astype(np.float64) - found.zero_point) * found.scale[:, None]
    assert (np.abs(meant - weights) <= 0.51 * found.scale[:, None]).all()
    alone = keep_codes(weights[:2].astype(np.float32), 0, 127, uint8_weights=True)
    assert (alone.codes.dtype, alone.zero_point) == (np.uint8, 20)


def test_float16_between_the_quantizers_becomes_float32(tmp_path: Path) -> None:
    net = Net(9)
    half = TensorProto.FLOAT16
    zero = net.constant(np.int8(0))
    scale = net.constant(np.float16(0.03))
    y = net.op("QuantizeLinear", net.op("Cast", "x", to=half), scale, zero)
    y = net.op("DequantizeLinear", y, scale, zero)
    codes = net.rng.integers(-127, 128, (8, 4, 1, 1)).astype(np.int8)
    step = net.constant(np.float16(0.004))
    y = net.op("Conv", y, net.op("DequantizeLinear", net.constant(codes), step, zero))
    y = net.op("DequantizeLinear", net.op("QuantizeLinear", y, scale, zero), scale, zero)
    path = net.write(tmp_path / "a.onnx", net.op("Cast", y, to=TensorProto.FLOAT), opset=19)
    found = transcode(path, X86)
    assert kernels(found.model)["QLinearConv"] == 1
    assert found.equality.layer_steps <= 1.01


def test_the_form_with_qlinearconv_is_taken_apart(tmp_path: Path) -> None:
    net = Net(10)
    inner = Net(10)
    path = inner.write(tmp_path / "a.onnx", as_tensorrt_wants(inner))
    fused = optimized_model(transcode(path, X86).model, "extended")  # holds QLinearConv
    given = tmp_path / "fused.onnx"
    given.write_bytes(fused)
    assert net.count == 0
    found = transcode(str(given), X86)
    assert kernels(found.model)["QLinearConv"] == 2
    assert found.equality.layer_steps <= 1.01


def test_another_dialect_writes_int8_activations_with_the_same_steps(tmp_path: Path) -> None:
    net = Net(11)
    path = net.write(tmp_path / "a.onnx", as_tensorrt_wants(net))
    arm = transcode(path, dialect("onnxruntime-arm"))
    kinds = {
        tensor.data_type
        for tensor in onnx.load_model_from_string(arm.model).graph.initializer
        if tensor.name.endswith("_zero_point")
    }
    assert TensorProto.UINT8 not in kinds
    assert arm.equality.layer_steps <= 1.01


def test_transcoding_twice_changes_nothing_more(tmp_path: Path) -> None:
    for make in (as_tensorrt_wants, residual, depthwise):
        net = Net(12)
        once = transcode(net.write(tmp_path / "a.onnx", make(net)), X86)
        path = tmp_path / "once.onnx"
        path.write_bytes(once.model)
        twice = transcode(str(path), X86)
        assert rules(twice) == set()
        assert kernels(twice.model) == kernels(once.model)
        feeds = {"x": np.random.default_rng(5).normal(size=(2, 4, 16, 16)).astype(np.float32)}
        with (
            OnnxRuntimeEngine(once.model, EngineOptions()) as a,
            OnnxRuntimeEngine(twice.model, EngineOptions()) as b,
        ):
            left, right = a.run(feeds), b.run(feeds)
        for name, value in left.items():
            np.testing.assert_array_equal(value, right[name])


def test_why_slow_ranks_by_cost_and_adds_up(tmp_path: Path) -> None:
    net = Net(13)
    path = net.write(tmp_path / "a.onnx", residual(net))
    told = why_slow(path, X86, runs=3)
    costs = [node.cost_ms for node in told.fallen]
    assert costs == sorted(costs, reverse=True)
    assert list(told.by_rule.values()) == sorted(told.by_rule.values(), reverse=True)
    assert 0 < sum(told.by_rule.values()) <= told.total_ms * 1.001
    assert told.runs
    fixed = tmp_path / "b.onnx"
    fixed.write_bytes(transcode(path, X86).model)
    after = why_slow(str(fixed), X86, runs=3)
    assert not [n for n in after.fallen if n.op_type == "Conv"]
    assert after.int8_nodes > told.int8_nodes


def test_why_slow_names_types_weights_and_operators(tmp_path: Path) -> None:
    net = Net(14)
    first = net.conv(net.pair("x", 0.03, 128, "uint8"), 4, 8)
    x = net.pair(first, 0.03, 128, "uint8")
    mixed = net.conv(x, 8, 8)
    y = net.pair(mixed, 0.03, 0, "int8")
    computed = net.op("Abs", net.constant(np.ones((4, 8, 1, 1), np.float32)))
    computed = net.op("Conv", y, net.op("Mul", computed, net.op("ReduceMax", "x")))
    soft = net.op("Softmax", net.pair(computed, 0.03, 128, "uint8"))
    path = net.write(tmp_path / "a.onnx", soft)
    found = fell_out(path)
    assert f"n_{first}" not in found
    converts = kernels(Path(path).read_bytes())["QLinearConv"] == 2  # as some releases do
    assert found.get(f"n_{mixed}") == (None if converts else "mixed types")
    assert found[f"n_{computed}"] == "computed weights"
    assert found[f"n_{soft}"] == "no INT8 kernel"


def test_the_profile_times_every_kernel(tmp_path: Path) -> None:
    net = Net(15)
    path = net.write(tmp_path / "a.onnx", as_tensorrt_wants(net))
    feeds = {"x": np.zeros((1, 4, 16, 16), np.float32)}
    times = profile(Path(path).read_bytes(), feeds, threads=1, runs=3)
    assert all(time.ms >= 0 for time in times)
    assert sum(time.kind in ("Conv", "FusedConv") for time in times) == 2


def no_quantizer(net: Net) -> str:
    return net.op("Relu", "x")


def dynamic_scale(net: Net) -> str:
    scale = net.op("ReduceMax", net.op("Abs", "x"), keepdims=0)
    zero = net.constant(np.int8(0))
    return net.op("DequantizeLinear", net.op("QuantizeLinear", "x", scale, zero), scale, zero)


def computed_codes(net: Net) -> str:
    net.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["c", "s", "z"]))
    return net.op("DequantizeLinear", "c", "s", "z")


def codes_out(net: Net) -> str:
    return net.op("QuantizeLinear", "x", net.constant(np.float32(0.1)), net.constant(np.uint8(0)))


def other_scale(net: Net) -> str:
    zero = net.constant(np.int8(0))
    codes = net.op("QuantizeLinear", "x", net.constant(np.float32(0.1)), zero)
    return net.op("DequantizeLinear", codes, net.constant(np.float32(0.2)), zero)


def arithmetic_on_codes(net: Net) -> str:
    codes = net.op("QuantizeLinear", "x", net.constant(np.float32(0.1)), net.constant(np.uint8(0)))
    return net.op("Cast", codes, to=TensorProto.FLOAT)


def zero_scale(net: Net) -> str:
    return net.pair("x", 0.0)


def operator_of_another_scale(net: Net) -> str:
    zero, step = net.constant(np.uint8(128)), net.constant(np.float32(0.05))
    codes = net.op("QuantizeLinear", "x", net.constant(np.float32(0.03)), zero)
    weights = net.constant(net.rng.integers(-127, 128, (8, 4, 1, 1)).astype(np.int8))
    parts = [weights, net.constant(np.float32(0.01)), net.constant(np.int8(0)), step, zero]
    y = net.op("QLinearConv", codes, net.constant(np.float32(0.06)), zero, *parts)
    return net.op("DequantizeLinear", y, step, zero)


def impossible_transpose(net: Net) -> str:
    weights = net.op("Transpose", net.weights(8, 4, 3, 3), perm=[1, 0])
    return net.pair(net.op("Conv", net.pair("x", 0.1), weights), 0.1)


def text_as_weights(net: Net) -> str:
    text = net.op("Constant", value_string="abc")
    return net.op("Add", net.pair("x", 0.1), net.op("Cast", text, to=TensorProto.FLOAT))


REFUSED = {
    no_quantizer: "E_MODEL",
    dynamic_scale: "E_OP",
    computed_codes: "E_OP",
    codes_out: "E_MODEL",
    other_scale: "E_OP",
    arithmetic_on_codes: "E_OP",
    zero_scale: "E_OP",
    operator_of_another_scale: "E_OP",
    impossible_transpose: "E_MODEL",
    text_as_weights: "E_MODEL",
}


@pytest.mark.parametrize(("make", "code"), REFUSED.items(), ids=[make.__name__ for make in REFUSED])
def test_what_cannot_be_rewritten_is_refused_and_nothing_written(
    make: Callable[[Net], str], code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = Net()
    path = net.write(tmp_path / "a.onnx", make(net))
    out = tmp_path / "out.onnx"
    with pytest.raises(SystemExit) as ended:
        main(["transcode", path, "--out", str(out), "--json"])
    assert ended.value.code == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == code
    assert error["mend"]
    assert not out.exists()


def unknown_domain(model: onnx.ModelProto) -> None:
    next(n for n in model.graph.node if n.op_type == "Conv").domain = "unknown"


def no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def no_inputs(model: onnx.ModelProto) -> None:
    del next(n for n in model.graph.node if n.op_type == "Conv").input[:]


def unknown_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 99


@pytest.mark.parametrize("damage", [unknown_domain, no_opset, no_inputs, unknown_type])
def test_an_invalid_file_whose_output_has_no_shape_is_told(
    damage: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    net = Net()
    path = net.write(tmp_path / "a.onnx", net.pair(net.conv(net.pair("x", 0.1), 4, 8), 0.1))
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    damage(model)
    onnx.save(model, path)
    for call in (lambda: transcode(path, X86), lambda: why_slow(path, X86)):
        with pytest.raises((InputError, EngineError)) as refused:
            call()
        assert refused.value.code in ("E_MODEL", "E_BACKEND")
    with pytest.raises(InputError) as refused:
        inspect_onnx(path)
    assert refused.value.code == "E_MODEL"


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    net = Net()
    path = net.write(tmp_path / "a.onnx", net.pair("x", 0.1, 0, "int16"), opset=21)
    with pytest.raises(InputError, match="int16") as refused:
        transcode(path, X86)
    assert refused.value.code == "E_OP"


def test_a_file_without_quantizers_has_nothing_that_is_slow(tmp_path: Path) -> None:
    net = Net()
    path = net.write(tmp_path / "a.onnx", no_quantizer(net))
    with pytest.raises(InputError) as refused:
        why_slow(path, X86)
    assert refused.value.code == "E_MODEL"


def test_more_than_a_step_is_refused_unless_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half-range weights, which OpenVINO needs without VNNI, do not hold the file's codes."""
    net = Net(16, largest=127)
    y = net.pair(net.op("Relu", net.conv(net.pair("x", 0.01, 0), 4, 8)), 0.002, 0, "uint8")
    path = net.write(tmp_path / "a.onnx", y)
    with pytest.raises(BoundError) as refused:
        transcode(path, dialect("openvino-half"))
    assert refused.value.code == "E_BOUND"
    out = tmp_path / "out.onnx"
    words = ["transcode", path, "--out", str(out), "--dialect", "openvino-half", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E_BOUND"
    assert not out.exists()
    with pytest.raises(SystemExit) as ended:
        main([*words, "--accept-difference"])
    assert ended.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert report["equality"]["layer_steps"] > 1
    assert report["changes_by_rule"]["weights"] == 1
    assert out.exists()


def test_the_commands_tell_people_and_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = Net(17)
    path = net.write(tmp_path / "a.onnx", residual(net))
    out = tmp_path / "out.onnx"
    for words in (
        ["inspect", path, "--why-slow"],
        ["transcode", path, "--out", str(out), "--nodes"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "missing output quantizer" in shown
    assert "steps apart" in shown
    onnx.checker.check_model(onnx.load(out), full_check=True)
    before = out.read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["transcode", path, "--out", str(out)])
    assert ended.value.code == 2
    assert "[E_EXISTS]" in capsys.readouterr().err
    assert out.read_bytes() == before
    with pytest.raises(SystemExit) as ended:
        main(["inspect", path, "--why-slow", "--json"])
    told = json.loads(capsys.readouterr().out)["why_slow"]
    assert told["rules"][0]["cost_ms"] >= told["rules"][-1]["cost_ms"]
    assert {"node", "rule", "why", "cost_ms"} <= told["fallen"][0].keys()


def test_torch_is_not_needed(tmp_path: Path) -> None:
    net = Net(18)
    path, out = net.write(tmp_path / "a.onnx", residual(net)), tmp_path / "out.onnx"
    code = "import sys; sys.modules['torch'] = None\nfrom edgepress.__main__ import main\nmain()"
    for words in (("inspect", path, "--why-slow"), ("transcode", path, "--out", str(out))):
        done = subprocess.run(
            [sys.executable, "-c", code, *words, "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["file"] == path
    assert out.exists()


def test_why_slow_is_for_files(small_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(small_bundle), "--why-slow"])
    assert ended.value.code == 2
    assert "[E_USAGE]" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--target", "--dialect"])
def test_unknown_targets_and_dialects_are_refused(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = Net()
    path = net.write(tmp_path / "a.onnx", residual(net))
    with pytest.raises(SystemExit) as ended:
        main(["transcode", path, option, "abacus", "--out", str(tmp_path / "out.onnx")])
    assert ended.value.code == 2
    assert "abacus" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()
