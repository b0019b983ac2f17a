"""What makes the emulation: made once and whole, pinned as the project is, no tool missed in CI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from emulation import fetching
from emulation.toolchain import guest, made_once
from helpers.external import missing

# Counts its calls in a file beside the folder, slowly enough that the other one comes meanwhile.
MAKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from emulation.toolchain import made_once

def make(folder):
    with folder.with_name("calls").open("a") as calls:
        calls.write("made\\n")
    time.sleep(0.5)
    (folder / "whole").touch()

print((made_once(Path(sys.argv[1]), make) / "whole").exists())
"""


def test_two_processes_make_a_folder_once(tmp_path: Path, project: Path) -> None:
    words = [
        sys.executable,
        "-c",
        MAKER,
        str(tmp_path / "it"),
        str(project / "tests"),
    ]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [child.communicate(timeout=60)[0] for child in both] == ["True\n"] * 2
    assert (tmp_path / "calls").read_text(encoding="utf-8") == "made\n"


def test_a_folder_that_was_left_half_made_is_made_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        made_once(tmp_path / "it", fail)
    assert not (tmp_path / "it").exists()
    made = made_once(tmp_path / "it", lambda folder: (folder / "whole").touch())
    assert [path.name for path in made.iterdir()] == ["whole"]


def test_the_pins_are_those_of_the_project_but_for_onnx_runtime(project: Path) -> None:
    lines = (project / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.partition(" ;")[0] for line in lines}
    others = [line for line in fetching.pinned(fetching.WHEELS) if line not in pins]
    assert others == ["onnxruntime==1.26.0"]


def test_what_is_meant_for_the_host_stays_there() -> None:
    host = {"PYTHONPATH": "source", "LD_PRELOAD": "x86.so", "OPENBLAS_CORETYPE": "Haswell"}
    assert guest({**host, "QEMU_CPU": "max", "HOME": "clean"}) == {"HOME": "clean"}


def test_another_system_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching.shutil, "which", lambda tool: None)
    with pytest.raises(fetching.ToolMissingError, match="no apt-get") as raised:
        fetching.check_tools()
    assert raised.value.install == "apt"


def test_a_missing_tool_is_skipped_here_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEPRESS_CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no browser: install chromium"):
        missing("no browser", install="chromium")
    monkeypatch.setenv("EDGEPRESS_CI", "1")
    with pytest.raises(pytest.fail.Exception, match="no browser: install chromium"):
        missing("no browser", install="chromium")
