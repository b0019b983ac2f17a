"""The many forms in which INT8 files come: each is read as what it says, or refused by name."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepress.__main__ import main
from edgepress.export.inspection.inspect_file import inspect_onnx
from edgepress.export.inspection.why_slow import why_slow
from edgepress.export.int8.dialect import dialect
from edgepress.export.transcode.transcode import Transcoded, transcode
from edgepress.runtime import BoundError, EngineOptions
from edgepress.runtime.engines.onnxruntime import OnnxRuntimeEngine
from edgepress.runtime.target import openvino_dialect
from helpers import int8_graphs
from helpers.int8_nets import Net, as_tensorrt_wants, depthwise, kernels, residual

X86 = dialect(int8_graphs.X86)
OPENVINO = pytest.param(
    openvino_dialect(),
    marks=pytest.mark.skipif(
        importlib.util.find_spec("openvino") is None, reason="the extra openvino is not installed"
    ),
)


def within_a_step(path: str, convolutions: int) -> Transcoded:
    """Transcode, and count what runs in INT8."""
    found = transcode(path, X86)
    assert found.equality.layer_steps <= 1.01
    assert found.equality.layers >= convolutions
    assert kernels(found.model)["QLinearConv"] == convolutions
    return found


def fell_out(path: str) -> dict[str, str]:
    """The first rule that each fallen node breaks."""
    return {n.node: n.findings[0].rule for n in why_slow(path, X86, runs=2).fallen}


def rewrite(path: str, change: Callable[[onnx.ModelProto], None]) -> str:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("full", [False, True], ids=["depthwise", "full"])
def test_channels_with_zero_points_of_their_own(full: bool, tmp_path: Path) -> None:
    net = Net(30)
    y = net.conv(net.pair("x", 0.03), 4, 8)
    scales, zeros = np.linspace(0.01, 0.03, 8), np.arange(100, 156, 7)
    y = net.pair(y, scales, zeros, "uint8")
    y = net.conv(y, 8, 8, group=1 if full else 8)
    path = net.write(tmp_path / "a.onnx", net.pair(y, 0.05))
    assert "per-channel activation" in why_slow(path, X86, runs=2).by_rule
    found = within_a_step(path, 2)
    assert "per-channel activation" in {change.rule for change in found.changes}


@pytest.mark.parametrize("opset", [10, 11, 12])
def test_opsets_before_scales_for_each_channel(opset: int, tmp_path: Path) -> None:
    net = Net(31)
    x = net.pair("x", 0.03)
    y = x
    for channels in ((4, 8), (8, 8)):
        codes = net.constant(net.rng.integers(-127, 128, (*channels[::-1], 3, 3)).astype(np.int8))
        parts = [net.constant(np.float32(0.001)), net.constant(np.int8(0))]
        weights = net.op("DequantizeLinear", codes, *parts)
        y = net.op("Relu", net.op("Conv", y, weights, pads=[1, 1, 1, 1]))
        y = net.pair(y, 0.02, 0, "int8")
    path = net.write(tmp_path / "a.onnx", net.op("GlobalAveragePool", y), opset=opset)
    within_a_step(path, 2)


@pytest.mark.parametrize("form", ["channels", "one scale", "no zero point", "int32 weights of one"])
def test_biases_of_int32_codes(form: str, tmp_path: Path) -> None:
    net = Net(32)
    x = net.pair("x", 0.03)
    codes = net.constant(net.rng.integers(-127, 128, (8, 4, 3, 3)).astype(np.int8))
    step = np.linspace(0.0005, 0.001, 8).astype(np.float32)
    if form in ("one scale", "int32 weights of one"):
        step = step[:1].reshape(() if form == "one scale" else (1,))
    zero = net.constant(np.zeros(step.shape, np.int8))
    axis = {"axis": 0} if step.size > 1 else {}
    weights = net.op("DequantizeLinear", codes, net.constant(step), zero, **axis)
    parts = [net.constant(net.rng.integers(-4000, 4000, 8).astype(np.int32))]
    parts.append(net.constant((np.float32(0.03) * step).astype(np.float32)))
    if form != "no zero point":
        parts.append(net.constant(np.zeros(step.shape, np.int32)))
    bias = net.op("DequantizeLinear", *parts, **axis)
    y = net.op("Relu", net.op("Conv", x, weights, bias, pads=[1, 1, 1, 1]))
    path = net.write(tmp_path / "a.onnx", net.pair(y, 0.02, 0, "uint8"))
    found = within_a_step(path, 1)
    assert found.equality.output_steps <= 1.01


@pytest.mark.parametrize("version", [3, 8])
def test_initializers_among_the_inputs_and_constants_as_nodes(version: int, tmp_path: Path) -> None:
    """From version 4 of the file on such initializers are defaults, which nothing folds."""
    net = Net(33)
    y = net.pair(
        net.op("Relu", net.conv(net.pair("x", 0.03, 128, "uint8"), 4, 8)), 0.02, 0, "uint8"
    )
    y = net.pair(net.conv(y, 8, 4), 0.05, 128, "uint8")
    path = net.write(tmp_path / "a.onnx", net.op("Relu", y))
    layers = {node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"}
    assert fell_out(path) == {}

    def spread(model: onnx.ModelProto) -> None:
        model.ir_version = version
        kept = list(model.graph.initializer)
        del model.graph.initializer[:]
        for i, tensor in enumerate(kept):
            if i % 2:
                node = helper.make_node("Constant", [], [tensor.name], value=tensor)
                model.graph.node.insert(0, node)
                continue
            model.graph.initializer.append(tensor)
            kind = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            model.graph.input.append(kind)

    rewrite(path, spread)
    told = why_slow(path, X86, runs=2)
    assert told.int8_nodes == inspect_onnx(path)["int8_kernels"]
    rule = "scale listed as an input"
    assert fell_out(path) == (dict.fromkeys(layers, rule) if version > 3 else {})
    if version > 3:
        assert told.int8_nodes == 0
        assert told.by_rule[rule] > 0
    found = within_a_step(path, 2)
    assert [value.name for value in onnx.load_model_from_string(found.model).graph.input] == ["x"]
    (tmp_path / "b.onnx").write_bytes(found.model)
    assert fell_out(str(tmp_path / "b.onnx")) == {}


def test_every_size_is_free(tmp_path: Path) -> None:
    net = Net(34)
    path = net.write(tmp_path / "a.onnx", depthwise(net))

    def free(model: onnx.ModelProto) -> None:
        for i, dim in enumerate(model.graph.input[0].type.tensor_type.shape.dim):
            if i != 1:
                dim.ClearField("dim_value")
                dim.dim_param = f"d{i}"
        del model.graph.output[0].type.tensor_type.shape.dim[:]
        for i in range(4):
            model.graph.output[0].type.tensor_type.shape.dim.add().dim_param = f"o{i}"

    rewrite(path, free)
    within_a_step(path, 2)
    assert why_slow(path, X86, runs=2).total_ms > 0


@pytest.mark.parametrize("target", [int8_graphs.X86, OPENVINO, "tensorrt"])
def test_a_batch_that_was_frozen_at_export(
    target: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    net = Net(75)
    y = net.op("Relu", net.conv(net.pair("x", 0.03), 4, 8))
    y = net.pair(net.op("GlobalAveragePool", net.pair(y, 0.02)), 0.01)
    y = net.op("Reshape", y, net.constant(np.array([1, 8])))
    bias = net.constant(net.rng.normal(0, 1, 5).astype(np.float32))
    y = net.op("Gemm", y, net.weights(5, 8), bias, transB=1)
    path = net.write(tmp_path / "a.onnx", net.pair(y, 0.05))
    found = transcode(path, dialect(target), engine=target.split("-")[0])
    assert capfd.readouterr().err == ""
    assert found.equality.layer_steps <= 1.01
    assert found.equality.layers >= 3
    (value,) = onnx.load_model_from_string(found.model).graph.input
    assert value.type.tensor_type.shape.dim[0].dim_value == 1
    assert why_slow(path, X86, runs=2).total_ms > 0


@pytest.mark.parametrize("typed", [True, False])
def test_an_output_without_a_declared_shape(typed: bool, tmp_path: Path) -> None:
    net = Net(76)
    path = net.write(tmp_path / "a.onnx", residual(net))

    def forget(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.ClearField("shape")
        if not typed:
            model.graph.output[0].ClearField("type")

    rewrite(path, forget)
    (output,) = inspect_onnx(path)["outputs"]
    assert output["shape"] == ["N", 4, 1, 1]
    assert "missing output quantizer" in fell_out(path).values()
    found = within_a_step(path, 2)
    onnx.checker.check_model(onnx.load_model_from_string(found.model), full_check=True)


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-20])
def test_dead_channels(scale: float, tmp_path: Path) -> None:
    """Two channels with weights of nothing but zeros, at a scale of nothing."""
    net = Net(35)
    codes = net.rng.integers(-127, 128, (8, 4, 3, 3)).astype(np.int8)
    codes[:2] = 0
    step = np.linspace(0.0005, 0.001, 8).astype(np.float32)
    step[:2] = scale
    zero = net.constant(np.zeros(8, np.int8))
    weights = net.op("DequantizeLinear", net.constant(codes), net.constant(step), zero, axis=0)
    bias = net.constant(net.rng.normal(0, 1, 8).astype(np.float32))
    y = net.op("Relu", net.op("Conv", net.pair("x", 0.03), weights, bias, pads=[1, 1, 1, 1]))
    path = net.write(tmp_path / "a.onnx", net.pair(y, 0.02, 0, "uint8"))
    within_a_step(path, 1)


def test_channels_too_far_apart_for_one_scale_stay_float(tmp_path: Path) -> None:
    """A gate stands between the layers, so that no weights can take the scales in."""
    net = Net(48)
    y = net.conv(net.pair("x", 0.03), 4, 8)
    y = net.op("Mul", y, net.op("Tanh", y))
    y = net.pair(y, np.geomspace(0.02, 2.0, 8), 0, "uint8")
    path = net.write(tmp_path / "a.onnx", net.pair(net.conv(y, 8, 8, group=8), 0.01))
    found = transcode(path, X86)
    assert found.equality.layer_steps <= 1.01
    told = [c.what for c in found.changes if c.rule == "per-channel activation"]
    assert len(told) == 1
    assert told[0].startswith("left out")


def test_a_float_layer_is_judged_by_the_codes_that_the_given_file_feeds_it(tmp_path: Path) -> None:
    """Its input's quantizer was left out; large weights would sum up what that rounded."""
    net = Net(61)
    y = net.conv(net.pair("x", 0.03), 4, 8)
    y = net.op("Mul", y, net.op("Tanh", y))
    y = net.pair(y, np.geomspace(0.001, 0.02, 8), 0, "uint8")
    codes = net.rng.choice([-1, 1], (8, 1, 5, 5)).astype(np.int8)
    one = (net.constant(np.ones(8, np.float32)), net.constant(np.zeros(8, np.int8)))
    weights = net.op("DequantizeLinear", net.constant(codes), *one, axis=0)
    y = net.op("Conv", y, weights, group=8, pads=[2, 2, 2, 2])
    found = transcode(net.write(tmp_path / "a.onnx", net.pair(y, 0.01)), X86)
    assert found.equality.layer_steps <= 1.01
    assert 0 < found.equality.unclipped_share < 0.5
    assert [c.what[:8] for c in found.changes if c.rule == "per-channel activation"] == ["left out"]


