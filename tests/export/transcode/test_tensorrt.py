"""INT8 files of other tools, written the way TensorRT reads them, without data or a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgepress.__main__ import main
from edgepress.export.inspection.cpu_fusion_rules import RULES, TITLES
from edgepress.export.inspection.tensorrt_fusion_rules import REFUSED, REMEDIES
from edgepress.export.inspection.why_slow import why_slow
from edgepress.export.int8.dialect import dialect
from edgepress.export.transcode.transcode import Transcoded, transcode
from edgepress.runtime import BoundError, EngineError, EngineOptions, MissingExtraError
from edgepress.runtime.engine_registry import load_backend
from edgepress.runtime.engines.build_options import BuildOptions
from edgepress.runtime.engines.onnxruntime import OnnxRuntimeEngine
from edgepress.runtime.nvidia.network_builder import build_in_process
from helpers.int8_nets import (
    Net,
    as_tensorrt_wants,
    check_tensorrt_reads,
    depthwise,
    pictures,
    quantize_static,
    residual,
    small_network,
)

TRT, RTX = dialect("tensorrt"), dialect("tensorrt-rtx")


@pytest.fixture(scope="module")
def rtx() -> Any:
    try:
        return load_backend("tensorrt-rtx")
    except MissingExtraError as error:
        pytest.skip(f"nothing here builds TensorRT's graphs: {error.mend}")


def rules(found: Transcoded) -> dict[str, int]:
    told: Any = found.to_dict()["changes_by_rule"]
    return told


def run(model: bytes) -> Any:
    with OnnxRuntimeEngine(model, EngineOptions(optimize="none")) as engine:
        return np.concatenate([next(iter(engine.run(one).values())) for one in pictures()])


def near(given: Path, found: Transcoded, share: float = 0.05) -> None:
    """On pictures of the kind that it was calibrated with, as if nothing had changed."""
    check_tensorrt_reads(found.model)
    before, after = run(given.read_bytes()), run(found.model)
    assert np.abs(before - after).max() < share * np.ptp(before)


def readers_of_codes(model: bytes) -> dict[str, str]:
    """Operators by name of what reads dequantized activations."""
    graph = onnx.load_model_from_string(model).graph
    makers = {name: node for node in graph.node for name in node.output}
    found = {
        makers[one].output[0]
        for one in (n.input[0] for n in graph.node if n.op_type == "DequantizeLinear")
        if one in makers
    }
    floats = {n.output[0] for n in graph.node if n.input and n.input[0] in found}
    return {n.name: n.op_type for n in graph.node if floats & set(n.input)}


def test_what_is_symmetric_already_keeps_its_scales(tmp_path: Path) -> None:
    net = Net()
    path = net.write(tmp_path / "a.onnx", residual(net))
    found = transcode(path, TRT)
    check_tensorrt_reads(found.model)
    assert found.int8_nodes == 3  # two convolutions, and the sum that one of them takes in
    assert found.coarser == {}
    assert rules(found) == {"quantizer off the inputs": 1}
    assert found.equality.layer_steps <= 1.01
    assert set(readers_of_codes(found.model).values()) == {"Conv", "Add"}
    scales = {
        float(numpy_helper.to_array(one))
        for one in onnx.load_model_from_string(found.model).graph.initializer
        if one.name.endswith("_scale") and not one.dims
    }
    assert scales == {float(np.float32(0.03))}


def test_doing_it_twice_changes_nothing_more(tmp_path: Path) -> None:
    for make in (as_tensorrt_wants, residual, depthwise):
        net = Net(1)
        once = transcode(net.write(tmp_path / "a.onnx", make(net)), TRT, force=True)
        path = tmp_path / "once.onnx"
        path.write_bytes(once.model)
        twice = transcode(str(path), TRT)
        assert rules(twice) == {}
        assert twice.int8_nodes == once.int8_nodes


@pytest.mark.filterwarnings("ignore")
def test_symmetric_int8_with_biases_in_int32_is_built_only_afterwards(
    rtx: Any, tmp_path: Path
) -> None:
    from onnxruntime.quantization import QuantType

    network, out = small_network(tmp_path / "float32.onnx"), tmp_path / "static.onnx"
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": True}
    given = quantize_static(network, out, activation_type=QuantType.QInt8, extra_options=symmetric)
    with pytest.raises(EngineError):
        build_in_process(rtx, given, BuildOptions())
    found = transcode(str(out), TRT)
    assert found.coarser == {}
    assert rules(found)["Int32 bias"] == 3
    assert found.equality.layer_steps <= 1.01
    near(out, found, 0.02)
    assert [(k.where, k.what) for k in found.kept_float if "channels" in k.what] == [
        (found.kept_float[0].where, "it reads fewer than 4 channels")
    ]
    assert build_in_process(rtx, found.model, BuildOptions()).plan


@pytest.mark.filterwarnings("ignore")
def test_codes_around_another_zero_are_coarser_and_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """quantize_static as it comes: uint8, with ReLU and Clip taken into its quantizers."""
    network, given = small_network(tmp_path / "float32.onnx"), tmp_path / "static.onnx"
    quantize_static(network, given)
    assert not {"Relu", "Clip"} & {node.op_type for node in onnx.load(given).graph.node}
    with pytest.raises(BoundError) as refused:
        transcode(str(given), TRT)
    assert refused.value.code == "E_BOUND"
    assert "not symmetric around 0" in refused.value.message
    assert "ActivationSymmetric" in refused.value.mend
    out = tmp_path / "out.onnx"
    words = ["transcode", str(given), "--target", "tensorrt", "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 3
    assert not out.exists()
    with pytest.raises(SystemExit) as ended:
        main([*words, "--accept-difference"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "times as coarse" in shown
    assert "zero point is not 0" in shown
    found = transcode(str(given), TRT, force=True)
    assert found.model == out.read_bytes()
    assert 1 < max(found.coarser.values()) <= 255 / 127 + 1e-6
    assert rules(found)["activation function in a quantizer"] == 3
    near(given, found)


@pytest.mark.filterwarnings("ignore")
def test_the_operator_form_is_written_as_well(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType

    network, given = small_network(tmp_path / "float32.onnx"), tmp_path / "static.onnx"
    quantize_static(network, given, quant_format=QuantFormat.QOperator, weight_type=QuantType.QInt8)
    assert "QLinearConv" in {node.op_type for node in onnx.load(given).graph.node}
    near(given, transcode(str(given), TRT, force=True))


@pytest.mark.filterwarnings("ignore")
def test_weights_alone_become_codes_for_rtx(rtx: Any, tmp_path: Path) -> None:
    network, given = small_network(tmp_path / "float32.onnx"), tmp_path / "static.onnx"
    quantize_static(network, given)
    found = transcode(str(given), RTX)
    assert found.int8_nodes == 1  # its Gemm
    assert found.coarser == {}
    assert found.equality.layer_steps <= 1.01
    near(given, found)
    assert build_in_process(rtx, found.model, BuildOptions()).plan


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_file_of_nncf(rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNCF_CI", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    nncf = pytest.importorskip("nncf")
    network, given = small_network(tmp_path / "float32.onnx"), tmp_path / "nncf.onnx"
    quantized = nncf.quantize(onnx.load(network), nncf.Dataset(pictures()), subset_size=16)
    onnx.save(quantized, given)
    found = transcode(str(given), TRT, force=True)
    assert found.int8_nodes == 4
    near(given, found)
    assert build_in_process(rtx, found.model, BuildOptions()).plan


def test_an_activation_function_in_a_quantizer_is_written_out(tmp_path: Path) -> None:
    """Its other readers, too, read what it left: a ReLU6 that only uint8 codes did."""
    net = Net(3)
    y = net.pair(net.conv(net.pair("x", 0.03), 4, 8), 1 / 255, 0, "uint8")
    y = net.op("Add", net.op("GlobalAveragePool", y), net.op("GlobalAveragePool", net.op("Abs", y)))
    path = net.write(tmp_path / "a.onnx", y)
    found = transcode(path, TRT)
    (clip,) = [
        node
        for node in onnx.load_model_from_string(found.model).graph.node
        if node.op_type == "Clip"
    ]
    assert clip.input[0].endswith("_unended")
    assert found.equality.unclipped_share == 0
    assert found.equality.output_steps <= 2.02


def strong(net: Net, x: str, bias: float) -> str:
    """A convolution over 8 channels whose values go beyond 6."""
    biases = net.constant(np.full(8, bias, np.float32))
    return net.op("Conv", x, net.weights(8, 8, 3, 3), biases, pads=[1, 1, 1, 1])


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_values_still_end_where_scales_of_channels_were_folded(name: str, tmp_path: Path) -> None:
    """A dialect that leaves the quantizer out may not leave out the ReLU6 before it."""
    net = Net(2, channels=8)
    six = [net.constant(np.float32(end)) for end in (0, 6)]
    y = net.op("Clip", strong(net, net.pair("x", 0.03), 5.0), *six)
    y = net.pair(y, np.linspace(0.012, 6 / 255, 8), 0, "uint8")
    y = net.pair(net.op("Relu", net.conv(y, 8, 8, group=8)), 0.05, 0, "uint8")
    path = net.write(tmp_path / "a.onnx", net.op("GlobalAveragePool", y))
    found = transcode(path, dialect(name), force=True)
    feeds = {"x": np.random.default_rng(0).normal(0, 3, (2, 8, 16, 16)).astype(np.float32)}
    outputs: list[Any] = []
    for model in (Path(path).read_bytes(), found.model):
        with OnnxRuntimeEngine(model, EngineOptions(optimize="none")) as engine:
            outputs.append(next(iter(engine.run(feeds).values())))
    before, after = outputs
    assert np.abs(before - after).max() < 0.06 * np.ptp(before)


def test_what_an_input_no_longer_cuts_off_is_told(tmp_path: Path) -> None:
    net = Net(4, channels=8)
    y = net.pair(net.op("Relu", net.conv(net.pair("x", 1 / 255, 0, "uint8"), 8, 8)), 0.03)
    found = transcode(net.write(tmp_path / "a.onnx", y), dialect("tensorrt"), force=True)
    told = {one.where: one.what for one in found.changes if "quantizer" in one.rule}
    assert "beyond 0 to 1 go through" in told["x"]


def test_what_a_float_sum_reads_ends_where_its_quantizer_did(tmp_path: Path) -> None:
    net = Net(3, channels=8)
    x = net.pair("x", 0.03)
    sides = [net.pair(strong(net, x, bias), 6 / 255, 0, "uint8") for bias in (5.0, 5.5)]
    y = net.pair(net.op("Add", *sides), 12 / 255, 0, "uint8")
    y = net.op("GlobalAveragePool", net.pair(net.conv(y, 8, 8), 0.1))
    path = net.write(tmp_path / "a.onnx", y)
    graph = onnx.load_model_from_string(
        transcode(path, dialect("tensorrt"), force=True).model
    ).graph
    (total,) = (node for node in graph.node if node.op_type == "Add")
    makers = {name: node.op_type for node in graph.node for name in node.output}
    assert [makers[name] for name in total.input] == ["Clip", "Clip"]


def test_seven_bits_are_held_as_they_are(tmp_path: Path) -> None:
    """Codes 0 to 127 around 0 are symmetric int8's own upper half."""
    net = Net(8)
    scale, zero = net.constant(np.float32(0.03)), net.constant(np.uint8(0))
    y = net.op("Relu", net.conv(net.pair("x", 0.03), 4, 8))
    codes = net.op("QuantizeLinear", y, scale, zero)
    codes = net.op("Clip", codes, net.constant(np.uint8(0)), net.constant(np.uint8(127)))
    y = net.op("DequantizeLinear", codes, scale, zero)
    path = net.write(tmp_path / "a.onnx", net.conv(y, 8, 4))
    found = transcode(path, TRT)
    assert found.coarser == {}
    assert rules(found)["uint8 activation"] == 1
    assert found.equality.layer_steps <= 1.01


