"""Engines of TensorRT are built: options, profiles, the builder's child, the line for trtexec."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edgepress.runtime import EngineError, InputError, TensorSpec
from edgepress.runtime.build_shapes import build_options_for
from edgepress.runtime.engine_registry import import_backend, load_backend
from edgepress.runtime.engines.build_options import BuildOptions
from edgepress.runtime.nvidia.child_builder import build_engine
from edgepress.runtime.nvidia.driver import Gpu
from edgepress.runtime.nvidia.network_builder import DTYPES, build_in_process, builder_config
from edgepress.runtime.nvidia.trtexec import trtexec_line
from helpers.tensorrt_here import Tiny, needs_rtx, without_gpu


def test_free_sizes_become_profiles() -> None:
    options = BuildOptions(batch=(1, 4, 8), sizes={"H": (32, 64, 96)})
    spec = TensorSpec("x", "float32", ("N", 3, "H", 64))
    assert options.shapes(spec) == ((1, 3, 32, 64), (4, 3, 64, 64), (8, 3, 96, 64))
    assert options.shapes(TensorSpec("x", "float32", (2, 3, 8, 8))) is None
    with pytest.raises(InputError) as caught:
        options.shapes(TensorSpec("x", "float32", ("N", 3, 8, "W")))
    assert caught.value.code == "E_SHAPE"
    assert "--size W=" in caught.value.mend


@pytest.mark.parametrize(
    "values",
    [{"batch": (4, 1, 8)}, {"batch": (0, 1, 1)}, {"sizes": {"H": (1, 3, 2)}}, {"level": 6}],
)
def test_options_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        BuildOptions(**values)
    assert caught.value.code == "E_USAGE"


def test_options_survive_as_json() -> None:
    options = BuildOptions((2, 2, 2), {"H": (3, 3, 3)}, 2**30, 1, True, 3, 60.0, True)
    again = BuildOptions.from_dict(json.loads(json.dumps(options.to_dict())))
    assert again == options
    assert options.to_dict().keys() - options.of_engine().keys() == {"time_limit_s", "cuda_graph"}


def test_an_accelerator_takes_one_size() -> None:
    assert BuildOptions(dla_core=0).batch == (1, 1, 1)
    assert BuildOptions((8, 8, 8), dla_core=1).batch == (8, 8, 8)
    for given in ({"batch": (1, 4, 8)}, {"sizes": {"H": (32, 64, 64)}}):
        with pytest.raises(InputError, match="takes one size") as caught:
            BuildOptions(dla_core=0, **given)  # pyright: ignore[reportArgumentType]
        assert caught.value.code == "E_USAGE"


@needs_rtx
def test_one_size_is_fixed_in_the_network(tiny_classifier: Tiny) -> None:
    """Only so does the inspector of TensorRT 10 tell types, and an accelerator take it."""
    trt, model = load_backend("tensorrt-rtx"), tiny_classifier()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    for batch, shape, profiles in (((4, 4, 4), 4, 0), ((1, 2, 4), -1, 1)):
        network = builder.create_network(0)
        assert trt.OnnxParser(network, logger).parse(model)
        config = builder_config(trt, builder, network, model, BuildOptions(batch=batch))
        assert tuple(network.get_input(0).shape) == (shape, 3, 8, 8)
        assert network.get_output(0).shape[0] == shape
        assert config.num_optimization_profiles == profiles
    assert build_in_process(trt, model, BuildOptions(batch=(4, 4, 4))).plan


@needs_rtx
def test_rtx_builds_in_a_child_without_a_gpu(tiny_classifier: Tiny) -> None:
    made = build_engine("tensorrt-rtx", tiny_classifier(), BuildOptions())
    assert len(made.plan) > 1000
    assert made.facts["version"] == import_backend("tensorrt-rtx")
    assert isinstance(made.facts["layers"], int)


@needs_rtx
def test_a_gpu_of_the_turing_generation_is_named_to_the_builder() -> None:
    """RTX serves it only so; that it knows no float32 products there is said by itself."""
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>'
        " g (float[N,4,8,8] x) => (float[N,4,8,8] y) { y = Relu(x) }"
    ).SerializeToString()
    gpus = [Gpu(0, "RTX 2080", "7.5", "580"), Gpu(0, "RTX 4090", "8.9", "580"), None]
    turing, ada, none = (build_engine("tensorrt-rtx", model, BuildOptions(), gpu=one).plan
                         for one in gpus)  # fmt: skip
    assert turing != ada
    assert ada == none


@needs_rtx
@pytest.mark.filterwarnings("ignore:.*Timing cache:DeprecationWarning")  # RTX ignores them
def test_every_option_reaches_the_builder(tiny_classifier: Tiny) -> None:
    trt, model = load_backend("tensorrt-rtx"), tiny_classifier()
    options = BuildOptions(batch=(1, 2, 4), workspace_bytes=2**28, level=2)
    first = build_in_process(trt, model, options, b"")
    again = build_in_process(trt, model, options, first.timing_cache)
    assert first.timing_cache
    assert again.plan
    assert build_in_process(trt, model, options, b"of another GPU").plan, "it begins anew"
    with pytest.raises(EngineError) as caught:
        build_in_process(trt, model, BuildOptions(dla_core=0))
    assert caught.value.code == "E_PROVIDER"
    assert "this device has 0" in caught.value.message


@needs_rtx
def test_what_runs_an_engine_is_there_by_these_names() -> None:
    """The interface that only a GPU can run: a name that goes is noticed here."""
    trt = load_backend("tensorrt-rtx")
    used = {
        trt.Runtime: ["deserialize_cuda_engine"],
        trt.ICudaEngine: [
            *("num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_shape"),
            *("get_tensor_dtype", "get_tensor_location", "get_tensor_profile_shape"),
            *("create_execution_context", "create_engine_inspector", "create_runtime_config"),
        ],
        trt.IRuntimeConfig: ["create_runtime_cache", "set_runtime_cache"],
        trt.IRuntimeCache: ["serialize", "deserialize"],
        trt.IExecutionContext: [
            *("set_input_shape", "get_tensor_shape", "set_tensor_address", "execute_async_v3"),
        ],
        trt.EngineInspector: ["get_engine_information"],
        trt.LayerInformationFormat: ["JSON"],
        trt.TensorIOMode: ["INPUT"],
        trt.TensorLocation: ["DEVICE"],
    }
    assert [f"{one}.{name}" for one, names in used.items() for name in names
            if not hasattr(one, name)] == []  # fmt: skip
    assert set(DTYPES) <= set(trt.DataType.__members__)


@needs_rtx
@pytest.mark.parametrize("cut", [0, 40, 300])
def test_what_is_no_model_never_reaches_the_parser(tiny_classifier: Tiny, cut: int) -> None:
    with pytest.raises(InputError) as caught:
        build_engine("tensorrt-rtx", tiny_classifier()[:cut], BuildOptions())
    assert caught.value.code == "E_MODEL"


@needs_rtx
def test_a_node_that_it_cannot_build_is_named(tiny_classifier: Tiny) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(tiny_classifier())
    model.graph.node[1].op_type, model.graph.node[1].name = "Bernoulli", "coin"
    with pytest.raises(EngineError) as caught:
        build_engine("tensorrt-rtx", model.SerializeToString(), BuildOptions())
    assert caught.value.code == "E_BACKEND"
    assert "coin" in caught.value.message
    assert "Bernoulli" in caught.value.message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with SIGSEGV"),
        ("import os; os._exit(7)", "ended with status 7"),
        ("import time; time.sleep(60)", "within 3 s"),
        ("raise ImportError('libfoo.so is missing')", "libfoo.so"),
    ],
    ids=["crash", "exit", "hang", "broken"],
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals of a POSIX system")
def test_the_parent_survives_whatever_the_builder_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_classifier: Tiny, body: str, said: str
) -> None:
    package = tmp_path / "tensorrt_rtx"
    package.mkdir()
    (package / "__init__.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError) as caught:
        build_engine("tensorrt-rtx", tiny_classifier(), BuildOptions(time_limit_s=3))
    assert caught.value.code == "E_BACKEND"
    assert said in caught.value.message


@without_gpu
def test_tensorrt_itself_is_not_built_without_a_driver(tiny_classifier: Tiny) -> None:
    with pytest.raises(EngineError) as caught:
        build_engine("tensorrt", tiny_classifier(), BuildOptions())
    assert caught.value.code == "E_DRIVER"


# ---------------------------------------------------------------- the line for trtexec

INPUTS = (TensorSpec("x", "float32", ("N", 3, 32, 32)), TensorSpec("mask", "float32", ("N", 5)))


def test_the_line_for_trtexec_says_what_is_built() -> None:
    line = trtexec_line("tensorrt", "b/model.onnx", INPUTS, BuildOptions())
    assert line == (
        "trtexec --onnx=b/model.onnx --saveEngine=model.plan --stronglyTyped "
        "--minShapes=x:1x3x32x32,mask:1x5 --optShapes=x:1x3x32x32,mask:1x5 "
        "--maxShapes=x:16x3x32x32,mask:16x5 --noTF32 --profilingVerbosity=detailed"
    )


def test_version_11_knows_nothing_but_strong_types() -> None:
    options = BuildOptions(workspace_bytes=512 * 2**20, dla_core=0, gpu_fallback=True, level=4)
    fixed = (TensorSpec("x", "float32", (1, 3, 32, 32)),)
    line = trtexec_line("tensorrt", "my model.onnx", fixed, options, version="11.4.0.106")
    assert line == (
        "trtexec '--onnx=my model.onnx' --saveEngine=model.plan --noTF32 "
        "--memPoolSize=workspace:512 --builderOptimizationLevel=4 --useDLACore=0 "
        "--allowGPUFallback --profilingVerbosity=detailed"
    )
    older = trtexec_line("tensorrt", "m.onnx", fixed, options, version="10.3.0")
    assert "--stronglyTyped" in older


def test_rtx_has_a_program_of_its_own() -> None:
    line = trtexec_line("tensorrt-rtx", "m.onnx", INPUTS[:1], BuildOptions(batch=(1, 8, 8)))
    assert line == (
        "tensorrt_rtx --onnx=m.onnx --saveEngine=model.plan --minShapes=x:1x3x32x32 "
        "--optShapes=x:8x3x32x32 --maxShapes=x:8x3x32x32 --profilingVerbosity=detailed"
    )


@pytest.fixture
def free_sizes() -> bytes:
    """A network for pictures of any number and size."""
    onnx = pytest.importorskip("onnx")
    helper, dtype = onnx.helper, onnx.TensorProto.FLOAT
    ends = [[helper.make_tensor_value_info(name, dtype, ["N", 3, "H", "W"])] for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "free", *ends)
    return helper.make_model(graph).SerializeToString()


MEASURED = BuildOptions(batch=(4, 4, 4), sizes={"H": (16, 16, 16), "W": (24, 24, 24)})


def test_what_is_measured_has_the_sizes_that_it_is_measured_with(free_sizes: bytes) -> None:
    assert build_options_for(free_sizes, 4, {"x": (1, 3, 16, 24)}) == MEASURED


@needs_rtx
def test_what_is_measured_is_built_for_what_is_measured(free_sizes: bytes) -> None:
    assert build_engine("tensorrt-rtx", free_sizes, MEASURED).plan
    with pytest.raises(InputError) as caught:
        build_engine("tensorrt-rtx", free_sizes, BuildOptions())
    assert caught.value.code == "E_SHAPE"
