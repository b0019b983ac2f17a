"""What tests share: a clean home folder, no network, data, small graphs, fresh environments."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

pytest_plugins = ["emulation.aarch64", "emulation.demo_bundle"]  # fixtures that lie elsewhere

PROJECT = Path(__file__).resolve().parent.parent
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")

# ---------------------------------------------------------------- a clean machine for every test

# Set before any test module is imported: libraries read these once. CI is unset because it hides
# the telemetry of some of them. What the user had set serves pip alone, see `_build`.
_FOLDER = "EDGEPRESS_TESTS_FOLDER"
_SAVED = "EDGEPRESS_TESTS_USER_VARIABLES"
_CHANGED = ("HOME", "USERPROFILE", "CI", "ORT_DISABLE_TELEMETRY", "NNCF_CI", "TORCH_HOME")
if not WORKER:
    os.environ[_FOLDER] = tempfile.mkdtemp(prefix="edgepress-tests-")
    changed = [n for n in list(os.environ) if n in _CHANGED or n.startswith(("XDG_", "HF_"))]
    theirs: dict[str, str] = {name: os.environ.pop(name) for name in changed}
    os.environ[_SAVED] = json.dumps(theirs)
USER_VARIABLES: dict[str, str] = json.loads(os.environ[_SAVED])
RUN_FOLDER = Path(os.environ[_FOLDER])  # one for all test processes of this run, removed at its end
HOME = RUN_FOLDER / f"home{WORKER}"
HOME.mkdir()
os.environ.update(HOME=str(HOME), USERPROFILE=str(HOME))
os.environ.pop("EDGEPRESS_CACHE", None)
for name in ("CUDA_CACHE_PATH", "TRITON_CACHE_DIR"):  # of the driver's and the compiler's own
    os.environ.setdefault(name, str(RUN_FOLDER / name.lower()))
if WORKER:  # several test processes share the cores: one OpenMP thread each, for torch
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# As on another processor: before a test module asks what this one can do.
HELD_TO = os.environ.get("EDGEPRESS_TESTS_PROCESSOR")
if HELD_TO:
    from helpers.processors import hold_to

    (RUN_FOLDER / f"processor{WORKER}").mkdir()
    hold_to(HELD_TO, RUN_FOLDER / f"processor{WORKER}")

# What starts us in the background may have us ignore Ctrl-C, which children would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

refused_connections: list[str] = []


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = str(address[0]) if isinstance(address, tuple) and address else "localhost"
    elif event == "socket.getaddrinfo":
        host = str(arguments[0])
    else:
        return
    if host in ("localhost", "::1", "None", "") or host.startswith("127."):
        return
    refused_connections.append(f"{event} to {host}")
    raise ConnectionRefusedError(f"tests have no network: {event} to {host}")


sys.addaudithook(_refuse_network)


@pytest.fixture(autouse=True)
def clean_machine() -> Iterator[list[str]]:
    """Fail the test in which something reached for the network or wrote in the home folder.

    Yields the connections refused so far, for a test that means to have one.
    """
    yield refused_connections
    written = sorted(str(path.relative_to(HOME)) for path in HOME.rglob("*"))
    refused = refused_connections.copy()
    refused_connections.clear()
    for entry in HOME.iterdir():  # so that the next test is not blamed
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    assert not written, f"written in the home folder: {written}"
    assert not refused, f"reached for the network: {refused}"


def pytest_report_header() -> str:
    return f"held to the processor {HELD_TO}" if HELD_TO else ""


def pytest_unconfigure() -> None:
    if not WORKER:
        shutil.rmtree(RUN_FOLDER, ignore_errors=True)


# ---------------------------------------------------------------- tests that need the machine alone


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Side by side, ordinary tests share a lock that a ``serial`` test takes for itself.

    Who waits for the lock holds the door, so that a ``serial`` test is next in line once it asks.
    """
    if not WORKER or sys.platform == "win32":
        return (yield)
    import fcntl

    alone = item.get_closest_marker("serial") is not None
    with (RUN_FOLDER / "lock").open("w") as lock:
        with (RUN_FOLDER / "door").open("w") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        return (yield)


