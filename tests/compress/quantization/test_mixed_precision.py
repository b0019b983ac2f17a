"""Mixed precision: what is measured of each node, what is decided from it, and what comes out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.mixed_nets import NETWORK, network

pytest.importorskip("scipy")

from edgepress.compress.quantization.candidate_quality import sqnr_db
from edgepress.compress.quantization.int8_pass import finish_int8
from edgepress.compress.quantization.precision_milp import (
    MixedPlan,
    borders_ms,
    decide_precisions,
    noise_of,
    predicted_ms,
)
from edgepress.compress.recipe.pass_context import Context
from edgepress.compress.recipe.recipe import Recipe
from edgepress.compress.recipe.settings import Int8
from edgepress.export.calibration.ranges import calibrate
from edgepress.export.graph.onnx_graph import Graph, Walk
from edgepress.export.graph.precision_plan import NodePrecision, PrecisionPlan
from edgepress.export.int8.dialect import dialect
from edgepress.export.int8.int8_plan import plan_int8
from edgepress.export.int8.qdq_writer import write_qdq
from edgepress.export.receipt import count_macs
from edgepress.export.sensitivity.measure import Int8Network, attach_node_noise, measure_times
from edgepress.export.sensitivity.node_noise import NodeNoise, measure_node_noise
from edgepress.export.sensitivity.node_profile import Border, border_of, profile_graphs
from edgepress.export.sensitivity.sensitivity_table import (
    NodeSensitivity,
    SensitivityTable,
    TensorSensitivity,
)
from edgepress.runtime import EngineError, EngineOptions, InputError
from edgepress.runtime.engines.onnxruntime import OnnxRuntimeEngine
from edgepress.runtime.target import target
from edgepress.runtime.tensors import Arrays

X86 = "onnxruntime-x86-vnni"
ENGINES = ("onnxruntime", "openvino")

# A SiLU behind every layer, a residual sum, a pool that moves codes, and a head.


def needs(engine: str) -> None:
    if find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")


CHOSEN = NETWORK.replace("float[N,6] y", "int64[N] c").replace(
    "y = Gemm (f, head)", "y = Gemm (f, head)\n    c = ArgMax <axis=1, keepdims=0> (y)"
)


def pictures(count: int = 4, rows: int = 4) -> Callable[[int], Iterable[Arrays]]:
    rng = np.random.default_rng(1)
    chunks = [{"x": rng.normal(size=(rows, 3, 32, 32)).astype(np.float32)} for _ in range(count)]

    def batches(size: int) -> Iterable[Arrays]:
        for chunk in chunks:
            for start in range(0, rows, size):
                yield {"x": chunk["x"][start : start + size]}

    return batches


def whole_of(graph: Graph, spoken: str = X86) -> Int8Network:
    ranges, speech = calibrate(graph, pictures()), dialect(spoken)
    plan = plan_int8(graph, ranges, speech)
    return Int8Network(graph, ranges, plan, speech, write_qdq(graph, ranges, plan, speech))


def damage_of(whole: Int8Network, **options: Any) -> NodeNoise:
    layout = whole.layout(Walk(whole.graph.proto()))
    weighted = [unit.node for unit in whole.quantized.units if unit.op_type in ("Conv", "Gemm")]
    feeds = list(pictures()(4))[:2]
    return measure_node_noise(whole.graph, layout, whole.dialect, weighted, feeds, **options)


def noise_ratio(graph: Graph, model: bytes) -> float:
    """Noise over signal of a model's output, on the pictures that damage is measured on."""
    signal = noise = 0.0
    with (
        OnnxRuntimeEngine(graph.model, EngineOptions()) as original,
        OnnxRuntimeEngine(model, EngineOptions()) as engine,
    ):
        for feeds in list(pictures()(4))[:2]:
            exact, found = original.run(feeds)["y"], engine.run(feeds)["y"]
            signal += float(np.sum(exact.astype(np.float64) ** 2))
            noise += float(np.sum((exact.astype(np.float64) - found) ** 2))
    return noise / signal


