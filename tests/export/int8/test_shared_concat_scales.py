"""Concatenations of codes: parts take the scale of the whole, and nothing is quantized behind."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgepress.export.calibration.ranges import calibrate
from edgepress.export.graph.onnx_graph import Graph
from edgepress.export.graph.precision_plan import NodePrecision, PrecisionPlan
from edgepress.export.int8.dialect import dialect
from edgepress.export.int8.int8_plan import plan_int8
from edgepress.export.int8.qdq_writer import write_qdq
from edgepress.export.receipt import count_macs, int8_receipt
from edgepress.export.sensitivity.sensitivity_table import (
    NodeSensitivity,
    SensitivityTable,
    TensorSensitivity,
)
from helpers.int8_graphs import PICTURES, SAME, X86, Made, all_fused, batches_for, network, quantize

STEM = f"c = Conv <{SAME}> (x, stem, b8) r = Relu(c) a = Conv(r, point, b8)"
LAST = f"y = Conv <{SAME}> (k, four, b8)"
FOUR = f"b = Conv <{SAME}> (r, w1) d = Conv <{SAME}> (r, w2)"
FOUR += f" e = Conv <{SAME}, group=8> (r, depth)"


def fire(kind: str, *, joined: str = "k = Concat <axis=1> (p, q, s, t)") -> Graph:
    """Four branches that a concatenation puts together, an activation function behind each."""
    acts = " ".join(
        f"{out} = {kind.format(name)}" for out, name in zip("pqst", "abde", strict=True)
    )
    return network(f"({PICTURES}) => (float[N,8,h,w] y) {{ {STEM} {FOUR} {acts} {joined} {LAST} }}")


def scales(made: Made, *names: str) -> list[float]:
    values = {t.name: numpy_helper.to_array(t) for t in made.model.graph.initializer}
    return [float(values[f"{name}_scale"]) for name in names]


@pytest.mark.parametrize("kind", ["Relu({})", "Clip({}, zero, six)"])
def test_the_parts_take_the_scale_of_the_whole_and_codes_are_put_together(kind: str) -> None:
    made = quantize(fire(kind))
    kernels = made.receipt.kernels
    assert kernels["Concat"] == 1
    assert "QLinearConcat" not in kernels
    assert not {"Relu", "Clip"} & kernels.keys()
    all_fused(made, 6)
    assert len(set(scales(made, *"pqstk"))) == 1
    assert len(made.quantized.moved) == 1
    (told,) = (node for node in made.receipt.nodes if node.op_type == "Concat")
    assert (told.precision, told.reason) == ("int8", "moves codes")


def test_what_others_read_keeps_its_own_scale() -> None:
    joined = "v = Conv(p, point) u = Relu(v) k = Concat <axis=1> (u, q, s, p)"
    made = quantize(fire("Relu({})", joined=joined))
    assert made.receipt.kernels["QLinearConcat"] == 1
    whole, shared, own = scales(made, "k", "q", "p")
    assert shared == whole
    assert own < whole


def test_what_others_read_shares_a_scale_that_is_hardly_coarser() -> None:
    """Half of a concatenation goes on into the next one, as in ShuffleNet v2."""
    parts = " ".join(f"{out} = Relu({name})" for out, name in zip("pqst", "abde", strict=True))
    graph = network(
        f"({PICTURES}) => (float[N,8,h,w] y) {{ {STEM} {FOUR} {parts} i = Concat <axis=1> (p, q)"
        f" u, v = Split <axis=1> (i, halves) z = Conv <{SAME}> (i, wide) w = Relu(z)"
        f" k = Concat <axis=1> (u, v, s, t) o = Concat <axis=1> (k, w) y = Conv(o, five) }}"
    )
    made = quantize(graph)
    assert made.receipt.kernels["Concat"] == 3
    assert "QLinearConcat" not in made.receipt.kernels
    assert len(set(scales(made, *"pqistwo"))) == 1


def test_a_relu_beside_negative_values_keeps_codes_that_end_at_zero() -> None:
    made = quantize(fire("Relu({})", joined="k = Concat <axis=1> (p, q, s, e)"))
    assert "Relu" not in made.receipt.kernels
    values = {t.name: numpy_helper.to_array(t) for t in made.model.graph.initializer}
    assert values["k_zero_point"] > 0
    assert values["p_zero_point"] == 0
    assert scales(made, "e") == scales(made, "k")


def test_what_was_moved_and_what_was_joined_before_take_it_too() -> None:
    made = quantize(
        fire(
            "Relu({})",
            joined="m = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (p) i = Concat <axis=1> (m, q)"
            " k = Concat <axis=1> (i, s, t)",
        )
    )
    assert made.receipt.kernels["Concat"] == 2
    assert "QLinearConcat" not in made.receipt.kernels
    assert len(set(scales(made, *"pqstk"))) == 1


def test_a_whole_that_the_network_gives_out_is_joined_codes() -> None:
    graph = network(
        f"({PICTURES}) => (float[N,8,h,w] y, float[N,32,h,w] k) {{ {STEM} {FOUR}"
        f" k = Concat <axis=1> (a, b, d, e) {LAST} }}"
    )
    made = quantize(graph)
    assert "QLinearConcat" not in made.receipt.kernels
    steps = made.found["all"]["k"] / scales(made, "k")[0]
    assert np.abs(steps - np.rint(steps)).max() < 1e-2


def test_a_part_that_the_network_gives_out_keeps_its_own_scale() -> None:
    graph = network(
        f"({PICTURES}) => (float[N,8,h,w] y, float[N,8,h,w] a) {{ {STEM} {FOUR}"
        f" k = Concat <axis=1> (a, b, d, e) {LAST} }}"
    )
    made = quantize(graph)
    assert made.receipt.kernels["QLinearConcat"] == 1
    assert scales(made, "a") != scales(made, "k")


def test_openvino_quantizes_nothing_behind_it() -> None:
    graph, its = fire("Relu({})"), dialect("openvino")
    batches = batches_for(graph)
    ranges = calibrate(graph, batches)
    plan = plan_int8(graph, ranges, its)
    made = write_qdq(graph, ranges, plan, its)
    (feeds, *_) = batches(4)
    receipt = int8_receipt(graph, count_macs(graph, feeds), made, plan, "openvino")
    assert receipt.fused_int8 == receipt.asked_int8 == 6
    assert receipt.kernels["Concatenation u8"] == 1
    assert sum(n for name, n in receipt.kernels.items() if "FakeQuantize" in name) <= 1  # of x
    written = onnx.load_model_from_string(made.model).graph.node
    (concat,) = (node for node in written if node.op_type == "Concat")
    assert [n.op_type for n in written if concat.output[0] in n.input] == ["Conv"]


def test_a_concatenation_in_float_leaves_its_parts_alone() -> None:
    graph, its = fire("Relu({})"), dialect(X86)
    ranges = calibrate(graph, batches_for(graph))
    whole = plan_int8(graph, ranges, its)
    (concat,) = (node.name for node in graph.proto().graph.node if node.op_type == "Concat")
    plan = PrecisionPlan({**whole.nodes, concat: NodePrecision("float32", "the test says so")})
    made = onnx.load_model_from_string(write_qdq(graph, ranges, plan, its).model)
    values = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    assert len({float(values[f"{name}_scale"]) for name in "pqst"}) == 4


def test_noise_of_joined_codes_counts_once() -> None:
    from edgepress.compress.quantization.precision_milp import noise_of

    def node(
        name: str, reads: tuple[str, ...], gives: str, *, joins: bool = False
    ) -> NodeSensitivity:
        together = (name,)
        return NodeSensitivity(
            name, "Conv", reads, (gives,), together, False, False, 2, 1, {}, joins
        )

    def tensor(name: str) -> TensorSensitivity:
        return TensorSensitivity(name, 1, False, False, 0.1, 0.1, {"y": 1.0})

    for joins in (True, False):
        nodes = (node("one", ("x",), "a"), node("two", ("x",), "b"))
        nodes += (node("both", ("a", "b"), "k", joins=joins), node("last", ("k",), "y"))
        tensors = tuple(map(tensor, "abk"))
        blame = SensitivityTable("d", "e", 1, ("y",), nodes, tensors, 8.0, 4.0, 8.0, 4.0, 1)
        everything = frozenset(one.name for one in nodes)
        assert noise_of(blame, everything) == (2.0 if joins else 3.0)
        assert noise_of(blame, frozenset({"last"})) == 1.0
