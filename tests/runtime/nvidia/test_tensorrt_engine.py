"""The engines tensorrt and tensorrt-rtx: what can be proved without a GPU, and what needs one.

Tests marked ``gpu`` run the engines; they are skipped, with the driver's own words, where there is
none.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgepress.runtime import (
    Bundle,
    EngineError,
    EngineOptions,
    InputError,
    MissingExtraError,
    Session,
    open_engine,
)
from edgepress.runtime.bundle.bundle_writer import seal, write_files
from edgepress.runtime.doctor import examine_engine
from edgepress.runtime.engine_registry import find_device, load_backend
from edgepress.runtime.engines.build_options import BuildOptions
from edgepress.runtime.nvidia.driver import Cuda, Gpu, cuda, version_of
from edgepress.runtime.nvidia.engine import NvidiaEngine
from edgepress.runtime.nvidia.execution import Execution
from edgepress.runtime.target import TARGET_NAMES, target
from helpers.command_line import run_cli
from helpers.tensorrt_here import (
    ENGINES,
    Tiny,
    every_engine,
    gpu,
    installed,
    needs_rtx,
    without_gpu,
)

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
    report = examine_engine(name)
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


# ---------------------------------------------------------------- how it is loaded


H200 = Gpu(0, "NVIDIA H200", "9.0", "580.159")


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1", "13.0"])
def test_rtx_serves_desktops(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = replace(H200, compute_capability=capability)
    driver = SimpleNamespace(gpu=lambda: device)
    monkeypatch.setattr("edgepress.runtime.nvidia.driver.cuda", lambda: driver)
    assert find_device("tensorrt-rtx") == device


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
        report = examine_engine(name)
        assert report.ok, report
