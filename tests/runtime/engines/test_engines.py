"""Engines: what a graph takes and gives, refusals, providers, the optimized graph, doctor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepress.runtime import EngineError, EngineOptions, InputError, TensorSpec, open_engine
from edgepress.runtime.doctor import examine_engine
from edgepress.runtime.engine_registry import ENGINE_NAMES, import_backend
from edgepress.runtime.engines.onnxruntime import optimized_model

RNG = np.random.default_rng(0)
PICTURE = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)


def graph(nodes: list[Any], inputs: list[tuple[Any, ...]], outputs: list[tuple[Any, ...]]) -> bytes:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(made, ir_version=10, opset_imports=opset).SerializeToString()


def test_runs_like_a_bare_session(tiny_classifier: Callable[..., bytes]) -> None:
    import_backend("onnxruntime")  # a bare import sends telemetry
    import onnxruntime

    model = tiny_classifier()
    bare = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    with open_engine("onnxruntime")(model, EngineOptions(threads=1)) as engine:
        assert engine.inputs == (TensorSpec("input", "float32", ("N", 3, 8, 8)),)
        assert engine.outputs == (TensorSpec("logits", "float32", ("N", 4)),)
        (expected,) = bare.run(None, {"input": PICTURE})
        np.testing.assert_array_equal(engine.run({"input": PICTURE})["logits"], expected)
        facts = engine.facts()
    assert facts["version"] == onnxruntime.__version__
    assert facts["providers"] == ["CPUExecutionProvider"]
    assert (facts["threads"], facts["fell_back"]) == (1, False)
    json.dumps(facts)


def test_several_inputs_outputs_types_and_free_dimensions() -> None:
    model = graph(
        [
            helper.make_node("Add", ["a", "a"], ["twice"]),
            helper.make_node("Not", ["flag"], ["other"]),
            helper.make_node("Identity", ["scalar"], ["same"]),
        ],
        [
            ("a", TensorProto.INT64, [None, "N", 3]),
            ("flag", TensorProto.BOOL, ["N"]),
            ("scalar", TensorProto.FLOAT16, []),
        ],
        [
            ("twice", TensorProto.INT64, [None, "N", 3]),
            ("other", TensorProto.BOOL, ["N"]),
            ("same", TensorProto.FLOAT16, []),
        ],
    )
    feeds: dict[str, Any] = {
        "a": np.arange(12, dtype=np.int64).reshape(2, 2, 3),
        "flag": np.array([True, False]),
        "scalar": np.array(1.5, np.float16),
    }
    with open_engine("onnxruntime")(model) as engine:
        assert [str(spec) for spec in engine.inputs] == [
            "a: int64 (d0_0, N, 3)", "flag: bool (N)", "scalar: float16 ()",
        ]  # fmt: skip
        outputs = engine.run(feeds)
        assert list(outputs) == ["twice", "other", "same"]
        np.testing.assert_array_equal(outputs["twice"], 2 * feeds["a"])
        assert outputs["other"].tolist() == [False, True]
        with pytest.raises(InputError) as caught:
            engine.run({**feeds, "flag": np.array([True])})
    assert caught.value.code == "E_INPUT", "one symbol, two sizes"


def test_initializers_among_the_inputs_are_no_inputs(shared_data: Path) -> None:
    model = (shared_data / "onnx" / "ultraface_rfb320.onnx").read_bytes()
    with open_engine("onnxruntime")(model) as engine:
        assert [str(spec) for spec in engine.inputs] == ["input: float32 (1, 3, 240, 320)"]


@pytest.mark.parametrize("view", ["strided", "transposed", "reversed", "read-only"])
def test_arrays_of_any_layout_give_the_same(
    view: str, tiny_classifier: Callable[..., bytes]
) -> None:
    wide = RNG.standard_normal((2, 3, 8, 16)).astype(np.float32)
    array = {
        "strided": wide[:, :, :, ::2],
        "transposed": np.ascontiguousarray(PICTURE.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        "reversed": PICTURE[:, ::-1],
        "read-only": PICTURE.copy(),
    }[view]
    array.flags.writeable = view != "read-only"
    with open_engine("onnxruntime")(tiny_classifier()) as engine:
        made = engine.run({"input": array})["logits"]
        plain = engine.run({"input": np.ascontiguousarray(array)})["logits"]
    np.testing.assert_array_equal(made, plain)


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"other": PICTURE},
        {"input": PICTURE, "more": PICTURE},
        {"input": PICTURE.tolist()},
        {"input": PICTURE.astype(np.float64)},
        {"input": PICTURE.astype(">f4")},
        {"input": PICTURE[0]},
        {"input": PICTURE[:, :2]},
        {"input": PICTURE[:0]},
        {"input": PICTURE[:, :, :, :0]},
        {"input": PICTURE[..., None]},
    ],
    ids=["none", "name", "extra", "list", "type", "byte order", "rank", "size", "batch 0", "empty",
         "more rank"],
)  # fmt: skip
def test_wrong_inputs_are_refused(
    feeds: dict[str, Any], tiny_classifier: Callable[..., bytes]
) -> None:
    with open_engine("onnxruntime")(tiny_classifier()) as engine:
        with pytest.raises(InputError) as caught:
            engine.run(feeds)
        assert caught.value.code == "E_INPUT"
        assert "input: float32 (N, 3, 8, 8)" in caught.value.mend
        assert engine.run({"input": PICTURE})["logits"].shape == (2, 4), "it still serves"
        with pytest.raises(InputError):  # and still checks after what was right
            engine.run(feeds)


def test_a_closed_engine_says_so(tiny_classifier: Callable[..., bytes]) -> None:
    engine = open_engine("onnxruntime")(tiny_classifier())
    for _ in range(2):
        with pytest.raises(EngineError) as caught:
            engine.run({"input": PICTURE})
        assert caught.value.code == "E_CLOSED"
        with engine:
            engine.run({"input": PICTURE})


@pytest.mark.parametrize("model", [b"", b"\0", b"no model", b"\x08\x0a\xff\xff" * 20])
def test_what_is_no_model_is_refused(model: bytes) -> None:
    with pytest.raises(EngineError) as caught:
        open_engine("onnxruntime")(model).__enter__()
    assert caught.value.code == "E_BACKEND"


def test_damaged_models_never_raise_anything_else(tiny_classifier: Callable[..., bytes]) -> None:
    sound = tiny_classifier()
    codes: set[str] = set()
    for _ in range(100):
        damaged = bytearray(sound)
        for at in RNG.integers(0, len(damaged), 3):
            damaged[at] = RNG.integers(0, 256)
        try:
            with open_engine("onnxruntime")(bytes(damaged)) as engine:
                engine.run({"input": PICTURE})
        except (EngineError, InputError) as error:
            codes.add(error.code)
    assert "E_BACKEND" in codes
    assert codes <= {"E_BACKEND", "E_INPUT"}


def test_a_failure_while_running_is_a_typed_error() -> None:
    model = graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [("x", TensorProto.FLOAT, ["N"]), ("shape", TensorProto.INT64, [2])],
        [("y", TensorProto.FLOAT, None)],
    )
    with open_engine("onnxruntime")(model) as engine, pytest.raises(EngineError) as caught:
        engine.run({"x": np.ones(5, np.float32), "shape": np.array([2, 2])})
    assert caught.value.code == "E_BACKEND"
    assert caught.value.__cause__ is not None


def test_texts_and_sequences_are_refused() -> None:
    for kind in (TensorProto.STRING,):
        model = graph([helper.make_node("Identity", ["x"], ["y"])], [("x", kind, ["N"])],
                      [("y", kind, ["N"])])  # fmt: skip
        with pytest.raises(EngineError) as caught:
            open_engine("onnxruntime")(model).__enter__()
        assert caught.value.code == "E_BACKEND"


def test_a_missing_provider_is_an_error_unless_fall_back_is_allowed(
    tiny_classifier: Callable[..., bytes],
) -> None:
    wanted = "CoreMLExecutionProvider" if sys.platform != "darwin" else "DmlExecutionProvider"
    make = open_engine("onnxruntime")
    with pytest.raises(EngineError) as caught:
        make(tiny_classifier(), EngineOptions(provider=wanted)).__enter__()
    assert caught.value.code == "E_PROVIDER"
    assert "CPUExecutionProvider" in caught.value.message
    options = EngineOptions(provider=wanted, allow_fallback=True)
    with make(tiny_classifier(), options) as engine:
        assert engine.facts()["fell_back"] is True
        assert engine.facts()["provider_asked"] == wanted
        assert engine.facts()["providers"] == ["CPUExecutionProvider"]


@pytest.mark.parametrize("level", ["basic", "extended", "all"])
def test_the_optimized_graph_is_given_and_nothing_stays(
    level: Any, tiny_classifier: Callable[..., bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    nodes = [node.op_type for node in onnx.load_from_string(
        optimized_model(tiny_classifier(), level)).graph.node]  # fmt: skip
    assert ("Relu" in nodes) == (level == "basic")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EngineError) as caught:
        optimized_model(b"no model", level)
    assert caught.value.code == "E_BACKEND"
    assert list(tmp_path.iterdir()) == []


FULL = """
import resource, sys
from edgepress.runtime import EdgepressError
from edgepress.runtime.engines.onnxruntime import optimized_model
model = open(sys.argv[1], "rb").read()
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
try:
    optimized_model(model, "all")
