"""Exact rewrites give equal outputs; files that cannot be used are refused by code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepress.export.graph.normalize import largest_relative, normalize, with_opset
from edgepress.export.graph.onnx_files import parse_onnx, read_onnx
from edgepress.export.graph.onnx_graph import Graph, opset_of
from edgepress.export.graph.random_inputs import random_inputs
from edgepress.runtime import EngineError, EngineOptions, InputError
from edgepress.runtime.engines.onnxruntime import OnnxRuntimeEngine
from edgepress.runtime.tensors import Arrays

RNG = np.random.default_rng(0)
PICTURES = "float[N,3,16,16] x"
W0 = RNG.normal(0, 0.4, (8, 3, 3, 3)).astype(np.float32)
B0 = RNG.normal(0, 0.4, 8).astype(np.float32)


def network(text: str, *, opset: int = 18, ir: int = 8, **weights: Any) -> onnx.ModelProto:
    """A model from ONNX's text form, ``inputs => outputs { nodes }``, and its weights."""
    header = f'<ir_version: {ir}, opset_import: ["" : {opset}]> network '
    model = onnx.parser.parse_model(header + text)
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def run(model: bytes, feeds: Arrays) -> Arrays:
    with OnnxRuntimeEngine(model, EngineOptions(optimize="none")) as engine:
        return engine.run(feeds)


def equal(before: onnx.ModelProto, graph: Graph, tolerance: float = 1e-5) -> None:
    """Both compute the same on inputs that `normalize` has not tried, and the new one is clean."""
    feeds = random_inputs(graph.inputs, seed=11, batch=3)
    wanted, found = run(before.SerializeToString(), feeds), run(graph.model, feeds)
    assert wanted.keys() == found.keys()
    assert largest_relative(wanted, found) <= tolerance
    after = graph.proto()
    onnx.checker.check_model(after, full_check=True)
    assert after.ir_version == 10
    constants = {tensor.name for tensor in after.graph.initializer}
    assert not constants & {value.name for value in after.graph.input}
    names = [node.name for node in after.graph.node]
    assert all(names)
    assert len(names) == len(set(names))


def operators(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.proto().graph.node]


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (4,), (1, 4)])
def test_a_norm_behind_a_fully_connected_layer_becomes_part_of_it(
    turned: int, bias: tuple[int, ...] | None
) -> None:
    third, beta = ("", 0.5) if bias is None else (", b", 1.0)  # without a bias it scales nothing
    text = (
        "(float[N,6] x) => (float[N,4] y) {"
        f" g = Gemm <transB={turned}, beta={beta}> (x, w{third})"
        " n = BatchNormalization <epsilon=0.01> (g, scale, shift, mean, variance)"
        " y = Relu (n) }"
    )
    weights = {
        "w": RNG.normal(size=(4, 6) if turned else (6, 4)).astype(np.float32),
        "scale": RNG.normal(size=4).astype(np.float32),
        "shift": RNG.normal(size=4).astype(np.float32),
        "mean": RNG.normal(size=4).astype(np.float32),
        "variance": RNG.uniform(0.1, 2, 4).astype(np.float32),
    }
    if bias is not None:
        weights["b"] = RNG.normal(size=bias).astype(np.float32)
    before = network(text, **weights)
    graph = normalize(before, source="a test")
    equal(before, graph)
    assert operators(graph) == ["Gemm", "Relu"]


@pytest.mark.parametrize(
    "body",
    [
        "g = Gemm (x, w) y = BatchNormalization (g, s, s, s, s) z = Relu (g)",
        "g = Gemm <alpha=2.0> (x, w) y = BatchNormalization (g, s, s, s, s) z = Relu (x)",
        "g = Gemm (x, w) y = BatchNormalization (g, s, s, s, s) z = Identity (g)",
        "g = Gemm (x, x) y = BatchNormalization (g, s, s, s, s) z = Relu (x)",
    ],
)
def test_a_norm_stays_where_its_layer_cannot_take_it(body: str) -> None:
    text = f"(float[4,4] x) => (float[4,4] y, float[4,4] z) {{ {body} }}"
    ones = np.full(4, 1.5, np.float32)
    before = network(text, w=RNG.normal(size=(4, 4)).astype(np.float32), s=ones)
    graph = normalize(before, source="a test")
    feeds = random_inputs(graph.inputs, seed=3)
    assert largest_relative(run(before.SerializeToString(), feeds), run(graph.model, feeds)) < 1e-5
    assert "BatchNormalization" in operators(graph)


