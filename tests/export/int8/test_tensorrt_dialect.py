"""The dialects for TensorRT: where quantizers stand, and that NVIDIA's own builder takes them all.

TensorRT-RTX parses and builds without a GPU; its parser is TensorRT's own.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
import onnx
import onnx.parser
import torch
from onnx import TensorProto, numpy_helper
from safetensors.torch import load_file
from torch import nn

from edgepress.export import Graph, calibrate, dialect, plan_int8, settle_fp16, write_qdq
from edgepress.export.graph.normalize import normalize, with_opset
from edgepress.export.graph.precision_plan import PrecisionPlan
from edgepress.export.graph.torch_capture import capture
from edgepress.export.int8.bias_correction import correct_biases
from edgepress.export.int8.quantized_graph import QuantizedGraph
from edgepress.runtime import EngineError, EngineOptions, MissingExtraError, open_engine
from edgepress.runtime.engine_registry import load_backend
from edgepress.runtime.engines.build_options import BuildOptions
from edgepress.runtime.nvidia.network_builder import build_in_process
from edgepress.runtime.tensors import Array

DIALECTS = ("tensorrt", "tensorrt-rtx")
every_dialect = pytest.mark.parametrize("speech", DIALECTS)


@pytest.fixture(scope="module")
def rtx() -> Any:
    try:
        return load_backend("tensorrt-rtx")
    except MissingExtraError as error:
        pytest.skip(f"nothing here builds TensorRT's graphs: {error.mend}")


# ---------------------------------------------------------------- networks


class Bottleneck(nn.Module):
    """MobileNetV2's inverted residual (Sandler et al. 2018, figure 3)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        wide = 4 * c_in
        self.skips = stride == 1 and c_in == c_out
        self.body = nn.Sequential(
            nn.Conv2d(c_in, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide),
            nn.ReLU6(), nn.Conv2d(wide, c_out, 1, bias=False), nn.BatchNorm2d(c_out),
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        return x + self.body(x) if self.skips else self.body(x)


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6())
        self.blocks = nn.Sequential(
            Bottleneck(16, 16, 1), Bottleneck(16, 24, 2), Bottleneck(24, 24, 1)
        )
        self.head = nn.Linear(24, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Block(nn.Module):
    """A transformer's block, normalized first (Dosovitskiy et al. 2020, figure 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Any) -> Any:
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.second(x))


class Vit(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.place = nn.Parameter(torch.randn(1, 16, width) * 0.1)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Any) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))


def random_pictures(channels: int = 3, size: int = 32, count: int = 8) -> Array:
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, channels, size, size)).astype(np.float32)


def captured(module: nn.Module, name: str, pictures: Array) -> Graph:
    return capture(module, {"x": pictures[:2]}, source=name)


@lru_cache
def made_here(name: str) -> tuple[Graph, Array]:
    """A network with random weights and statistics, and pictures for it."""
    torch.manual_seed(0)
    pictures = random_pictures()
    module = {"mobile": Mobile, "vit": Vit}[name]()
    with torch.no_grad():  # BatchNorm sees the pictures, so that activations have their size
        module.train()(torch.from_numpy(random_pictures(count=32)))
    return captured(module, name, pictures), pictures


@lru_cache
def demo(project: Path) -> tuple[Graph, Array]:
    module = from_file(project / "demo" / "backbone.py", "fashion_resnet")
    module.load_state_dict(load_file(project / "demo" / "weights" / "fashion_resnet.safetensors"))
    with np.load(project / "demo" / "data" / "calibration.npz") as held:
        pictures = (held["x"][:64].transpose(0, 3, 1, 2).astype(np.float32) / 255 - 0.2860) / 0.3530
    return captured(module, "demo", pictures), pictures


@lru_cache
def shared(data: Path, name: str) -> tuple[Graph, Array]:
    module = from_file(data / "backbones.py", name)
    weights = data / "weights" / f"cifar10_{name}_akamaster.pt"
    state = torch.load(weights, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    module.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return captured(module, name, random_pictures()), random_pictures()


def from_file(path: Path, factory: str) -> nn.Module:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, factory)()


def written(text: str, *, opset: int = 18) -> Graph:
    """A Graph from ONNX's text form; what it reads and nobody makes are weights.

    A name tells the shape: ``w_8_8_3_3`` is ``(8, 8, 3, 3)``.
    """
    header = f'<ir_version: 8, opset_import: ["" : {opset}]> network '
    model = onnx.parser.parse_model(header + text)
    made = {name for node in model.graph.node for name in node.output}
    made |= {value.name for value in model.graph.input}
    rng = np.random.default_rng(0)
    for name in sorted({n for node in model.graph.node for n in node.input if n} - made):
        shape = [int(size) for size in name.split("_")[1:]]
        fan = np.sqrt(np.prod(shape[1:]))
        value = rng.normal(0, 1 / fan, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return normalize(model, source="the test")


def feeds_for(graph: Graph, count: int = 4) -> dict[str, Array]:
    spec, rng = graph.inputs[0], np.random.default_rng(1)
    shape = [count, *(size if isinstance(size, int) else 16 for size in spec.shape[1:])]
    return {spec.name: rng.normal(size=shape).astype(np.float32)}


def batches_of(feeds: dict[str, Array]) -> Callable[[int], Iterable[dict[str, Array]]]:
    def batches(size: int) -> Iterator[dict[str, Array]]:
        count = len(next(iter(feeds.values())))
        for start in range(0, count, size):
            yield {name: array[start : start + size] for name, array in feeds.items()}

    return batches


def quantized(
    graph: Graph, feeds: dict[str, Array], speech: str, **options: Any
) -> tuple[PrecisionPlan, QuantizedGraph]:
    """Write INT8, and check what holds for every graph of these dialects."""
    spoken = dialect(speech)
    ranges = calibrate(graph, batches_of(feeds))
    plan = plan_int8(graph, ranges, spoken, **options)
    made = write_qdq(graph, ranges, plan, spoken)
    model = onnx.load_model_from_string(made.model)
    onnx.checker.check_model(model, full_check=True)
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
            assert (constants[node.input[1]] > 0).all()
    assert not [one.name for one in model.graph.initializer if one.data_type == TensorProto.INT32]
    return plan, made


def sqnr_db(wanted: Array, found: Array) -> float:
    noise = np.sum((wanted.astype(np.float64) - found) ** 2)
    return float(10 * np.log10(np.sum(wanted.astype(np.float64) ** 2) / max(noise, 1e-30)))


def run(model: bytes, feeds: dict[str, Array]) -> Array:
    with open_engine("onnxruntime")(model, EngineOptions(optimize="basic")) as engine:
        return next(iter(engine.run(feeds).values()))


def readers(model: bytes, name: str) -> dict[str, list[str]]:
    """Who reads what of a node: its inputs by the operator that makes each."""
    graph = onnx.load_model_from_string(model).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    (node,) = (one for one in graph.node if one.name == name)
    return {"inputs": [makers.get(one, "a constant or input") for one in node.input]}


# ---------------------------------------------------------------- the gate: NVIDIA's builder


NETWORKS = ("demo", "resnet20", "resnet56", "mobile", "vit")


def network_of(name: str, request: pytest.FixtureRequest) -> tuple[Graph, Array]:
    if name == "demo":
        return demo(request.getfixturevalue("project"))
    if name.startswith("resnet"):
        return shared(request.getfixturevalue("shared_data"), name)
    return made_here(name)


@every_dialect
@pytest.mark.parametrize("name", NETWORKS)
def test_the_builder_takes_every_network(
    rtx: Any, name: str, speech: str, request: pytest.FixtureRequest
) -> None:
    graph, pictures = network_of(name, request)
    feeds = {graph.inputs[0].name: pictures}
    plan, made = quantized(graph, feeds, speech)
    convolutions = [n.name for n in graph.proto().graph.node if n.op_type == "Conv"]
    in_int8 = [one for one in convolutions if plan.nodes[one].precision == "int8"]
    if speech == "tensorrt":
        assert len(in_int8) == len(convolutions) - 1, "all but the one that reads the picture"
    else:
        assert not in_int8
        assert made.units
    found = build_in_process(rtx, made.model, BuildOptions())
    assert len(found.plan) > 10_000
    wanted = run(graph.model, feeds)
    least = 20 if name != "mobile" else 12
    assert sqnr_db(wanted, run(made.model, feeds)) > least


@pytest.mark.parametrize("speech", ["", *DIALECTS], ids=["fp16", "int8 and fp16", "rtx"])
@pytest.mark.parametrize("name", ["demo", "resnet20", "mobile", "vit"])
def test_the_builder_takes_every_network_in_fp16(
    rtx: Any, name: str, speech: str, request: pytest.FixtureRequest
) -> None:
    graph, pictures = network_of(name, request)
    feeds = {graph.inputs[0].name: pictures}
    codes = None
    if speech:
        graph = with_opset(graph, 19, feeds)
        codes = quantized(graph, feeds, speech)[1].model
    batches = batches_of(feeds)
    found = settle_fp16(graph, calibrate(graph, batches), batches, quantized=codes)
    assert found.held
    assert found.half.casts <= 2
    convolutions = {n.name for n in graph.proto().graph.node if n.op_type == "Conv"}
    assert convolutions <= found.half.nodes
    assert build_in_process(rtx, found.half.model, BuildOptions()).plan
    onnx.checker.check_model(onnx.load_model_from_string(found.half.model), full_check=True)
    if not speech:
        assert min(one.sqnr_db for one in found.outputs.values()) > 50
        assert len(found.half.model) < 0.6 * len(graph.model)


LAYERS = {
    "three by three": "(float[N,8,16,16] x) => (float[N,8,14,14] y) { y = Conv(x, w_8_8_3_3) }",
    "with a bias": "(float[N,8,16,16] x) => (float[N,8,14,14] y) { y = Conv(x, w_8_8_3_3, b_8) }",
    "grouped": "(float[N,8,16,16] x) => (float[N,8,14,14] y)"
    " { y = Conv <group=2> (x, w_8_4_3_3, b_8) }",
    "depthwise": "(float[N,8,16,16] x) => (float[N,8,14,14] y)"
    " { y = Conv <group=8> (x, w_8_1_3_3, b_8) }",
    "of a line": "(float[N,8,16] x) => (float[N,8,14] y) { y = Conv(x, w_8_8_3, b_8) }",
    "of a volume": "(float[N,8,8,8,8] x) => (float[N,8,6,6,6] y) { y = Conv(x, w_8_8_3_3_3, b_8) }",
    "strided and dilated": "(float[N,8,16,16] x) => (float[N,8,8,6] y)"
    " { y = Conv <strides=[2,2], dilations=[1,2], pads=[1,0,1,0]> (x, w_8_8_3_3) }",
    "gemm": "(float[N,8] x) => (float[N,12] y) { y = Gemm(x, w_8_12, b_12) }",
    "gemm, transposed": "(float[N,8] x) => (float[N,12] y) { y = Gemm <transB=1> (x, w_12_8) }",
    "a product of rank 3": "(float[N,5,8] x) => (float[N,5,12] y) { y = MatMul(x, w_8_12) }",
    "through a pool": "(float[N,8,16,16] x) => (float[N,8,5,5] y) { a = Conv(x, w_8_8_3_3)"
    " r = Relu(a) m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r) y = Conv(m, v_8_8_3_3) }",
    "through a concatenation": "(float[N,8,16,16] x) => (float[N,8,14,14] y)"
    " { a = Conv(x, w_8_8_1_1) b = Conv(x, v_8_8_1_1) c = Concat <axis=1> (a, b)"
    " y = Conv(c, u_8_16_3_3) }",
    "a gate": "(float[N,8,16,16] x) => (float[N,8,14,14] y) { a = Conv(x, w_8_8_1_1)"
    " s = Sigmoid(a) m = Mul(a, s) y = Conv(m, v_8_8_3_3) }",
    "shared weights": "(float[N,8,16,16] x) => (float[N,8,12,12] y) { a = Conv(x, w_8_8_3_3)"
    " y = Conv(a, w_8_8_3_3) }",
}


@every_dialect
@pytest.mark.parametrize("text", LAYERS.values(), ids=LAYERS)
def test_the_builder_takes_every_layer(rtx: Any, text: str, speech: str) -> None:
    graph = written(text)
    feeds = feeds_for(graph)
    _, made = quantized(graph, feeds, speech)
    if speech == "tensorrt":
        assert made.units
    assert build_in_process(rtx, made.model, BuildOptions()).plan
    assert sqnr_db(run(graph.model, feeds), run(made.model, feeds)) > 28


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 20])
def test_the_builder_takes_every_opset(rtx: Any, opset: int) -> None:
    graph = written(LAYERS["a gate"], opset=opset)
    _, made = quantized(graph, feeds_for(graph), "tensorrt")
    assert build_in_process(rtx, made.model, BuildOptions()).plan


def test_the_builder_refuses_what_another_dialect_says(rtx: Any) -> None:
    """Why there is a dialect: zero points, and biases of 32 bits."""
    graph = written(LAYERS["with a bias"])
    ranges = calibrate(graph, batches_of(feeds_for(graph)))
    spoken = dialect("onnxruntime-x86-vnni")
    made = write_qdq(graph, ranges, plan_int8(graph, ranges, spoken), spoken)
    with pytest.raises(EngineError) as caught:
        build_in_process(rtx, made.model, BuildOptions())
    assert caught.value.code == "E_BACKEND"
    assert "cannot read the model" in caught.value.message


# ---------------------------------------------------------------- where quantizers stand

RESIDUAL = """(float[N,8,16,16] x) => (float[N,8,16,16] y) {
 a = Conv <pads=[1,1,1,1]> (x, w_8_8_3_3, b_8) r = Relu(a)
 c = Conv <pads=[1,1,1,1]> (r, v_8_8_3_3) s = Add(%s) t = Relu(s)
 y = Conv <pads=[1,1,1,1]> (t, u_8_8_3_3) }"""


@pytest.mark.parametrize("order", ["c, r", "r, c"])
def test_the_skip_connection_is_read_as_codes_and_nothing_else_is(order: str) -> None:
    graph = written(RESIDUAL % order)
    plan, made = quantized(graph, feeds_for(graph), "tensorrt")
    assert plan.nodes["Add_s"].precision == "int8"
    place = order.split(", ").index("r")
    inputs = readers(made.model, "Add_s")["inputs"]
    assert inputs[place] == "DequantizeLinear"
    assert inputs[1 - place] == "Conv", "the convolution's own result is added as it is"
    for name in ("Conv_a", "Conv_c", "Conv_y"):
        read = readers(made.model, name)["inputs"]
        assert read[:2] == ["DequantizeLinear", "DequantizeLinear"]
        assert read[2:] == ["a constant or input"]
    operators = [node.op_type for node in onnx.load_model_from_string(made.model).graph.node]
    assert operators.count("QuantizeLinear") == 3, "x, r and t; r once, for its two readers"
    assert made.absorbed == {}
    assert made.moved == ()


def test_of_two_convolutions_the_shortcut_is_the_skip_connection() -> None:
    graph = written(
        "(float[N,8,16,16] x) => (float[N,8,16,16] y) { p = Conv(x, p_8_8_1_1)"
        " a = Conv(x, w_8_8_1_1) r = Relu(a) c = Conv(r, v_8_8_1_1) s = Add(c, p)"
        " y = Conv(s, u_8_8_1_1) }"
    )
    _, made = quantized(graph, feeds_for(graph), "tensorrt")
    assert readers(made.model, "Add_s")["inputs"] == ["Conv", "DequantizeLinear"]


@pytest.mark.parametrize(
    "text",
    [
        "(float[N,8,16,16] x) => (float[N,8,16,16] y) { a = Relu(x) b = Sigmoid(x) s = Add(a, b)"
        " y = Conv(s, u_8_8_1_1) }",
        "(float[N,8,16,16] x) => (float[N,8,16,16] y) { p = GlobalAveragePool(x)"
        " c = Conv(x, w_8_8_1_1) s = Add(c, p) y = Conv(s, u_8_8_1_1) }",
        "(float[N,8,16,16] x) => (float[N,8,16,16] y, float[N,8,16,16] c) {"
        " c = Conv(x, w_8_8_1_1) s = Add(c, x) y = Conv(s, u_8_8_1_1) }",
        "(float[N,8,16,16] x) => (float[N,8,16,16] y) { c = Conv(x, w_8_8_1_1) s = Add(c, c)"
        " y = Conv(s, u_8_8_1_1) }",
        "(float[N,5,8] x) => (float[N,5,8] y) { c = MatMul(x, w_8_8) s = Add(x, c)"
        " y = MatMul(s, u_8_8) }",
    ],
    ids=["no convolution", "broadcast", "given out", "twice the same", "a transformer's stream"],
)
def test_other_additions_stay_float(text: str) -> None:
    graph = written(text)
    plan, made = quantized(graph, feeds_for(graph), "tensorrt")
    assert plan.nodes["Add_s"].precision == "float32"
    assert "skip connection" in plan.nodes["Add_s"].reason
    assert "DequantizeLinear" not in readers(made.model, "Add_s")["inputs"]


def test_a_float_layer_reads_floats_where_its_neighbour_reads_codes() -> None:
    graph = written(
        "(float[N,8,16,16] x) => (float[N,8,16,16] y, float[N,8,16,16] z) {"
        " a = Conv(x, w_8_8_1_1) r = Relu(a) y = Conv(r, v_8_8_1_1) z = Conv(r, u_8_8_1_1) }"
    )
    _, made = quantized(graph, feeds_for(graph), "tensorrt", keep_float=["Conv_z"])
    assert readers(made.model, "Conv_z")["inputs"] == ["Relu", "a constant or input"]


def test_a_convolution_of_a_picture_stays_float() -> None:
    graph = written("(float[N,3,16,16] x) => (float[N,8,14,14] y) { y = Conv(x, w_8_3_3_3) }")
    plan, made = quantized(graph, feeds_for(graph), "tensorrt")
    assert plan.nodes["Conv_y"].reason == "it reads fewer than 4 channels"
    assert made.model == graph.model


def test_rtx_gets_codes_for_the_weights_of_matrix_products_alone() -> None:
    graph, pictures = made_here("vit")
    plan, made = quantized(graph, {"x": pictures}, "tensorrt-rtx")
    operators = [node.op_type for node in onnx.load_model_from_string(made.model).graph.node]
    assert "QuantizeLinear" not in operators
    assert operators.count("DequantizeLinear") == len(made.units) > 8
    assert {unit.op_type for unit in made.units} <= {"Gemm", "MatMul"}
    assert {plan.nodes[unit.node].precision for unit in made.units} == {"int8"}
    assert len(made.model) < 0.6 * len(graph.model)


def test_codes_of_an_activation_reach_from_minus_to_plus_127() -> None:
    graph = written(LAYERS["three by three"])
    feeds = feeds_for(graph)
    _, made = quantized(graph, feeds, "tensorrt")
    model = onnx.load_model_from_string(made.model)
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    (first,) = (node for node in model.graph.node if node.op_type == "QuantizeLinear")
    scale = float(constants[first.input[1]])
    largest = float(np.abs(feeds["x"]).max())
    assert 0.3 * largest <= 127 * scale <= largest * 1.000001
    codes = [one for one in constants.values() if one.dtype == np.int8 and one.ndim > 1]
    assert max(int(np.abs(one.astype(int)).max()) for one in codes) == 127


def test_bias_correction_brings_the_outputs_nearer() -> None:
    graph, pictures = made_here("mobile")
    feeds = {"x": pictures}
    _, made = quantized(graph, feeds, "tensorrt")
    corrected, shifts = correct_biases(graph, made, batches_of(feeds), largest_tensor=2**15)
    assert len(shifts) == sum(1 for unit in made.units if unit.bias)
    exact = run(graph.model, feeds)
    before, after = (sqnr_db(exact, run(one.model, feeds)) for one in (made, corrected))
    assert after > before + 1, (before, after)


# ---------------------------------------------------------------- bad input


def test_operators_that_no_dialect_knows_stay_float_and_build(rtx: Any) -> None:
    graph = written(
        "(float[N,8,16,16] x) => (float[N,8,16,16] y) { a = Conv(x, w_8_8_1_1) e = Erf(a)"
        " s = Softmax <axis=1> (e) y = Conv(s, u_8_8_1_1) }"
    )
    plan, made = quantized(graph, feeds_for(graph), "tensorrt")
    assert "no INT8 kernel for Erf" in plan.nodes["Erf_e"].reason
    assert build_in_process(rtx, made.model, BuildOptions()).plan


def test_dead_channels_and_outliers_build(rtx: Any) -> None:
    graph = written(LAYERS["through a pool"])
    model = graph.proto()
    for one in model.graph.initializer:
        if one.name == "w_8_8_3_3":
            value = numpy_helper.to_array(one).copy()
            value[0], value[1, 0, 0, 0] = 0, 1e6
            one.CopyFrom(numpy_helper.from_array(value, one.name))
    broken = normalize(model, source="the test")
    feeds = feeds_for(broken)
    feeds["x"][0, 3, 2, 2] = 1e6
    _, made = quantized(broken, feeds, "tensorrt")
    assert build_in_process(rtx, made.model, BuildOptions()).plan
    assert np.isfinite(run(made.model, feeds)).all()


def test_free_sizes_build_once_they_are_told(rtx: Any) -> None:
    graph = written("(float[N,8,h,w] x) => (float[N,8,p,q] y) { y = Conv(x, w_8_8_3_3, b_8) }")
    _, made = quantized(graph, feeds_for(graph), "tensorrt")
    with pytest.raises(Exception, match="the dimension 'h'") as caught:
        build_in_process(rtx, made.model, BuildOptions())
    assert getattr(caught.value, "code", "") == "E_SHAPE"
    sizes = {"h": (16, 32, 64), "w": (16, 16, 16)}
    assert build_in_process(rtx, made.model, BuildOptions(sizes=sizes)).plan