# ---------------------------------------------------------------- damage


def test_damage_adds_up_to_what_the_int8_graph_loses() -> None:
    whole = whole_of(network())
    found = damage_of(whole)
    (everything,) = found.whole
    parts = sum(lost[0] for lost in found.places.values())
    assert noise_ratio(whole.graph, whole.quantized.model) == pytest.approx(everything, rel=0.3)
    assert parts == pytest.approx(everything, rel=0.5)
    assert {place.kind for place in found.places} == {"tensor", "weights"}


def test_damage_finds_the_tensor_whose_channels_differ_wildly() -> None:
    found = damage_of(whole_of(network(loud=300.0)))
    worst = max(found.places, key=lambda place: found.places[place])
    assert worst.kind == "tensor"
    assert worst.name in ("a", "sa", "s")
    calm = damage_of(whole_of(network()))
    assert found.whole[0] > 20 * calm.whole[0]


def test_damage_opens_no_more_graphs_than_it_may() -> None:
    whole, opened = whole_of(network()), list[int]()
    found = damage_of(whole, sessions=7, on_progress=opened.append)
    assert found.runs == len(opened) <= 7
    assert len(found.places) > 7
    assert found.whole == damage_of(whole).whole
    assert sum(lost[0] for lost in found.places.values()) == pytest.approx(found.whole[0], rel=1.0)


def test_a_network_without_int8_layers_has_no_damage() -> None:
    whole = whole_of(network())
    layout = replace(whole, plan=PrecisionPlan({})).layout(Walk(whole.graph.proto()))
    found = measure_node_noise(whole.graph, layout, whole.dialect, [], pictures()(4))
    assert found.places == {}
    assert found.whole == (0.0,)


def test_damage_to_whole_numbers_is_that_to_what_they_are_made_of() -> None:
    found, same = damage_of(whole_of(network(text=CHOSEN))), damage_of(whole_of(network()))
    assert found.outputs == ("y, which ArgMax_c reads",)
    assert found.whole[0] == pytest.approx(same.whole[0], rel=0.3)
    worst = max(found.places, key=lambda place: found.places[place])
    assert worst == max(same.places, key=lambda place: same.places[place])


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("engine", ENGINES)
def test_every_kernel_is_told_back_to_the_network(engine: str) -> None:
    needs(engine)
    whole = whole_of(network(), X86 if engine == "onnxruntime" else "openvino")
    feeds = {"x": np.zeros((1, 3, 32, 32), np.float32)}
    models = (whole.graph.model, whole.quantized.model)
    names = {node.name for node in whole.graph.proto().graph.node}
    profiles = profile_graphs(engine, whole.graph, models, feeds)
    assert len(profiles) == len(models)
    for profile in profiles:
        told = sum(profile.nodes.values()) + profile.rest_ms
        told += sum(profile.quantizing.values()) + sum(profile.dequantizing.values())
        assert set(profile.nodes) <= names
        assert told == pytest.approx(profile.total_ms, rel=0.2)
        assert profile.wall_ms > 0
        made_of = {name for kernel in profile.kernels for name in kernel}
        assert len({name for name in made_of if name.startswith("Conv")}) == 4


def test_engines_without_a_profiler_say_so() -> None:
    graph = network()
    with pytest.raises(EngineError) as caught:
        profile_graphs("null", graph, [graph.model], {"x": np.zeros((1, 3, 32, 32), np.float32)})
    assert caught.value.code == "E_ENGINE"


def test_the_price_of_a_border_is_a_line_that_never_falls() -> None:
    elements = {"a": 1000, "b": 2000, "c": 4000}
    line = border_of({"a": 0.02, "b": 0.03, "c": 0.05}, elements, 0.0)
    assert line.ms(3000) == pytest.approx(0.04)
    assert border_of({"a": 0.05, "b": 0.02, "c": 0.01}, elements, 0.0).ms_per_element == 0.0
    assert border_of({"a": 0.0, "b": 0.02, "c": 0.1}, elements, 0.0).fixed_ms == 0.0
    assert border_of({}, elements, 1.0) == Border(0.0, 0.0)