# ---------------------------------------------------------------- data


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real networks and pictures: ``$EDGEPRESS_DATA``, else ``../shared/data``."""
    given = os.environ.get("EDGEPRESS_DATA")
    folder = Path(given) if given else PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}: set EDGEPRESS_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def project() -> Path:
    """The root of the repository."""
    return PROJECT


# ---------------------------------------------------------------- small graphs

GraphBytes = Callable[..., bytes]


@pytest.fixture(scope="session")
def tiny_classifier() -> GraphBytes:
    """Writes a graph ``(batch, channels, size, size) -> (batch, classes)``, as bytes.

    Conv, Relu, mean, Gemm; weights from ``seed``; ``batch`` a symbol or a size; opset 18, IR 10.
    """

    def write(
        *,
        batch: int | str = "N",
        channels: int = 3,
        size: int = 8,
        classes: int = 4,
        width: int = 8,
        seed: int = 0,
    ) -> bytes:
        import numpy as np
        from onnx import TensorProto, helper, numpy_helper

        rng = np.random.default_rng(seed)

        def weights(name: str, *shape: int) -> Any:
            values = rng.normal(0, 0.5, shape).astype(np.float32)
            return numpy_helper.from_array(values, name)

        def value(name: str, *shape: int | str) -> Any:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        graph = helper.make_graph(
            [
                helper.make_node("Conv", ["input", "w0", "b0"], ["conv"], pads=[1, 1, 1, 1]),
                helper.make_node("Relu", ["conv"], ["relu"]),
                helper.make_node("GlobalAveragePool", ["relu"], ["mean"]),
                helper.make_node("Flatten", ["mean"], ["flat"]),
                helper.make_node("Gemm", ["flat", "w1", "b1"], ["logits"]),
            ],
            "tiny",
            [value("input", batch, channels, size, size)],
            [value("logits", batch, classes)],
            [
                weights("w0", width, channels, 3, 3),
                weights("b0", width),
                weights("w1", width, classes),
                weights("b1", classes),
            ],
        )
        opset = [helper.make_opsetid("", 18)]
        return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()

    return write


@pytest.fixture(scope="session")
def small_bundle(session_folder: Path, tiny_classifier: GraphBytes) -> Path:
    """A bundle of `tiny_classifier` for 8x8 pictures, labels a to d; copy it before changing it."""
    import io

    import numpy as np

    from edgepress.runtime import Preprocessing, TensorSpec, open_engine
    from edgepress.runtime.bundle.bundle_writer import seal, write_files
    from edgepress.runtime.bundle.manifest import Golden, Manifest, Tolerance, Variant

    folder = session_folder / "small-bundle"
    with _made_once(folder) as missing:
        if missing:
            model = tiny_classifier()
            feeds = {"input": np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)}
            with open_engine("onnxruntime")(model) as engine:
                outputs = engine.run(feeds)
            files = {"model.onnx": model, "labels.txt": b"a\nb\nc\nd\n"}
            for name, arrays in (("inputs", feeds), ("outputs", outputs)):
                stream = io.BytesIO()
                np.savez(stream, **arrays)
                files[f"golden/{name}.npz"] = stream.getvalue()
            manifest = Manifest(
                inputs=(TensorSpec("input", "float32", ("N", 3, 8, 8)),),
                outputs=(TensorSpec("logits", "float32", ("N", 4)),),
                task="classification",
                variants=(Variant("float32", "model.onnx", "onnxruntime", "onnx", "float32"),),
                golden=Golden(
                    "golden/inputs.npz",
                    "golden/outputs.npz",
                    synthetic=True,
                    tolerance={"logits": Tolerance(max_abs=1e-3, cosine=0.999)},
                ),
                preprocessing=Preprocessing(center_crop=8, channel_order="RGB"),
                labels="labels.txt",
            )
            write_files(seal(manifest, files), folder)
    return folder


# ---------------------------------------------------------------- fresh environments


@dataclass(frozen=True)
class Environment:
    """A virtual environment that holds the built wheel and its base dependencies, nothing else."""

    folder: Path

    @property
    def scripts(self) -> Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    def run(
        self, *command: str | Path, input: str | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python ...`` or ``edgepress ...`` of this environment, away from the source."""
        program, *rest = map(str, command)
        return run_clean([str(self.scripts / program), *rest], cwd=cwd or self.folder, input=input)


