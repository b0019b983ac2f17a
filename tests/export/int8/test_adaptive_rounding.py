"""Weights rounded so that errors cancel out: by hand, on every form of layer, where it pays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from edgepress.compress.quantization.candidate_quality import bias_corrected
from edgepress.compress.quantization.int8_pass import finish_int8, prepare_int8
from edgepress.compress.recipe.pass_context import Context
from edgepress.compress.recipe.settings import Int8
from edgepress.export.calibration.ranges import FeedBatches, calibrate
from edgepress.export.graph.normalize import normalize
from edgepress.export.graph.onnx_graph import Graph, Walk, weight_channel_axis
from edgepress.export.int8 import adaptive_rounding
from edgepress.export.int8.adaptive_rounding import round_weights, rounded_layers
from edgepress.export.int8.dialect import dialect
from edgepress.export.int8.int8_plan import plan_int8
from edgepress.export.int8.qdq_writer import write_qdq
from edgepress.export.int8.quantized_graph import QuantizedGraph
from edgepress.export.receipt import count_macs
from edgepress.export.sensitivity.measure import Int8Network
from edgepress.runtime import EngineOptions
from edgepress.runtime.engines.onnxruntime import OnnxRuntimeEngine
from edgepress.runtime.target import target
from edgepress.runtime.tensors import Array, Arrays


def network(*body: str, x: str = "float[N,4,12,12]", y: str = "float[N,6,H,W]") -> Graph:
    rng = np.random.default_rng(0)
    shapes = {
        "w0": (8, 4, 3, 3), "b0": (8,), "w1": (6, 8, 3, 3), "b1": (6,), "half": (8, 2, 3, 3),
        "each": (8, 1, 3, 3), "point": (6, 8, 1, 1), "fc": (16, 6), "bfc": (6,),
    }  # fmt: skip
    text = f'<ir_version: 10, opset_import: ["" : 18]> g ({x} x) => ({y} y)'
    model = onnx.parser.parse_model(text + "{" + " ".join(body) + "}")
    used = {name for node in model.graph.node for name in node.input}
    for name, shape in shapes.items():
        if name in used:
            scale = np.sqrt(2 / max(1, np.prod(shape[1:])))
            value = rng.normal(0, scale, shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(value, name))
    return normalize(model, source="a test")


def pictures(*shape: int, count: int = 48, seed: int = 1) -> FeedBatches:
    """Smooth ones, so that neighbours go together as in photographs."""

    def batches(size: int) -> Iterator[Arrays]:
        values = np.random.default_rng(seed).normal(0.5, 1.0, (count, *shape))
        for axis in range(2, values.ndim):
            values = (values + np.roll(values, 1, axis) + np.roll(values, 2, axis)) / 3
        for start in range(0, count, size):
            yield {"x": values[start : start + size].astype(np.float32)}

    return batches


def written(
    graph: Graph, batches: FeedBatches, speech: str = "onnxruntime-x86-vnni"
) -> QuantizedGraph:
    ranges = calibrate(graph, batches)
    plan = plan_int8(graph, ranges, dialect(speech))
    return write_qdq(graph, ranges, plan, dialect(speech))


def run(model: bytes, batches: FeedBatches) -> Array:
    with OnnxRuntimeEngine(model, EngineOptions()) as engine:
        return np.concatenate([engine.run(feeds)["y"] for feeds in batches(16)]).astype(np.float64)


def rounded(graph: Graph, quantized: QuantizedGraph) -> bytes:
    """The float32 network with the weights that the codes stand for."""
    model, codes = graph.proto(), onnx.load_model_from_string(quantized.model)
    values = {t.name: numpy_helper.to_array(t) for t in codes.graph.initializer}
    walk = Walk(graph.proto())
    for layer in rounded_layers(walk, codes, quantized):
        axis = weight_channel_axis(layer.node)
        weights = np.moveaxis(values[layer.codes].astype(np.float32), axis, -1)
        weights = np.moveaxis(weights * values[layer.scale], -1, axis)
        (held,) = (t for t in model.graph.initializer if t.name == layer.weights)
        held.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weights), layer.weights))
    return model.SerializeToString()


def noise(graph: Graph, quantized: QuantizedGraph, batches: FeedBatches) -> float:
    """Variance of what rounded weights lose: its mean is the bias's to mend."""
    lost = run(rounded(graph, quantized), batches) - run(graph.model, batches)
    return float(np.mean(lost.var(axis=(0, *range(2, lost.ndim)))))


