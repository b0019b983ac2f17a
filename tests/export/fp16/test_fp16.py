"""FP16 as a graph: what stays float32 and why, few casts, no network that collapses unseen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx
import onnx.parser
from onnx import TensorProto, numpy_helper

from edgepress.export import calibrate, dialect, plan_int8, write_qdq
from edgepress.export.fp16.fp16 import SettledFp16, settle_fp16
from edgepress.export.fp16.fp16_plan import (
    FP16,
    FP16_LARGEST,
    fp16_nodes,
    plan_fp16,
    rounded_to_fp16,
)
from edgepress.export.fp16.fp16_writer import (
    Fp16Graph,
    fp16_simulation,
    scales_below_fp16,
    scales_for_fp16,
    write_fp16,
)
from edgepress.export.graph.normalize import normalize, with_opset
from edgepress.export.graph.onnx_graph import Graph
from edgepress.export.graph.precision_plan import NodePrecision, PrecisionPlan
from edgepress.runtime import EngineOptions, InputError, MissingExtraError, open_engine
from edgepress.runtime.engine_registry import load_backend
from edgepress.runtime.engines.build_options import BuildOptions
from edgepress.runtime.nvidia.network_builder import build_in_process
from edgepress.runtime.tensors import Array, Arrays

RNG = np.random.default_rng(0)
PICTURES = "float[N,8,16,16] x"


def constant(name: str) -> Array:
    """The value that a name tells: ``w_8_8_3_3`` random of that shape, ``c_1000`` a scalar."""
    kind, *sizes = name.split("_")
    shape = [int(size) for size in sizes] if kind not in ("c", "i") else []
    if kind == "f":
        return np.array([float(size) for size in sizes], np.float32)
    if kind == "i":
        return np.array([int(size) for size in sizes], np.int64)
    if kind == "c":
        return np.array(float(sizes[0].replace("m", "-")), np.float32)
    if kind == "z":
        return np.full(shape, 2e-9, np.float32)
    fan = np.sqrt(np.prod(shape[1:]))
    return np.random.default_rng(len(name)).normal(0, 1 / fan, shape).astype(np.float32)


def written(text: str, *, opset: int = 19) -> Graph:
    header = f'<ir_version: 8, opset_import: ["" : {opset}]> network '
    model = onnx.parser.parse_model(header + text)
    made = {name for node in model.graph.node for name in node.output}
    made |= {value.name for value in model.graph.input}
    for name in sorted({n for node in model.graph.node for n in node.input if n} - made):
        model.graph.initializer.append(numpy_helper.from_array(constant(name), name))
    return normalize(model, source="the test")


def pictures(size: int) -> Iterator[Arrays]:
    rng = np.random.default_rng(1)
    for _ in range(4):
        yield {"x": rng.normal(size=(4, 8, 16, 16)).astype(np.float32)}


def planned(graph: Graph, **options: Any) -> PrecisionPlan:
    return plan_fp16(graph, calibrate(graph, pictures, method="minmax"), **options)


def settled(graph: Graph, **options: Any) -> SettledFp16:
    """Settle a graph, and check what holds for all of them."""
    found = settle_fp16(graph, calibrate(graph, pictures, method="minmax"), pictures, **options)
    model = onnx.load_model_from_string(found.half.model)
    onnx.checker.check_model(model, full_check=True)
    with open_engine("onnxruntime")(found.half.model) as engine:
        assert (engine.inputs, engine.outputs) == (graph.inputs, graph.outputs)
    assert found.held
    assert found.half.nodes == fp16_nodes(found.plan)
    casts = sum(1 for node in model.graph.node if node.op_type == "Cast")
    before = sum(1 for node in graph.proto().graph.node if node.op_type == "Cast")
    assert casts == before + found.half.casts
    return found


def run(model: bytes, feeds: Arrays) -> Array:
    with open_engine("onnxruntime")(model, EngineOptions(optimize="basic")) as engine:
        return next(iter(engine.run(feeds).values()))


def kept(plan: PrecisionPlan) -> dict[str, str]:
    return {name: one.reason for name, one in plan.nodes.items() if one.precision != FP16}


# ---------------------------------------------------------------- the plan, from ranges


CONVOLUTION = f"({PICTURES}) => (float[N,8,14,14] y) {{ a = Conv(x, w_8_8_3_3, b_8) y = Relu(a) }}"


def test_an_ordinary_network_is_fp16_but_for_its_ends() -> None:
    found = settled(written(CONVOLUTION))
    assert kept(found.plan) == {}
    assert found.half.casts == 2
    model = onnx.load_model_from_string(found.half.model)
    assert [node.op_type for node in model.graph.node] == ["Cast", "Conv", "Relu", "Cast"]
    assert {one.data_type for one in model.graph.initializer} == {TensorProto.FLOAT16}
    assert min(one.sqnr_db for one in found.outputs.values()) > 60
    assert len(found.half.model) < 0.65 * len(written(CONVOLUTION).model)


@pytest.mark.parametrize(
    ("nodes", "fallen", "why"),
    [
        ("t = Tanh(a) b = Mul(t, c_20000) s = Abs(b) y = Div(s, c_20000)", "Mul_b", "reaches"),
        ("t = Sigmoid(a) s = Mul(t, c_1em5) b = Sqrt(s) y = Mul(b, c_9)", "Mul_s", "stays below"),
        ("s = Abs(a) b = Add(s, c_1em12) y = Sqrt(b)", "Add_b", "too small for FP16"),
        ("e = Mul(a, c_8) b = Exp(e) y = Log(b)", "Exp_b", "reaches"),
        ("e = Mul(a, c_500) y = Softmax <axis=1> (e)", "Softmax_y", "exponents"),
        ("s = Mul(a, c_100) b = ReduceL2 <keepdims=1> (s, i_1) y = Div(s, b)",
         "ReduceL2_b", "squares"),
        ("s = Abs(a) m = Mul(s, c_1000) p = GlobalAveragePool(m) y = Div(m, p)",
         "GlobalAveragePool_p", "the sum that it divides"),
        ("t = Tanh(a) m = Mul(t, c_9000) s = Abs(m)"
         " p = AveragePool <kernel_shape=[5,5], pads=[2,2,2,2]> (s) y = Div(m, p)",
         "AveragePool_p", "the sum that it divides"),
        ("e = Mul(a, c_9) t = Tanh(e) s = Mul(t, c_150) b = ReduceL2 <keepdims=1> (s, i_1)"
         " y = Div(s, b)", "ReduceL2_b", "the sum of squares"),
        ("e = Mul(a, c_9) t = Tanh(e) s = Mul(t, c_150) y = LpNormalization <axis=1> (s)",
         "LpNormalization_y", "the sum of squares"),
        ("t = Tanh(a) s = Mul(t, c_100) b = LpPool <kernel_shape=[5,5], pads=[2,2,2,2]> (s)"
         " y = Div(s, b)", "LpPool_b", "the sum of squares"),
        ("t = Tanh(a) s = Mul(t, c_5) b = GlobalLpPool <p=3> (s) y = Div(s, b)",
         "", ""),
        ("t = Tanh(a) u = Div(t, c_100) s = Mul(u, c_100000) y = Abs(s)", "Mul_s", "reaches"),
        ("y = Conv(a, w_8_8_1_1, z_8)", "", ""),
        ("b = Max(a, c_m1e30) m = IsInf(b) n = Not(m) f = Cast <to=1> (n) y = Mul(a, f)", "", ""),
    ],
    ids=["overflow", "underflow", "epsilon", "exp", "softmax", "norm", "large mean",
         "mean of a window", "norm of many", "normalized", "pooled norm", "small powers",
         "constant", "next to no bias", "only a bound"],
)  # fmt: skip
def test_what_does_not_fit_stays_float(nodes: str, fallen: str, why: str) -> None:
    graph = written(f"({PICTURES}) => (float[N,8,h,w] y) {{ a = Conv(x, w_8_8_1_1) {nodes} }}")
    found = settled(graph)
    reasons = kept(found.plan)
    assert "Conv_a" not in reasons
    if fallen:
        assert why in reasons[fallen], reasons
    else:
        assert reasons == {}
        assert list(found.half.clamped.values()) == [1] * nodes.count("Max")
    feeds = next(pictures(4))
    assert np.isfinite(run(fp16_simulation(found.half.model), feeds)).all()


NORM = (
    "m = ReduceMean <keepdims=1> (s, i_1) d = Sub(s, m) q = Pow(d, c_2)"
    " v = ReduceMean <keepdims=1> (q, i_1) e = Add(v, c_1em5) r = Sqrt(e) n = Div(d, r)"
)


@lru_cache
def large_norm() -> Graph:
    """A LayerNorm taken apart, whose squares FP16 cannot hold: how a ViT collapses."""
    return written(
        f"({PICTURES}) => (float[N,8,16,16] y) {{ a = Conv(x, w_8_8_1_1) t = Tanh(a)"
        f" s = Mul(t, c_500) {NORM} y = Conv(n, v_8_8_1_1) }}"
    )


def test_a_norm_taken_apart_keeps_its_squares_in_float() -> None:
    graph = large_norm()
    everything = PrecisionPlan({n.name: NodePrecision(FP16, "") for n in graph.proto().graph.node})
    feeds = next(pictures(4))
    naive = run(fp16_simulation(write_fp16(graph.model, everything).model), feeds)
    exact = run(graph.model, feeds)
    assert np.corrcoef(naive.ravel(), exact.ravel())[0, 1] < 0.9 or not np.isfinite(naive).all()
    found = settled(graph)
    assert {"Pow_q", "ReduceMean_v"} <= set(kept(found.plan))
    assert {"Conv_a", "Conv_y"} <= found.half.nodes
    assert found.outputs["y"].sqnr_db > 55
    assert found.rounds == 0, "ranges foresaw it"


def test_sizes_are_computed_in_float() -> None:
    graph = written(
        f"({PICTURES}) => (float[N,8,h,w] y) {{ a = Conv(x, w_8_8_1_1) s = Shape(a)"
        " f = Cast <to=1> (s) m = Mul(f, c_2) d = Div(m, c_2) i = Cast <to=7> (d)"
        " y = Reshape(a, i) }"
    )
    found = settled(graph)
    assert "sizes" in kept(found.plan)["Mul_m"]
    assert {"Conv_a", "Reshape_y"} <= found.half.nodes


def test_inputs_that_an_operator_wants_as_float_stay_so() -> None:
    graph = written(
        f"({PICTURES}) => (float[N,8,32,32] y) {{ a = Conv(x, w_8_8_1_1)"
        ' y = Resize <mode="nearest"> (a, , f_1_1_2_2) }'
    )
    found = settled(graph)
    assert "Resize_y" in found.half.nodes
    model = onnx.load_model_from_string(found.half.model)
    kinds = {one.name: one.data_type for one in model.graph.initializer}
    assert kinds["f_1_1_2_2"] == TensorProto.FLOAT


def test_names_of_the_user_stay_float_and_unknown_ones_suggest_the_nearest() -> None:
    graph = written(CONVOLUTION)
    found = settled(graph, keep_float=["Conv_a"])
    assert kept(found.plan)["Conv_a"] == "kept in float32 by the recipe"
    with pytest.raises(InputError) as caught:
        planned(graph, keep_float=["Conv_b"])
    assert caught.value.code == "E_RECIPE"
    assert "Conv_a" in caught.value.mend


def test_a_plan_survives_json() -> None:
    plan = planned(written(BLOCK), keep_float=["Conv_a"])
    assert {one.precision for one in plan.nodes.values()} == {FP16, "float32"}
    again = PrecisionPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert fp16_nodes(again) == fp16_nodes(plan)


def test_what_only_moves_values_follows_where_casts_are_fewest() -> None:
    graph = written(
        f"({PICTURES}) => (float[N,8,16,16] y) {{ a = Conv(x, w_8_8_1_1) h = Tanh(a)"
        " b = Mul(h, c_20000) t = Transpose <perm=[0,1,3,2]> (b) u = Abs(t) d = Div(u, c_20000)"
        " e = Sigmoid(d) y = Conv(e, v_8_8_1_1) }"
    )
    found = settled(graph)
    assert set(kept(found.plan)) == {"Mul_b", "Transpose_t", "Abs_u", "Div_d"}
    assert found.half.casts == 4


def test_cheap_nodes_between_float_ones_go_along() -> None:
    graph = written(
        f"({PICTURES}) => (float[N,8,16,16] y) {{ s = Sigmoid(x) t = Transpose <perm=[0,1,3,2]> (s)"
        " y = Relu(t) }"
    )
    plan = planned(graph)
    assert fp16_nodes(plan) == frozenset(), "two casts for nothing"
    assert "fewer casts" in next(iter(kept(plan).values()))


# ---------------------------------------------------------------- measured, not only foreseen


def test_cancellation_is_found_by_measuring() -> None:
    """Every range is small, and yet nothing is left: 1000 + a - 1000."""
    graph = written(
        f"({PICTURES}) => (float[N,8,16,16] y) {{ a = Conv(x, w_8_8_1_1) b = Add(a, c_3000)"
        " s = Sub(b, c_3000) y = Conv(s, v_8_8_1_1) }"
    )
    told: list[int] = []
    found = settled(graph, on_progress=told.append)
    assert found.rounds > 0
    assert len(told) == found.rounds + 1
    measured = {name: why for name, why in kept(found.plan).items() if "measured" in why}
    assert "Add_b" in measured, kept(found.plan)
    assert found.outputs["y"].sqnr_db >= found.bound_db == 40.0
    assert {"Conv_a", "Conv_y"} & found.half.nodes, "not all of it is given up"


CLASSES = (
    f"({PICTURES}) => (int64[N,1,16,16] y) {{ a = Conv(x, w_8_8_1_1) b = Add(a, c_3000)"
    " s = Sub(b, c_3000) t = Conv(s, v_8_8_1_1) y = ArgMax <axis=1> (t) }"
)


def test_where_only_whole_numbers_come_out_what_they_are_made_of_is_measured() -> None:
    found = settled(written(CLASSES))
    assert "measured" in kept(found.plan)["Add_b"]
    ((name, noise),) = found.outputs.items()
    assert name == "t, which ArgMax_y reads"
    assert 40 <= noise.sqnr_db < 300
    assert found.half.nodes


def test_whole_numbers_beside_floats_are_held_as_well() -> None:
    both = CLASSES.replace("y)", "y, float[N,8,16,16] a)", 1)
    found = settled(written(both))
    assert set(found.outputs) == {"a", "t, which ArgMax_y reads"}
    assert {"Add_b", "Sub_s"} <= kept(found.plan).keys()


def test_what_is_masked_out_before_a_choice_is_no_noise() -> None:
    graph = written(
        f"({PICTURES}) => (int64[N,1,16,16] y) {{ a = Conv(x, w_8_8_1_1) m = Greater(x, c_0)"
        " b = Where(m, a, c_minf) y = ArgMax <axis=1> (b) }"
    )
    found = settled(graph)
    assert "Conv_a" in found.half.nodes
    assert found.outputs["b, which ArgMax_y reads"].sqnr_db >= 40


def test_a_network_input_that_is_only_chosen_from_is_rounded_and_measured() -> None:
    graph = written(f"({PICTURES}) => (int64[N,1,16,16] y) {{ y = ArgMax <axis=1> (x) }}")
    assert set(settled(graph).outputs) == {"x, which ArgMax_y reads"}


def test_a_bound_that_nothing_keeps_leaves_float32_and_says_so() -> None:
    found = settled(written(CONVOLUTION), bound_db=250.0)
    assert found.half.nodes == frozenset()
    assert found.half.casts == 0
    assert found.outputs["y"].sqnr_db == 300.0
    report = found.report()
    assert report["fp16_nodes"] == 0
    assert report["float32_nodes"]


def test_infinities_are_legitimate_and_kept_apart() -> None:
    graph = written(
        f"({PICTURES}) => (float[N,8,16,16] y) {{ a = Conv(x, w_8_8_1_1) m = Greater(x, c_m1)"
        " b = Where(m, a, c_minf) e = Softmax <axis=1> (b) y = Add(e, a) }"
    )
    found = settled(graph)
    assert "infinite" in kept(found.plan)["Where_b"]
    assert "Conv_a" in found.half.nodes


def test_onnxruntime_alone_would_not_see_an_overflow() -> None:
    """Why there is a simulation: its CPU drops the casts, and with them the end of FP16."""
    graph = written(f"({PICTURES}) => (float[N,8,16,16] y) {{ m = Mul(x, c_60000) y = Sin(m) }}")
    everything = PrecisionPlan({n.name: NodePrecision(FP16, "") for n in graph.proto().graph.node})
    half = write_fp16(graph.model, everything)
    feeds = {"x": np.full((1, 8, 16, 16), 3, np.float32)}
    assert np.isfinite(run(half.model, feeds)).all()
    assert not np.isfinite(run(fp16_simulation(half.model), feeds)).any()


@pytest.mark.parametrize("level", ["none", "basic", "all"])
def test_the_simulation_rounds_as_numpy_does(level: Any) -> None:
    graph = written(f"({PICTURES}) => (float[N,8,16,16] y) {{ y = Mul(x, c_3) }}")
    everything = PrecisionPlan({"Mul_y": NodePrecision(FP16, "")})
    simulated = fp16_simulation(write_fp16(graph.model, everything).model)
    x = RNG.normal(size=(4, 8, 16, 16)) * 10.0 ** RNG.integers(-9, 6, (4, 8, 16, 16))
    x = x.astype(np.float32)
    with open_engine("onnxruntime")(simulated, EngineOptions(optimize=level)) as engine:
        found = engine.run({"x": x})["y"]
    with np.errstate(over="ignore"):
        wanted = (x.astype(np.float16).astype(np.float32) * 3).astype(np.float16)
    np.testing.assert_array_equal(found, wanted.astype(np.float32))


def test_constants_are_clamped_and_infinities_stay() -> None:
    value = np.array([1e6, -1e6, np.inf, -np.inf, 1.0, 1e-9], np.float32)
    wanted = np.array([FP16_LARGEST, -FP16_LARGEST, np.inf, -np.inf, 1.0, 0.0])
    np.testing.assert_array_equal(rounded_to_fp16(value).astype(np.float64), wanted)


def test_the_same_input_gives_the_same_bytes() -> None:
    assert settled(large_norm()).half.model == settled(large_norm()).half.model


# ---------------------------------------------------------------- beside INT8

BLOCK = (
    f"({PICTURES}) => (float[N,8,16,16] y) {{ a = Conv(x, w_8_8_1_1, b_8) r = Relu(a)"
    " c = Conv(r, v_8_8_1_1) s = Add(c, r) t = Sigmoid(s) g = Mul(s, t) y = Conv(g, u_8_8_1_1) }"
)


def int8(graph: Graph, speech: str = "tensorrt", **options: Any) -> bytes:
    ranges, spoken = calibrate(graph, pictures), dialect(speech)
    return write_qdq(graph, ranges, plan_int8(graph, ranges, spoken, **options), spoken).model


def mixed(graph: Graph, **options: Any) -> Fp16Graph:
    return settled(graph, quantized=int8(graph), **options).half


def test_the_floats_of_an_int8_graph_become_fp16_without_casts_around_codes() -> None:
    half = mixed(written(BLOCK))
    model = onnx.load_model_from_string(half.model)
    kinds = {one.name: one.data_type for one in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Conv":
            for name in node.input[:2]:
                assert makers[name].op_type == "DequantizeLinear"
                assert kinds[makers[name].input[1]] == TensorProto.FLOAT16
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Cast") == half.casts == 1, "the output; x is quantized as float32"
    assert operators.count("QuantizeLinear") == 3


def test_a_float_node_reads_floats_from_the_same_codes() -> None:
    half = mixed(written(BLOCK), keep_float=["Add_s"])
    model = onnx.load_model_from_string(half.model)
    makers = {name: node for node in model.graph.node for name in node.output}
    kinds = {one.name: one.data_type for one in model.graph.initializer}
    (add,) = (node for node in model.graph.node if node.op_type == "Add")
    read = {makers[name].op_type: makers[name] for name in add.input}
    assert kinds[read["DequantizeLinear"].input[1]] == TensorProto.FLOAT
    assert "Cast" in read


def test_dead_and_tiny_channels_get_scales_that_fp16_can_hold() -> None:
    graph = written(BLOCK)
    model = graph.proto()
    for one in model.graph.initializer:
        if one.name == "v_8_8_1_1":
            value = numpy_helper.to_array(one).copy()
            value[3] = 0
            value[5] *= 1e-5
            one.CopyFrom(numpy_helper.from_array(value, one.name))
    graph = normalize(model, source="the test")
    codes = int8(graph)
    assert scales_below_fp16(codes) == {}
    found = settled(graph, quantized=codes)
    assert kept(found.plan) == {}
    one, other = (onnx.load_model_from_string(m) for m in (codes, found.half.model))
    (before, _), (after, scale) = (weights_of(m, "Conv_c") for m in (one, other))
    assert scale.dtype == np.float16
    assert (scale > 0).all()
    assert float(scale[5]) < 2**-14, "below the normal numbers"
    others = [0, 1, 2, 4, 6, 7]
    np.testing.assert_allclose(after[others], before[others], rtol=1e-3)
    np.testing.assert_allclose(after[5], before[5], atol=float(scale[5]) * 0.51)


def weights_of(model: onnx.ModelProto, name: str) -> tuple[Array, Array]:
    """A layer's weights as its codes and scales say, and the scales."""
    held = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    (node,) = (one for one in model.graph.node if one.name == name)
    maker = makers[node.input[1]]
    codes, scale = held[maker.input[0]], held[maker.input[1]]
    return codes * scale.astype(np.float32).reshape(-1, 1, 1, 1), scale