def run_clean(
    command: Sequence[str],
    *,
    cwd: Path,
    input: str | None = None,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a child under the tests' own home folder, with no path back into the source tree."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command,
        cwd=cwd,
        env={**environment, **(variables or {})},
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="session")
def session_folder() -> Path:
    """One folder for the whole run, the same in every test process."""
    folder = RUN_FOLDER / "session"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def distributions(session_folder: Path) -> Path:
    """A folder with the sdist and the wheel, built the way a release is: ``python -m build``."""
    folder = session_folder / "dist"
    with _made_once(folder) as missing:
        if missing:
            source = session_folder / "source"
            _copy_tree(source)
            _build([sys.executable, "-m", "build", "--outdir", str(folder), str(source)])
    return folder


@pytest.fixture(scope="session")
def base_environment(session_folder: Path, distributions: Path) -> Callable[..., Environment]:
    """``base_environment(python="3.10", onnxruntime="1.23.2")`` makes an :class:`Environment`.

    Both are optional: the Python that runs the tests, and the version that constraints.txt pins.
    Each is made once a run. Skips, with the reason, where that Python is not on the machine.
    """

    def make(*, python: str | None = None, onnxruntime: str | None = None) -> Environment:
        interpreter = _find_python(python) if python else Path(sys.executable)
        if interpreter is None:
            pytest.skip(f"no working python{python} in PATH or among pyenv's versions")
        folder = session_folder / f"env-{python or 'main'}-{onnxruntime or 'pinned'}"
        (wheel,) = distributions.glob("*.whl")
        with _made_once(folder) as missing:
            if missing:
                pins = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
                if onnxruntime:
                    pins = [line for line in pins if not line.startswith("onnxruntime==")]
                    pins.append(f"onnxruntime=={onnxruntime}")
                constraints = folder.with_suffix(".constraints")
                constraints.write_text("\n".join(pins), encoding="utf-8")
                _build([str(interpreter), "-m", "venv", "--without-pip", str(folder)])
                pip = [sys.executable, "-m", "pip", "--python", str(folder), "--quiet"]
                _build([*pip, "install", "-c", str(constraints), str(wheel)])
        return Environment(folder)

    return make


@contextlib.contextmanager
def _made_once(folder: Path) -> Generator[bool]:
    """Whether the caller has to make ``folder``; the first test process does, the others wait."""
    done = folder.with_name(f"{folder.name}.done")
    with FileLock(f"{folder}.lock"):
        yield not done.exists()
        done.touch()


def _build(command: list[str]) -> None:
    """Run a tool with the user's own environment, since pip's settings and cache are theirs."""
    done = subprocess.run(
        command,
        env={**os.environ, **USER_VARIABLES},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


def _copy_tree(target: Path) -> None:
    """Copy the source without what was built from it, so that nothing stale gets into a wheel."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        built = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
        environments = {name for name in names if Path(folder, name, "pyvenv.cfg").exists()}
        return built(folder, names) | environments

    shutil.copytree(PROJECT, target, ignore=ignored)


def _find_python(version: str) -> Path | None:
    """A ``python3.x`` that can make virtual environments: from PATH, else from pyenv's folder."""
    home = Path(USER_VARIABLES.get("HOME", "."))
    pyenv = Path(os.environ.get("PYENV_ROOT", home / ".pyenv"))
    found = shutil.which(f"python{version}")
    candidates = [Path(found)] if found else []
    candidates += sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))
    probe = "import json, sys, venv; print(json.dumps(sys.version_info[:2]))"
    for candidate in candidates:
        asked = subprocess.run(
            [candidate, "-c", probe],
            env={**os.environ, **USER_VARIABLES},
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode == 0 and json.loads(asked.stdout) == [*map(int, version.split("."))]:
            return candidate
    return None