def test_scales_for_each_channel_of_an_input(tmp_path: Path) -> None:
    net = Net(63)
    codes = net.rng.choice([-1, 1], (4, 1, 5, 5)).astype(np.int8)
    one = (net.constant(np.ones(4, np.float32)), net.constant(np.zeros(4, np.int8)))
    weights = net.op("DequantizeLinear", net.constant(codes), *one, axis=0)
    y = net.pair("x", np.geomspace(0.001, 0.02, 4), 128, "uint8")
    y = net.pair(net.op("Conv", y, weights, group=4, pads=[2, 2, 2, 2]), 0.01)
    found = transcode(net.write(tmp_path / "a.onnx", net.op("Relu", net.conv(y, 4, 4))), X86)
    assert found.equality.layer_steps <= 1.01
    assert [c.what[:8] for c in found.changes if c.rule == "per-channel activation"] == ["left out"]


@pytest.mark.parametrize("group", [1, 8], ids=["full", "depthwise"])
@pytest.mark.parametrize("axis", [3, -1])
@pytest.mark.parametrize("target", [int8_graphs.X86, OPENVINO, "tensorrt"])
def test_scales_of_channels_between_two_transposes(
    target: str, axis: int, group: int, tmp_path: Path
) -> None:
    """NHWC between the layers: the engine cancels the Transposes, and the tensor between them."""
    net = Net(71)
    y = net.op("Relu", net.conv(net.pair("x", 0.03), 4, 8))
    y = net.op("Transpose", y, perm=[0, 2, 3, 1])
    y = net.pair(y, np.linspace(0.03, 0.05, 8), axis=axis)
    y = net.op("Transpose", y, perm=[0, 3, 1, 2])
    path = net.write(tmp_path / "a.onnx", net.pair(net.conv(y, 8, 8, group=group), 0.05))
    found = transcode(path, dialect(target), engine=target.split("-")[0])
    assert found.equality.layer_steps <= 1.01
    assert found.equality.layers >= 3
    assert found.equality.not_compared == ()
    assert found.int8_nodes == 2
    left, right = (run(one) for one in (Path(path).read_bytes(), found.model))
    assert np.abs(left - right).max() <= 0.05 * 2.01  # two layers, a step each