def test_codes_are_rounded_anew_and_never_overflow() -> None:
    scale = np.array([1e-9, 3e-7, 5e-6, 1.23e-3, 0.7], np.float32)
    codes = np.tile(np.array([-127, -1, 0, 64, 127], np.int8), (5, 1))
    anew, half = scales_for_fp16(codes, scale, 0)
    assert (half.astype(np.float32) >= scale * (1 - 2.0**-9)).all()
    assert anew.dtype == np.int8
    assert np.abs(anew.astype(int)).max() == 127
    exact = codes * scale[:, None].astype(np.float64)
    error = np.abs(anew * half[:, None].astype(np.float64) - exact)
    assert (error <= half[:, None].astype(np.float64) * 0.51).all()


def test_an_activation_whose_scale_fp16_cannot_hold_keeps_its_layer_in_float() -> None:
    graph = written(
        f"({PICTURES}) => (float[N,8,16,16] y) {{ a = Conv(x, w_8_8_1_1) t = Tanh(a)"
        " s = Mul(t, c_1em4) y = Conv(s, v_8_8_1_1) }"
    )
    codes = int8(graph)
    assert list(scales_below_fp16(codes)) == ["Conv_y"]
    found = settled(graph, quantized=codes)
    assert "scale" in kept(found.plan)["Conv_y"]
    assert "Conv_a" in found.half.nodes


