"""On aarch64, emulated: the base install proves itself, and the demo's bundle holds there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emulation.aarch64 import Emulation
from emulation.fetching import WHEELS, pinned
from emulation.toolchain import PROCESSORS

pytestmark = [pytest.mark.external, pytest.mark.slow]
on_each_processor = pytest.mark.parametrize("processor", PROCESSORS)

CHILD = """
import platform, subprocess, sys
asked = [sys.executable, "-c", "import platform, sys; print(platform.machine(), sys.executable)"]
print(platform.machine(), sys.executable)
print(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
"""


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_child_that_python_starts_is_emulated_too(aarch64: Emulation) -> None:
    done = aarch64.run("python", "-c", CHILD)
    assert done.stdout.split() == ["aarch64", str(aarch64.python)] * 2, done.stderr


def test_edgepress_there_is_the_wheel_and_not_the_source(aarch64: Emulation, project: Path) -> None:
    done = aarch64.run("python", "-c", "import edgepress; print(edgepress.__file__)", cwd=project)
    assert done.stdout.strip() == str(aarch64.edgepress / "edgepress" / "__init__.py"), done.stderr


@on_each_processor
def test_the_system_tells_of_the_processor_that_is_emulated(
    aarch64: Emulation, processor: str
) -> None:
    machine = aarch64.on(processor)
    read = "print(open('/proc/cpuinfo').read())"
    (part, _, _), features = PROCESSORS[processor]
    done = machine.run("python", "-c", read)
    assert f"CPU part\t: {part}\n" in done.stdout
    assert f"Features\t: {features}\n" in done.stdout
    assert ("asimddp" in features) == (processor == "cortex-a76")


def test_an_aarch64_program_runs_with_input_and_status(aarch64: Emulation, tmp_path: Path) -> None:
    program = aarch64.folder / "root" / "usr" / "bin" / "python3.11"
    elf_machine = int.from_bytes(program.read_bytes()[18:20], "little")
    assert elf_machine == 183, "not a program of aarch64"
    code = "import os, sys; print(input(), os.getcwd(), os.uname().machine); sys.exit(7)"
    done = aarch64.native(program, "-c", code, cwd=tmp_path, input="said\n")
    assert (done.returncode, done.stdout.split()) == (7, ["said", str(tmp_path), "aarch64"])


def test_doctor_proves_onnx_runtime_there(aarch64: Emulation) -> None:
    report = told(aarch64.run("edgepress", "doctor", "--json"))
    assert report["machine"] == "aarch64"
    assert report["dialect"] == "onnxruntime-arm"
    assert report["executable"] == str(aarch64.python)
    engines = {one["engine"]: one for one in report["engines"]}
    ran = engines["onnxruntime"]
    assert ran["ok"], ran["reason"]
    assert ran["providers"] == ["CPUExecutionProvider"]
    assert f"onnxruntime=={ran['version']}" in pinned(WHEELS)


@on_each_processor
def test_the_demo_bundle_is_verified_there(
    aarch64: Emulation, demo_bundle: Path, processor: str
) -> None:
    report = told(aarch64.on(processor).run("edgepress", "verify", demo_bundle, "--json"))
    assert report["ok"]
    assert report["not_proved"] == {}
    manifest = json.loads((demo_bundle / "manifest.json").read_text(encoding="utf-8"))
    assert [one["precision"] for one in manifest["variants"]] == ["int8"]
    ((variant,), tolerance) = report["variants"], manifest["golden"]["tolerance"]
    assert {one["output"] for one in variant["selftest"]} == set(tolerance)
    for one in variant["selftest"]:
        assert one["max_abs"] <= tolerance[one["output"]]["max_abs"]


@on_each_processor
def test_predictions_there_are_those_made_here(
    aarch64: Emulation, demo_bundle: Path, project: Path, processor: str
) -> None:
    pictures = sorted((project / "demo" / "pictures").glob("*.png"))
    words = ["predict", str(demo_bundle), *map(str, pictures), "--top", "10", "--json"]
    there = told(aarch64.on(processor).run("edgepress", *words))["predictions"]
    ours = [sys.executable, "-m", "edgepress", *words]
    here = told(subprocess.run(ours, capture_output=True, text=True, check=False))["predictions"]
    assert len(there) == len(here) == len(pictures) > 0
    for arm, x86 in zip(there, here, strict=True):
        assert arm["picture"] == x86["picture"]
        assert arm["candidates"][0]["label"] == x86["candidates"][0]["label"]
        scores = [{one["label"]: one["score"] for one in told["candidates"]} for told in (arm, x86)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)
