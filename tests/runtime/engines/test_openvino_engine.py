"""The engine openvino: what every engine promises, its precisions, silence, the executed graph."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx
from onnx import TensorProto, helper

from edgepress.runtime import (
    EngineError,
    EngineOptions,
    InputError,
    MissingExtraError,
    TensorSpec,
    open_engine,
)
from edgepress.runtime.doctor import examine_engine, prove_engine
from edgepress.runtime.engine_registry import import_backend
from edgepress.runtime.engines.dimension_names import free_names
from edgepress.runtime.engines.openvino import (
    OpenVinoEngine,
    executed_graph,
    executed_times,
    has_bf16,
)
from edgepress.runtime.target import TARGET_NAMES, target

try:
    import_backend("openvino")
    INSTALLED = True
except MissingExtraError:
    INSTALLED = False

needs_openvino = pytest.mark.skipif(not INSTALLED, reason="the extra openvino is not installed")
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


def capabilities() -> list[str]:
    """What OpenVINO says that this processor computes in."""
    module = sys.modules[OpenVinoEngine.__module__]
    core = module._core(module._backend())
    return list(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


@needs_openvino
def test_it_computes_what_onnx_runtime_computes(tiny_classifier: Callable[..., bytes]) -> None:
    model = tiny_classifier()
    with open_engine("onnxruntime")(model) as other:
        expected = other.run({"input": PICTURE})["logits"]
    with open_engine("openvino")(model, EngineOptions(threads=1)) as engine:
        assert engine.inputs == (TensorSpec("input", "float32", ("N", 3, 8, 8)),)
        assert engine.outputs == (TensorSpec("logits", "float32", ("N", 4)),)
        found = engine.run({"input": PICTURE})["logits"]
        again = engine.run({"input": PICTURE[:1]})["logits"]
        facts = engine.facts()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(again, expected[:1], atol=1e-5)
    assert facts["engine"] == "openvino"
    assert facts["version"] == import_backend("openvino")
    assert (facts["threads"], facts["threads_used"]) == (1, 1)
    assert (facts["providers"], facts["fell_back"]) == (["CPU"], False)
    assert facts["precision"] == "f32"
    json.dumps(facts)


@needs_openvino
def test_several_inputs_outputs_types_and_free_dimensions() -> None:
    model = graph(
        [
            helper.make_node("Add", ["a", "a"], ["twice"]),
            helper.make_node("Not", ["flag"], ["other"]),
            helper.make_node("Identity", ["scalar"], ["same"]),
            helper.make_node("Identity", ["same"], ["copy"]),
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
            ("copy", TensorProto.FLOAT16, []),
        ],
    )
    feeds: dict[str, Any] = {
        "a": np.arange(12, dtype=np.int64).reshape(2, 2, 3),
        "flag": np.array([True, False]),
        "scalar": np.array(1.5, np.float16),
    }
    with open_engine("openvino")(model) as engine:
        assert [str(spec) for spec in engine.inputs] == [
            "a: int64 (d0_0, N, 3)", "flag: bool (N)", "scalar: float16 ()",
        ]  # fmt: skip
        outputs = engine.run(feeds)
        assert list(outputs) == ["twice", "other", "same", "copy"]
        np.testing.assert_array_equal(outputs["twice"], 2 * feeds["a"])
        assert outputs["other"].tolist() == [False, True]
        assert outputs["same"] == outputs["copy"] == np.float16(1.5)
        assert outputs["same"].dtype == np.float16
        with pytest.raises(InputError) as caught:
            engine.run({**feeds, "flag": np.array([True])})
    assert caught.value.code == "E_INPUT", "one symbol, two sizes"


@needs_openvino
def test_initializers_among_the_inputs_are_no_inputs(shared_data: Path) -> None:
    model = (shared_data / "onnx" / "ultraface_rfb320.onnx").read_bytes()
    with open_engine("openvino")(model) as engine:
        assert [str(spec) for spec in engine.inputs] == ["input: float32 (1, 3, 240, 320)"]


@needs_openvino
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
    with open_engine("openvino")(tiny_classifier()) as engine:
        made = engine.run({"input": array})["logits"]
        plain = engine.run({"input": np.array(array, order="C")})["logits"]
    np.testing.assert_array_equal(made, plain)


@needs_openvino
def test_outputs_are_the_callers_own(tiny_classifier: Callable[..., bytes]) -> None:
    """Neither the next run nor the end of the engine changes what was given before."""
    with open_engine("openvino")(tiny_classifier()) as engine:
        first = engine.run({"input": PICTURE})["logits"]
        kept = first.copy()
        second = engine.run({"input": 2 * PICTURE})["logits"]
        assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, kept)
    first[:] = 0


@needs_openvino
def test_several_threads_may_share_an_engine(tiny_classifier: Callable[..., bytes]) -> None:
    pictures = [RNG.standard_normal((1, 3, 8, 8)).astype(np.float32) for _ in range(4)]
    wrong: list[int] = []
    with open_engine("openvino")(tiny_classifier()) as engine:
        expected = [engine.run({"input": one})["logits"] for one in pictures]

        def work(index: int) -> None:
            for _ in range(50):
                found = engine.run({"input": pictures[index]})["logits"]
                if not np.array_equal(found, expected[index]):
                    wrong.append(index)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(pictures))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@needs_openvino
@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"other": PICTURE},
        {"input": PICTURE.tolist()},
        {"input": PICTURE.astype(np.float64)},
        {"input": PICTURE[0]},
        {"input": PICTURE[:, :2]},
        {"input": PICTURE[:0]},
    ],
    ids=["none", "name", "list", "type", "rank", "size", "batch 0"],
)
def test_wrong_inputs_are_refused(
    feeds: dict[str, Any], tiny_classifier: Callable[..., bytes]
) -> None:
    with open_engine("openvino")(tiny_classifier()) as engine:
        with pytest.raises(InputError) as caught:
            engine.run(feeds)
        assert caught.value.code == "E_INPUT"
        assert "input: float32 (N, 3, 8, 8)" in caught.value.mend
        assert engine.run({"input": PICTURE})["logits"].shape == (2, 4), "it still serves"


@needs_openvino
def test_a_closed_engine_says_so(tiny_classifier: Callable[..., bytes]) -> None:
    engine = open_engine("openvino")(tiny_classifier())
    for _ in range(2):
        with pytest.raises(EngineError) as caught:
            engine.run({"input": PICTURE})
        assert caught.value.code == "E_CLOSED"
        with engine:
            assert engine.run({"input": PICTURE})["logits"].shape == (2, 4)


@needs_openvino
@pytest.mark.parametrize("what", ["empty", "noise", "cut", "unknown operator"])
def test_models_that_cannot_be_loaded(what: str, tiny_classifier: Callable[..., bytes]) -> None:
    whole = tiny_classifier()
    value = ("x", TensorProto.FLOAT, [1])
    odd = [helper.make_node("Odd", ["x"], ["y"], domain="nobody.knows")]
    model = {
        "empty": b"",
        "noise": bytes(range(256)) * 8,
        "cut": whole[: len(whole) // 2],
        "unknown operator": graph(odd, [value], [("y", TensorProto.FLOAT, [1])]),
    }[what]
    with pytest.raises(EngineError) as caught:
        open_engine("openvino")(model).__enter__()
    assert caught.value.code == "E_BACKEND"
    assert "Exception from" not in caught.value.message
    assert caught.value.mend


@needs_openvino
@pytest.mark.parametrize("threads", [0, 1, 2])
def test_what_fails_while_running_is_wrapped(threads: int) -> None:
    """On one thread OpenVINO by itself would give the outputs of the run before."""
    model = graph(
        [helper.make_node("Reshape", ["a", "sizes"], ["y"])],
        [("a", TensorProto.FLOAT, ["N"]), ("sizes", TensorProto.INT64, [2])],
        [("y", TensorProto.FLOAT, ["R", "C"])],
    )
    sizes = np.array([2, 3], np.int64)
    with open_engine("openvino")(model, EngineOptions(threads=threads)) as engine:
        for _ in range(3):
            with pytest.raises(EngineError) as caught:
                engine.run({"a": np.ones(5, np.float32), "sizes": sizes})
            assert caught.value.code == "E_BACKEND"
            assert caught.value.__cause__ is not None
            good = engine.run({"a": np.ones(6, np.float32), "sizes": sizes})
            assert good["y"].tolist() == [[1.0] * 3] * 2
    with pytest.raises(EngineError) as caught:
        executed_times(
            model, {"a": np.ones(5, np.float32), "sizes": sizes}, threads=max(threads, 1)
        )
    assert caught.value.code == "E_BACKEND"
    nodes = [
        helper.make_node("Constant", [], ["one"], value_ints=[1, 3]),
        helper.make_node("Reshape", ["a", "one"], ["y"]),
    ]
    frozen = graph(nodes, [("a", TensorProto.FLOAT, ["N", 3])], [("y", TensorProto.FLOAT, [1, 3])])
    with open_engine("openvino")(frozen, EngineOptions(threads=threads)) as engine:
        for count in (2, 1, 3, 1, 1, 2, 2):  # what ran with some shapes is not asked again
            feeds = {"a": np.full((count, 3), count, np.float32)}
            if count == 1:
                assert engine.run(feeds)["y"].tolist() == [[1.0] * 3]
                continue
            with pytest.raises(EngineError):
                engine.run(feeds)


@needs_openvino
def test_another_device_is_refused_or_recorded(tiny_classifier: Callable[..., bytes]) -> None:
    with pytest.raises(EngineError) as caught:
        open_engine("openvino")(tiny_classifier(), EngineOptions(provider="NPU")).__enter__()
    assert caught.value.code == "E_PROVIDER"
    assert "CPU" in caught.value.message
    options = EngineOptions(provider="NPU", allow_fallback=True)
    with open_engine("openvino")(tiny_classifier(), options) as engine:
        facts = engine.facts()
    assert (facts["provider_asked"], facts["providers"]) == ("NPU", ["CPU"])
    assert facts["fell_back"] is True


@needs_openvino
def test_it_cannot_be_told_how_far_to_optimize(tiny_classifier: Callable[..., bytes]) -> None:
    with pytest.raises(EngineError) as caught:
        open_engine("openvino")(tiny_classifier(), EngineOptions(optimize="none")).__enter__()
    assert caught.value.code == "E_USAGE"


# ---------------------------------------------------------------- precision


@needs_openvino
def test_float32_means_float32_and_bfloat16_is_asked_for(
    tiny_classifier: Callable[..., bytes],
) -> None:
    model = tiny_classifier(width=32, size=16)
    assert {one.precision for one in executed_graph(model) if one.kind == "Convolution"} == {"f32"}
    options = EngineOptions(precision="bf16")
    if not has_bf16():
        with pytest.raises(EngineError) as caught:
            open_engine("openvino")(model, options).__enter__()
        assert caught.value.code == "E_PRECISION"
        return
    kinds = {one.precision for one in executed_graph(model, options) if one.kind == "Convolution"}
    assert kinds == {"bf16"}
    picture = {"input": RNG.standard_normal((1, 3, 16, 16)).astype(np.float32)}
    with open_engine("openvino")(model) as exact, open_engine("openvino")(model, options) as rough:
        assert rough.facts()["precision"] == "bf16"
        one, other = exact.run(picture)["logits"], rough.run(picture)["logits"]
    assert other.dtype == np.float32
    assert 0 < np.abs(one - other).max() < 0.05 * np.abs(one).max()


@needs_openvino
def test_a_processor_without_bfloat16_refuses_it(
    tiny_classifier: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[OpenVinoEngine.__module__]
    monkeypatch.setattr(module, "_computes_in_bf16", lambda core, device: False)
    assert not has_bf16()
    with pytest.raises(EngineError, match="no bfloat16") as caught:
        open_engine("openvino")(tiny_classifier(), EngineOptions(precision="bf16")).__enter__()
    assert caught.value.code == "E_PRECISION"


@needs_openvino
def test_a_precision_that_the_backend_swaps_is_refused(
    tiny_classifier: Callable[..., bytes],
) -> None:
    """Asked for f16, a CPU without it takes bf16 or f32 without a word."""
    options = EngineOptions(precision="f16")  # pyright: ignore[reportArgumentType]
    model = tiny_classifier(width=32, size=16)
    if "FP16" in capabilities():
        kinds = {
            one.precision for one in executed_graph(model, options) if one.kind == "Convolution"
        }
        assert kinds == {"f16"}, "it is what is executed"
    else:
        with pytest.raises(EngineError) as caught:
            open_engine("openvino")(model, options).__enter__()
        assert caught.value.code == "E_PRECISION"


def test_onnx_runtime_refuses_bfloat16(tiny_classifier: Callable[..., bytes]) -> None:
    with pytest.raises(EngineError) as caught:
        open_engine("onnxruntime")(tiny_classifier(), EngineOptions(precision="bf16")).__enter__()
    assert caught.value.code == "E_PRECISION"


# ---------------------------------------------------------------- what it leaves behind

SILENT = """
import json, sys
reached = []
sys.addaudithook(lambda event, arguments: reached.append(str(arguments))
                 if event in ("socket.connect", "socket.getaddrinfo") else None)