except EdgepressError as error:
    print(error.code, error.path, error, sep="\\n")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_temporary_folder_is_named_and_nothing_stays(
    tiny_classifier: Callable[..., bytes], tmp_path: Path
) -> None:
    """As a limit on the size of files, which the optimized graph meets."""
    folder, model = tmp_path / "work", tmp_path / "net.onnx"
    folder.mkdir()
    model.write_bytes(tiny_classifier())
    done = subprocess.run(
        [sys.executable, "-c", FULL, model],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    code, path, message, mend = done.stdout.splitlines()
    assert (code, path) == ("E_WRITE", str(folder)), done.stderr
    assert f"in '{folder}': File too large." in message
    assert "$TMPDIR" in mend
    assert list(folder.iterdir()) == []


def test_no_temporary_folder_is_told(
    tiny_classifier: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(InputError, match="No such file") as caught:
        optimized_model(tiny_classifier(), "all")
    assert (caught.value.code, caught.value.path) == ("E_WRITE", str(tmp_path / "gone"))
    assert list(tmp_path.iterdir()) == []


def test_the_null_engine_gives_zeros_of_the_right_shape() -> None:
    model = json.dumps(
        {
            "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 3, "H", 4]}],
            "outputs": [
                {"name": "y", "dtype": "int64", "shape": ["N", "H"]},
                {"name": "z", "dtype": "float16", "shape": ["other", 2]},
            ],
        }
    )
    with open_engine("null")(model.encode()) as engine:
        outputs = engine.run({"x": np.ones((2, 3, 5, 4), np.float32)})
        assert (outputs["y"].dtype.name, outputs["y"].shape) == ("int64", (2, 5))
        assert (outputs["z"].dtype.name, outputs["z"].shape) == ("float16", (1, 2))
        with pytest.raises(InputError):
            engine.run({"x": np.ones((2, 3, 5, 5), np.float32)})


@pytest.mark.parametrize("model", [b"[]", b"{", b"\xff", b'{"inputs": 1, "outputs": []}',
                                   b'{"inputs": [{"name": "a", "dtype": "object", "shape": []}], '
                                   b'"outputs": []}'])  # fmt: skip
def test_the_null_engine_refuses_what_it_cannot_read(model: bytes) -> None:
    with pytest.raises(EngineError) as caught:
        open_engine("null")(model).__enter__()
    assert caught.value.code == "E_BACKEND"


def test_unknown_engines_are_named() -> None:
    with pytest.raises(EngineError) as caught:
        open_engine("tensorflow")
    assert caught.value.code == "E_ENGINE"
    assert "onnxruntime" in caught.value.mend


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_doctor_proves_an_engine_in_a_child(name: str) -> None:
    report = examine_engine(name)
    if not report.installed:
        pytest.skip(f"{name}: {report.reason}")
    assert report.ok, report
    assert report.version
    assert report.providers


def test_doctor_survives_a_broken_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "onnxruntime"
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for body, said in (
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("raise ImportError('libfoo.so.1 is missing')", "libfoo.so.1"),
        ("import os; os._exit(7)", "status 7"),
        ("raise ValueError('broken')", "broken"),
        ("import time; time.sleep(60)", "within 3 s"),
    ):
        (package / "__init__.py").write_text(body)
        report = examine_engine("onnxruntime", timeout_s=3)
        assert not report.ok
        assert said in report.reason