def test_beside_int8_fp16_need_not_be_better_than_that() -> None:
    graph = written(BLOCK)
    found = settled(graph, quantized=int8(graph))
    assert found.bound_db <= 40
    assert found.outputs["y"].sqnr_db >= found.bound_db


def test_whole_numbers_are_held_beside_int8_too() -> None:
    graph = written(BLOCK.replace("float[N,8,16,16] y", "int64[N,1,16,16] k").replace(
        "y = Conv(g, u_8_8_1_1)", "y = Conv(g, u_8_8_1_1) k = ArgMax <axis=1> (y)"
    ))  # fmt: skip
    found = settled(graph, quantized=int8(graph))
    assert found.bound_db < 40
    assert found.outputs["y, which ArgMax_k reads"].sqnr_db >= found.bound_db


def test_an_older_opset_is_refused_beside_int8() -> None:
    graph = written(BLOCK, opset=18)
    with pytest.raises(InputError) as caught:
        settled(graph, quantized=int8(graph))
    assert caught.value.code == "E_OPSET"
    raised = with_opset(graph, 19, next(pictures(4)))
    assert settled(raised, quantized=int8(raised)).half.nodes


# ---------------------------------------------------------------- the gate: NVIDIA's builder


@pytest.fixture(scope="module")
def rtx() -> Any:
    try:
        return load_backend("tensorrt-rtx")
    except MissingExtraError as error:
        pytest.skip(f"nothing here builds TensorRT's graphs: {error.mend}")


GRAPHS = {
    "convolution": CONVOLUTION,
    "block": BLOCK,
    "float islands": f"({PICTURES}) => (float[N,8,16,16] y) {{ a = Conv(x, w_8_8_1_1)"
    " b = Mul(a, c_20000) t = Transpose <perm=[0,1,3,2]> (b) d = Div(t, c_20000)"
    " y = Conv(d, v_8_8_1_1) }",
}


@pytest.mark.parametrize("speech", ["", "tensorrt", "tensorrt-rtx"], ids=["fp16", "int8", "rtx"])
@pytest.mark.parametrize("text", GRAPHS.values(), ids=GRAPHS)
def test_the_builder_takes_what_is_written(rtx: Any, text: str, speech: str) -> None:
    graph = written(text)
    quantized = int8(graph, speech) if speech else None
    found = settled(graph, quantized=quantized)
    assert found.half.nodes
    assert build_in_process(rtx, found.half.model, BuildOptions()).plan


def test_the_builder_takes_a_norm_with_float_squares(rtx: Any) -> None:
    assert build_in_process(rtx, settled(large_norm()).half.model, BuildOptions()).plan
