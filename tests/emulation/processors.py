"""The tests of engines and dialects on other processors than the one at hand: ``make processors``.

Those of OpenVINO run held to each level that the processor at hand has; what it has besides,
``make test`` has used. ONNX Runtime cannot be held to anything: tests marked ``processor`` run
emulated. Then come the tests of the emulated machines themselves, the base install on aarch64 among
them. A tool that is missing fails its part under CI.

``PYTHONPATH=tests python -m emulation.processors NAME...`` runs some of them, and avx2-vnni, which
is left out otherwise for want of time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from emulation.avx2 import emulated_python
from emulation.fetching import ToolMissingError
from emulation.toolchain import toolchain
from helpers.processors import LEVELS

TESTS = Path(__file__).resolve().parent.parent
PROJECT = TESTS.parent
WORK = PROJECT / ".work"


def main() -> int:
    """Run what was asked for; 0 where all of it passed."""
    emulated = {"emulated-avx2": on_avx2, "emulation": of_emulation}
    known = [*LEVELS, *emulated]
    parser = argparse.ArgumentParser(description=__doc__, prog="emulation.processors")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    usual = [name for name in known if name != "avx2-vnni"]
    names: list[str] = parser.parse_args().names or usual
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no such processors: {', '.join(unknown)}")
    statuses = [emulated[name](name) if name in emulated else held_to(name) for name in names]
    return int(any(statuses))


def held_to(name: str) -> int:
    """The tests of OpenVINO, held to a level of this processor."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    if LEVELS[name].needs not in flags:
        say(f"{name}: left out, this processor has no {LEVELS[name].needs}")
        return 0
    files = [*TESTS.rglob("test_*openvino*.py"), *TESTS.rglob("test_*bfloat16*.py")]
    files += TESTS.rglob("test_saturation.py")
    variables = {**os.environ, "EDGEPRESS_TESTS_PROCESSOR": name}
    return run(name, [sys.executable], files, variables)


def on_avx2(name: str) -> int:
    """The tests that are marked for it, on an emulated processor with AVX2 alone."""
    try:
        folder = toolchain(WORK, os.environ)
    except ToolMissingError as missing:
        say(f"{name}: left out, {missing}: install {missing.install}")
        return int(os.environ.get("EDGEPRESS_CI") == "1")
    python = emulated_python(WORK / name, folder / "bin" / "qemu-x86_64-static")
    files = [
        path
        for path in TESTS.rglob("test_*.py")
        if "pytest.mark.processor\n" in path.read_text(encoding="utf-8")
    ]
    return run(name, [str(python)], files, os.environ, "-m", "processor")


def of_emulation(name: str) -> int:
    """What shows that the emulated machines are such, and what they are for."""
    files = list((TESTS / "emulation").glob("test_*.py"))
    return run(name, [sys.executable], files, os.environ, "-m", "external")


def run(
    name: str,
    python: Sequence[str],
    files: Sequence[Path],
    variables: Mapping[str, str],
    *words: str,
) -> int:
    """Run tests with a Python, tell how long that took, and give their status."""
    say(f"{name}: {len(files)} files")
    begun = time.monotonic()
    command = [*python, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", *words]
    command += ["-p", "no:cacheprovider", *map(str, sorted(files))]
    status = subprocess.run(command, cwd=PROJECT, env=variables, check=False).returncode
    say(f"{name}: {'passed' if status == 0 else 'failed'} after {time.monotonic() - begun:.0f} s")
    return status


def say(told: str) -> None:
    print(f"\n--- {told}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
