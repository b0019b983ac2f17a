"""``edgepress engine``: builds, proves, prints trtexec's line, and refuses."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from edgepress.__main__ import main
from edgepress.runtime import Bundle
from edgepress.runtime.bundle.bundle_writer import write_zip
from helpers.command_line import run_cli
from helpers.tensorrt_here import Tiny, needs_rtx, without_gpu


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
