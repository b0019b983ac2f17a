"""The engines tensorrt and tensorrt-rtx: what can be proved without a GPU, and what needs one.

Tests marked ``gpu`` run the engines; they are skipped, with the driver's own words, where there is
none.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgepress.__main__ import main
from edgepress.runtime import (
    Bundle,
    EngineError,
    EngineOptions,
    InputError,
    MissingExtraError,
    Session,
    TensorSpec,
    open_engine,
)
from edgepress.runtime.cache import cache_folder, make_folder
from edgepress.runtime.doctor import examine
from edgepress.runtime.engines import find_device, import_backend, load_backend
from edgepress.runtime.engines.tensorrt_rtx import check_gpu
from edgepress.runtime.nvidia import BuildOptions
from edgepress.runtime.nvidia.builder import build_engine
from edgepress.runtime.nvidia.building import DTYPES, build, configured
from edgepress.runtime.nvidia.cache import EngineCache, key_of
from edgepress.runtime.nvidia.driver import Cuda, Gpu, cuda, version_of
from edgepress.runtime.nvidia.engine import NvidiaEngine
from edgepress.runtime.nvidia.execution import Execution
from edgepress.runtime.nvidia.fitting import fitting
from edgepress.runtime.nvidia.inspection import layers_of
from edgepress.runtime.nvidia.trtexec import trtexec_line
from edgepress.runtime.seal import seal, write_files, write_zip
from edgepress.runtime.target import TARGET_NAMES, target

ENGINES = ("tensorrt", "tensorrt-rtx")
every_engine = pytest.mark.parametrize("name", ENGINES)
Tiny = Callable[..., bytes]


def missing_driver() -> str:
    """Why there is no GPU here; empty where there is one."""
    try:
        cuda()
    except EngineError as error:
        return error.message
    return ""


NO_GPU = missing_driver()
gpu = [pytest.mark.gpu, pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU)]
without_gpu = pytest.mark.skipif(not NO_GPU, reason="this machine has a GPU")


def installed(name: str) -> bool:
    try:
        import_backend(name)
    except MissingExtraError:
        return False
    return True


needs_rtx = pytest.mark.skipif(
    not installed("tensorrt-rtx"), reason="the extra tensorrt-rtx is not installed"
)


def run_cli(capture: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words), "--json"])
    told = capture.readouterr()
    assert isinstance(ended.value.code, int), told.err
    return ended.value.code, json.loads(told.out)


# ---------------------------------------------------------------- the driver comes first


@without_gpu
@every_engine
def test_without_a_driver_nothing_of_tensorrt_is_imported(name: str, tiny_classifier: Tiny) -> None:
    code = (
        "import sys\n"
        "from edgepress.runtime import EngineError, open_engine\n"
        f"try:\n    open_engine({name!r})(sys.stdin.buffer.read()).__enter__()\n"
        "except EngineError as error:\n    print(error.code)\n"
        "print([m for m in sys.modules if m.startswith('tensorrt')])\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        input=tiny_classifier(),
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdout.decode().split() == ["E_DRIVER", "[]"]


@without_gpu
@every_engine
def test_doctor_tells_missing_hardware_from_a_broken_engine(name: str) -> None:
    report = examine(name)
    assert not report.ok
    assert not report.installed
    assert "driver" in report.reason
    assert "NVIDIA GPU" in report.mend


@pytest.mark.parametrize("library", ["libnowhere.so.9", "libc.so.6"])
@pytest.mark.skipif(sys.platform != "linux", reason="names of Linux's libraries")
def test_what_is_no_driver_is_told(library: str) -> None:
    with pytest.raises(EngineError) as caught:
        Cuda(library)
    assert caught.value.code == "E_DRIVER"
    assert library in caught.value.message


@every_engine
def test_a_missing_package_names_its_extra(name: str) -> None:
    if installed(name):
        assert load_backend(name).Builder
        return
    with pytest.raises(MissingExtraError) as caught:
        load_backend(name)
    assert f"pip install 'edgepress[{name}]'" in caught.value.mend


@every_engine
@pytest.mark.parametrize(
    ("options", "code"),
    [
        (EngineOptions(precision="bf16"), "E_PRECISION"),
        (EngineOptions(optimize="none"), "E_USAGE"),
    ],
)
def test_options_that_it_has_not_are_refused_before_anything_else(
    name: str, options: EngineOptions, code: str
) -> None:
    with pytest.raises(EngineError) as caught:
        open_engine(name)(b"", options).__enter__()
    assert caught.value.code == code


@every_engine
def test_an_engine_that_is_not_open_does_not_run(name: str, tiny_classifier: Tiny) -> None:
    made = open_engine(name)(tiny_classifier())
    assert isinstance(made, NvidiaEngine)
    for use in (lambda: made.run({}), made.layers):
        with pytest.raises(EngineError) as caught:
            use()
        assert caught.value.code == "E_CLOSED"


def test_the_targets_are_known() -> None:
    for name in ENGINES:
        assert name in TARGET_NAMES
        found = target(name)
        assert (found.engine, found.dialect) == (name, name)
        assert found.precisions == ("int8", "float16", "float32")


# ---------------------------------------------------------------- how it is built


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
        config = configured(trt, builder, network, model, BuildOptions(batch=batch))
        assert tuple(network.get_input(0).shape) == (shape, 3, 8, 8)
        assert network.get_output(0).shape[0] == shape
        assert config.num_optimization_profiles == profiles
    assert build(trt, model, BuildOptions(batch=(4, 4, 4))).plan


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
    first = build(trt, model, options, b"")
    again = build(trt, model, options, first.timing_cache)
    assert first.timing_cache
    assert again.plan
    assert build(trt, model, options, b"of another GPU").plan, "it begins anew"
    with pytest.raises(EngineError) as caught:
        build(trt, model, BuildOptions(dla_core=0))
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


H200 = Gpu(0, "NVIDIA H200", "9.0", "580.159")


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1", "13.0"])
def test_rtx_serves_desktops(capability: str) -> None:
    check_gpu(replace(H200, compute_capability=capability))


@pytest.mark.parametrize("capability", ["7.0", "8.7", "9.0", "10.0", "11.0"])
def test_a_gpu_that_rtx_does_not_serve_is_refused_before_any_work(
    capability: str, monkeypatch: pytest.MonkeyPatch, tiny_classifier: Tiny
) -> None:
    class Driver:
        def gpu(self, index: int = 0) -> Gpu:
            return replace(H200, index=index, compute_capability=capability)

    monkeypatch.setattr("edgepress.runtime.nvidia.driver.cuda", Driver)
    monkeypatch.setattr("edgepress.runtime.nvidia.engine.cuda", Driver)
    device = find_device("tensorrt")
    assert device is not None
    assert device.name == "NVIDIA H200"
    calls: list[Callable[[], Any]] = [
        lambda: find_device("tensorrt-rtx"),
        lambda: open_engine("tensorrt-rtx")(tiny_classifier()).__enter__(),
    ]
    for call in calls:
        with pytest.raises(EngineError, match="does not serve the NVIDIA H200") as caught:
            call()
        assert caught.value.code == "E_PROVIDER"
        assert "TensorRT serves this one" in caught.value.mend


@needs_rtx
def test_what_it_logs_is_told_and_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """It writes to standard output by itself, where the answer of a command belongs."""
    real = load_backend("tensorrt-rtx")

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> None:
            self.logger.log(real.ILogger.Severity.INFO, "loading")
            self.logger.log(real.ILogger.Severity.ERROR, "The engine cannot run on this GPU.")

    class Backend:
        ILogger, __version__ = real.ILogger, "1.7"
        __name__ = "tensorrt_rtx"

    monkey: Any = Backend()
    monkey.Runtime = Runtime
    with pytest.raises(EngineError) as caught:
        Execution(monkey, FakeDriver(), 0, b"plan")
    assert caught.value.message == (
        "tensorrt_rtx 1.7 does not load the engine on this GPU: The engine cannot run on this GPU."
    )
    assert capfd.readouterr() == ("", "")


class FakeDriver(Cuda):
    """A driver that has nothing to do."""

    def __init__(self) -> None:
        self.count = 1

    def retain(self, index: int) -> int:
        return 1

    def use(self, context: int) -> None:
        pass

    def release(self, index: int) -> None:
        pass

    def stream(self) -> int:
        return 1

    def wait(self, stream: int) -> None:
        pass

    def destroy_stream(self, stream: int) -> None:
        pass


class Kernels:
    """What a runtime cache of RTX does."""

    def __init__(self) -> None:
        self.held = b""

    def deserialize(self, blob: bytes) -> bool:
        self.held = blob if blob == b"compiled" else b""
        return bool(self.held)

    def serialize(self) -> bytes:
        return self.held


class LateEngine:
    """An engine that compiles its kernels as a context is made, unless it is given them."""

    num_io_tensors = 0

    def deserialize_cuda_engine(self, plan: bytes) -> LateEngine:
        return self

    def create_runtime_config(self) -> LateEngine:
        return self

    def create_runtime_cache(self) -> Kernels:
        return Kernels()

    def set_runtime_cache(self, kernels: Kernels) -> None:
        self.kernels = kernels

    def create_execution_context(self, settings: object = None) -> object:
        if settings is not None:
            self.kernels.held = b"compiled"
        return self


@needs_rtx
@pytest.mark.parametrize(
    ("given", "took", "made"),
    [
        (None, False, b""),
        (b"", False, b"compiled"),
        (b"compiled", True, b"compiled"),
        (b"of another version", False, b"compiled"),
    ],
)
def test_kernels_are_taken_where_they_suit(given: bytes | None, took: bool, made: bytes) -> None:
    backend: Any = SimpleNamespace(
        ILogger=load_backend("tensorrt-rtx").ILogger,
        Runtime=lambda logger: LateEngine(),  # pyright: ignore[reportUnknownLambdaType]
    )
    execution = Execution(backend, FakeDriver(), 0, b"plan", kernels=given)
    assert (execution.took_kernels, execution.compiled()) == (took, made)
    execution.close()
    execution.close()


@needs_rtx
def test_kernels_are_kept_beside_the_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_classifier: Tiny
) -> None:
    class Driver:
        def gpu(self, index: int = 0) -> Gpu:
            return replace(H200, index=index, compute_capability="8.9")

    class Running:
        def __init__(self, kernels: bytes | None) -> None:
            self.took_kernels, self.made = bool(kernels), kernels or b"compiled"

        def tensors(self) -> list[Any]:
            return []

        def compiled(self) -> bytes:
            return self.made

        def close(self) -> None:
            pass

    def start(*given: Any) -> Running:
        started.append(Running(given[-1]))
        return started[-1]

    started: list[Running] = []
    monkeypatch.setattr("edgepress.runtime.nvidia.engine.cuda", Driver)
    monkeypatch.setattr("edgepress.runtime.nvidia.engine._start", start)
    folder = tmp_path / "cache"
    for found in (b"compiled", b"compiled", b"more"):
        options = EngineOptions(cache=str(folder))
        with open_engine("tensorrt-rtx")(tiny_classifier(), options) as engine:
            again = len(started) > 1
            assert engine.facts()["kernels_from_cache"] is again
            assert engine.facts()["from_cache"] is again
            assert started[-1].made == found
            if again:
                started[-1].made = b"more"  # shapes seen since
    with open_engine("tensorrt-rtx")(tiny_classifier()) as engine:
        assert engine.facts()["kernels_from_cache"] is False
    assert len(list((folder / "engines").glob("*.plan"))) == 2


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


# ---------------------------------------------------------------- the cache

MADE_OF: dict[str, object] = {"engine": "tensorrt", "gpu": "Orin", "options": {"batch": [1, 1, 16]}}


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def test_an_engine_is_found_by_all_that_made_it(cache: EngineCache) -> None:
    assert cache.find(MADE_OF) is None
    cache.put(MADE_OF, b"native code")
    assert cache.find(MADE_OF) == b"native code"
    for change in ({"gpu": "RTX 4090"}, {"driver": "570"}, {"options": {"batch": [1, 8, 16]}}):
        assert cache.find({**MADE_OF, **change}) is None
    assert key_of(MADE_OF) != key_of({**MADE_OF, "version": "10.3"})
    again = EngineCache(cache.folder)
    assert again.find(MADE_OF) == b"native code"
    if sys.platform != "win32":
        modes = {path.stat().st_mode & 0o777 for path in cache.folder.rglob("*.plan")}
        assert modes == {0o600}


@pytest.mark.parametrize("what", ["edited", "cut", "told", "other key", "writable", "link", "gone"])
@pytest.mark.skipif(sys.platform == "win32", reason="modes and links of a POSIX system")
def test_what_was_tampered_with_is_built_again(cache: EngineCache, what: str) -> None:
    cache.put(MADE_OF, b"native code")
    (plan,) = cache.folder.rglob("*.plan")
    told = plan.with_suffix(".json")
    if what == "edited":
        plan.write_bytes(b"native c0de")
    elif what == "cut":
        plan.write_bytes(b"")
    elif what == "told":
        told.write_text("{")
    elif what == "other key":
        other = {**MADE_OF, "gpu": "RTX 4090"}
        for path in (plan, told):
            path.rename(path.with_stem(key_of(other)))
        assert cache.find(other) is None
    elif what == "writable":
        plan.chmod(0o666)
    elif what == "link":
        plan.rename(plan.with_suffix(".real"))
        plan.symlink_to(plan.with_suffix(".real"))
    else:
        told.unlink()
    assert cache.find(MADE_OF) is None
    cache.put(MADE_OF, b"built again")
    assert cache.find(MADE_OF) == b"built again"


@pytest.mark.skipif(sys.platform == "win32", reason="modes of a POSIX system")
def test_a_folder_where_others_may_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(InputError) as caught:
        EngineCache(folder)
    assert caught.value.code == "E_CACHE"
    assert "chmod 700" in caught.value.mend
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError) as caught:
        EngineCache(file)
    assert caught.value.code == "E_WRITE"


def test_what_the_builder_measured_is_kept_by_device(cache: EngineCache) -> None:
    assert cache.timing({"gpu": "Orin"}) == b""
    cache.put_timing({"gpu": "Orin"}, b"measured")
    assert cache.timing({"gpu": "Orin"}) == b"measured"
    assert cache.timing({"gpu": "Thor"}) == b""


ASKED: dict[str, object] = {"engine": "tensorrt", "provider": "", "model_sha256": "0" * 64}


def test_how_it_was_asked_to_be_built_is_remembered_by_model(cache: EngineCache) -> None:
    options = BuildOptions((1, 8, 32), {"H": (32, 64, 96)}, level=2, cuda_graph=True)
    assert cache.build(ASKED) is None
    cache.put_build(ASKED, options)
    assert EngineCache(cache.folder).build(ASKED) == options
    for change in ({"engine": "tensorrt-rtx"}, {"provider": "GPU"}, {"model_sha256": "1" * 64}):
        assert cache.build({**ASKED, **change}) is None


@pytest.mark.parametrize(
    "told",
    [
        "{",
        "[]",
        json.dumps({"model": ASKED}),
        json.dumps({"model": ASKED, "options": {"batch": [1, 1, 16]}}),
        json.dumps({"model": ASKED, "options": {"batch": [9, 1, 16], "sizes": {}}}),
        json.dumps({"model": ASKED, "options": {"batch": [1, 1, 16], "sizes": [1]}}),
        json.dumps({"model": ASKED, "options": {**BuildOptions().to_dict(), "odd": 1}}),
        json.dumps({"model": {}, "options": BuildOptions().to_dict()}),
    ],
)
def test_a_damaged_memory_of_how_it_was_built_is_none(cache: EngineCache, told: str) -> None:
    cache.put_build(ASKED, BuildOptions((1, 2, 3)))
    (file,) = (cache.folder / "builds").iterdir()
    file.write_text(told, encoding="utf-8")
    assert cache.build(ASKED) is None


@needs_rtx
def test_what_is_built_to_be_measured_is_not_remembered(
    tiny_classifier: Tiny, tmp_path: Path
) -> None:
    """`bench` builds for one picture; a session that comes after it is not to be held to that."""
    model, folder, gpu = tiny_classifier(), str(tmp_path / "cache"), Gpu(0, "a GPU", "8.7", "12.6")
    asked = BuildOptions((1, 8, 32))
    made = open_engine("tensorrt-rtx")
    for how, remember, left in (
        (fitting(model, 1, {}), False, BuildOptions()),
        (asked, True, asked),
        (fitting(model, 1, {}), False, asked),
    ):
        engine: Any = made(model, EngineOptions(cache=folder, build=how, remember=remember))
        plan, facts = engine._plan(import_backend("tensorrt-rtx"), gpu, engine.build_options())
        assert plan
        assert facts["from_cache"] is (left == asked and not remember)
        assert made(model, EngineOptions(cache=folder)).build_options() == left  # pyright: ignore


@every_engine
def test_how_it_is_built_is_asked_for_or_remembered_or_the_default(
    name: str, tiny_classifier: Tiny, tmp_path: Path
) -> None:
    folder, model = tmp_path / "cache", tiny_classifier()
    asked, remembered = BuildOptions((1, 4, 8)), BuildOptions((1, 8, 32))

    def found(**options: Any) -> BuildOptions:
        made = open_engine(name)(model, EngineOptions(**options))
        assert isinstance(made, NvidiaEngine)
        return made.build_options()

    assert found() == found(cache=str(folder)) == BuildOptions()
    digest = hashlib.sha256(model).hexdigest()
    key = {"engine": name, "provider": "", "model_sha256": digest}
    EngineCache(folder).put_build(key, remembered)
    assert found(cache=str(folder)) == remembered
    assert found(cache=str(folder), build=asked) == found(build=asked) == asked
    assert found() == found(cache=str(tmp_path / "other")) == BuildOptions()
    assert found(cache=str(folder), provider="GPU:1") == BuildOptions()


@without_gpu
@every_engine
def test_what_could_not_be_built_is_not_remembered(
    name: str, tiny_classifier: Tiny, tmp_path: Path
) -> None:
    options = EngineOptions(cache=str(tmp_path / "cache"), build=BuildOptions((1, 8, 32)))
    with pytest.raises(EngineError) as caught:
        open_engine(name)(tiny_classifier(), options).__enter__()
    assert caught.value.code == "E_DRIVER"
    assert not (tmp_path / "cache").exists()


def test_engines_that_build_nothing_have_no_use_for_how(tiny_classifier: Tiny) -> None:
    with open_engine("onnxruntime")(tiny_classifier(), built(batch=(1, 1, 1))) as engine:
        assert engine.run(feeds(3))["logits"].shape == (3, 4)
        assert engine.largest_batch is None


def test_two_builders_of_one_engine_take_turns(cache: EngineCache) -> None:
    order: list[str] = []

    def second() -> None:
        with EngineCache(cache.folder).lock(MADE_OF):
            order.append("second")

    with cache.lock(MADE_OF):
        other = threading.Thread(target=second)
        other.start()
        time.sleep(0.2)
        order.append("first")
    other.join(timeout=10)
    assert order == ["first", "second"]


def test_the_cache_lies_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRESS_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("EDGEPRESS_CACHE")
    assert cache_folder().is_relative_to(Path.home())


# ---------------------------------------------------------------- what an engine tells of itself

TOLD = {
    "Layers": [
        {
            "Name": "stem + Relu_r0",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Name": "r0", "Format/Datatype": "Row major linear FP16 format"}],
            "Metadata": "[ONNX Layer: stem]\x1e[ONNX Layer: Relu_r0]",
        },
        {
            "Name": "c1",
            "LayerType": "CaskConvolution",
            "Inputs": [
                {"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"},
                {"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"},
            ],
            "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}],
            "Metadata": "[ONNX Layer: c1]\x1e[ONNX Layer: Add_s]",
        },
        {"Name": "odd", "LayerType": "NoOp", "Inputs": [], "Outputs": [{"Datatype": "Half"}]},
    ],
    "Bindings": ["x", "y"],
}


def test_the_inspector_tells_types_and_origins() -> None:
    stem, inner, odd = layers_of(json.dumps(TOLD))
    assert (stem.reads, stem.gives, stem.origins) == (("float32",), ("fp16",), ("stem", "Relu_r0"))
    assert (inner.computes_in, inner.origins) == ("int8", ("c1", "Add_s"))
    assert (odd.computes_in, odd.origins) == ("fp16", ())


def test_pictures_in_bytes_are_no_int8() -> None:
    read = {"Format/Datatype": "Row major linear UInt8 format"}
    (layer,) = layers_of(json.dumps({"Layers": [
        {"Name": "cast", "LayerType": "Reformat", "Inputs": [read], "Outputs": [], "Metadata": ""},
    ]}))  # fmt: skip
    assert layer.computes_in == "uint8"


def test_an_inspector_that_tells_no_types_proves_nothing() -> None:
    """As TensorRT 10 has it where a shape is free."""
    pytest.importorskip("onnx")
    from edgepress.export.executed import InTensorRt
    from edgepress.export.receipt import tells

    free = {"Name": "t", "Format/Datatype": "N/A due to dynamic shapes"}
    layer = {"Name": "conv", "LayerType": "CaskConvolution", "Metadata": "[ONNX Layer: conv]"}
    untold = json.dumps({"Layers": [{**layer, "Inputs": [free], "Outputs": [free]}]})
    assert not tells(InTensorRt(layers_of(untold)))
    assert tells(InTensorRt(layers_of(json.dumps(TOLD))))


@pytest.mark.parametrize("text", ["", "{}", '{"Layers": ["stem + Relu_r0"]}', "[]"])
def test_an_engine_without_details_tells_nothing(text: str) -> None:
    with pytest.raises(EngineError) as caught:
        layers_of(text)
    assert caught.value.code == "E_BACKEND"


def test_a_receipt_is_read_from_what_the_inspector_tells() -> None:
    pytest.importorskip("onnx")
    from edgepress.export.dialects.qdq import Unit
    from edgepress.export.executed import InTensorRt

    seen = InTensorRt(layers_of(json.dumps(TOLD)))
    assert seen.kernel_of(Unit("c1", "Conv", "c1", "c1")) == ("CaskConvolution int8", True)
    assert seen.kernel_of(Unit("Add_s", "Add", "s", "s")) == ("CaskConvolution int8", True)
    assert seen.kernel_of(Unit("stem", "Conv", "y", "y")) == ("CaskConvolution float32", False)
    assert seen.kernel_of(Unit("gone", "Conv", "y", "y"))[1] is False
    assert seen.runs_in("Relu_r0") == "float32"
    assert seen.kernels() == {
        "CaskConvolution float32": 1, "CaskConvolution int8": 1, "NoOp fp16": 1
    }  # fmt: skip


def test_a_receipt_of_int8_tells_fp16_from_float32() -> None:
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    from edgepress.export import Graph
    from edgepress.export.dialects.qdq import Quantized, Unit
    from edgepress.export.executed import InTensorRt
    from edgepress.export.plan import Choice, PrecisionPlan
    from edgepress.export.receipt import beside_int8

    names = ("stem", "Relu_r0", "c1", "Relu_c1", "Add_s", "odd", "untold", "kept")
    nodes = [
        helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], name=one) for i, one in enumerate(names)
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])] for name in ("t0", "t8")]
    graph = Graph(
        helper.make_model(helper.make_graph(nodes, "g", *ends)).SerializeToString(), (), ()
    )
    units = tuple(Unit(name, "Conv", name, name) for name in ("c1", "Add_s", "Relu_r0"))
    quantized = Quantized(b"", units, (), {"Relu_c1": "c1"})
    first = Choice("float32", "reads the picture")
    plan = PrecisionPlan({"stem": first, "untold": Choice("float32", "has no kernel")})
    halves = dict.fromkeys(("stem", "odd", "untold"), Choice("fp16", "it fits into FP16"))
    half = PrecisionPlan({**halves, "kept": Choice("float32", "kept by the recipe")})
    seen = InTensorRt(layers_of(json.dumps(TOLD)))
    rows = {one.name: one for one in beside_int8(graph, {"odd": 7}, quantized, plan, seen, half)}
    assert {name: one.precision for name, one in rows.items()} == {
        "stem": "float32", "Relu_r0": "float32", "c1": "int8", "Relu_c1": "int8", "Add_s": "int8",
        "odd": "fp16", "untold": "fp16 as written", "kept": "float32",
    }  # fmt: skip
    assert rows["stem"].reason == "asked for fp16, the engine runs it in float32"
    told = "has no kernel; it fits into FP16; no layer of the engine tells of it"
    assert rows["untold"].reason == told
    assert (rows["odd"].macs, rows["kept"].reason) == (7, "kept by the recipe")


# ---------------------------------------------------------------- the command


@pytest.fixture
def model_file(tmp_path: Path, tiny_classifier: Tiny) -> Path:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_classifier())
    return path


def test_the_command_prints_the_line_and_does_nothing_else(
    model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(model_file.parent.rglob("*"))
    status, told = run_cli(
        capsys, "engine", model_file, "--engine", "tensorrt", "--trtexec", "--batch", "1,4,8"
    )
    assert status == 0
    assert told["trtexec"].startswith(f"trtexec --onnx={model_file} ")
    assert "--optShapes=input:4x3x8x8" in told["trtexec"]
    assert sorted(model_file.parent.rglob("*")) == before


@needs_rtx
def test_the_command_proves_without_a_gpu_and_keeps_nothing(
    model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(model_file.parent.rglob("*"))
    status, told = run_cli(capsys, "engine", model_file, "--engine", "tensorrt-rtx", "--prove")
    assert status == 0, told
    assert told["proved"] is True
    assert told["layers"] > 3
    assert sorted(model_file.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), "E_USAGE"),
        (("--engine", "tensorrt", "--batch", "1,2"), "E_USAGE"),
        (("--engine", "tensorrt", "--batch", "8,2,1"), "E_USAGE"),
        (("--engine", "tensorrt", "--size", "H"), "E_USAGE"),
        pytest.param(("--engine", "tensorrt"), "E_DRIVER", marks=without_gpu),
        pytest.param(("--engine", "tensorrt", "--prove"), "E_DRIVER", marks=without_gpu),
    ],
)
def test_the_command_refuses_and_writes_nothing(
    model_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    code: str,
) -> None:
    before = sorted(tmp_path.rglob("*"))
    status, told = run_cli(capsys, "engine", model_file, "--cache", tmp_path / "kept", *words)
    assert status == 2
    assert told["error"]["code"] == code
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_refuses_a_bundle_for_another_engine(
    small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = run_cli(capsys, "engine", small_bundle)
    assert (status, told["error"]["code"]) == (2, "E_DIALECT")
    status, told = run_cli(capsys, "engine", small_bundle, "--engine", "tensorrt", "--trtexec")
    assert status == 0, "its model is plain float32"
    assert f"--onnx={small_bundle / 'model.onnx'}" in told["trtexec"]


def test_the_line_for_a_zip_is_for_what_is_unpacked(
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    packed = tmp_path / "my bundle.zip"
    write_zip(Bundle.open(small_bundle).files, packed)
    monkeypatch.chdir(tmp_path)
    words = ["--engine", "tensorrt", "--trtexec", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["engine", packed.name, *words])
    assert ended.value.code == 0
    told = capsys.readouterr()
    line = shlex.split(json.loads(told.out)["trtexec"])
    (model,) = (word.removeprefix("--onnx=") for word in line if word.startswith("--onnx="))
    assert list(tmp_path.iterdir()) == [packed], "nothing is written"
    unpack = shlex.split(told.err.rpartition("first: ")[2].splitlines()[0])
    subprocess.run([sys.executable, *unpack[1:]], check=True)
    assert Path(model).read_bytes() == (small_bundle / "model.onnx").read_bytes()
    with pytest.raises(SystemExit):
        main(["engine", str(small_bundle), *words])
    assert "unpack" not in capsys.readouterr().err, "a folder is one already"


# ---------------------------------------------------------------- on a GPU


@pytest.mark.parametrize(
    ("line", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  "
            "(somebody@)",
            "580.159.04",
        ),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54  Tue Jun  6", "535.54"),
        ("# R36 (release), REVISION: 4.3, GCID: 38968081", None),
    ],
)
def test_of_the_drivers_words_its_version_is_kept(line: str, version: str | None) -> None:
    assert version_of(line) == (version or line)


def usable(name: str) -> None:
    if not installed(name):
        pytest.skip(f"the extra {name} is not installed")
    try:
        find_device(name)
    except EngineError as error:
        pytest.skip(error.message)


def opened(name: str, model: bytes, options: EngineOptions | None = None) -> Any:
    usable(name)
    return open_engine(name)(model, options)


def built(**how: Any) -> EngineOptions:
    return EngineOptions(build=BuildOptions(**how))


def feeds(count: int = 2) -> dict[str, Any]:
    return {"input": np.random.default_rng(0).normal(size=(count, 3, 8, 8)).astype(np.float32)}


class TestOnGpu:
    pytestmark = gpu

    def test_the_driver_does_what_it_is_told(self) -> None:
        driver = cuda()
        assert driver.gpu().compute_capability.replace(".", "").isdigit()
        handle = driver.retain(0)
        driver.use(handle)
        stream, size = driver.stream(), 4 << 20
        one, other = driver.allocate(size), driver.allocate(size)
        address = driver.allocate_host(size)
        raw = (ctypes.c_uint8 * size).from_address(address)
        host = np.frombuffer(raw, dtype=np.float32)
        given, found = np.random.default_rng(0).random(size // 4, np.float32), np.zeros_like(host)
        np.copyto(host, given)
        driver.copy_in(one, host, stream)
        driver.copy_out(found, one, stream)
        driver.wait(stream)
        np.testing.assert_array_equal(found, given)
        driver.begin_capture(stream)
        driver.copy_in(other, host, stream)
        recorded = driver.end_capture(stream)
        np.copyto(host, -given)
        driver.launch(recorded, stream)
        driver.copy_out(found, other, stream)
        driver.wait(stream)
        np.testing.assert_array_equal(found, -given)
        for call in (lambda: driver.free(12345), lambda: driver.allocate(1 << 50)):
            with pytest.raises(EngineError) as caught:
                call()
            assert caught.value.code == "E_BACKEND"
        driver.destroy_graph(recorded)
        for address_of in (one, other):
            driver.free(address_of)
        driver.free_host(address)
        driver.destroy_stream(stream)
        driver.release(0)

    @every_engine
    def test_it_computes_what_onnxruntime_does(self, name: str, tiny_classifier: Tiny) -> None:
        model = tiny_classifier()
        with open_engine("onnxruntime")(model) as reference, opened(name, model) as engine:
            assert (engine.inputs, engine.outputs) == (reference.inputs, reference.outputs)
            for count in (1, 2, 16, 3):
                wanted, found = reference.run(feeds(count)), engine.run(feeds(count))
                np.testing.assert_allclose(found["logits"], wanted["logits"], atol=1e-4)
            facts = engine.facts()
            assert facts["engine"] == name
            assert facts["fell_back"] is False
            assert json.loads(engine.layers())

    @every_engine
    def test_a_recorded_inference_gives_the_same(self, name: str, tiny_classifier: Tiny) -> None:
        model = tiny_classifier()
        with (
            opened(name, model) as plain,
            opened(name, model, built(cuda_graph=True)) as recorded,
        ):
            for count in (2, 5, 2):
                one, other = plain.run(feeds(count)), recorded.run(feeds(count))
                np.testing.assert_array_equal(one["logits"], other["logits"])

    @every_engine
    def test_sizes_that_it_was_not_built_for_are_refused(
        self, name: str, tiny_classifier: Tiny
    ) -> None:
        with opened(name, tiny_classifier(), built(batch=(1, 2, 4))) as engine:
            assert engine.largest_batch == 4
            with pytest.raises(InputError) as caught:
                engine.run(feeds(5))
            assert caught.value.code == "E_INPUT"
            assert engine.run(feeds(4))["logits"].shape == (4, 4)

    @every_engine
    def test_a_cached_engine_is_found_again(
        self, name: str, tiny_classifier: Tiny, tmp_path: Path
    ) -> None:
        options = EngineOptions(cache=str(tmp_path / "cache"))
        found = []
        for _ in range(2):
            with opened(name, tiny_classifier(), options) as engine:
                facts = engine.facts()
                assert facts.get("kernels_from_cache", facts["from_cache"]) == facts["from_cache"]
                found.append((facts["from_cache"], engine.run(feeds())["logits"]))
        assert [one for one, _ in found] == [False, True]
        np.testing.assert_array_equal(found[0][1], found[1][1])

    @every_engine
    def test_what_the_command_built_is_found_by_a_session(
        self,
        name: str,
        small_bundle: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        usable(name)
        bundle, folder = Bundle.open(small_bundle), tmp_path / "cache"
        variant = replace(bundle.variants[0], engine=name)
        files = {path: bundle.files[path] for path in bundle.files if "manifest" not in path}
        made = tmp_path / "bundle"
        write_files(seal(replace(bundle.manifest, variants=(variant,)), files), made)
        words = ("--batch", "1,8,32", "--cuda-graph", "--cache", folder)
        status, told = run_cli(capsys, "engine", made, *words)
        assert (status, told["from_cache"]) == (0, False), told
        with Session.open(made, cache=folder) as session:
            facts: Any = session.facts()
            assert (facts["from_cache"], facts["cuda_graph"]) == (True, True)
            assert facts["build"]["batch"] == [1, 8, 32]
            session.run({session.inputs[0].name: np.zeros((32, 3, 8, 8), np.float32)})
        asked = BuildOptions((1, 1, 2))
        with Session.open(made, cache=folder, build=asked) as session:
            assert session.facts()["from_cache"] is False
        with Session.open(made, cache=folder) as session:
            assert session.facts()["build"] == asked.of_engine(), "what was asked for last"
            pictures = [np.full((8, 8, 3), value, np.uint8) for value in range(5)]
            assert len(list(session.predict_many(pictures))) == 5

    @every_engine
    def test_threads_take_turns(self, name: str, tiny_classifier: Tiny) -> None:
        with opened(name, tiny_classifier()) as engine:
            wanted = engine.run(feeds())["logits"]
            found: list[Any] = []
            workers = [
                threading.Thread(target=lambda: found.append(engine.run(feeds())["logits"]))
                for _ in range(4)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        assert len(found) == 4
        for one in found:
            np.testing.assert_array_equal(one, wanted)

    def test_a_gpu_that_is_not_there_is_refused(self, tiny_classifier: Tiny) -> None:
        for provider in ("GPU:99", "TPU"):
            with pytest.raises(EngineError) as caught:
                opened("tensorrt", tiny_classifier(), EngineOptions(provider=provider)).__enter__()
            assert caught.value.code == "E_PROVIDER"

    @every_engine
    def test_doctor_proves_it(self, name: str) -> None:
        usable(name)
        report = examine(name)
        assert report.ok, report


def test_the_cache_is_for_this_user_whatever_new_folders_are(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        for number, name in enumerate(("", "choices")):
            folder = make_folder(tmp_path / f"new-{number}" / "cache", name)
            EngineCache(folder.parent if name else folder)  # which refuses what others may write
            assert folder.stat().st_mode & 0o022 == 0
    finally:
        os.umask(before)


def test_a_folder_that_cannot_be_locked_still_gives_what_it_has(
    cache: EngineCache, tmp_path: Path
) -> None:
    cache.put(MADE_OF, b"plan")
    (cache.folder / "engines" / f"{key_of(MADE_OF)}.lock").mkdir()
    with pytest.raises(InputError) as caught, cache.lock(MADE_OF):
        pass
    assert caught.value.code == "E_WRITE"
    assert cache.find(MADE_OF) == b"plan"


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
    assert fitting(free_sizes, 4, {"x": (1, 3, 16, 24)}) == MEASURED


@needs_rtx
def test_what_is_measured_is_built_for_what_is_measured(free_sizes: bytes) -> None:
    assert build_engine("tensorrt-rtx", free_sizes, MEASURED).plan
    with pytest.raises(InputError) as caught:
        build_engine("tensorrt-rtx", free_sizes, BuildOptions())
    assert caught.value.code == "E_SHAPE"