def test_batch_normalization_is_folded_into_the_convolution() -> None:
    model = network(
        f"({PICTURES}) => (float[N,8,16,16] y)"
        "{ c = Conv <pads=[1,1,1,1]> (x, w) n = BatchNormalization(c, s, b, m, v) y = Relu(n) }",
        w=W0,
        s=np.linspace(0.5, 2, 8, dtype=np.float32),
        b=B0,
        m=-B0,
        v=np.linspace(0.1, 3, 8, dtype=np.float32),
    )
    graph = normalize(model, source="bn")
    assert operators(graph) == ["Conv", "Relu"]
    equal(model, graph)


def test_padding_is_folded_into_the_convolution() -> None:
    model = network(
        f"({PICTURES}) => (float[N,8,15,15] y) {{ p = Pad(x, pads) y = Conv(p, w) }}",
        pads=np.array([0, 0, 0, 1, 0, 0, 1, 0]),
        w=W0,
    )
    graph = normalize(model, source="pad")
    assert operators(graph) == ["Conv"]
    equal(model, graph)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("opset", [13, 18])
def test_spatial_mean_becomes_a_pool(opset: int, keep: int) -> None:
    shape = "N,8,1,1" if keep else "N,8"
    mean = f"ReduceMean <keepdims={keep}> (c, axes)"
    if opset < 18:
        mean = f"ReduceMean <keepdims={keep}, axes=[-1,2]> (c)"
    model = network(
        f"({PICTURES}) => (float[{shape}] y) {{ c = Conv(x, w) y = {mean} }}",
        opset=opset,
        w=W0,
        axes=np.array([3, -2]),
    )
    graph = normalize(model, source="mean")
    assert operators(graph) == ["Conv", "GlobalAveragePool"] + ["Flatten"] * (1 - keep)
    assert opset_of(graph.proto()) == opset
    equal(model, graph)


@pytest.mark.parametrize(
    "text",
    [
        "(float[N,3,16,16] x) => (float[N,16,16] y) { y = ReduceMean <keepdims=0> (x, one) }",
        "(int32[N,3,16,16] x) => (int32[N,3,1,1] y) { z = Abs(x) y = ReduceMean(z, spatial) }",
        "(float[N,3,16] x) => (float[N,1,1] y) { z = Abs(x) y = ReduceMean(z, rank3) }",
    ],
    ids=["channels", "integers", "rank 3"],
)
def test_other_means_stay(text: str) -> None:
    axes = {"one": np.array([1]), "spatial": np.array([2, 3]), "rank3": np.array([1, 2])}
    model = network(text, **axes)
    graph = normalize(model, source="mean")
    assert "ReduceMean" in operators(graph)
    equal(model, graph)


@pytest.mark.parametrize("opset", [9, 11])
def test_old_opsets_are_raised(opset: int) -> None:
    bounds, clip = {}, "Clip <min=0.0, max=6.0> (c)"
    if opset > 10:
        bounds, clip = {"low": np.float32(0), "high": np.float32(6)}, "Clip(c, low, high)"
    model = network(
        f"({PICTURES}) => (float[N,8] y) {{ c = Conv <pads=[1,1,1,1]> (x, w, b) r = {clip}"
        " p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r)"
        " y = ReduceMean <axes=[2,3], keepdims=0> (p) }",
        opset=opset,
        ir=4,
        w=W0,
        b=B0,
        **bounds,
    )
    graph = normalize(model, source="old")
    assert opset_of(graph.proto()) == 18
    equal(model, graph)


def test_initializers_listed_as_inputs_leave_the_inputs() -> None:
    model = network(
        f"({PICTURES}, float[8,3,3,3] w) => (float[N,8,14,14] y) {{ y = Conv(x, w) }}", w=W0
    )
    model.ir_version = 3
    graph = normalize(model, source="old file")
    assert [spec.name for spec in graph.inputs] == ["x"]
    equal(model, graph)