def test_a_blame_has_every_node_that_can_run_in_int8_and_survives_json() -> None:
    whole = whole_of(network())
    feeds = {"x": np.zeros((1, 3, 32, 32), np.float32)}
    blame = attach_node_noise(measure_times(whole, "onnxruntime", feeds), damage_of(whole))
    computing = {node.name for node in blame.nodes if not node.follows}
    assert computing == {unit.node for unit in whole.quantized.units}
    assert {node.op_type for node in blame.nodes if node.follows} == {"MaxPool", "Flatten"}
    assert {tensor.name for tensor in blame.tensors if tensor.float_maker} == {"x"}
    assert all(tensor.quantize_ms > 0 for tensor in blame.tensors)
    assert SensitivityTable.from_dict(json.loads(json.dumps(blame.to_dict()))) == blame
    with pytest.raises(InputError) as caught:
        SensitivityTable.from_dict({"format": "edgepress-blame-0"})
    assert caught.value.code == "E_BLAME"
    with pytest.raises(InputError) as caught:
        SensitivityTable.from_dict({**blame.to_dict(), "nodes": [{"name": "a"}]})
    assert caught.value.code == "E_BLAME"


# ---------------------------------------------------------------- decisions


def chain(
    times: list[tuple[float, float]], damage: list[float], border: float = 0.1
) -> SensitivityTable:
    """Nodes ``n0, n1, ...`` one behind the other, between a float32 input and output."""
    nodes = tuple(
        NodeSensitivity(
            f"n{i}", "Conv", (f"t{i}",), (f"t{i + 1}",), (f"n{i}",), False, False, *pair, {}
        )
        for i, pair in enumerate(times)
    )
    tensors = tuple(
        TensorSensitivity(f"t{i}", 100, i == 0, i == len(times), border, border, {"y": lost})
        for i, lost in enumerate(damage)
    )
    total = sum(pair[0] for pair in times)
    wall = (total, sum(pair[1] for pair in times), total, total)
    return SensitivityTable(X86, "onnxruntime", 1, ("y",), nodes, tensors, *wall, 1)


def test_a_slow_node_stays_in_int8_where_its_borders_cost_more() -> None:
    times = [(1.0, 0.3), (1.0, 1.1), (1.0, 0.3)]
    assert decide_precisions(chain(times, [0.0] * 4, border=0.2)).int8 == ("n0", "n1", "n2")
    found = decide_precisions(chain(times, [0.0] * 4, border=0.01))
    assert found.int8 == ("n0", "n2")
    assert "slower" in found.plan.nodes["n1"].reason
    assert found.predicted_ms == pytest.approx(0.3 + 1.0 + 0.3 + 4 * 0.01)


def test_what_brings_the_noise_stays_in_float32() -> None:
    blame = chain([(1.0, 0.3)] * 4, [0.0, 0.0, 0.5, 0.0, 0.0], border=0.01)
    found = decide_precisions(blame, 0.01)
    assert found.int8 == ("n0", "n3")
    assert found.predicted_noise == 0.0
    assert "noise" in found.plan.nodes["n1"].reason
    assert decide_precisions(blame).int8 == ("n0", "n1", "n2", "n3")


def test_no_noise_at_all_is_a_bound_too() -> None:
    blame = chain([(1.0, 0.3)] * 4, [0.0, 0.0, 1e-12, 0.0, 0.0], border=0.01)
    found = decide_precisions(blame, 0.0)
    assert found.int8 == ("n0", "n3")
    assert found.predicted_noise == 0.0
    assert found.to_dict()["bound_sqnr_db"] is None


