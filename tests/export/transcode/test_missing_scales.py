"""Scales that are filled in hold for all that reads a tensor; what is given out stays whole."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgepress.export.graph.normalize import normalize
from edgepress.export.graph.onnx_graph import Walk
from edgepress.export.int8.dialect import dialect
from edgepress.export.transcode.infer_missing_scales import KnownScales, params_spanning
from edgepress.export.transcode.parse_qdq import parse_qdq
from edgepress.export.transcode.transcode import transcode
from edgepress.export.transcode.transcode_plan import Liberties, TranscodePlan
from edgepress.export.transcode.verify_layers import ReferenceFile, compare_layers
from edgepress.runtime import EngineOptions
from edgepress.runtime.engines.onnxruntime import OnnxRuntimeEngine
from edgepress.runtime.target import openvino_dialect
from helpers import int8_graphs
from helpers.int8_nets import Net, kernels

X86 = dialect(int8_graphs.X86)


def give_out(path: str, name: str) -> str:
    """Let the network give out a tensor besides its own output."""
    model = onnx.load(path)
    model.graph.output.extend([one for one in model.graph.value_info if one.name == name])
    onnx.save(model, path)
    return path


def convolution(net: Net) -> str:
    return net.conv(net.pair("x", 0.03), 4, 4)


def addition(net: Net) -> str:
    x = net.pair("x", 0.03)
    return net.op("Add", x, net.pair(net.op("Softsign", x), 0.02))


def ends_in_codes(net: Net, y: str, *, channels: int = 4) -> str:
    """What follows a tensor that the network gives out: a ReLU that codes end, and a layer."""
    codes = net.pair(net.op("Relu", y), 0.02, 0, "uint8")
    return net.pair(net.conv(codes, channels, 4), 0.05)


@pytest.mark.parametrize("make", [convolution, addition])
@pytest.mark.parametrize("name", [int8_graphs.X86, openvino_dialect()])
def test_what_the_network_gives_out_is_not_clipped_for_its_readers(
    make: Callable[[Net], str], name: str, tmp_path: Path
) -> None:
    engine = name.partition("-")[0]
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")
    net = Net(70)
    y = make(net)
    path = give_out(net.write(tmp_path / "a.onnx", ends_in_codes(net, y)), y)
    found = transcode(path, dialect(name), engine=engine)
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 4, 16, 16)).astype(np.float32)}
    with (
        OnnxRuntimeEngine(Path(path).read_bytes(), EngineOptions(optimize="none")) as given,
        OnnxRuntimeEngine(found.model, EngineOptions(optimize="none")) as made,
    ):
        before, after = given.run(feeds)[y], made.run(feeds)[y]
    assert before.min() < -1
    np.testing.assert_allclose(after, before, atol=0.03)
    rounded = [one for one in found.changes if one.rule.startswith("output that the kernel")]
    assert [one.where for one in rounded] == ([] if np.allclose(after, before, atol=1e-4) else [y])


def test_the_proof_sees_an_output_that_is_clipped(tmp_path: Path) -> None:
    """A quantizer that ends where the readers do, but the network gives the tensor out."""
    net = Net(71)
    y = convolution(net)
    path = give_out(net.write(tmp_path / "a.onnx", ends_in_codes(net, y)), y)
    stripped = parse_qdq(onnx.load(path), path)
    original, decided = dict(stripped.codes), TranscodePlan(stripped, X86, Liberties())
    graph = normalize(stripped.model, source=path, keep=sorted(stripped.codes))
    decided.known[y] = params_spanning(0.0, 5.1)
    decided.filled.add(y)
    written = decided.write(graph)
    truth = ReferenceFile(onnx.load(path), original, stripped.views, {}, {y: decided.known[y]})
    told = compare_layers(truth, written, graph.inputs, "onnxruntime")
    assert told.worst_tensor == y
    assert told.layer_steps > 10


def both_halves(net: Net, y: str) -> str:
    """CReLU."""
    return net.op("Concat", net.op("Relu", y), net.op("Relu", net.op("Neg", y)), axis=1)


def other_half(net: Net, y: str) -> str:
    """A Split of which one half alone goes into codes."""
    names = [net.name("half"), net.name("half")]
    net.nodes.append(
        onnx.helper.make_node("Split", [y], names, name="split", axis=1, num_outputs=2)
    )
    floats = net.op("Softsign", names[1])
    left = net.pair(net.op("Relu", names[0]), 0.02, 0, "uint8")
    return net.op("Concat", left, floats, axis=1)


@pytest.mark.parametrize(("make", "channels"), [(both_halves, 8), (other_half, 4)])
def test_where_one_reader_tells_nothing_a_node_stays_float(
    make: Callable[[Net, str], str], channels: int, tmp_path: Path
) -> None:
    net = Net(72)
    y = convolution(net)
    z = net.conv(net.pair(make(net, y), 0.02), channels, 4)
    found = transcode(net.write(tmp_path / "a.onnx", net.pair(z, 0.05)), X86)
    assert kernels(found.model)["QLinearConv"] == 1
    assert f"n_{y}" in {change.where for change in found.kept_float}


def test_a_reader_of_sizes_alone_tells_nothing_and_hinders_nothing(tmp_path: Path) -> None:
    net = Net(73)
    y = net.op("Relu", convolution(net))
    sizes = net.op("Shape", y)
    z = net.pair(net.op("MaxPool", y, kernel_shape=[1, 1]), 0.02, 0, "uint8")
    z = net.op("Reshape", net.pair(net.conv(z, 4, 4), 0.05), sizes)
    found = transcode(net.write(tmp_path / "a.onnx", z), X86)
    assert kernels(found.model)["QLinearConv"] == 2


def between_pixels(net: Net, y: str, mode: str = "linear") -> str:
    """Twice the size: a peak between zeros comes out lower, or beyond what was there."""
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    return net.op("Resize", y, "", scales, mode=mode)


def cubic(net: Net, y: str) -> str:
    return between_pixels(net, y, "cubic")


def padded(net: Net, y: str, value: float = 9.0) -> str:
    pads = net.constant(np.array([0, 0, 2, 2, 0, 0, 2, 2]))
    return net.op("Pad", y, pads, net.constant(np.float32(value)))


@pytest.mark.parametrize("make", [between_pixels, cubic, padded])
def test_what_makes_values_of_its_own_tells_nothing_of_those_it_reads(
    make: Callable[[Net, str], str], tmp_path: Path
) -> None:
    """Peaks in front of it may lie far beyond the codes behind it."""
    net = Net(74)
    y = make(net, net.op("Relu", convolution(net)))
    z = net.conv(net.pair(y, 0.01, 0, "uint8"), 4, 4)
    found = transcode(net.write(tmp_path / "a.onnx", net.pair(z, 0.05)), X86)
    assert kernels(found.model)["QLinearConv"] == 1
    filled = [one for one in found.changes if one.rule == "missing output quantizer"]
    assert filled == []


@pytest.mark.parametrize("make", [between_pixels, cubic, padded])
def test_what_makes_values_of_its_own_gets_no_scale_of_what_it_reads(
    make: Callable[[Net, str], str], tmp_path: Path
) -> None:
    net = Net(75)
    y = make(net, net.pair(net.op("Relu", convolution(net)), 0.01, 0, "uint8"))
    z = net.pair(net.conv(y, 4, 4), 0.05)
    found = transcode(net.write(tmp_path / "a.onnx", z), X86)
    assert kernels(found.model)["QLinearConv"] == 1
    assert found.equality.layer_steps <= 1.01


def test_the_other_operand_of_a_sum_reaches_as_far_as_its_padding(tmp_path: Path) -> None:
    net = Net(76)
    other = padded(net, net.op("Relu", "x"), -5.0)
    z = padded(net, "x", 0.0)
    total = net.op("Add", z, other)
    walk = Walk(onnx.load(net.write(tmp_path / "a.onnx", total)))
    known = {other: params_spanning(-6.0, 6.0), total: params_spanning(-6.0, 10.0)}
    found = KnownScales(walk, known, (), X86).codes_for(z)
    assert found is not None
    assert found.low == pytest.approx(-12, abs=0.1)
    assert found.high == pytest.approx(16, abs=0.1)


def test_what_is_no_number_in_both_files_is_the_same(tmp_path: Path) -> None:
    net = Net(72)
    y = net.op("Log", net.pair(net.conv(net.pair("x", 0.03), 4, 4), 0.05))
    equality = transcode(net.write(tmp_path / "a.onnx", y), X86).equality
    assert equality.layer_steps <= 1
    assert equality.output_cosine > 0.99


def test_what_is_no_number_in_one_file_is_infinitely_far() -> None:
    from edgepress.export.transcode.verify_layers import _apart

    one = np.array([1.0, np.nan, np.inf, np.nan, np.inf, 2.0])
    other = np.array([1.5, np.nan, np.inf, 0.0, -np.inf, 2.0])
    assert _apart(one, other).tolist() == [0.5, 0, 0, np.inf, np.inf, 0]