def test_a_layer_behind_a_pool_reads_the_scale_in_front_of_it(tmp_path: Path) -> None:
    net = Net(9)
    y = net.pair(net.op("Relu", net.conv(net.pair("x", 0.03), 4, 8)), 0.03)
    y = net.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    path = net.write(tmp_path / "a.onnx", net.conv(y, 8, 4))
    found = transcode(path, TRT)
    assert found.int8_nodes == 2
    assert rules(found)["missing input quantizer"] == 1
    assert found.equality.layer_steps <= 1.01


def test_what_float_layers_read_is_given_as_the_file_has_it(tmp_path: Path) -> None:
    """A tensor that is codes for a convolution and floats for a sum: each is proved alone."""
    net = Net(11)
    y = net.pair(net.op("Relu", net.conv(net.pair("x", 0.03), 4, 8)), 0.05)
    total = y
    for _ in range(6):  # what is not rounded any more adds up, were it not cut
        total = net.pair(net.op("Add", net.op("Add", y, y), total), 0.2)
    both = net.op("Add", net.pair(net.op("Relu", net.conv(y, 8, 8)), 0.05), total)
    path = net.write(tmp_path / "a.onnx", both)
    found = transcode(path, TRT)
    assert found.int8_nodes >= 2
    assert found.equality.layer_steps <= 0.51


