"""Ends: what is compared of a network that gives as many values as the picture has objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from edgepress.compress.quantization.int8_pass import finish_int8, prepare_int8
from edgepress.compress.recipe.pass_context import Context
from edgepress.compress.recipe.settings import Int8
from edgepress.export import ShippedModel, bundle_contents, calibrate, dialect, plan_int8, write_qdq
from edgepress.export.fp16.fp16 import settle_fp16
from edgepress.export.fp16.fp16_writer import fp16_simulation
from edgepress.export.graph.normalize import normalize
from edgepress.export.graph.onnx_graph import Graph, Walk
from edgepress.export.int8.float_outputs import FloatEnds, of_no_fixed_size
from edgepress.export.receipt import count_macs
from edgepress.export.sensitivity.node_noise import measure_node_noise
from edgepress.runtime import EngineOptions, InputError
from edgepress.runtime.engines.onnxruntime import OnnxRuntimeEngine
from edgepress.runtime.target import target
from edgepress.runtime.tensors import Array, Arrays

DETECTOR = (
    "(float[N,3,8,8] x) => (float[M,4] boxes, float[M] best, float[N,8,8,8] r) {"
    " a = Conv <pads=[1,1,1,1]> (x, stem) r = Relu (a)"
    " l = Conv (r, corners) m = Reshape (l, flat) b = Transpose <perm=[0,2,1]> (m)"
    " o = Conv (r, objects) p = Reshape (o, flat) s = Sigmoid (p)"
    " k = NonMaxSuppression (b, s, most, overlap, least) i = Gather <axis=1> (k, picture_and_box)"
    " boxes = GatherND (b, i) t = Squeeze (s, one) best = GatherND (t, i) }"
)


def network(text: str) -> Graph:
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {
        "stem": rng.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32),
        "corners": rng.normal(0, 1, (4, 8, 1, 1)).astype(np.float32),
        "objects": rng.normal(0, 1, (1, 8, 1, 1)).astype(np.float32),
        "flat": np.array([0, 0, -1]),
        "most": np.array(64),
        "overlap": np.float32(0.5),
        "least": np.float32(0.5),
        "small": np.float32(0.01),
        "picture_and_box": np.array([0, 2]),
        "zero": np.array([0]),
        "one": np.array([1]),
        "scalar": np.array(0),
        "rows": np.array([-1, 8]),
        "sight": rng.normal(0, 0.3, (8, 1)).astype(np.float32),
        "head": rng.normal(0, 0.3, (8, 12)).astype(np.float32),
    }
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 18]> g ' + text)
    used = {name for node in model.graph.node for name in node.input}
    for name in sorted(used & values.keys()):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values[name]), name))
    return normalize(model, source="a detector")


@lru_cache
def detector() -> Graph:
    return network(DETECTOR)


def pictures(size: int) -> Iterator[Arrays]:
    values = np.random.default_rng(1).normal(size=(16, 3, 8, 8)).astype(np.float32)
    for start in range(0, len(values), size):
        yield {"x": values[start : start + size]}


def run(model: bytes, feeds: Arrays) -> Arrays:
    with OnnxRuntimeEngine(model, EngineOptions()) as engine:
        return engine.run(feeds)


def test_what_objects_are_chosen_from_is_judged_in_their_place() -> None:
    ends = FloatEnds.of(detector())
    assert ends.outputs == ("r",)
    assert sorted(name.partition(", which ")[0] for name in ends.reads) == ["b", "b", "s", "t"]
    nodes = {place[0].partition("_")[0] for place in ends.reads.values()}
    assert nodes == {"NonMaxSuppression", "GatherND"}


@pytest.mark.parametrize(
    ("body", "loose"),
    [
        ("s = Shape (x) y = Expand (one, s)", ""),
        ("s = Shape (x) c = ConstantOfShape (s) n = NonZero (c) y = Cast <to=1> (n)", ""),
        ("n = NonZero (x) s = Shape (n) e = Gather (s, one) r = ReduceMax (x) y = Expand (r, e)",
         "n y"),
        ("m = ArgMax (x) e = Reshape (m, minus) y = Slice (x, zero, e, zero)", "y"),
        ("u = Unique (x) a, y = TopK (u, one)", "u a y"),
    ],
    ids=["sizes", "places of all", "as many as found", "up to the largest", "from those found"],
)  # fmt: skip
def test_sizes_that_depend_on_values_are_told_from_those_that_do_not(body: str, loose: str) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[N,4] x) => (float y) {' + body + "}"
    )
    assert of_no_fixed_size(model) == set(loose.split())


def test_int8_of_a_detector_is_compared_with_float32() -> None:
    graph = detector()
    context = Context(
        target=target("onnxruntime-cpu"),
        calibration=pictures,
        calibration_count=16,
        selection=pictures,
        macs=count_macs(graph, next(pictures(1))),
        progress=lambda stage, done, total: None,
    )
    whole = prepare_int8(graph, Int8(), context)
    feeds = next(pictures(16))
    found = run(whole.quantized.model, feeds)
    assert found["boxes"].shape != run(graph.model, feeds)["boxes"].shape
    outcome = finish_int8(whole, Int8(), context)
    sqnr: Any = outcome.report["sqnr_db_on_selection"]
    assert min(sqnr.values()) > 20
    walk = Walk(graph.proto())
    layers = [unit.node for unit in whole.quantized.units if unit.op_type == "Conv"]
    damage = measure_node_noise(
        graph, whole.layout(walk), whole.dialect, layers, pictures(4), sessions=3
    )
    assert damage.pictures == 16
    assert 0 < max(damage.whole) < 0.01


def test_codes_that_are_chosen_from_are_shown_as_floats() -> None:
    graph = network(
        "(float[N,3,8,8] x) => (float[M,12] y) { a = Conv (x, stem)"
        " t = Transpose <perm=[0,2,3,1]> (a) r = Reshape (t, rows) l = MatMul (r, sight)"
        " g = Greater (l, least) n = NonZero (g) i = Gather (n, scalar) f = Gather (r, i)"
        " y = MatMul (f, head) }"
    )
    ranges, its = calibrate(graph, pictures), dialect("onnxruntime-x86-vnni")
    written = write_qdq(graph, ranges, plan_int8(graph, ranges, its), its)
    assert "Gather_f" in written.moved
    ends, feeds = FloatEnds.of(graph), next(pictures(4))
    exact, found = (
        shown.pick(run(shown.model, feeds), feeds)
        for shown in (ends.shown(graph.model), ends.shown(written.model))
    )
    assert sorted(exact) == ["l, which Greater_g reads", "r, which Gather_f reads"]
    for name, value in exact.items():
        np.testing.assert_allclose(found[name], value, atol=0.05 * np.abs(value).max())


def test_fp16_of_a_detector_is_compared_and_blamed() -> None:
    close = network(DETECTOR.replace("s = Sigmoid (p)", "q = Mul (p, small) s = Sigmoid (q)"))
    ranges, feeds = calibrate(close, pictures, method="minmax"), next(pictures(16))
    found = settle_fp16(close, ranges, pictures)
    assert found.held
    given = run(fp16_simulation(found.half.model), feeds)
    assert given["boxes"].shape != run(close.model, feeds)["boxes"].shape
    assert settle_fp16(close, ranges, pictures, bound_db=90.0).rounds > 0


def test_a_golden_output_that_rounding_gives_another_size_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Rounded(OnnxRuntimeEngine):
        def run(self, feeds: Mapping[str, Array]) -> Arrays:
            return {name: array[1:] for name, array in super().run(feeds).items()}

    monkeypatch.setattr(bundle_contents, "OnnxRuntimeEngine", Rounded)
    shipped = ShippedModel(detector().model, "float32", "onnx", "onnxruntime", {})
    with pytest.raises(InputError) as caught:
        bundle_contents.golden_outputs(shipped, next(pictures(1)))
    assert (caught.value.code, caught.value.path) == ("E_SHAPE", "boxes")
    assert "--golden-pictures" in caught.value.mend
