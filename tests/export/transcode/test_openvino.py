"""INT8 files of other tools in OpenVINO: written in its dialect, proved in it, and looked into."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from helpers.int8_graphs import X86

if importlib.util.find_spec("openvino") is None:  # importing it here would send telemetry
    pytest.skip("the extra openvino is not installed", allow_module_level=True)

from edgepress.__main__ import main
from edgepress.export.inspection.why_slow import why_slow
from edgepress.export.int8.dialect import dialect
from edgepress.export.transcode.transcode import transcode
from edgepress.runtime import EngineError, EngineOptions, InputError, open_engine
from edgepress.runtime.engines.openvino import executed_graph, executed_times
from edgepress.runtime.target import openvino_dialect
from helpers.int8_nets import Net, as_tensorrt_wants, depthwise, residual

OURS = dialect(openvino_dialect())


def in_codes(model: bytes) -> int:
    """Convolutions and matrix products that read codes."""
    computing = ("Convolution", "FullyConnected", "MatMul")
    seen = executed_graph(model)
    return sum(node.kind in computing and node.precision in ("u8", "i8") for node in seen)


@pytest.mark.parametrize("make", [as_tensorrt_wants, residual, depthwise])
def test_every_convolution_runs_in_int8_within_a_step(
    make: Callable[[Net], str], tmp_path: Path
) -> None:
    net = Net(20)
    path = net.write(tmp_path / "a.onnx", make(net))
    found = transcode(path, OURS, engine="openvino")
    assert found.dialect == OURS.name
    assert in_codes(found.model) == 2
    assert found.equality.layers >= 3
    assert found.equality.layer_steps <= 1.01
    with open_engine("onnxruntime")(
        Path(path).read_bytes(), EngineOptions(optimize="none")
    ) as engine:
        feeds = {"x": np.random.default_rng(3).normal(size=(3, 4, 16, 16)).astype(np.float32)}
        (given,) = engine.run(feeds).values()
    with open_engine("openvino")(found.model, EngineOptions()) as engine:
        (made,) = engine.run(feeds).values()
    assert np.abs(given - made).max() < 0.03 * np.ptp(given)


def test_what_saturated_is_clipped_in_front_of_the_quantizer(tmp_path: Path) -> None:
    """OpenVINO runs a Clip of floats inside of the convolution, and one of codes nowhere."""
    net = Net(21)
    path = net.write(tmp_path / "a.onnx", as_tensorrt_wants(net))
    found = transcode(path, OURS, engine="openvino")
    model = onnx.load_model_from_string(found.model)
    clips = [node for node in model.graph.node if node.op_type == "Clip"]
    assert len(clips) == 2
    ends = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for clip in clips:
        assert ends[clip.input[1]].dtype == np.float32
        assert ends[clip.input[2]] == np.float32(127 * np.float64(np.float32(0.03)))
    assert in_codes(found.model) == 2


@pytest.mark.parametrize("coarse", [False, True])
def test_a_gate_runs_inside_of_its_convolution(coarse: bool, tmp_path: Path) -> None:
    """SiLU with quantizers everywhere; where leaving some out went too far, they stay."""
    net = Net(27)
    y = net.pair(net.conv(net.pair("x", 0.03), 4, 8), 0.04, 128, "uint8")
    gate = net.pair(net.op("Sigmoid", y), 1 / 4 if coarse else 1 / 255, 0, "uint8")
    y = net.pair(net.op("Mul", y, gate), 0.03, 20, "uint8")
    path = net.write(tmp_path / "a.onnx", net.op("Relu", net.conv(y, 8, 4)))
    found = transcode(path, OURS, engine="openvino")
    assert found.equality.layer_steps <= 1.01
    left_out = [c for c in found.changes if c.rule == "quantizer inside of a kernel"]
    assert len(left_out) == (0 if coarse else 2)
    seen = executed_graph(found.model)
    assert in_codes(found.model) == 2
    assert any(n.kind in ("Eltwise", "Subgraph") for n in seen) == (not left_out)


@pytest.mark.parametrize("clipped", [False, True])
def test_a_sum_in_front_of_a_gate_keeps_its_quantizer(clipped: bool, tmp_path: Path) -> None:
    """HardSwish written out, its Clip perhaps left to the codes: the sum gives codes only."""
    net = Net(29)
    y = net.pair(net.conv(net.pair("x", 0.03), 4, 8), 0.04, 128, "uint8")
    parts = [net.constant(np.float32(3 / 255)), net.constant(np.uint8(0))]
    three = net.op("DequantizeLinear", net.constant(np.array(255, np.uint8)), *parts)
    ends = [net.constant(np.float32(end)) for end in (0, 6)]
    gate = net.op("Add", y, three)
    gate = net.pair(net.op("Clip", gate, *ends) if clipped else gate, 6 / 255, 0, "uint8")
    y = net.pair(net.op("Mul", y, gate), 0.06, 20, "uint8")
    path = net.write(tmp_path / "a.onnx", net.op("Relu", net.conv(y, 8, 4)))
    found = transcode(path, OURS, engine="openvino")
    assert found.equality.layer_steps <= 1.01
    assert in_codes(found.model) == 2


@pytest.mark.parametrize("step", [0.05, 0.3])
def test_a_gate_of_int8_codes_is_uint8_where_that_would_skip_a_rounding(
    step: float, tmp_path: Path
) -> None:
    """HardSwish around 0, as ModelOpt leaves it: of int8 codes the sum sees no rounded values."""
    net = Net(31)
    y = net.pair(net.conv(net.pair("x", 0.03), 4, 8), step)
    ends = [net.constant(np.float32(end)) for end in (0, 6)]
    gate = net.op("Clip", net.op("Add", y, net.constant(np.float32(3))), *ends)
    y = net.pair(net.op("Div", net.op("Mul", y, net.pair(gate, 6 / 127)), ends[1]), 0.06)
    path = net.write(tmp_path / "a.onnx", net.op("Relu", net.conv(y, 8, 4)))
    found = transcode(path, OURS, engine="openvino")
    assert found.equality.layer_steps <= 1.01
    assert in_codes(found.model) == 2
    kinds = {
        one.data_type for one in onnx.load_model_from_string(found.model).graph.initializer
        if one.name.endswith("zero_point")
    }  # fmt: skip
    halves = OURS.weight_limit < 127  # kernels of int8 codes halve the weights, without VNNI
    assert (onnx.TensorProto.UINT8 in kinds) == (step == 0.3 or halves)


def test_why_slow_reads_what_openvino_executes(tmp_path: Path) -> None:
    net = Net(22)
    x = net.pair("x", 0.03)
    floats = net.constant(np.full((8, 4, 1, 1), 0.1, np.float32))
    plain = net.op("Conv", x, floats)
    y = net.pair(net.op("Relu", plain), np.linspace(0.01, 0.02, 8), 0, "uint8")
    split = net.conv(y, 8, 8)
    y = net.pair(net.op("Softmax", net.pair(split, 0.05), axis=1), 1 / 255, 0, "uint8")
    path = net.write(tmp_path / "a.onnx", net.op("Relu", net.conv(y, 8, 4)))
    told = why_slow(path, OURS, engine="openvino", runs=3)
    rules = {node.node: node.findings[0].rule for node in told.fallen}
    assert rules[f"n_{plain}"] == "float weights"
    assert rules[f"n_{split}"] == "per-channel activation"
    assert set(rules.values()) == {"float weights", "per-channel activation", "no INT8 kernel"}
    assert told.engine == "OpenVINO"
    assert told.int8_nodes >= 1
    assert 0 < sum(told.by_rule.values()) <= told.total_ms * 1.001
    kernels = {node.kernel for node in told.fallen}
    assert any(kernel.startswith("Convolution f32") for kernel in kernels)
    with pytest.raises(EngineError) as refused:
        why_slow(path, OURS, engine="null")
    assert refused.value.code == "E_ENGINE"


def test_symmetric_int8_is_not_slow_there(tmp_path: Path) -> None:
    """What ONNX Runtime does not fuse, OpenVINO does: nothing fell out."""
    net = Net(23)
    path = net.write(tmp_path / "a.onnx", as_tensorrt_wants(net))
    assert why_slow(path, OURS, engine="openvino", runs=2).fallen == ()
    assert why_slow(path, dialect(X86), runs=2).fallen != ()


def test_what_is_timed_is_what_is_executed(tmp_path: Path) -> None:
    net = Net(24)
    path = net.write(tmp_path / "a.onnx", residual(net))
    model, feeds = Path(path).read_bytes(), {"x": np.zeros((1, 4, 16, 16), np.float32)}
    timed = executed_times(model, feeds, runs=3)
    plain = executed_graph(model)
    for seen in (timed, plain):  # other names are numbered anew with every compilation
        assert [n.name for n in seen if n.kind == "Convolution"] == [
            f"n_{name}/WithoutBiases" for name in ("conv10", "conv21")
        ]
    assert sum(node.ms for node in timed) > 0
    names = {node.name for node in timed}
    assert all(names.issuperset(node.reads) for node in timed)
    with pytest.raises(InputError) as refused:  # OpenVINO itself would run it
        executed_times(model, {"x": np.zeros((1, 3, 16, 16), np.float32)})
    assert refused.value.code == "E_INPUT"


def test_the_target_takes_its_own_engine_and_dialect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = Net(25)
    path, out = net.write(tmp_path / "a.onnx", residual(net)), tmp_path / "b.onnx"
    for words in (
        ["inspect", path, "--why-slow", "--target", "openvino-cpu", "--json"],
        ["transcode", path, "--target", "openvino-cpu", "--out", str(out), "--json"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        told = json.loads(capsys.readouterr().out)
        if words[0] == "inspect":
            assert told["why_slow"]["target"] == "openvino-cpu"
            assert told["why_slow"]["engine"] == "OpenVINO"
        else:
            assert told["dialect"].startswith("openvino")
    assert in_codes(out.read_bytes()) == 2


def test_without_openvino_the_extra_is_named_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net(26)
    path, out = net.write(tmp_path / "a.onnx", residual(net)), tmp_path / "b.onnx"
    monkeypatch.setitem(sys.modules, "openvino", None)
    for words in (
        ["transcode", path, "--target", "openvino-cpu", "--out", str(out)],
        ["inspect", path, "--why-slow", "--target", "openvino-cpu"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--json"])
        assert ended.value.code == 2
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["code"] == "E_EXTRA"
        assert "edgepress[openvino]" in error["mend"]
    assert not out.exists()


def test_scales_listed_as_inputs_are_constants_to_openvino(tmp_path: Path) -> None:
    net = Net(77)
    y = net.pair(net.op("Relu", net.conv(net.pair("x", 0.03), 4, 8)), 0.02, 0, "uint8")
    path = net.write(tmp_path / "a.onnx", net.pair(net.conv(y, 8, 4), 0.05))
    model = onnx.load(path)
    for one in model.graph.initializer:
        kind = helper.make_tensor_value_info(one.name, one.data_type, list(one.dims))
        model.graph.input.append(kind)
    onnx.save(model, path)
    told = why_slow(path, dialect("openvino"), engine="openvino", runs=2)
    assert told.fallen == ()
    assert told.int8_nodes >= 2