@pytest.mark.parametrize(("value", "nodes"), [(0.0, 2), (1.0, 1)])
def test_only_zeros_that_are_padded_keep_a_scale(value: float, nodes: int, tmp_path: Path) -> None:
    net = Net(9)
    y = net.pair(net.op("Relu", net.conv(net.pair("x", 0.03), 4, 8)), 0.003)
    pads = net.constant(np.array([0, 0, 2, 0, 0, 0, 0, 3]))
    y = net.op("Pad", y, pads, net.constant(np.float32(value)))
    y = net.op("Transpose", y, perm=[0, 1, 3, 2])
    path = net.write(tmp_path / "a.onnx", net.conv(y, 8, 4))
    found = transcode(path, TRT)
    assert found.int8_nodes == nodes
    assert found.equality.layer_steps <= 1.01


def test_what_is_told_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = Net(4)
    path, out = net.write(tmp_path / "a.onnx", depthwise(net)), tmp_path / "out.onnx"
    with pytest.raises(SystemExit) as ended:
        main(["transcode", path, "--target", "tensorrt", "--out", str(out), "--json"])
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dialect"] == "tensorrt"
    assert list(told["coarser"].values()) == [pytest.approx(255 / 127)]
    assert told["equality"]["layer_steps"] <= 1.01


