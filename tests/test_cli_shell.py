"""The shell of the command line: what happens before and around a room's own commands."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgepress import __version__
from edgepress.__main__ import COMMANDS

HEAVY = ("numpy", "PIL", "onnxruntime", "onnx", "torch", "nncf", "rich")
HELP_BUDGET_MS = 150.0


def edgepress(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgepress", *words],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def test_help_lists_every_command(tmp_path: Path) -> None:
    done = edgepress("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    listed = done.stdout.partition("Commands:")[2]
    for name, entry in COMMANDS.items():
        assert f"  {name} " in listed
        assert entry.summary in listed


def test_help_imports_no_room_and_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from edgepress.__main__ import main\n"
        "try: main(['--help'])\n"
        "finally: print(' '.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    loaded = set(done.stderr.split())
    assert "edgepress.__main__" in loaded
    assert not loaded & set(HEAVY)
    assert {name for name in loaded if name.startswith("edgepress.")} == {"edgepress.__main__"}


@pytest.mark.serial
def test_help_answers_at_once(tmp_path: Path) -> None:
    def cpu_ms(*command: str) -> float:  # not wall time: other work on the machine is not ours
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    pairs = [(cpu_ms("-m", "edgepress", "--help"), cpu_ms("-c", "pass")) for _ in range(9)]
    extra_ms = statistics.median(ours - bare for ours, bare in pairs)
    assert extra_ms < HELP_BUDGET_MS


def test_version(tmp_path: Path) -> None:
    assert edgepress("--version", cwd=tmp_path).stdout == f"edgepress {__version__}\n"


def test_a_misspelt_command_is_answered_with_the_nearest(tmp_path: Path) -> None:
    done = edgepress("compres", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "No such command 'compres'. Did you mean 'compress'?" in done.stderr


def test_a_command_like_no_other_is_answered_with_the_list(tmp_path: Path) -> None:
    done = edgepress("xyzzy", cwd=tmp_path)
    assert done.returncode == 2
    assert ", ".join(COMMANDS) in done.stderr


def test_no_command_shows_the_help_and_is_bad_usage(tmp_path: Path) -> None:
    done = edgepress(cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage: edgepress" in done.stderr


@pytest.mark.parametrize("words", [["verify"], ["bench", "--no-such-option"], ["pack", "--json"]])
def test_bad_usage_with_json_is_one_object_on_stdout(tmp_path: Path, words: list[str]) -> None:
    done = edgepress(*words, "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage: edgepress" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "E_USAGE"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(tmp_path: Path, name: str) -> None:
    done = edgepress(name, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: edgepress {name} ")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a POSIX signal to a child")
def test_ctrl_c_ends_a_command_quietly(
    tmp_path: Path, tiny_classifier: Callable[..., bytes]
) -> None:
    (tmp_path / "tiny.onnx").write_bytes(tiny_classifier())
    command = [sys.executable, "-m", "edgepress", "bench", "tiny.onnx", "--json"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        time.sleep(2)
        assert child.poll() is None, child.stderr and child.stderr.read()
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "Traceback" not in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]
    assert stdout == "" or "error" in json.loads(stdout)


@pytest.mark.slow
def test_doctor_writes_nothing_at_home_with_ci_unset(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run(
        [sys.executable, "-m", "edgepress", "doctor", "--json"],
        cwd=tmp_path,
        env={**environment, "HOME": str(home), "USERPROFILE": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert list(home.rglob("*")) == []


def test_tests_have_no_network(clean_machine: list[str]) -> None:
    with pytest.raises(ConnectionRefusedError, match="tests have no network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    assert len(clean_machine) == 1
    clean_machine.clear()


def test_progress_tells_the_time_that_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepress.runtime import console

    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.Console(as_json=False).progress() as progress:
        for done, at in ((0, 100.0), (10, 120.0), (20, 140.0), (99, 9_900.0), (1, 10_000.0)):
            now[0] = at
            progress("training" if done != 1 else "scoring", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training: 10 of 100, about 3 min left",
        "training: 20 of 100, about 3 min left",
        "training: 99 of 100, about 99 s left",
        "scoring: 1 of 100",
    ]


def test_work_that_begins_again_is_timed_anew(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepress.runtime import console

    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.Console(as_json=False).progress() as progress:
        for done, at in ((50, 100.0), (100, 120.0), (0, 9_000.0), (25, 9_020.0)):
            now[0] = at
            progress("scoring", done, 100)
    assert capsys.readouterr().err.splitlines()[-1] == "scoring: 25 of 100, about 60 s left"
