"""On an emulated x86 processor without VNNI the system, runtime and engines see the same."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from emulation.avx2 import emulated_python
from emulation.fetching import ToolMissingError
from emulation.toolchain import toolchain
from helpers.external import missing

pytestmark = [pytest.mark.external, pytest.mark.slow]

CHILD = """
import subprocess, sys
asked = "from edgepress.runtime.target import processor; print(processor())"
subprocess.run([sys.executable, "-c", asked], check=True)
"""


@pytest.fixture(scope="module")
def python(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    theirs = {**os.environ, **json.loads(os.environ["EDGEPRESS_TESTS_USER_VARIABLES"])}
    try:
        folder = toolchain(project / ".work", theirs)
    except ToolMissingError as error:
        missing(str(error), install=error.install)
    qemu = folder / "bin" / "qemu-x86_64-static"
    return emulated_python(tmp_path_factory.mktemp("avx2") / "venv", qemu)


def told(python: Path, *words: str) -> str:
    done = subprocess.run(
        [python, *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_child_is_emulated_too(python: Path) -> None:
    assert "i7-8700K" in told(python, "-c", CHILD)


def test_doctor_proves_both_engines_and_tells_what_they_have_there(python: Path) -> None:
    found = json.loads(told(python, "-m", "edgepress", "doctor", "--json"))
    assert found["dialects"]["onnxruntime-cpu"] == "onnxruntime-x86"
    assert found["dialects"]["openvino-cpu"] == "openvino-half"
    engines = {one["engine"]: one for one in found["engines"]}
    for name in ("onnxruntime", "openvino"):
        assert engines[name]["ok"], engines[name]
        assert engines[name]["precisions"] == ["float32"], "no bfloat16"