def run(model: bytes) -> np.ndarray:
    """The first output of a file, for a random input."""
    feeds = {"x": np.random.default_rng(7).normal(size=(1, 4, 16, 16)).astype(np.float32)}
    with OnnxRuntimeEngine(model, EngineOptions(optimize="none")) as engine:
        return next(iter(engine.run(feeds).values()))


@pytest.mark.parametrize("target", [int8_graphs.X86, OPENVINO])
def test_scales_of_channels_before_a_transpose_that_are_left_out(
    target: str, tmp_path: Path
) -> None:
    """What was filled in for the input there is no quantizer of the new file, either."""
    net = Net(72)
    y = net.op("Transpose", net.pair("x", np.geomspace(0.001, 0.02, 4)), perm=[0, 1, 3, 2])
    y = net.pair(net.op("Relu", net.pair(y, 0.01)), np.geomspace(0.001, 0.02, 4), 0, "uint8")
    codes = net.rng.choice([-1, 1], (4, 1, 5, 5)).astype(np.int8)
    one = (net.constant(np.ones(4, np.float32)), net.constant(np.zeros(4, np.int8)))
    weights = net.op("DequantizeLinear", net.constant(codes), *one, axis=0)
    y = net.pair(net.op("Conv", y, weights, group=4, pads=[2, 2, 2, 2]), 0.01)
    path = net.write(tmp_path / "a.onnx", y)
    found = transcode(path, dialect(target), engine=target.split("-")[0])
    assert found.equality.layer_steps <= 1.01
    assert found.equality.layers >= 3


def test_a_quantizer_that_vanished_with_its_tensor_is_judged_by_the_layer_around_it(
    tmp_path: Path,
) -> None:
    """Between a convolution and its ReLU, which are one kernel: what it rounds, nothing rounds."""
    net = Net(73)
    y = net.pair(net.conv(net.pair("x", 0.03), 4, 8), np.geomspace(0.02, 0.4, 8))
    y = net.pair(net.op("Relu", y), 0.04, 0, "uint8")
    path = net.write(tmp_path / "a.onnx", net.pair(net.conv(y, 8, 4), 0.05))
    with pytest.raises(BoundError) as refused:
        transcode(path, X86)
    assert refused.value.code == "E_BOUND"
    assert transcode(path, X86, force=True).equality.layer_steps > 1.01


