"""INT8 layers with their means brought back, and what receipts tell of time and work."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from edgepress.export.calibration.ranges import calibrate
from edgepress.export.engine_views.kernel_profile import int8_time_share
from edgepress.export.int8.bias_correction import correct_biases
from edgepress.export.int8.dialect import DIALECTS, Dialect
from edgepress.export.int8.int8_plan import plan_int8
from edgepress.export.int8.qdq_writer import write_qdq
from edgepress.export.receipt import count_macs, float_receipt, int8_receipt
from helpers.int8_graphs import (
    PICTURES,
    SAME,
    all_fused,
    batches_for,
    network,
    quantize,
    residual,
    run,
    sqnr_db,
)

# ---------------------------------------------------------------- bias correction


@pytest.mark.parametrize("speech", DIALECTS.values(), ids=DIALECTS)
def test_corrected_layers_have_the_means_of_float32(speech: Dialect) -> None:
    graph = residual()
    batches = batches_for(graph)
    ranges = calibrate(graph, batches)
    plain = write_qdq(graph, ranges, plan_int8(graph, ranges, speech), speech)
    told: list[int] = []
    corrected, shifts = correct_biases(
        graph, plain, batches, largest_tensor=2048, on_progress=told.append
    )
    layers = [unit for unit in plain.units if unit.bias]
    # one has too few channels for TensorRT, whose RTX edition quantizes matrix products alone
    wanted = {"tensorrt": 6, "tensorrt-rtx": 1}.get(speech.name, 7)
    assert len(told) == len(shifts) == len(layers) == wanted
    _, left = correct_biases(graph, corrected, batches, largest_tensor=2048)
    assert max(shifts.values()) > 1e-3
    assert max(left.values()) < 1e-3, "channel means are back to a thousandth"
    onnx.checker.check_model(onnx.load_model_from_string(corrected.model), full_check=True)
    assert corrected.units == plain.units


def test_dead_channels_survive_correction() -> None:
    graph = network(
        f"({PICTURES}) => (float[N,8,16,16] y) {{ a = Conv <{SAME}> (x, dead, dead_bias)"
        f" r = Relu(a) y = Conv <{SAME}> (r, w1) }}"
    )
    made = quantize(graph)
    all_fused(made, 2)
    batches = batches_for(graph)
    corrected, _ = correct_biases(graph, made.quantized, batches, largest_tensor=2048)
    feeds = next(iter(batches(4)))
    found = run(corrected.model, feeds, "all")["y"]
    assert sqnr_db(made.wanted["y"], found) > 22


# ---------------------------------------------------------------- receipts and work


def test_the_float_receipt_claims_nothing() -> None:
    graph = residual()
    receipt = float_receipt(graph, {})
    assert (receipt.asked_int8, receipt.fused_int8, receipt.int8_share) == (0, 0, 0)
    assert receipt.engine["engine"] == "onnxruntime"
    told = receipt.to_dict()
    assert told["int8_macs_share"] == 0
    assert isinstance(told["nodes"], list)


def test_the_receipt_tells_the_share_of_time_too() -> None:
    """Where half of the work is float32, INT8 takes less of the time; nothing is made up."""
    text = (
        f"({PICTURES}) => (float[N,8,32,32] y) {{ a = Conv <{SAME}> (x, stem, b8) r = Relu(a)"
        f" t = ConvTranspose <strides=[2,2]> (r, up) y = Conv <{SAME}> (t, w1) }}"
    )
    shares: list[float] = []
    for made in (quantize(residual()), quantize(network(text))):
        assert made.receipt.int8_time_share is None
        assert made.receipt.to_dict()["int8_time_share"] is None
        feeds = next(iter(batches_for(made.graph)(1)))
        macs = count_macs(made.graph, feeds)
        timed = int8_receipt(made.graph, macs, made.quantized, made.plan, feeds=feeds)
        assert timed.int8_time_share is not None
        assert timed.to_dict()["int8_time_share"] == round(timed.int8_time_share, 4)
        assert timed.in_short()["int8_time_share"] == round(timed.int8_time_share, 4)
        shares.append(timed.int8_time_share)
    assert 0 < shares[1] < shares[0] <= 1
    assert shares[0] > 0.3
    assert float_receipt(residual(), {}).int8_time_share == 0
    assert int8_time_share("tensorrt", b"", {}) is None


def test_multiply_adds_are_those_of_the_shapes_that_occur() -> None:
    graph = network(
        f"({PICTURES}) => (float[N,8,28,28] t, float[N,8,12,12] d, float[N,5] y) {{"
        " a = Conv(x, stem, b8) d = Conv <group=8> (a, depth)"
        " t = ConvTranspose <strides=[2,2]> (a, up) p = GlobalAveragePool(a) f = Flatten(p)"
        " g = Gemm(f, head, b12) h = Relu(g) y = Gemm <transB=1> (h, head_t) }"
    )
    feeds = {"x": np.ones((3, 3, 16, 16), np.float32)}
    macs = count_macs(graph, feeds)
    counted = [macs[n.name] for n in graph.proto().graph.node if n.name in macs]
    depthwise, transposed = 12 * 12 * 8 * 9, 14 * 14 * 8 * 8 * 4
    assert counted == [14 * 14 * 8 * 27, depthwise, transposed, 8 * 12, 12 * 5]


def test_work_between_two_inputs_is_counted() -> None:
    graph = network("(float[N,7,8] x, float[N,8,5] z) => (float[N,7,5] y) { y = MatMul(x, z) }")
    feeds = {"x": np.ones((2, 7, 8), np.float32), "z": np.ones((2, 8, 5), np.float32)}
    assert sum(count_macs(graph, feeds).values()) == 7 * 8 * 5