MAPS = (4, 12, 12)
BODIES = {
    "dense": "y = Conv <pads=[1,1,1,1]> (x, w0, b0)",
    "stride": "y = Conv <strides=[2,2], pads=[1,0,1,0]> (x, w0, b0)",
    "dilation": "y = Conv <dilations=[2,2], pads=[2,2,2,2]> (x, w0)",
    "groups": "y = Conv <group=2, pads=[1,1,1,1]> (x, half, b0)",
    "two layers": "p = Conv <pads=[1,1,1,1]> (x, w0, b0) q = Relu (p) y = Conv (q, w1, b1)",
}


# ---------------------------------------------------------------- what it does


def test_what_one_weight_loses_another_makes_up_for() -> None:
    weights = np.array([[[0.4, 0.4, 0.4]]])
    together = np.ones((1, 3, 3)) + 1e-6 * np.eye(3)
    assert adaptive_rounding._rounded(weights, together, 127).sum() == 1, (
        "1.2 of three equal inputs"
    )
    apart = np.eye(3)[None]
    assert not adaptive_rounding._rounded(weights, apart, 127).any(), (
        "nearest, where nothing goes together"
    )
    assert adaptive_rounding._rounded(400 * weights, together, 127).max() == 127
    nothing = np.zeros((1, 3, 3))
    assert not adaptive_rounding._rounded(weights, nothing, 127).any(), (
        "inputs that are always the same"
    )


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_outputs_come_nearer_and_scales_stay(body: str) -> None:
    graph, seen = network(body, y="float[N,C,H,W]"), pictures(*MAPS)
    plain = written(graph, seen)
    told: list[tuple[int, int]] = []
    anew = round_weights(graph, plain, seen, on_progress=lambda *done: told.append(done))
    assert anew is not None
    layers = body.count("Conv")
    assert told == [(done + 1, layers) for done in range(layers)]
    others = pictures(*MAPS, seed=2)
    assert noise(graph, anew, others) < 0.9 * noise(graph, plain, others)
    before, after = (onnx.load_model_from_string(one.model) for one in (plain, anew))
    assert [node.op_type for node in before.graph.node] == [n.op_type for n in after.graph.node]
    changed = [
        a.name
        for a, b in zip(before.graph.initializer, after.graph.initializer, strict=True)
        if a.raw_data != b.raw_data
    ]
    assert len(changed) == layers
    assert all(t.data_type == onnx.TensorProto.INT8 for t in after.graph.initializer
               if t.name in changed)  # fmt: skip


def test_fully_connected_layers_and_batches_of_any_size() -> None:
    graph = network("y = Gemm (x, fc, bfc)", x="float[N,16]", y="float[N,6]")

    def mixed(seed: int) -> FeedBatches:
        plain, mix = (
            pictures(16, count=50, seed=seed),
            np.random.default_rng(7).normal(size=(4, 16)),
        )
        return lambda size: (
            {"x": (one["x"][:, :4] @ mix).astype(np.float32)} for one in plain(size)
        )

    plain = written(graph, mixed(1))
    anew = round_weights(graph, plain, mixed(1))
    assert anew is not None
    assert noise(graph, anew, mixed(2)) < 0.9 * noise(graph, plain, mixed(2))


def test_inputs_that_hardly_vary_around_a_large_mean_are_rounded_too() -> None:
    """Squares of 1000 in float32 know nothing of what 0.01 around it does."""
    graph = network("y = Conv (x, w0, b0)", y="float[N,C,H,W]")

    def far(size: int) -> Iterator[Arrays]:
        for one in pictures(*MAPS)(size):
            yield {"x": (1000 + 0.01 * one["x"]).astype(np.float32)}

    plain = written(graph, far)
    model = onnx.load_model_from_string(plain.model)
    layers = rounded_layers(Walk(graph.proto()), model, plain)
    ((_, moments),) = adaptive_rounding._moments(graph, layers, far)
    values = np.linalg.eigvalsh(moments)
    assert values.min() > -1e-3 * values.max(), "no variance is less than none"
    assert round_weights(graph, plain, far) is not None