def test_folded_scales_that_a_dialect_leaves_out_are_measured_in_their_own_steps(
    tmp_path: Path,
) -> None:
    """A float stem in front of a depthwise layer, which reads its input as floats there."""
    net = Net(74)
    weights = net.constant(net.rng.normal(0, 0.2, (8, 4, 3, 3)).astype(np.float32))
    y = net.op("Relu", net.op("Conv", "x", weights, pads=[1, 1, 1, 1]))
    y = net.pair(y, np.linspace(0.01, 0.04, 8), 0, "uint8")
    path = net.write(tmp_path / "a.onnx", net.pair(net.conv(y, 8, 8, group=8), 0.05))
    found = transcode(path, dialect("tensorrt-rtx"), engine="tensorrt-rtx")
    assert 0.4 < found.equality.layer_steps <= 0.51  # half a step of what the given file rounds
    assert found.equality.layers == 2


def between_codes(net: Net, move: Callable[[str], str], channels: int) -> str:
    """Codes, uint8 around 100, that ``move`` moves between two convolutions."""
    parts = [net.constant(np.float32(0.02)), net.constant(np.uint8(100))]
    y = net.conv(net.pair("x", 0.03), 4, 8)
    y = net.op("DequantizeLinear", move(net.op("QuantizeLinear", y, *parts)), *parts)
    return net.pair(net.conv(y, channels, 4), 0.05)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("target", [int8_graphs.X86, OPENVINO, "tensorrt"])
def test_codes_that_are_put_together_with_constant_ones(
    target: str, first: bool, tmp_path: Path
) -> None:
    net = Net(78)
    some = net.constant(net.rng.integers(0, 256, (1, 3, 16, 16)).astype(np.uint8))

    def join(codes: str) -> str:
        return net.op("Concat", *((some, codes) if first else (codes, some)), axis=1)

    path = net.write(tmp_path / "a.onnx", between_codes(net, join, 11))
    found = transcode(path, dialect(target), engine=target.split("-")[0])
    assert found.equality.layer_steps <= 1.01
    assert found.equality.layers >= 3
    assert found.int8_nodes >= 2
    left, right = (run(one) for one in (Path(path).read_bytes(), found.model))
    assert np.abs(left - right).max() <= 0.05 * 2.01  # two layers, a step each


@pytest.mark.parametrize("value", [None, 30])
@pytest.mark.parametrize("target", [int8_graphs.X86, OPENVINO, "tensorrt"])
def test_codes_that_are_padded(target: str, value: int | None, tmp_path: Path) -> None:
    """Without a value with code 0, which is far from 0.0 here."""
    net = Net(79)
    pads = net.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    with_value = [] if value is None else [net.constant(np.uint8(value))]
    y = between_codes(net, lambda codes: net.op("Pad", codes, pads, *with_value), 8)
    path = net.write(tmp_path / "a.onnx", y)
    found = transcode(path, dialect(target), engine=target.split("-")[0])
    assert found.equality.layer_steps <= 1.01
    left, right = (run(one) for one in (Path(path).read_bytes(), found.model))
    assert np.abs(left - right).max() <= 0.05 * 2.01


@pytest.mark.parametrize("scale", [0.01, 0.05])
def test_values_that_were_moved_keep_a_scale_of_their_own(scale: float, tmp_path: Path) -> None:
    """A shortcut that skips every other pixel, quantized behind that: its own range, finer here."""
    net = Net(62)
    y = net.op("Relu", net.conv(net.pair("x", 0.03), 4, 4))
    axes = [net.constant(np.array(one, np.int64)) for one in ([0, 0], [99, 99], [2, 3], [2, 2])]
    skip = net.pair(net.op("Slice", y, *axes), scale)
    bias = net.constant(np.zeros(4, np.float32))
    y = net.op(
        "Conv", net.pair(y, 0.03), net.weights(4, 4, 3, 3), bias, pads=[1] * 4, strides=[2, 2]
    )
    y = net.op("Relu", net.op("Add", y, skip))
    found = within_a_step(net.write(tmp_path / "a.onnx", net.pair(y, 0.04)), 2)
    assert kernels(found.model)["QLinearAdd"] == 1


def test_a_gate_without_quantizers_is_filled_in(tmp_path: Path) -> None:
    """SiLU between convolutions, with quantizers in front of these only."""
    net = Net(49)
    x = net.conv(net.pair("x", 0.03), 4, 8)
    y = net.pair(net.op("Mul", x, net.op("Sigmoid", x)), 0.03)
    path = net.write(tmp_path / "a.onnx", net.pair(net.conv(y, 8, 4), 0.05))
    found = within_a_step(path, 2)
    made = kernels(found.model)
    assert made["QLinearSigmoid"] == made["QLinearMul"] == 1
    filled = [c.where for c in found.changes if c.rule == "missing output quantizer"]
    assert len(filled) == 2


def test_an_unfolded_batch_normalization(tmp_path: Path) -> None:
    net = Net(36)
    y = net.conv(net.pair("x", 0.03), 4, 8)
    parts = [net.rng.uniform(0.5, 1.5, 8), net.rng.normal(0, 0.1, 8)]
    parts += [net.rng.normal(0, 0.1, 8), net.rng.uniform(0.5, 1.5, 8)]
    y = net.op("BatchNormalization", y, *[net.constant(p.astype(np.float32)) for p in parts])
    path = net.write(tmp_path / "a.onnx", net.pair(net.op("Relu", y), 0.02))
    found = within_a_step(path, 1)
    assert not any(change.rule == "weights" for change in found.changes)