def test_of_plans_that_take_as_long_the_one_with_less_noise_is_chosen() -> None:
    blame = chain([(1.0, 0.5), (1.0, 0.999)], [0.0, 0.0, 0.01], border=0.001)
    assert decide_precisions(blame).int8 == ("n0",)
    slower = chain([(1.0, 0.5), (1.0, 0.9)], [0.0, 0.0, 0.01], border=0.001)
    assert decide_precisions(slower).int8 == ("n0", "n1")


def test_nothing_is_chosen_where_nothing_pays() -> None:
    found = decide_precisions(chain([(1.0, 0.95)] * 3, [0.0] * 4, border=0.5))
    assert found.int8 == ()
    assert found.predicted_ms == pytest.approx(3.0)


def test_nodes_of_one_kernel_change_together() -> None:
    blame = chain([(0.0, 0.3), (1.0, 0.2)], [0.0] * 3, border=0.05)
    pair = tuple(replace(node, together=("n0", "n1")) for node in blame.nodes)
    slow = replace(blame, nodes=(replace(pair[0], int8_ms=0.9), pair[1]))
    found = decide_precisions(slow)
    assert found.int8 == ()
    reasons = {one.reason for one in found.plan.nodes.values()}
    assert reasons == {"measured: INT8 is 0.100 ms slower here"}, "the time of the kernel"
    even = decide_precisions(replace(blame, nodes=(replace(pair[0], int8_ms=0.8), pair[1])))
    assert {one.reason for one in even.plan.nodes.values()} == {"measured: INT8 is no faster here"}
    apart = tuple(replace(node, together=(node.name,)) for node in slow.nodes)
    assert decide_precisions(replace(slow, nodes=apart)).int8 == ("n1",)


@pytest.mark.parametrize("seed", range(8))
def test_no_other_plan_is_better(seed: int) -> None:
    """Against every plan there is, on random networks with branches and random measurements."""
    rng = np.random.default_rng(seed)
    count, reads = 8, dict[int, list[int]]()
    for i in range(count):
        reads[i] = sorted({i, int(rng.integers(0, i + 1))})
    nodes = tuple(
        NodeSensitivity(
            f"n{i}",
            "Add",
            tuple(f"t{j}" for j in reads[i]),
            (f"t{i + 1}",),
            (f"n{i}",),
            seed % 2 == 1 and i in (2, 5),
            i == count - 1 or (seed % 4 >= 2 and i in (1, 4)),
            float(rng.uniform(0.1, 1)),
            float(rng.uniform(0.05, 0.8)),
            {"y": float(rng.exponential(0.01)), "z": float(rng.exponential(0.01))},
        )
        for i in range(count)
    )
    tensors = tuple(
        TensorSensitivity(
            f"t{i}",
            10,
            i == 0,
            i == count or bool(rng.random() < 0.2),
            float(rng.uniform(0, 0.15)),
            float(rng.uniform(0, 0.15)),
            {"y": float(rng.exponential(0.02)), "z": float(rng.exponential(0.02))},
        )
        for i in range(count + 1)
    )
    total = sum(node.float_ms for node in nodes)
    blame = SensitivityTable(X86, "o", 1, ("y", "z"), nodes, tensors, total, 0.0, total, 0.0, 1)
    names = [node.name for node in nodes]
    plans = [
        frozenset(itertools.compress(names, bits))
        for bits in itertools.product((0, 1), repeat=count)
    ]
    for bound in (None, 0.05, 0.15):
        fits = [p for p in plans if bound is None or noise_of(blame, p) <= bound]
        fits = [plan for plan in fits if not useless(plan, nodes)]
        best = min(predicted_ms(blame, plan) for plan in fits)
        found = decide_precisions(blame, bound)
        assert best - 1e-9 <= found.predicted_ms <= best + 0.0101 * total
        assert bound is None or found.predicted_noise <= bound * (1 + 1e-6)
        quiet = replace(
            blame,
            nodes=tuple(replace(node, damage={}) for node in nodes),
            tensors=tuple(replace(tensor, damage={}) for tensor in tensors),
        )
        if bound is None:
            assert decide_precisions(quiet).predicted_ms == pytest.approx(best, abs=2e-4)