def test_constant_nodes_become_initializers() -> None:
    model = network(f"({PICTURES}) => (float[N,8,14,14] y) {{ y = Conv(x, w) }}")
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(W0))
    model.graph.node.insert(0, constant)
    graph = normalize(model, source="constants")
    assert operators(graph) == ["Conv"]
    assert [tensor.name for tensor in graph.proto().graph.initializer] == ["w"]
    equal(model, graph)


def test_what_no_output_needs_is_dropped() -> None:
    model = network(
        f"({PICTURES}) => (float[N,8,14,14] y) {{ y = Conv(x, w) dead = Conv(x, w2) }}",
        w=W0,
        w2=W0,
        unused=B0,
    )
    graph = normalize(model, source="dead")
    assert [tensor.name for tensor in graph.proto().graph.initializer] == ["w"]
    assert operators(graph) == ["Conv"]


def test_an_input_and_a_constant_can_be_given_out() -> None:
    model = network(
        "(float[N,4] x) => (float[N,4] y, float[N,4] x, float[8] k) { y = Sin(x) k = Identity(b) }",
        b=B0,
    )
    graph = normalize(model, source="odd")
    assert [spec.name for spec in graph.outputs] == ["y", "x", "k"]
    equal(model, graph)


def test_outputs_are_specified_as_the_engine_sees_them() -> None:
    model = network(f"({PICTURES}) => (float[N,c,h,w] y) {{ y = Conv(x, weights) }}", weights=W0)
    graph = normalize(model, source="declared loosely")
    with OnnxRuntimeEngine(graph.model) as engine:
        assert (engine.inputs, engine.outputs) == (graph.inputs, graph.outputs)
    assert graph.outputs[0].shape == ("N", 8, 14, 14)


def test_free_dimensions_get_names_and_a_size_that_works() -> None:
    model = network(
        "(float[?,3,?,?] x) => (float[?,192,?,?] y) { y = SpaceToDepth <blocksize=8> (x) }"
    )
    model.graph.input[0].type.tensor_type.shape.dim[2].Clear()
    graph = normalize(model, source="free")
    assert graph.inputs[0].shape == ("N", 3, "x_2", "x_3")
    assert graph.outputs[0].shape == ("N", 192, "y_2", "y_3")


def test_free_dimensions_that_no_size_fits_are_told() -> None:
    model = network(
        "(float[N,3,h] x) => (float[N,51] y) { y = Reshape(x, shape) }", shape=np.array([-1, 51])
    )
    with pytest.raises(InputError) as caught:
        normalize(model, source="odd size")
    assert caught.value.code == "E_SHAPE"
    feeds = {"x": np.ones((2, 3, 17), np.float32)}
    assert normalize(model, source="odd size", example=feeds).inputs[0].shape == ("N", 3, "h")


def test_free_dimensions_of_the_pictures_that_it_is_meant_for() -> None:
    """A size that is in no list of ours, height and width apart."""
    model = network(
        "(float[N,1,h,w] x) => (float[N,24] y)"
        "{ t = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x) y = Reshape(t, shape) }",
        shape=np.array([0, 24]),
    )
    graph = normalize(model, source="12 by 8", picture=(12, 8))
    assert graph.inputs[0].shape == ("N", 1, "h", "w")
    with pytest.raises(InputError) as caught:
        normalize(model, source="12 by 8", picture=(8, 8))
    assert caught.value.code == "E_SHAPE"


@pytest.mark.parametrize("last", ["Relu", "com.microsoft.QuickGelu"])
@pytest.mark.parametrize("typed", [True, False])
def test_an_output_without_a_declared_shape(last: str, typed: bool) -> None:
    text = f'<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]> net ({PICTURES})'
    before = onnx.parser.parse_model(f"{text} => (float[a,b] y) {{ r = Abs(x) y = {last}(r) }}")
    before.graph.output[0].type.tensor_type.ClearField("shape")
    if not typed and last == "Relu":  # ONNX tells the type of its own operators alone
        before.graph.output[0].ClearField("type")
    graph = normalize(before, source="no shape")
    assert graph.outputs[0].shape == ("N", 3, 16, 16)
    (value,) = graph.proto().graph.output
    assert len(value.type.tensor_type.shape.dim) == 4
    feeds = random_inputs(graph.inputs, seed=3)
    wanted = run(before.SerializeToString(), feeds)
    assert largest_relative(wanted, run(graph.model, feeds)) < 1e-5