def test_a_batch_normalization_between_quantizers_becomes_a_kernel(tmp_path: Path) -> None:
    """Nothing is folded across a quantizer: what it rounds and clips, stays rounded and clipped."""
    net = Net(46)
    y = net.pair(net.conv(net.pair("x", 0.03), 4, 8), 0.02, 128, "uint8")
    parts = [net.rng.uniform(0.5, 1.5, 8), net.rng.normal(0, 0.1, 8)]
    parts += [net.rng.normal(0, 0.1, 8), net.rng.uniform(0.05, 0.5, 8)]
    y = net.op("BatchNormalization", y, *[net.constant(p.astype(np.float32)) for p in parts])
    path = net.write(tmp_path / "a.onnx", net.pair(net.op("Relu", y), 0.02, 0, "uint8"))
    assert set(fell_out(path).values()) == {"unfolded BatchNormalization"}
    found = within_a_step(path, 2)
    slope = (parts[0] / np.sqrt(parts[3] + 1e-5)).max()  # of a value that was rounded the other way
    most = slope if found.equality.layer_steps > 0.99 else 1.0
    assert found.equality.output_steps <= 1.01 * most
    assert found.kept_float == ()


def test_a_sum_with_a_quantized_constant_runs_in_int8(tmp_path: Path) -> None:
    net = Net(47)
    y = net.pair(net.conv(net.pair("x", 0.03), 4, 8), 0.02, 128, "uint8")
    parts = [net.constant(np.float32(3 / 255)), net.constant(np.uint8(0))]
    three = net.op("DequantizeLinear", net.constant(np.array(255, np.uint8)), *parts)
    y = net.pair(net.op("Add", y, three), 0.03, 40, "uint8")
    half = net.constant(np.float32(0.5))
    path = net.write(tmp_path / "a.onnx", net.pair(net.op("Mul", y, half), 0.02, 40, "uint8"))
    found = within_a_step(path, 1)
    assert kernels(found.model)["QLinearAdd"] == 1
    (kept,) = found.kept_float
    assert "a constant that the given file has in float32" in kept.what


def test_a_graph_full_of_transposes(tmp_path: Path) -> None:
    net = Net(37)
    y = net.op("Transpose", net.op("Transpose", "x", perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2])
    y = net.op("Relu", net.conv(net.pair(y, 0.03), 4, 8))
    y = net.pair(net.op("Transpose", y, perm=[0, 2, 3, 1]), 0.02)
    y = net.conv(net.op("Transpose", y, perm=[0, 3, 1, 2]), 8, 4)
    path = net.write(tmp_path / "a.onnx", net.pair(y, 0.04))
    within_a_step(path, 2)


def of_onnxruntime(net: Net, kind: str, *inputs: str, **attributes: Any) -> str:
    """A node of ONNX Runtime's own."""
    out = net.name(kind.lower())
    node = helper.make_node(kind, inputs, [out], domain="com.microsoft", name=out, **attributes)
    net.nodes.append(node)
    return out


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("floats", [False, True])
def test_a_product_on_codes(alpha: float, floats: bool, tmp_path: Path) -> None:
    """Its bias stands at alpha times the scales; without a scale of its own it gives floats."""
    net = Net(7)
    step, zero = net.constant(np.float32(0.03)), net.constant(np.uint8(128))
    x = net.op("QuantizeLinear", net.op("Flatten", net.op("GlobalMaxPool", "x")), step, zero)
    weights = [
        net.constant(net.rng.integers(-127, 128, (4, 5)).astype(np.int8)),
        *(net.constant(one) for one in (np.float32(0.01), np.int8(0))),
        net.constant(np.arange(5, dtype=np.int32) * 500),
    ]
    end = [net.constant(np.float32(0.05)), zero]
    y = of_onnxruntime(net, "QGemm", x, step, zero, *weights, *([] if floats else end), alpha=alpha)
    path = net.write(tmp_path / "a.onnx", y if floats else net.op("DequantizeLinear", y, *end))

    def shaped(model: onnx.ModelProto) -> None:
        output = helper.make_tensor_value_info(model.graph.output[0].name, 1, ["N", 5])
        model.graph.output[0].CopyFrom(output)

    found = transcode(rewrite(path, shaped), X86)
    assert found.equality.layer_steps <= 1.01
    feeds = {"x": np.random.default_rng(0).normal(size=(3, 4, 16, 16)).astype(np.float32)}
    outputs: list[Any] = []
    for model in (Path(path).read_bytes(), found.model):
        with OnnxRuntimeEngine(model, EngineOptions(optimize="none")) as engine:
            outputs.append(next(iter(engine.run(feeds).values())))
    assert np.abs(outputs[0] - outputs[1]).max() <= 0.051


def test_constant_codes_first_in_what_is_only_moved_then(tmp_path: Path) -> None:
    """As a class token stands in front."""
    net = Net(78)
    parts = [net.constant(np.float32(0.02)), net.constant(np.uint8(100))]
    some = net.constant(net.rng.integers(0, 256, (2, 3, 16, 16)).astype(np.uint8))
    y = net.pair(net.conv(net.pair("x", 0.03), 4, 8), 0.02, 100, "uint8")
    y = net.op("Concat", net.op("DequantizeLinear", some, *parts), y, axis=1)
    y = net.op("MaxPool", net.pair(y, 0.02, 100, "uint8"), kernel_shape=[2, 2], strides=[2, 2])
    y = net.conv(net.pair(y, 0.02, 100, "uint8"), 11, 4)
    within_a_step(net.write(tmp_path / "a.onnx", net.pair(y, 0.05)), 2)