def useless(plan: frozenset[str], nodes: tuple[NodeSensitivity, ...]) -> bool:
    """Whether a node moves codes that nobody behind it reads."""
    readers: dict[str, list[str]] = {}
    for node in nodes:
        for name in node.reads:
            readers.setdefault(name, []).append(node.name)
    return any(
        not any(reader in plan for name in node.gives for reader in readers.get(name, []))
        for node in nodes
        if node.follows and node.name in plan
    )


def test_a_decision_is_followed_and_costs_what_was_predicted_of_its_borders() -> None:
    whole = whole_of(network(loud=30.0))
    damage = damage_of(whole)
    feeds = {"x": np.zeros((1, 3, 32, 32), np.float32)}
    blame = attach_node_noise(measure_times(whole, "onnxruntime", feeds), damage)
    # Times that leave nothing to the machine: INT8 always pays, borders are cheap.
    nodes = tuple(replace(node, float_ms=1.0, int8_ms=0.5) for node in blame.nodes)
    tensors = tuple(replace(t, quantize_ms=0.01, dequantize_ms=0.01) for t in blame.tensors)
    blame = replace(blame, nodes=nodes, tensors=tensors, float_ms=float(len(nodes)))
    everything = decide_precisions(blame)
    bounded = decide_precisions(blame, damage.whole[0] / 30)
    assert 0 < len(bounded.int8) < len(everything.int8)
    assert borders_ms(blame, frozenset(bounded.int8)) > 0
    for decision in (everything, bounded):
        lost = noise_ratio(whole.graph, write(whole, decision))
        assert lost == pytest.approx(decision.predicted_noise, rel=1.0)
        assert lost < (decision.bound or 1.0)


def write(whole: Int8Network, decision: MixedPlan) -> bytes:
    plan = plan_int8(whole.graph, whole.ranges, whole.dialect, given=decision.plan)
    made = write_qdq(whole.graph, whole.ranges, plan, whole.dialect)
    assert {unit.node for unit in made.units} == set(decision.int8)
    return made.model


# ---------------------------------------------------------------- plans and recipes


def test_a_plan_survives_json_and_is_refused_where_it_is_none() -> None:
    plan = PrecisionPlan(
        {"a": NodePrecision("int8", "pays"), "b": NodePrecision("float32", "does not")}
    )
    assert PrecisionPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    for bad in (
        {},
        {"format": "edgepress-plan-1", "nodes": 3},
        {"format": "edgepress-plan-1", "nodes": {"a": {"precision": "int4"}}},
        {"format": "edgepress-plan-1", "nodes": {"a": "int8"}},
    ):
        with pytest.raises(InputError) as caught:
            PrecisionPlan.from_dict(bad)
        assert caught.value.code == "E_PLAN"


def test_a_given_plan_is_followed_and_its_names_are_checked() -> None:
    whole = whole_of(network())
    layers = [unit.node for unit in whole.quantized.units if unit.op_type == "Conv"]
    given = PrecisionPlan({layers[1]: NodePrecision("int8", "because")})
    plan = plan_int8(whole.graph, whole.ranges, whole.dialect, given=given)
    assert [name for name, one in plan.nodes.items() if one.precision == "int8"] == [layers[1]]
    wrong = PrecisionPlan({layers[1] + "x": NodePrecision("int8", "")})
    with pytest.raises(InputError) as caught:
        plan_int8(whole.graph, whole.ranges, whole.dialect, given=wrong)
    assert caught.value.code == "E_RECIPE"
    assert layers[1] in str(caught.value)


def test_a_recipe_carries_the_nodes_of_a_plan(tmp_path: Path) -> None:
    recipe = Recipe("mine", (Int8(int8_nodes=("a", "b"), mixed=False),))
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(recipe.to_dict()), encoding="utf-8")
    assert Recipe.open(str(file)) == recipe
    file.write_text('{"pass": [{"kind": "int8", "int8_nodes": "a"}]}', encoding="utf-8")
    with pytest.raises(InputError) as caught:
        Recipe.open(str(file))
    assert caught.value.code == "E_RECIPE"