def broken(path: str, speech: str = "tensorrt") -> dict[str, set[str]]:
    """Every rule that each node breaks."""
    told = why_slow(path, dialect(speech), engine=speech)
    return {one.node: {finding.rule for finding in one.findings} for one in told.fallen}


def weights_of(net: Net, codes: Any, zero: int) -> str:
    parts = [net.constant(np.float32(0.01)), net.constant(np.array(zero, codes.dtype))]
    return net.op("DequantizeLinear", net.constant(codes), *parts)


def int32_bias(net: Net) -> str:
    bias = net.op(
        "DequantizeLinear",
        net.constant(np.arange(8, dtype=np.int32)),
        net.constant(np.float32(0.001)),
        net.constant(np.int32(0)),
    )
    return net.op("Conv", net.pair("x", 0.03), net.weights(8, 8, 3, 3), bias)


def zero_point(net: Net) -> str:
    return net.conv(net.pair("x", 0.03, 100, "uint8"), 8, 8)


def uint8_around_0(net: Net) -> str:
    return net.conv(net.pair(net.op("Relu", "x"), 0.03, 0, "uint8"), 8, 8)


def uint8_weights(net: Net) -> str:
    codes = net.rng.integers(1, 256, (8, 8, 3, 3)).astype(np.uint8)
    return net.op("Conv", net.pair("x", 0.03), weights_of(net, codes, 128))