FROZEN = "{ p = GlobalAveragePool(x) r = Reshape(p, shape) y = Gemm(r, w) }"


def test_a_batch_that_was_frozen_at_export_is_one(capfd: pytest.CaptureFixture[str]) -> None:
    weights = {"shape": np.array([1, 3]), "w": RNG.normal(size=(3, 5)).astype(np.float32)}
    before = network(f"({PICTURES}) => (float[N,5] y) {FROZEN}", **weights)
    graph = normalize(before, source="a frozen batch")
    assert capfd.readouterr().err == ""
    assert graph.inputs[0].shape == (1, 3, 16, 16)
    assert graph.outputs[0].shape == (1, 5)
    feeds = random_inputs(graph.inputs, seed=3)
    wanted = run(before.SerializeToString(), feeds)
    assert largest_relative(wanted, run(graph.model, feeds)) < 1e-5


def test_a_batch_of_which_neither_one_nor_two_runs_is_told(
    capfd: pytest.CaptureFixture[str],
) -> None:
    weights = {"shape": np.array([7, 3]), "w": RNG.normal(size=(3, 5)).astype(np.float32)}
    model = network(f"({PICTURES}) => (float[N,5] y) {FROZEN}", **weights)
    with pytest.raises(EngineError) as caught:
        normalize(model, source="a frozen batch")
    assert caught.value.code == "E_BACKEND"
    assert "frozen" in caught.value.mend
    assert capfd.readouterr().err == ""


def test_values_that_are_not_a_number_must_agree() -> None:
    nan, one = {"y": np.array([np.nan, 1.0])}, {"y": np.array([2.0, 1.0])}
    assert largest_relative(nan, nan) == 0
    assert largest_relative(nan, one) == np.inf
    assert largest_relative(one, nan) == np.inf
    assert largest_relative({"y": np.array([np.inf])}, {"y": np.array([-np.inf])}) == np.inf


def test_nothing_tells_of_the_machine() -> None:
    model = network(f"({PICTURES}) => (float[N,8,14,14] y) {{ y = Conv(x, w) }}", w=W0)
    secret = "/home/somebody/secret.py"
    model.producer_name = model.doc_string = model.domain = secret
    model.metadata_props.add(key="path", value=secret)
    model.graph.name = model.graph.doc_string = secret
    model.graph.node[0].doc_string = secret
    model.graph.node[0].metadata_props.add(key="stack", value=secret)
    model.graph.node[0].attribute.append(helper.make_attribute("strides", [1, 1], secret))
    model.graph.input[0].doc_string = model.graph.initializer[0].doc_string = secret
    model.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    model.graph.value_info[0].doc_string = secret
    graph = normalize(model, source=secret)
    assert b"somebody" not in graph.model
    assert not graph.proto().graph.value_info


@pytest.mark.parametrize("opset", [13, 17, 21, 24])
def test_a_graph_is_brought_to_another_opset(opset: int) -> None:
    model = network(
        f"({PICTURES}) => (float[N,8,1] y)"
        "{ c = Conv(x, w) r = Relu(c) f = Reshape(r, shape) y = ReduceMean(f, last) }",
        w=W0,
        last=np.array([2]),
        shape=np.array([0, 8, -1]),
    )
    graph = normalize(model, source="net")
    moved = with_opset(graph, opset, random_inputs(graph.inputs))
    assert opset_of(moved.proto()) == opset
    equal(model, moved)


def test_what_the_converter_adds_has_the_form_of_the_rest() -> None:
    model = network("(float[N,4] x) => (float[N,1] y) { y = ReduceMean <axes=[1]> (x) }", opset=13)
    graph = normalize(model, source="net")
    moved = with_opset(graph, 19, random_inputs(graph.inputs))
    assert operators(moved) == ["ReduceMean"]
    equal(model, moved)


def test_an_opset_without_the_operator_is_refused() -> None:
    model = network(
        f"({PICTURES}, float[N,4,4,2] g) => (float[N,3,4,4] y) {{ y = GridSample(x, g) }}"
    )
    graph = normalize(model, source="sampler")
    with pytest.raises(InputError) as caught:
        with_opset(graph, 13, random_inputs(graph.inputs))
    assert caught.value.code == "E_OPSET"
    assert "opset 18 or later: edgepress export --opset N" in caught.value.mend