# ---------------------------------------------------------------- the whole search


def context_for(graph: Graph) -> Context:
    return Context(
        target=replace(target("onnxruntime-cpu"), dialect=X86),
        calibration=pictures(),
        calibration_count=16,
        selection=pictures(2),
        macs=count_macs(graph, {"x": np.zeros((1, 3, 32, 32), np.float32)}),
        progress=lambda stage, done, total: None,
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_candidates_that_give_whole_numbers_are_compared_before_those(engine: str) -> None:
    needs(engine)
    chosen, plain = whole_of(network(text=CHOSEN)), whole_of(network())
    context = replace(context_for(plain.graph), target=target(f"{engine}-cpu"))
    told = [sqnr_db(one.graph, {"int8": one.quantized}, context) for one in (chosen, plain)]
    assert told[0]["int8"] == pytest.approx(told[1]["int8"], abs=1.0)
    assert 10 < told[0]["int8"] < 60


def test_the_search_holds_its_bound_or_says_why_not() -> None:
    from edgepress.compress.quantization.mixed_precision import mix_precisions, mixed_plan_notes

    graph = network(loud=300.0)
    whole, context, settings = whole_of(graph), context_for(graph), Int8(bias_correction=False)
    plain = finish_int8(whole, settings, context)

    def drop(model: bytes) -> float:
        return 100 * noise_ratio(graph, model)

    bound = drop(plain.shipped.model) / 20
    found = mix_precisions(whole, settings, context, drop, bound)
    mixed: Any = found.report["mixed"]
    first, *later = mixed["attempts"]
    lost = drop(found.shipped.model)
    assert lost in [one.get("drop_on_selection") for one in mixed["attempts"]]
    if lost <= bound:
        assert found.receipt.asked_int8 == mixed["int8_nodes"] < mixed["of_nodes"]
        assert mixed_plan_notes(found)
    else:  # no plan that holds is faster than float32 on this machine
        held = [one for one in later if one.get("drop_on_selection", np.inf) <= bound]
        assert "not_built" in later[-1] or held
        assert lost == first["drop_on_selection"]
    if mixed["damage"]["graphs"]:
        worst = max(mixed["nodes"], key=lambda node: node["noise"])
        assert worst["name"] in [node.name for node in whole.graph.proto().graph.node][:5]
    json.dumps(mixed)


def test_a_score_that_the_measured_noise_does_not_explain_ends_the_search() -> None:
    from edgepress.compress.quantization.mixed_precision import mix_precisions, mixed_plan_notes

    text = NETWORK.replace("y = Gemm (f, head)", "z = Gemm (f, head) v = Sub (z, big) y = Relu (v)")
    graph = network(text=text)  # it gives 0, whatever comes in
    whole, context, settings = whole_of(graph), context_for(graph), Int8(bias_correction=False)
    found = mix_precisions(whole, settings, context, lambda model: 1.0, 0.5)
    mixed: Any = found.report["mixed"]
    assert mixed["damage"]["graphs"] == 1
    last = mixed["attempts"][-1]
    assert "no noise" in last["not_built"]
    assert last["predicted_sqnr_db"] is None
    if mixed["int8_nodes"] == mixed["of_nodes"]:
        assert "no noise" in mixed_plan_notes(found)[0]
    json.dumps(mixed)


def test_a_network_without_int8_nodes_is_left_alone() -> None:
    from edgepress.compress.quantization.mixed_precision import mix_precisions

    graph = network()
    whole, context, settings = whole_of(graph), context_for(graph), Int8(bias_correction=False)
    written = write_qdq(graph, whole.ranges, PrecisionPlan({}), whole.dialect)
    nothing = replace(whole, plan=PrecisionPlan({}), quantized=written)
    found = mix_precisions(nothing, settings, context, lambda model: 0.0, 1.0)
    assert not found.changed
    assert "mixed" not in found.report
