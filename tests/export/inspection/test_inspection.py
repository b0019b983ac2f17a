"""Looking at ONNX files, the golden part of a bundle, and the room's lazy face."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click.testing
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import edgepress.export
from edgepress.compress.commands import inspect
from edgepress.export import ShippedModel, assemble, dialect, inspect_onnx, normalize, why_slow
from edgepress.export.bundle_contents import golden_outputs, synthetic_inputs
from edgepress.runtime import InputError, Preprocessing
from edgepress.runtime.bundle.manifest import MODEL

GraphBytes = Callable[..., bytes]


def test_the_face_is_imported_piece_by_piece() -> None:
    script = (
        "import sys, edgepress.export, edgepress.export.commands\n"
        "assert not {'torch', 'onnx'} & set(sys.modules)\n"
        "edgepress.export.normalize\n"
        "assert 'onnx' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    for name in edgepress.export.__all__:
        assert getattr(edgepress.export, name).__doc__
    with pytest.raises(AttributeError):
        _ = edgepress.export.nonsense  # type: ignore[attr-defined]


def test_a_file_is_described(tiny_classifier: GraphBytes, tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_classifier(batch=1, size=8))
    found = inspect_onnx(str(path))
    assert found["macs"] == 8 * 8 * 8 * 27 + 8 * 4
    assert found["parameters"] == 8 * 27 + 8 + 8 * 4 + 4
    assert found["operators"]["Conv"] == 1
    assert found["inputs"] == [{"name": "input", "dtype": "float32", "shape": [1, 3, 8, 8]}]
    assert (found["opset"], found["ir_version"], found["quantized"]) == (18, 10, False)
    assert found["kernels"] is not None
    assert all(node["name"] for node in found["nodes"])


def test_free_shapes_leave_the_work_untold(tiny_classifier: GraphBytes, tmp_path: Path) -> None:
    model = onnx.load_model_from_string(tiny_classifier())
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, tmp_path / "free.onnx")
    assert inspect_onnx(str(tmp_path / "free.onnx"))["macs"] is None


def test_weights_in_constant_nodes_are_parameters_too(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones((4, 5), np.float32), "w")
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Constant", [], ["w"], value=weights),
            onnx.helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["N", 4])],
        [onnx.helper.make_tensor_value_info("y", 1, ["N", 5])],
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "c.onnx"
    )
    found = inspect_onnx(str(tmp_path / "c.onnx"))
    assert (found["parameters"], found["macs"]) == (20, 20)


def test_bad_files_end_the_command_with_status_2(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nothing that ONNX is made of" * 9)
    runner = click.testing.CliRunner()
    for name in ("bad.onnx", "missing.onnx"):
        done = runner.invoke(inspect, [str(tmp_path / name)])
        assert done.exit_code == 2
        assert "Traceback" not in done.output


@pytest.mark.parametrize(
    "body",
    ["y = Conv (x)", "s = Cast <to=3> (x) d = DequantizeLinear (s) y = Conv (d, x)"],
)
def test_a_node_without_what_it_needs_is_refused(body: str, tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 18]> g (float[1,1,1,1] x) => (float[1,1,1,1] y)'
    path = tmp_path / "bad.onnx"
    onnx.save(onnx.parser.parse_model(text + f" {{ {body} }}"), path)
    done = click.testing.CliRunner().invoke(inspect, [str(path), "--json"])
    assert (done.exit_code, json.loads(done.stdout)["error"]["code"]) == (2, "E_MODEL")
    with pytest.raises(InputError) as caught:
        why_slow(str(path), dialect("tensorrt"), engine="tensorrt")
    assert "not a valid ONNX model" in caught.value.message


def test_a_file_of_a_newer_version_is_described(
    tiny_classifier: GraphBytes, tmp_path: Path
) -> None:
    model = onnx.load_model_from_string(tiny_classifier())
    model.ir_version = 99
    onnx.save(model, tmp_path / "new.onnx")
    found = inspect_onnx(str(tmp_path / "new.onnx"))
    assert (found["ir_version"], found["kernels"]) == (99, None)


def run_inspect(path: Path, before: str) -> subprocess.CompletedProcess[str]:
    """``edgepress inspect`` as a child in which ``before`` ran first."""
    script = f"{before}\nfrom edgepress.__main__ import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", script, "inspect", str(path), "--json"],
        env={**os.environ, "TMPDIR": str(path.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_onnx_the_extra_is_named(tiny_classifier: GraphBytes, tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_classifier())
    done = run_inspect(path, "import sys; sys.modules['onnx'] = None")
    assert done.returncode == 2, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "E_EXTRA"
    assert error["mend"] == "Install it with: pip install 'edgepress[export]'"
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_is_not_taken_for_a_file_that_does_not_run(
    tiny_classifier: GraphBytes, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_classifier())
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))"
    done = run_inspect(path, full)
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "E_WRITE"
    assert [one.name for one in tmp_path.iterdir()] == ["tiny.onnx"]


@pytest.mark.parametrize(
    ("name", "million_macs", "opset"),
    [
        ("osnet_x0_25_msmt17", 82.3, 12),
        ("ultraface_rfb320", 100.4, 9),
        ("yolox_nano_coco", 522.6, 11),
        ("ch_ppocr_mobile_v2.0_cls_infer", None, 11),
    ],
)
def test_files_made_elsewhere_are_described_and_tidied(
    shared_data: Path, name: str, million_macs: float | None, opset: int
) -> None:
    path = shared_data / "onnx" / f"{name}.onnx"
    found = inspect_onnx(str(path))
    if million_macs is None:
        assert found["macs"] is None
    else:
        assert found["macs"] / 1e6 == pytest.approx(million_macs, abs=0.1)
    assert found["opset"] == opset
    assert found["parameters"] > 1e5
    graph = normalize(onnx.load(path), source=name)
    kinds = {node.op_type for node in graph.proto().graph.node}
    assert "Constant" not in kinds
    assert "Identity" not in kinds
    onnx.checker.check_model(graph.proto(), full_check=True)


# ---------------------------------------------------------------- bundling


@pytest.fixture
def shipped(tiny_classifier: GraphBytes) -> ShippedModel:
    return ShippedModel(tiny_classifier(), "float32", "onnx", "onnxruntime", {"macs": 1})


def test_golden_outputs_leave_room_for_other_machines(shipped: ShippedModel) -> None:
    feeds = {"input": np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)}
    golden, tolerance = golden_outputs(shipped, feeds)
    largest = float(np.abs(golden["logits"]).max())
    assert tolerance["logits"].max_abs >= 0.001 * largest
    assert tolerance["logits"].max_abs < 0.01 * largest
    assert 0.99 < tolerance["logits"].cosine < 1
    with pytest.raises(InputError) as caught:
        golden_outputs(shipped, {"input": np.full((1, 3, 8, 8), np.inf, np.float32)})
    assert caught.value.code == "E_NAN"


def test_golden_inputs_show_nobodys_picture() -> None:
    like = {
        "image": np.zeros((4, 3, 8, 6), np.float32),
        "ids": np.array([[3], [7]], np.int64),
        "mask": np.array([[True], [False]]),
    }
    made = synthetic_inputs(like, Preprocessing(scale=255.0), seed=1)
    assert {name: (a.shape, a.dtype) for name, a in made.items()} == {
        "image": ((1, 3, 8, 6), np.float32),
        "ids": ((1, 1), np.int64),
        "mask": ((1, 1), np.bool_),
    }
    assert 0 <= made["image"].min() < made["image"].max() <= 1
    assert 3 <= made["ids"].item() <= 7
    again = synthetic_inputs(like, Preprocessing(scale=255.0), seed=1)
    assert all(np.array_equal(made[name], again[name]) for name in made)


def test_a_label_with_a_line_break_is_refused(shipped: ShippedModel) -> None:
    graph = normalize(onnx.load_model_from_string(shipped.model), source="tiny")

    def made(labels: list[str]) -> dict[str, bytes]:
        return assemble(
            shipped,
            inputs=graph.inputs,
            outputs=graph.outputs,
            golden_inputs={"input": np.ones((1, 3, 8, 8), np.float32)},
            synthetic=True,
            task="classification",
            preprocessing=None,
            labels=labels,
            recipe={},
            scores={},
            measurements={},
            notes=(),
            declined=False,
        )

    files = made(["a", "b", "c", "d"])
    assert files[MODEL] == shipped.model
    assert files["labels.txt"] == b"a\nb\nc\nd\n"
    assert {"manifest.json", "manifest.sha256"} <= files.keys()
    with pytest.raises(InputError) as caught:
        made(["a", "b\nc"])
    assert caught.value.code == "E_LABELS"