def test_patches_are_what_the_layer_sums_over() -> None:
    for kind in ("stride", "dilation", "groups"):
        graph = network(BODIES[kind], y="float[N,C,H,W]")
        seen = pictures(*MAPS, count=3)
        quantized = written(graph, seen)
        walk = Walk(graph.proto())
        (layer,) = rounded_layers(walk, onnx.load_model_from_string(quantized.model), quantized)
        feeds = next(iter(seen(3)))
        patches = adaptive_rounding._patches(feeds["x"], layer, np.random.default_rng(0))
        weights = walk.constant(layer.weights).reshape(layer.groups, -1, layer.inputs)
        sums = np.matmul(patches, weights.transpose(0, 2, 1))  # (groups, places, outputs of one)
        bias = 0.0 if kind == "dilation" else walk.constant("b0").reshape(layer.groups, 1, -1)
        found = np.sort((sums + bias).reshape(layer.groups, 3, -1, sums.shape[2]), axis=2)
        wanted = run(graph.model, seen).reshape(3, layer.groups, sums.shape[2], -1)
        assert layer.groups == (2 if kind == "groups" else 1)
        for group, picture, channel in np.ndindex(layer.groups, 3, sums.shape[2]):
            given = found[group, picture, :, channel]
            gap = np.abs(given[:, None] - wanted[picture, group, channel][None]).min(axis=1)
            assert gap.max() < 1e-4, "each is one of the layer's outputs"


# ---------------------------------------------------------------- what it leaves alone


