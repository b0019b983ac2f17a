"""The bundle that ``make demo`` makes, for tests that open it on other machines."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from emulation.toolchain import made_once

_TEST_PICTURES = 1000  # a tenth: no test reads the score, and the model does not depend on them


@pytest.fixture(scope="session")
def demo_bundle(project: Path, session_folder: Path) -> Path:
    """The demo's bundle, made here and now by its own command; do not write into it."""

    def make(folder: Path) -> None:
        with np.load(project / "demo" / "data" / "test.npz") as held:
            some = {name: values[:_TEST_PICTURES] for name, values in held.items()}
        np.savez(folder / "test.npz", **some)
        words = [*_command(project), "--test-data", folder / "test.npz", "--out", folder / "bundle"]
        done = subprocess.run(
            [sys.executable, "-m", "edgepress", *map(str, words)],
            cwd=project,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        busy = 4  # the demo goes on then, too
        assert done.returncode in (0, busy), done.stderr

    return made_once(session_folder / "demo-bundle", make) / "bundle"


def _command(project: Path) -> list[str]:
    spec = importlib.util.spec_from_file_location("demo_run", project / "demo" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    return list(demo.COMPRESS)