import numpy as np
from edgepress.runtime import open_engine
with open_engine("openvino")(open(sys.argv[1], "rb").read()) as engine:
    engine.run({"input": np.ones((1, 3, 8, 8), np.float32)})
loaded = [name for name in sys.modules if name.split(".")[0] == "openvino_telemetry"]
print(json.dumps({"reached": reached, "loaded": loaded}))
"""


@needs_openvino
def test_it_sends_nothing_and_writes_nothing(
    tmp_path: Path, tiny_classifier: Callable[..., bytes]
) -> None:
    """A plain ``import openvino`` writes ~/intel/stats and reaches for a server."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    (tmp_path / "net.onnx").write_bytes(tiny_classifier())
    done = subprocess.run(
        [sys.executable, "-c", SILENT, str(tmp_path / "net.onnx")],
        env={**os.environ, "HOME": str(home), "USERPROFILE": str(home), "TMPDIR": str(work)},
        capture_output=True,
        text=True,
        cwd=work,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"reached": [], "loaded": []}
    assert not list(home.iterdir())
    assert not list(work.iterdir())


def test_where_it_is_not_installed_the_extra_is_named(
    tiny_classifier: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Absent(), *sys.meta_path])
    with pytest.raises(MissingExtraError) as caught:
        open_engine("openvino")(tiny_classifier()).__enter__()
    assert caught.value.code == "E_EXTRA"
    assert caught.value.mend == "Install it with: pip install 'edgepress[openvino]'"
    assert "openvino_telemetry" not in sys.modules
    report = prove_engine("openvino")
    assert (report.ok, report.installed, report.reason) == (False, False, "not installed")