def shifted_weights(net: Net) -> str:
    codes = net.rng.integers(-100, 100, (8, 8, 3, 3)).astype(np.int8)
    return net.op("Conv", net.pair("x", 0.03), weights_of(net, codes, 4))


def rounded_for_nothing(net: Net) -> str:
    return net.op("GlobalAveragePool", net.pair(net.conv(net.pair("x", 0.03), 8, 8), 0.05))


FAULTS = {
    int32_bias: "Int32 bias",
    zero_point: "zero point is not 0",
    uint8_around_0: "uint8 activation",
    uint8_weights: "uint8 weights",
    shifted_weights: "zero point of weights",
    rounded_for_nothing: "quantizer off the inputs",
}


def test_why_slow_names_what_the_builder_refuses(tmp_path: Path) -> None:
    """Each of these faults alone makes the builder refuse; see the next test."""
    for make, rule in FAULTS.items():
        net = Net(channels=8)
        out = make(net)
        path = net.write(tmp_path / "a.onnx", out)
        assert broken(path) == {f"n_{out}": {rule}}, rule
        told = why_slow(path, TRT, engine="tensorrt")
        assert told.runs == (rule not in REFUSED), rule
        assert told.by_rule == {rule: None}
        assert told.fallen[0].cost_ms is None
        assert rule in REMEDIES or rule in RULES
        found = transcode(path, TRT, force=True)
        check_tensorrt_reads(found.model)
        fixed = tmp_path / "b.onnx"
        fixed.write_bytes(found.model)
        assert broken(str(fixed)) == {}, rule


def test_the_builder_refuses_what_the_rules_say(rtx: Any, tmp_path: Path) -> None:
    for make, rule in FAULTS.items():
        net = Net(channels=8)
        path = net.write(tmp_path / "a.onnx", make(net))
        if rule not in REFUSED:
            assert build_in_process(rtx, Path(path).read_bytes(), BuildOptions()).plan
            continue
        with pytest.raises(EngineError):
            build_in_process(rtx, Path(path).read_bytes(), BuildOptions())
        found = transcode(path, TRT, force=True)
        assert build_in_process(rtx, found.model, BuildOptions()).plan


def test_why_slow_shows_costs_as_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = Net(channels=8)
    path = net.write(tmp_path / "a.onnx", int32_bias(net))
    for target in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(SystemExit) as ended:
            main(["inspect", path, "--why-slow", "--target", target])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert "was not timed" in shown
        (row,) = [line for line in shown.splitlines() if line.lstrip().startswith("n_conv")]
        assert " - " in row
        assert f"REFUSED     by {TITLES[target]}'s builder: Int32 bias" in shown
    with pytest.raises(SystemExit):
        main(["inspect", path, "--why-slow", "--target", "tensorrt", "--json"])
    told = json.loads(capsys.readouterr().out)["why_slow"]
    assert told["total_ms"] is None
    assert told["rules"][0]["cost_ms"] is None
    assert not told["runs_optimized"]


def test_a_file_made_for_tensorrt_has_nothing_to_tell(tmp_path: Path) -> None:
    net = Net()
    path = net.write(tmp_path / "a.onnx", residual(net))
    once = tmp_path / "once.onnx"
    once.write_bytes(transcode(path, TRT).model)
    told = why_slow(str(once), TRT, engine="tensorrt")
    assert told.fallen == ()
    assert told.int8_nodes == 3
    assert told.runs
