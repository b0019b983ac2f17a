"""The runtime in fresh processes: its imports and writes, its public face, what opening costs."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgepress.runtime
from edgepress.runtime import Preprocessing, Session, open_engine
from edgepress.runtime.bundle.bundle_writer import seal, write_files
from edgepress.runtime.bundle.manifest import Golden, Manifest, Tolerance, Variant
from edgepress.runtime.bundle.npz import write_npz

BARE = """
import os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
picture = np.asarray(Image.open(sys.argv[2]).convert("RGB").resize((224, 224), 2))
x = (picture.astype(np.float32).transpose(2, 0, 1)[None] / 255 - np.float32(0.5)) / np.float32(0.25)
print(int(session.run(None, {"input": x})[0].argmax()))
"""
OURS = """
import sys
from edgepress.runtime import Session
with Session.open(sys.argv[1]) as session:
    print(session.predict(sys.argv[2]).top(1)[0].index)
"""


@pytest.fixture
def bundle(tmp_path: Path, tiny_classifier: Callable[..., bytes]) -> Path:
    model = tiny_classifier(size=224, width=32)
    feeds = {"input": np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype("float32")}
    with open_engine("onnxruntime")(model) as engine:
        golden = engine.run(feeds)
    manifest = Manifest(
        engine.inputs,
        engine.outputs,
        "classification",
        (Variant("float32", "model.onnx", "onnxruntime", "onnxruntime", "float32"),),
        Golden("in.npz", "out.npz", True, {"logits": Tolerance(1e-3, 0.999)}),
        preprocessing=Preprocessing(resize=(224, 224), mean=(0.5,), std=(0.25,)),
    )
    files = {"model.onnx": model, "in.npz": write_npz(feeds), "out.npz": write_npz(golden)}
    write_files(seal(manifest, files), tmp_path / "bundle")
    noise = np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.jpg")
    return tmp_path / "bundle"


def python(code: str, *arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_public_face_is_all() -> None:
    public = {name for name in vars(edgepress.runtime) if not name.startswith("_")}
    modules = {name for name in public if isinstance(vars(edgepress.runtime)[name], type(sys))}
    assert public - modules == set(edgepress.runtime.__all__)
    assert sorted(edgepress.runtime.__all__) == edgepress.runtime.__all__


def test_importing_imports_no_engine_and_no_framework() -> None:
    loaded = python("import sys, edgepress.runtime; print(*sys.modules)").split()
    unwanted = {"torch", "onnx", "onnxruntime", "click", "rich", "importlib.metadata", "zipfile"}
    assert unwanted & set(loaded) == set()


def test_a_prediction_imports_no_framework_and_no_command_line(bundle: Path) -> None:
    code = OURS + "\nprint(*sys.modules)"
    loaded = python(code, bundle, bundle.parent / "picture.jpg").split()
    assert "onnxruntime" in loaded
    assert {"torch", "onnx", "click", "rich", "importlib.metadata"} & set(loaded) == set()


def test_nothing_is_written_in_the_home_or_working_folder(bundle: Path) -> None:
    """With ``CI`` unset: ONNX Runtime hides its telemetry where it is set."""
    assert "CI" not in os.environ
    home, work = bundle.parent / "home", bundle.parent / "work"
    home.mkdir()
    work.mkdir()
    before = sorted(bundle.parent.rglob("*"))
    code = f"import os; os.chdir({str(work)!r})\n{OURS}\nimport time; time.sleep(1)"
    python(code, bundle, bundle.parent / "picture.jpg", HOME=str(home), USERPROFILE=str(home))
    assert sorted(bundle.parent.rglob("*")) == before


def test_a_read_only_bundle_opens(bundle: Path) -> None:
    for path in [*bundle.rglob("*"), bundle]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with Session.open(bundle) as session:
            assert session.selftest, "it ran"
    finally:
        for path in [bundle, *bundle.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.slow
@pytest.mark.serial
def test_open_and_first_predict_cost_little_more_than_without_checks(bundle: Path) -> None:
    """The goal is 1.3x of bare ONNX Runtime and Pillow; a noisy machine gets room to 1.6x."""
    picture = bundle.parent / "picture.jpg"
    ratios: list[float] = []
    for _ in range(7):
        start = time.perf_counter()
        bare = python(BARE, bundle / "model.onnx", picture)
        middle = time.perf_counter()
        ours = python(OURS, bundle, picture)
        ratios.append((time.perf_counter() - middle) / (middle - start))
        assert bare == ours
    assert statistics.median(ratios) < 1.6