@pytest.mark.parametrize("target", [int8_graphs.X86, OPENVINO])
def test_pictures_of_bytes_are_proved_with_all_that_bytes_hold(target: str, tmp_path: Path) -> None:
    """The narrower of two quantizers, 0 to 2, is left out: 0 and 1 would not show it."""
    net = Net(6)
    x = net.op("Div", net.op("Cast", "x", to=TensorProto.FLOAT), net.constant(np.float32(32)))
    sides = [
        net.pair(net.conv(net.pair(x, scale, 0, "uint8"), 4, 4), 0.05, 128, "uint8")
        for scale in (1 / 32, 1 / 128)
    ]
    path = net.write(tmp_path / "a.onnx", net.pair(net.op("Add", *sides), 0.1, 128, "uint8"))

    def of_bytes(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8

    with pytest.raises(BoundError) as refused:
        transcode(rewrite(path, of_bytes), dialect(target), engine=target.partition("-")[0])
    assert refused.value.code == "E_BOUND"


@pytest.mark.parametrize("size", [1e-9, 1e6])
def test_scales_of_any_size(size: float, tmp_path: Path) -> None:
    net = Net(38)
    y = net.op("Relu", net.conv(net.pair("x", 0.03), 4, 8))
    path = net.write(tmp_path / "a.onnx", net.pair(y, 0.02 * size))
    within_a_step(path, 1)


def weight_type(model: bytes) -> int:
    graph = onnx.load_model_from_string(model).graph
    (kind,) = {t.data_type for t in graph.initializer if len(t.dims) == 4}
    return kind


@pytest.mark.parametrize("zero", [128, 90])
@pytest.mark.parametrize("name", ["onnxruntime-x86-vnni", "onnxruntime-x86"])
def test_uint8_weights_around_a_zero_point(zero: int, name: str, tmp_path: Path) -> None:
    """They become int8 where that holds them, and stay what they are where it does not."""
    net = Net(39)
    codes = net.constant(net.rng.integers(0, 256, (8, 4, 3, 3)).astype(np.uint8))
    parts = [net.constant(np.float32(0.001)), net.constant(np.uint8(zero))]
    weights = net.op("DequantizeLinear", codes, *parts)
    y = net.op("Relu", net.op("Conv", net.pair("x", 0.03), weights, pads=[1, 1, 1, 1]))
    path = net.write(tmp_path / "a.onnx", net.pair(y, 0.02))
    found = transcode(path, dialect(name))
    assert found.equality.layer_steps <= 1.01
    assert kernels(found.model)["QLinearConv"] == 1
    whole = zero == 128 and name.endswith("vnni")
    assert weight_type(found.model) == (TensorProto.INT8 if whole else TensorProto.UINT8)
    assert not any(change.rule == "weights" for change in found.changes)


def test_a_processor_without_vnni_gets_the_same_codes_in_uint8(tmp_path: Path) -> None:
    """Sums of int8 products in 16 bits would saturate there; those of uint8 weights do not."""
    net = Net(45, largest=127)
    path = net.write(tmp_path / "a.onnx", residual(net))
    found = transcode(path, dialect("onnxruntime-x86"))
    assert found.equality.layer_steps <= 1.01
    assert kernels(found.model)["QLinearConv"] == 2
    assert weight_type(found.model) == TensorProto.UINT8


def test_an_operator_that_no_dialect_knows_stays_float(tmp_path: Path) -> None:
    net = Net(40)
    y = net.op("Relu", net.conv(net.pair("x", 0.03), 4, 8))
    y = net.op("Erf", net.pair(y, 0.02))
    path = net.write(tmp_path / "a.onnx", net.pair(net.conv(net.pair(y, 0.008), 8, 4), 0.05))
    found = within_a_step(path, 2)
    assert [change.what for change in found.kept_float] == [
        f"{X86.name} has no INT8 kernel for Erf"
    ]


class Stored(Net):
    """Floats in float16 and codes in int32, behind a Cast; or all behind an Identity."""

    def __init__(self, seed: int, form: str) -> None:
        super().__init__(seed)
        self.form = form

    def constant(self, value: Any, *, as_node: bool = False) -> str:
        value = np.asarray(value)
        if self.form == "Identity":
            return self.op("Identity", super().constant(value, as_node=as_node))
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        held = np.float16 if value.dtype == np.float32 else np.int32
        return self.op("Cast", super().constant(value.astype(held), as_node=as_node), to=kind)


@pytest.mark.parametrize("form", ["Cast", "Identity"])
def test_constants_behind_what_only_casts_or_names_them(form: str, tmp_path: Path) -> None:
    """The findings are those of the same file with plain constants."""
    told: list[dict[str, str]] = []
    for net in (Net(80), Stored(80, form)):
        y = net.pair(net.op("Relu", net.conv(net.pair("x", 0.03), 4, 8)), 0.02)
        path = net.write(tmp_path / "a.onnx", net.pair(net.conv(y, 8, 4), 0.05))
        told.append({n.op_type: n.findings[0].rule for n in why_slow(path, X86, runs=2).fallen})
    assert told[0] == told[1] == {"Conv": "zero point behind an activation function"}
    found = within_a_step(path, 2)
    assert not any(change.rule == "weights" for change in found.changes)


def test_several_inputs_and_outputs_keep_their_names(tmp_path: Path) -> None:
    net = Net(41)
    y = net.pair(net.op("Relu", net.conv(net.pair("x", 0.03), 4, 8)), 0.02)
    z = net.pair(net.op("Add", net.conv(y, 8, 4), net.pair("more", 0.02)), 0.04)
    path = net.write(tmp_path / "a.onnx", z)

    def more(model: onnx.ModelProto) -> None:
        kind = helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N", 4, 16, 16])
        model.graph.input.append(kind)
        del model.graph.output[:]
        for name, channels in ((z, 4), (y, 8)):
            shape = ["N", channels, 16, 16]
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    rewrite(path, more)
    found = within_a_step(path, 2)
    model = onnx.load_model_from_string(found.model)
    assert [value.name for value in model.graph.input] == ["x", "more"]
    assert [value.name for value in model.graph.output] == [z, y]


def qoperators(path: Path) -> str:
    """A file of quantize_static in its QOperator form."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    rng = np.random.default_rng(0)
    net = Net(42)

    def conv(x: str, inputs: int, outputs: int) -> str:
        weights = net.constant(rng.normal(0, 0.2, (outputs, inputs, 3, 3)).astype(np.float32))
        bias = net.constant(rng.normal(0, 0.2, outputs).astype(np.float32))
        return net.op("Conv", x, weights, bias, pads=[1, 1, 1, 1])

    first = net.op("Relu", conv("x", 4, 8))
    y = net.op("Relu", net.op("Add", conv(first, 8, 8), first))
    y = net.op("Concat", net.op("Sigmoid", y), first, axis=1)
    y = net.op("LeakyRelu", conv(y, 16, 8), alpha=0.1)
    y = net.op("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = net.op("Flatten", net.op("GlobalAveragePool", net.op("Mul", y, y)))
    weights = net.constant(rng.normal(0, 0.3, (5, 8)).astype(np.float32))
    y = net.op("Gemm", y, weights, net.constant(np.ones(5, np.float32)), transB=1)
    float32 = Path(net.write(path.with_name("float32.onnx"), y))
    batches = iter([{"x": rng.normal(size=(2, 4, 16, 16)).astype(np.float32)} for _ in range(4)])

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            return next(batches, None)

    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize(
        str(float32),
        str(path),
        Reader(),
        quant_format=QuantFormat.QOperator,
        per_channel=True,
        **types,
    )
    return str(path)


@pytest.mark.filterwarnings("ignore")
def test_the_operator_form_of_quantize_static_is_taken_apart(tmp_path: Path) -> None:
    path = qoperators(tmp_path / "a.onnx")
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert {"QLinearConv", "QLinearAdd", "QLinearConcat", "QGemm", "QLinearSigmoid"} <= operators
    found = within_a_step(path, 3)
    assert found.kept_float == ()
    made = kernels(found.model)
    for name in ("QLinearAdd", "QLinearConcat", "QGemm", "QLinearMul", "QLinearAveragePool"):
        assert made[name] == 1, name
    assert not why_slow(path, X86, runs=2).fallen


def dynamic(net: Net) -> str:
    """Dynamic quantization: scales are computed while it runs."""
    net.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["c", "s", "z"]))
    weights = net.constant(net.rng.integers(-127, 128, (4, 4, 1, 1)).astype(np.int8))
    codes = net.op("ConvInteger", "c", weights, "z")
    return net.op("Mul", net.op("Cast", codes, to=TensorProto.FLOAT), "s")


def integer(net: Net) -> str:
    """A static scale in front of an integer convolution."""
    parts = [net.constant(np.float32(0.03)), net.constant(np.uint8(128))]
    weights = net.constant(net.rng.integers(-127, 128, (4, 4, 1, 1)).astype(np.int8))
    codes = net.op("ConvInteger", net.op("QuantizeLinear", "x", *parts), weights, parts[1])
    return net.op("Cast", codes, to=TensorProto.FLOAT)


def nan_scale(net: Net) -> str:
    return net.pair("x", float("nan"))


def infinite_weights(net: Net) -> str:
    y = net.op("Conv", net.pair("x", 0.03), net.constant(np.full((4, 4, 1, 1), np.inf, np.float32)))
    return net.pair(y, 0.1)


def scaled_weights(
    net: Net, scales: int, zeros: int, *, axis: int = 0, from_floats: bool = False
) -> str:
    """A convolution with 8 channels, and another number of scales or zero points."""
    step, zero = np.full(scales, 0.01, np.float32), np.zeros(zeros, np.int8)
    parts = [net.constant(step), net.constant(zero)]
    if from_floats:
        weights = net.constant(np.ones((8, 4, 1, 1), np.float32))
        weights = net.op("QuantizeLinear", weights, *parts, axis=axis)
    else:
        weights = net.constant(np.ones((8, 4, 1, 1), np.int8))
    weights = net.op("DequantizeLinear", weights, *parts, axis=axis)
    return net.pair(net.op("Conv", net.pair("x", 0.03), weights), 0.05)


def too_few_scales(net: Net) -> str:
    return scaled_weights(net, 5, 5)


def too_few_scales_of_floats(net: Net) -> str:
    return scaled_weights(net, 5, 5, from_floats=True)


def an_axis_that_is_not_there(net: Net) -> str:
    return scaled_weights(net, 8, 8, axis=4)


def fewer_zero_points(net: Net) -> str:
    return scaled_weights(net, 8, 4)


def no_scale(net: Net) -> str:
    return scaled_weights(net, 0, 0)


def operator_with_bias(net: Net, bias: str, scales: int = 1) -> str:
    """QLinearConv with 8 channels."""
    step, zero = net.constant(np.float32(0.03)), net.constant(np.uint8(128))
    codes = net.op("QuantizeLinear", "x", step, zero)
    weights = net.constant(np.ones((8, 4, 1, 1), np.int8))
    parts = [np.full(scales, 0.01, np.float32), np.zeros(scales, np.int8)]
    inputs = [codes, step, zero, weights, *map(net.constant, parts), step, zero, bias]
    return net.op("DequantizeLinear", net.op("QLinearConv", *inputs), step, zero)


def computed_bias(net: Net) -> str:
    bias = net.op("Abs", net.constant(np.ones(8, np.int32)))
    return operator_with_bias(net, bias)


def short_bias(net: Net) -> str:
    return operator_with_bias(net, net.constant(np.ones(5, np.int32)), 8)


def few_scales_of_an_operator(net: Net) -> str:
    return operator_with_bias(net, net.constant(np.ones(8, np.int32)), 5)


def computed_padding(net: Net) -> str:
    parts = [net.constant(np.float32(0.03)), net.constant(np.uint8(128))]
    codes = net.op("QuantizeLinear", "x", *parts)
    value = net.op("Cast", net.op("Abs", net.constant(np.float32(3))), to=TensorProto.UINT8)
    pads = net.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    return net.op("DequantizeLinear", net.op("Pad", codes, pads, value), *parts)


REFUSED = {
    dynamic: "E_OP",
    integer: "E_OP",
    nan_scale: "E_OP",
    infinite_weights: "E_NAN",
    too_few_scales: "E_OP",
    too_few_scales_of_floats: "E_OP",
    an_axis_that_is_not_there: "E_OP",
    fewer_zero_points: "E_OP",
    no_scale: "E_OP",
    computed_bias: "E_OP",
    short_bias: "E_OP",
    few_scales_of_an_operator: "E_OP",
    computed_padding: "E_OP",
}


@pytest.mark.parametrize(("make", "code"), REFUSED.items(), ids=[make.__name__ for make in REFUSED])
def test_what_cannot_be_taken_apart_is_refused(
    make: Callable[[Net], str], code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = Net(43)
    path, out = net.write(tmp_path / "a.onnx", make(net)), tmp_path / "out.onnx"
    with pytest.raises(SystemExit) as ended:
        main(["transcode", path, "--out", str(out), "--json"])
    assert ended.value.code == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == code
    assert error["mend"]
    assert not out.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.onnx"]


def test_symmetric_int8_survives_a_second_tool(tmp_path: Path) -> None:
    """What OpenVINO's dialect wrote, written for ONNX Runtime: the codes are the same."""
    net = Net(44)
    path = net.write(tmp_path / "a.onnx", as_tensorrt_wants(net))
    once = tmp_path / "once.onnx"
    once.write_bytes(transcode(path, dialect("openvino")).model)
    found = within_a_step(str(once), 2)
    assert found.equality.output_steps <= 1.01


def test_of_two_quantizers_on_one_tensor_the_wider_is_kept_and_told(tmp_path: Path) -> None:
    net = Net(48)
    y = net.op("Relu", net.conv(net.pair("x", 0.03), 4, 8))
    left = net.pair(net.conv(net.pair(y, 0.0200, 0, "uint8"), 8, 4), 0.05)
    right = net.pair(net.conv(net.pair(y, 0.0202, 0, "uint8"), 8, 4), 0.05)
    path = net.write(tmp_path / "a.onnx", net.pair(net.op("Add", left, right), 0.07))
    found = transcode(path, X86, force=True)
    (change,) = [change for change in found.changes if change.rule == "two quantizers"]
    assert change.where == y
    assert "uint8 from 0 to 5.1 is left out" in change.what
    assert found.to_dict()["changes_by_rule"]["two quantizers"] == 1  # type: ignore[index]


def indices(net: Net, y: str, least: float) -> str:
    """Where a tensor has values above ``least``; how many there are depends on them."""
    above = net.op("Greater", y, net.constant(np.float32(least)))
    return net.op("NonZero", net.op("Cast", above, to=TensorProto.FLOAT))


@pytest.mark.parametrize("least", [0.0, 1e9], ids=["another size", "empty"])
def test_an_output_whose_size_follows_from_values_is_left_out_and_told(
    least: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = Net(64)
    y = net.op("Relu", net.conv(net.pair("x", 0.03), 4, 8))
    y = net.pair(y, np.linspace(0.001, 0.02, 8), 0, "uint8")  # one scale for all moves the sum
    y = indices(net, net.pair(net.conv(y, 8, 4), 0.05), least)
    path, out = net.write(tmp_path / "a.onnx", y), tmp_path / "b.onnx"
    with pytest.raises(SystemExit) as ended:
        main(["transcode", path, "--out", str(out), "--accept-difference", "--json"])
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)["equality"]
    assert told["not_compared"] == [y]
    assert told["layers"] >= 2
    with pytest.raises(SystemExit):
        main(["transcode", path, "--out", str(out), "--accept-difference", "--force"])
    assert f"'{y}' was not compared" in capsys.readouterr().out