def test_shared_weights_and_large_networks_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = network("p = Conv <pads=[1,1,1,1]> (x, w0) q = Relu (p)"
                     " r = Conv <pads=[1,1,1,1]> (x, w0) y = Add (q, r)",
                     y="float[N,8,12,12]")  # fmt: skip
    seen = pictures(*MAPS)
    quantized = written(shared, seen)
    walk, model = Walk(shared.proto()), onnx.load_model_from_string(quantized.model)
    held = {layer.codes for layer in rounded_layers(walk, model, quantized)}
    readers = [node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert held == {"w0_codes"}
    assert readers.count("w0_codes") == 1
    graph = network(BODIES["dense"], y="float[N,C,H,W]")
    plain = written(graph, seen)
    monkeypatch.setattr(adaptive_rounding, "_MOST_WORK", 1e5)
    assert round_weights(graph, plain, seen) is None
    monkeypatch.undo()
    monkeypatch.setattr(adaptive_rounding, "_LARGEST", 35)
    assert round_weights(graph, plain, seen) is None, "36 inputs of one output"


def test_moments_are_held_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, seen = network(BODIES["two layers"]), pictures(*MAPS)
    plain = written(graph, seen)
    whole = round_weights(graph, plain, seen)
    monkeypatch.setattr(adaptive_rounding, "_NUMBERS", 1)
    parts = round_weights(graph, plain, seen)
    assert whole is not None
    assert parts is not None
    assert parts.model == whole.model, "a layer's codes do not hang on what is beside it"


def test_what_was_chosen_before_is_taken_from_there() -> None:
    graph, seen = network(BODIES["two layers"]), pictures(*MAPS)
    ranges, speech = calibrate(graph, seen), dialect("onnxruntime-x86-vnni")
    first, second = (node.name for node in graph.proto().graph.node if node.op_type == "Conv")
    held: adaptive_rounding.RoundedCodes = {}
    told: list[tuple[int, int]] = []

    def anew(*floats: str) -> bytes:
        plan = plan_int8(graph, ranges, speech, keep_float=floats)
        plain = write_qdq(graph, ranges, plan, speech)
        found = round_weights(
            graph, plain, seen, held=held, on_progress=lambda *done: told.append(done)
        )
        again = round_weights(graph, plain, seen)
        assert found is not None
        assert again is not None
        assert found.model == again.model
        return found.model

    anew(second)
    assert told == [(1, 1)]
    anew()
    assert told == [(1, 1), (2, 2)]
    anew(first)
    anew()
    assert told == [(1, 1), (2, 2)]
    assert len(held) == 2


# ---------------------------------------------------------------- kept where it pays


def context_for(graph: Graph, calibration: FeedBatches, selection: FeedBatches) -> Context:
    return Context(
        target=target("onnxruntime-cpu"),
        calibration=calibration,
        calibration_count=48,
        selection=selection,
        macs=count_macs(graph, {"x": np.zeros((1, *MAPS), np.float32)}),
        progress=lambda stage, done, total: None,
    )


def candidates(whole: Int8Network, context: Context, *, bias_correction: bool) -> dict[str, bytes]:
    """Made once more, step by step, of what the pass chooses from."""
    anew = round_weights(whole.graph, whole.quantized, context.calibration)
    assert anew is not None
    if not bias_correction:
        return {"as calibrated": whole.quantized.model, "weights rounded anew": anew.model}
    both = bias_corrected(replace(whole, quantized=anew), context)
    return {
        "as calibrated": whole.quantized.model,
        "biases corrected": bias_corrected(whole, context).model,
        "weights rounded anew, biases corrected": both.model,
    }


def decibels(graph: Graph, model: bytes, batches: FeedBatches) -> float:
    wanted = run(graph.model, batches)
    lost = wanted - run(model, batches)
    return float(10 * np.log10(np.sum(wanted**2) / np.sum(lost**2)))


@pytest.mark.parametrize("bias_correction", [True, False])
def test_a_pass_keeps_the_better_one(bias_correction: bool) -> None:
    graph = network(BODIES["two layers"])
    context = context_for(graph, pictures(*MAPS), pictures(*MAPS, seed=2))
    settings = Int8(bias_correction=bias_correction)
    whole = prepare_int8(graph, settings, context)
    outcome = finish_int8(whole, settings, context)
    models = candidates(whole, context, bias_correction=bias_correction)
    measured = {n: decibels(graph, one, context.selection) for n, one in models.items()}
    best = max(measured, key=lambda one: measured[one])
    assert outcome.report["sqnr_db_on_selection"] == pytest.approx(measured, abs=0.01)
    assert outcome.report["chosen"] == best
    assert outcome.shipped.model == models[best], "what is told is what ships"
    assert outcome.written is not None
    assert outcome.written.quantized.model == models[best]
    without = replace(settings, rounding=False)
    plain = finish_int8(prepare_int8(graph, without, context), without, context)
    assert "rounded" not in str(plain.report)
    left = {n: one for n, one in models.items() if "rounded" not in n}
    assert plain.shipped.model == left[max(left, key=lambda one: measured[one])]


def lit(first: bool, seed: int, every: int) -> FeedBatches:
    """Pictures in which two of the four channels are bright: the first, or the others.

    One of ``every`` has the others bright, so that ranges are the same; none where that is 0.
    """
    values = 0.3 * next(iter(pictures(*MAPS, seed=seed)(48)))["x"]
    turned = np.arange(48) % every == 0 if every else np.zeros(48, bool)
    ones = turned ^ first
    values[ones, :2] += 3
    values[~ones, 2:] += 3
    return lambda size: iter([{"x": values[i : i + size]} for i in range(0, 48, size)])


@pytest.mark.parametrize("alike", [True, False])
def test_biases_stay_where_correcting_them_takes_more_than_it_gives(alike: bool) -> None:
    """What is lost on average on pictures of one kind is not what is lost on another's."""
    graph = network(BODIES["two layers"])
    context = context_for(graph, lit(True, 1, 6), lit(alike, 2, 6 if alike else 0))
    settings = Int8(rounding=False)
    whole = prepare_int8(graph, settings, context)
    outcome = finish_int8(whole, settings, context)
    corrected = bias_corrected(whole, context).model
    gain = decibels(graph, corrected, context.selection) - decibels(
        graph, whole.quantized.model, context.selection
    )
    assert gain > 1 if alike else gain < -1, "dB, as the test needs it"
    assert outcome.report["chosen"] == ("biases corrected" if alike else "as calibrated")
    assert outcome.shipped.model == (corrected if alike else whole.quantized.model)