# ---------------------------------------------------------------- what is refused


def refused(model: onnx.ModelProto) -> InputError:
    with pytest.raises(InputError) as caught:
        normalize(model, source="the network")
    assert str(caught.value)
    return caught.value


def test_invalid_models_are_refused() -> None:
    model = network(f"({PICTURES}) => (float[N,8,14,14] y) {{ y = Conv(x) }}")
    assert refused(model).code == "E_MODEL"
    assert refused(network(f"({PICTURES}) => (float[N] y) {{ y = NoSuch(x) }}")).code == "E_MODEL"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("constant_node", [False, True])
def test_weights_that_are_not_finite_are_refused(bad: float, constant_node: bool) -> None:
    weights = W0.copy()
    weights[0, 0, 0, 0] = bad
    model = network(f"({PICTURES}) => (float[N,8,14,14] y) {{ y = Conv(x, w) }}")
    tensor = numpy_helper.from_array(weights, "w")
    if constant_node:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    else:
        model.graph.initializer.append(tensor)
    error = refused(model)
    assert (error.code, error.path) == ("E_NAN", "w")


def test_a_mask_may_be_infinite() -> None:
    model = network(
        "(float[N,4] x) => (float[N,4] y) { m = Add(x, mask) y = Softmax(m) }",
        mask=np.array([0, 0, -np.inf, 0], np.float32),
    )
    equal(model, normalize(model, source="mask"))


@pytest.mark.parametrize("op", ["QuantizeLinear", "DequantizeLinear", "MatMulInteger"])
def test_quantized_models_are_refused(op: str) -> None:
    texts = {
        "QuantizeLinear": "(float[N,4] x) => (uint8[N,4] y) { y = QuantizeLinear(x, s) }",
        "DequantizeLinear": "(uint8[N,4] x) => (float[N,4] y) { y = DequantizeLinear(x, s) }",
        "MatMulInteger": "(uint8[N,4] x) => (int32[N,2] y) { y = MatMulInteger(x, w) }",
    }
    error = refused(network(texts[op], s=np.float32(0.1), w=np.ones((4, 2), np.uint8)))
    assert error.code == "E_MODEL"
    assert "quantized already" in error.message


def branching() -> onnx.ModelProto:
    def branch(name: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("Identity", ["x"], [name])], name, [], [value])

    model = network("(float[N,4] x, bool c) => (float[N,4] y) { y = Sin(x) }")
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    model.graph.node[0].CopyFrom(node)
    return model


def test_control_flow_is_refused(tmp_path: Path) -> None:
    assert refused(branching()).code == "E_OP"
    onnx.save(branching(), tmp_path / "if.onnx")
    assert refused_file(tmp_path / "if.onnx").code == "E_OP"


def refused_file(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_onnx(str(path))
    assert caught.value.path == str(path)
    return caught.value


def test_functions_are_refused() -> None:
    model = network("(float[N,4] x) => (float[N,4] y) { y = Sin(x) }")
    opset = helper.make_opsetid("", 18)
    body = [helper.make_node("Sin", ["a"], ["b"])]
    model.functions.append(helper.make_function("own", "f", ["a"], ["b"], body, [opset]))
    with pytest.raises(InputError) as caught:
        parse_onnx(model.SerializeToString(), "f.onnx")
    assert caught.value.code == "E_OP"


def test_files_that_are_no_onnx_are_refused(tmp_path: Path) -> None:
    whole = network(f"({PICTURES}) => (float[N,8,14,14] y) {{ y = Conv(x, w) }}", w=W0)
    cases = {
        "cut.onnx": whole.SerializeToString()[:-200],
        "text.onnx": b"this is no network at all\n" * 20,
        "empty.onnx": b"",
        "nothing.onnx": onnx.ModelProto(ir_version=8).SerializeToString(),
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        assert refused_file(tmp_path / name).code == "E_MODEL", name
    assert refused_file(tmp_path / "missing.onnx").code == "E_FILE"
    assert refused_file(tmp_path).code == "E_FILE"


def test_weights_in_other_files_are_refused(tmp_path: Path) -> None:
    model = network(f"({PICTURES}) => (float[N,8,14,14] y) {{ y = Conv(x, w) }}", w=W0)
    path = tmp_path / "outside.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert refused_file(path).code == "E_EXTERNAL"
