"""Cross-layer equalisation: the same function, channels that one scale fits, kept where it pays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from edgepress.compress.quantization.int8_pass import finish_int8, prepare_int8
from edgepress.compress.recipe.pass_context import Context
from edgepress.compress.recipe.recipe import Recipe
from edgepress.compress.recipe.settings import Int8
from edgepress.export.calibration.ranges import FeedBatches, calibrate
from edgepress.export.graph.normalize import normalize
from edgepress.export.graph.onnx_graph import Graph, Walk
from edgepress.export.int8.cross_layer_equalization import (
    channel_peaks,
    equalization_factors,
    equalize,
    equalized_chains,
)
from edgepress.export.receipt import count_macs
from edgepress.runtime import EngineOptions, InputError
from edgepress.runtime.engines.onnxruntime import OnnxRuntimeEngine
from edgepress.runtime.target import target
from edgepress.runtime.tensors import Array, Arrays

RNG = np.random.default_rng(0)
SPREAD = np.repeat([1 / 16, 1.0], 4).astype(np.float32)
"""What the channels between the first two layers are multiplied by."""

RELU = "p = Conv <pads=[1,1,1,1]> (x, w0, b0) q = Relu (p)"
DEPTHWISE = "r = Conv <group=8, pads=[1,1,1,1]> (q, w1, b1) s = Relu (r)"
DENSE = "y = Conv (s, w2)"


def weights() -> dict[str, Array]:
    def normal(*shape: int) -> Array:
        return RNG.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)

    return {
        "w0": normal(8, 3, 3, 3) * SPREAD[:, None, None, None],
        "b0": normal(8, 1)[:, 0] * SPREAD,
        "w1": normal(8, 1, 3, 3) / SPREAD[:, None, None, None],
        "b1": normal(8, 1)[:, 0],
        "w2": normal(6, 8, 1, 1),
        "half": normal(6, 4, 1, 1),
        "zero": np.array(0, np.float32),
        "one": np.array(1, np.float32),
        "six": np.array(6, np.float32),
        "minus": np.array(-1, np.float32),
    }


WEIGHTS = weights()


def network(*body: str, **changed: Array) -> Graph:
    text = (
        '<ir_version: 10, opset_import: ["" : 18]> g (float[N,3,12,12] x) => (float[N,6,12,12] y)'
    )
    model = onnx.parser.parse_model(text + "{" + " ".join(body) + "}")
    used = {name for node in model.graph.node for name in node.input}
    for name, value in {**WEIGHTS, **changed}.items():
        if name in used:
            model.graph.initializer.append(numpy_helper.from_array(value, name))
    return normalize(model, source="a test")


def pictures(count: int = 32, scale: float = 1.0) -> FeedBatches:
    def batches(size: int) -> Iterator[Arrays]:
        values = np.random.default_rng(count).normal(0, scale, (count, 3, 12, 12))
        for start in range(0, count, size):
            yield {"x": values[start : start + size].astype(np.float32)}

    return batches


def run(graph: Graph, batches: FeedBatches) -> Array:
    with OnnxRuntimeEngine(graph.model, EngineOptions()) as engine:
        return np.concatenate([engine.run(feeds)["y"] for feeds in batches(32)])


def spread(graph: Graph, tensor: str) -> float:
    (chain,) = [one for one in equalized_chains(graph.proto()) if one.tensor == tensor]
    mean, _ = channel_peaks(graph, [chain], pictures())[tensor]
    return float(mean.max() / mean.min())


# ---------------------------------------------------------------- the same function


@pytest.mark.parametrize(
    "body",
    [
        (RELU, DEPTHWISE, DENSE),
        (RELU, "s = Conv <group=8, pads=[1,1,1,1]> (q, w1)", DENSE),
        ("p = Conv <pads=[1,1,1,1]> (x, w0) q = LeakyRelu <alpha=0.1> (p)", DEPTHWISE, DENSE),
        ("q = Conv <pads=[1,1,1,1]> (x, w0, b0)", DEPTHWISE, DENSE),
        (RELU, DEPTHWISE, "y = Conv <group=2> (s, half)"),
        (RELU, DEPTHWISE, "t = Conv (s, w2) u = Conv (s, w2) y = Add (t, u)"),
        (RELU, DEPTHWISE, "r2 = Conv <group=8, pads=[1,1,1,1]> (q, w1) t = Conv (r2, w2)"
         " u = Conv (s, w2) y = Sub (u, t)"),
    ],
    ids=["relu", "no bias", "leaky", "linear", "groups", "two dense", "shared"],
)  # fmt: skip
def test_a_network_stays_the_same_function_and_its_channels_come_together(
    body: tuple[str, ...],
) -> None:
    graph = network(*body)
    found = equalize(graph, pictures())
    assert found is not None
    wanted = run(graph, pictures(16))
    np.testing.assert_allclose(
        run(found.graph, pictures(16)), wanted, atol=1e-5 * np.abs(wanted).max()
    )
    assert "q" in found.factors
    assert spread(found.graph, "q") < spread(graph, "q") / 4
    names = [node.name for node in graph.proto().graph.node]
    assert [node.name for node in found.graph.proto().graph.node] == names
    assert graph.inputs == found.graph.inputs


def test_a_ceiling_is_not_passed_and_channels_that_reach_it_stay() -> None:
    loud = WEIGHTS["b0"].copy()
    loud[7] = 20
    relu6 = "p = Conv <pads=[1,1,1,1]> (x, w0, b0) q = Clip (p, zero, six)"
    graph = network(relu6, DEPTHWISE, DENSE, b0=loud)
    found = equalize(graph, pictures())
    assert found is not None
    factors = found.factors["q"]
    assert factors[7] == 1
    assert factors[0] > 2
    wanted = run(graph, pictures())
    np.testing.assert_allclose(
        run(found.graph, pictures()), wanted, atol=1e-5 * np.abs(wanted).max()
    )


def test_dead_channels_and_very_quiet_ones_are_not_blown_up() -> None:
    quiet = WEIGHTS["w0"].copy()
    quiet[2], quiet[3] = 0, 1e-20
    shift = WEIGHTS["b0"].copy()
    shift[2], shift[3] = -1, 0
    graph = network(RELU, DEPTHWISE, DENSE, w0=quiet, b0=shift)
    found = equalize(graph, pictures())
    assert found is not None
    assert found.factors["q"][2] == 1
    assert found.factors["q"].max() <= 8
    assert np.isfinite(run(found.graph, pictures())).all()


# ---------------------------------------------------------------- where it is left alone


@pytest.mark.parametrize(
    "body",
    [
        ("p = Conv <pads=[1,1,1,1]> (x, w0, b0) a = Sigmoid (p) q = Mul (p, a)", DEPTHWISE, DENSE),
        ("p = Conv <pads=[1,1,1,1]> (x, w0, b0) q = HardSwish (p)", DEPTHWISE, DENSE),
        ("p = Conv <pads=[1,1,1,1]> (x, w0, b0) q = Clip (p, minus, one)", DEPTHWISE, DENSE),
        (RELU, "r = Conv <group=8, pads=[1,1,1,1]> (q, w1) s = Add (r, q)", DENSE),
        ("p = Conv <pads=[1,1,1,1]> (x, w0, b0) q = Relu (p) a = Sigmoid (p) z = Mul (q, a)",
         "r = Conv <group=8, pads=[1,1,1,1]> (z, w1) s = Sigmoid (r)", DENSE),
    ],
    ids=["silu", "hardswish", "a Clip below zero", "a residual sum", "two readers of the layer"],
)  # fmt: skip
def test_tensors_that_cannot_be_scaled_are_left_alone(body: tuple[str, ...]) -> None:
    assert "q" not in [chain.tensor for chain in equalized_chains(network(*body).proto())]


def test_outputs_of_the_network_are_left_alone() -> None:
    model = network(RELU, DEPTHWISE, DENSE).proto()
    model.graph.output.append(onnx.ValueInfoProto(name="q"))
    assert [chain.tensor for chain in equalized_chains(model)] == ["s"]


def test_constants_that_the_network_gives_out_stay() -> None:
    """As the anchors of a detector."""
    model = network(RELU, DEPTHWISE, DENSE).proto()
    model.graph.initializer.append(numpy_helper.from_array(WEIGHTS["half"], "anchors"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("anchors", 1, [6, 4, 1, 1]))
    found = equalize(normalize(model, source="a detector"), pictures())
    assert found is not None
    assert "anchors" in {tensor.name for tensor in found.graph.proto().graph.initializer}
    with OnnxRuntimeEngine(found.graph.model, EngineOptions()) as engine:
        given = engine.run(next(iter(pictures(1)(1))))
    np.testing.assert_array_equal(given["anchors"], WEIGHTS["half"])


def test_networks_without_depthwise_layers_or_need_cost_nothing() -> None:
    def never(size: int) -> Iterator[Arrays]:
        raise AssertionError("calibration pictures were asked for")

    dense = WEIGHTS["w2"][:, :, :, :]
    wide = RNG.normal(size=(8, 8, 1, 1)).astype(np.float32)
    plain = network(RELU, "s = Conv (q, wide)", DENSE, wide=wide, w2=dense)
    assert equalize(plain, never) is None
    even = {"w0": WEIGHTS["w0"] / SPREAD[:, None, None, None], "b0": np.zeros(8, np.float32)}
    for name in ("w0", "w1", "w2"):
        even[name] = np.full_like(WEIGHTS[name], 0.1)
    even["b1"] = np.zeros(8, np.float32)
    assert equalize(network(RELU, DEPTHWISE, DENSE, **even), pictures()) is None


def test_a_dense_reader_takes_the_root_of_the_difference() -> None:
    graph = network(RELU, DEPTHWISE, DENSE)
    chain = next(one for one in equalized_chains(graph.proto()) if one.tensor == "s")
    peaks = np.array([1.0, 2.0, 4.0, 4.0])
    even = np.ones((6, 4, 1, 1), np.float32)
    factors = equalization_factors(chain, peaks, peaks, [(even, 1)])
    np.testing.assert_allclose(factors / factors[-1], [2, np.sqrt(2), 1, 1])
    assert (factors * peaks).max() == pytest.approx(4)
    through = replace(chain, depthwise=True)
    np.testing.assert_allclose(
        equalization_factors(through, peaks, peaks, [(even, 1)]), [4, 2, 1, 1]
    )


# ---------------------------------------------------------------- kept where it pays


def context_for(graph: Graph, selection: FeedBatches | None = None) -> Context:
    return Context(
        target=target("onnxruntime-cpu"),
        calibration=pictures(),
        calibration_count=32,
        selection=selection or pictures(16),
        macs=count_macs(graph, {"x": np.zeros((1, 3, 12, 12), np.float32)}),
        progress=lambda stage, done, total: None,
    )


@pytest.mark.parametrize("bias_correction", [True, False])
def test_int8_comes_nearer_to_float32(bias_correction: bool) -> None:
    graph = network(RELU, DEPTHWISE, DENSE)
    context, settings = context_for(graph), Int8(bias_correction=bias_correction)
    outcome = finish_int8(prepare_int8(graph, settings, context), settings, context)
    told: Any = outcome.report["equalization"]
    assert told["chosen"] == "equalised"
    sqnr = told["sqnr_db_on_selection"]
    assert sqnr["equalised"] > sqnr["as trained"] + 1
    without = replace(settings, equalization=False)
    plain = finish_int8(prepare_int8(graph, without, context), without, context)
    assert "equalization" not in plain.report
    wanted = run(graph, pictures(16))
    lost = [
        float(np.sum((run(replace(graph, model=one.shipped.model), pictures(16)) - wanted) ** 2))
        for one in (outcome, plain)
    ]
    assert 10 * np.log10(lost[1] / lost[0]) > 1
    assert outcome.receipt.fused_int8 == plain.receipt.fused_int8


def test_what_a_layer_gives_before_a_leaky_relu_is_calibrated_again() -> None:
    leaky = "p = Conv <pads=[1,1,1,1]> (x, w0, b0) q = LeakyRelu <alpha=0.1> (p)"
    graph = network(leaky, DEPTHWISE, DENSE)
    whole = prepare_int8(graph, Int8(), context_for(graph))
    assert whole.graph is not graph
    assert "p" in whole.layout(Walk(whole.graph.proto())).quantizers
    anew = calibrate(whole.graph, pictures(), only=["p", "q"]).tensors
    assert {name: whole.ranges.tensors[name] for name in anew} == anew


def test_it_is_left_out_where_it_does_not_measure_better() -> None:
    relu6 = "p = Conv <pads=[1,1,1,1]> (x, w0, b0) q = Clip (p, zero, six)"
    graph = network(relu6, DEPTHWISE, DENSE)
    loud = context_for(graph, pictures(16, scale=50.0))  # far beyond what calibration saw
    whole = prepare_int8(graph, Int8(), loud)
    told: Any = whole.told["equalization"]
    assert told["chosen"] == "as trained"
    assert whole.graph is graph


def test_calibration_looks_at_the_tensors_that_are_named() -> None:
    graph = network(RELU, DEPTHWISE, DENSE)
    whole, some = calibrate(graph, pictures()), calibrate(graph, pictures(), only=["q", "x"])
    assert some.tensors.keys() == {"q", "x"}
    assert some.tensors["q"] == whole.tensors["q"]


def test_recipes_switch_it_off() -> None:
    given = {"pass": [{"kind": "int8", "equalization": False}]}
    assert Recipe.from_dict(given, "mine").passes == (Int8(equalization=False),)
    with pytest.raises(InputError) as caught:
        Recipe.from_dict({"pass": [{"kind": "int8", "equalization": "yes"}]}, "mine")
    assert caught.value.code == "E_RECIPE"
