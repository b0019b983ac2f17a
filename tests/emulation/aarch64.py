"""An aarch64 machine for tests: edgepress and any other program run in it, emulated by qemu.

The fixture ``aarch64`` gives it, on a processor like a Raspberry Pi 5's. Everything really runs, at
a tenth of the speed or less, so times that are measured in it mean nothing. Tests that use it are
marked ``external``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from emulation.fetching import ToolMissingError
from emulation.toolchain import PROCESSORS, guest, made_once, python, toolchain
from helpers.external import missing

_USER_VARIABLES = "EDGEPRESS_TESTS_USER_VARIABLES"  # written by conftest.py: for apt and pip


@dataclass(frozen=True)
class Emulation:
    """Emulated Linux on aarch64: Debian 12's Python 3.11 with the base install of edgepress.

    It sees the host's files, and where it has a file of its own under the same name, that one. Home
    folder and environment are the tests' own.

    Attributes:
        folder: What :func:`emulation.toolchain.toolchain` made.
        edgepress: The built wheel, unpacked.
        processor: A name of :data:`emulation.toolchain.PROCESSORS`.
    """

    folder: Path
    edgepress: Path
    processor: str = "cortex-a76"

    @property
    def python(self) -> Path:
        """What starts its Python, and its ``sys.executable``: a program of the host."""
        return python(self.folder, self.processor)

    @property
    def root(self) -> Path:
        """The folder that its programs see as ``/``, before the host's."""
        return self.folder / self.processor

    def on(self, processor: str) -> Emulation:
        """The same on another processor."""
        assert processor in PROCESSORS, f"{processor} is none of {', '.join(PROCESSORS)}"
        return dataclasses.replace(self, processor=processor)

    def run(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        variables: Mapping[str, str] | None = None,
        input: str | None = None,
        timeout_s: float = 300.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python ...`` or ``edgepress ...`` in it, away from the source."""
        program, *rest = map(str, command)
        assert program in ("python", "edgepress"), f"{program}: native() runs other programs"
        module = ["-m", "edgepress"] if program == "edgepress" else []
        path = {"PYTHONPATH": str(self.edgepress)}
        return _run(
            [str(self.python), *module, *rest],
            cwd=cwd or self.folder,
            variables={**path, **(variables or {})},
            input=input,
            timeout_s=timeout_s,
        )

    def native(
        self,
        program: str | Path,
        *arguments: str | Path,
        cwd: Path | None = None,
        variables: Mapping[str, str] | None = None,
        input: str | None = None,
        timeout_s: float = 300.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run an aarch64 program in it; libraries that it links to are Debian 12's."""
        emulator = self.folder / "bin" / "qemu-aarch64-static"
        qemu = (emulator, "-cpu", self.processor, "-L", self.root)
        return _run(
            [*map(str, (*qemu, program, *arguments))],
            cwd=cwd or self.folder,
            variables=variables or {},
            input=input,
            timeout_s=timeout_s,
        )


def _run(
    command: list[str],
    *,
    cwd: Path,
    variables: Mapping[str, str],
    input: str | None,
    timeout_s: float,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**guest(os.environ), **variables},
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout_s,
        check=False,
    )


@pytest.fixture(scope="session")
def aarch64(project: Path, session_folder: Path, distributions: Path) -> Emulation:
    """An emulated aarch64 machine with the base install; it stays in ``.work`` for later runs."""
    theirs = {**os.environ, **json.loads(os.environ[_USER_VARIABLES])}
    try:
        folder = toolchain(project / ".work", theirs)
    except ToolMissingError as error:
        missing(str(error), install=error.install)
    (wheel,) = distributions.glob("*.whl")

    def unpack(target: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)

    return Emulation(folder, made_once(session_folder / "aarch64-edgepress", unpack))