class _Absent:
    """As if the package were not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == "openvino":
            raise ModuleNotFoundError(f"No module named '{name}'", name="openvino")


def test_doctor_tells_an_absent_extra_from_a_broken_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "openvino"
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for body, said, installed in (
        ("raise ImportError('libopenvino.so is missing')", "libopenvino.so", True),
        ("raise ModuleNotFoundError('no numpy', name='numpy')", "numpy", True),
        ("raise ModuleNotFoundError('none', name='openvino')", "not installed", False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV", True),
    ):
        (package / "__init__.py").write_text(body)
        report = examine_engine("openvino")
        assert not report.ok
        assert said in report.reason
        assert report.installed is installed


def test_the_target_is_known() -> None:
    assert "openvino-cpu" in TARGET_NAMES
    found = target("openvino-cpu")
    assert found.engine == "openvino"
    assert found.dialect in ("openvino", "openvino-half")


# ---------------------------------------------------------------- the executed graph, and names


@needs_openvino
def test_the_executed_graph_tells_what_became_of_each_node(
    tiny_classifier: Callable[..., bytes],
) -> None:
    nodes = executed_graph(tiny_classifier())
    kinds = [node.kind for node in nodes]
    assert kinds.count("Convolution") == 1
    assert {"Input", "Output"} <= set(kinds)
    (convolution,) = (node for node in nodes if node.kind == "Convolution")
    assert convolution.precision == "f32"
    assert convolution.primitive
    assert convolution.origins
    with pytest.raises(EngineError):
        executed_graph(b"no model")


def test_names_of_free_dimensions_are_read_off_the_file(
    tiny_classifier: Callable[..., bytes],
) -> None:
    model = tiny_classifier(batch="rows")
    assert free_names(model) == {"input": ("rows", "", "", ""), "logits": ("rows", "")}
    odd = onnx.load_from_string(model)
    odd.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    assert free_names(odd.SerializeToString())["input"] == ("", "", "", "")


@pytest.mark.parametrize("model", [b"", b"\xff" * 20, b"\x3a\x7f\x01", b"\x07\x07", bytes(300)])
def test_what_is_no_onnx_file_has_no_names(model: bytes) -> None:
    assert free_names(model) == {}
