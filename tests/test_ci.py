"""What CI runs: a stage that fails or takes too long is named, and one line tells of all tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="CI's script is for bash")


def run(project: Path, stages: str) -> tuple[int, list[str]]:
    """Stages, run as CI runs them: the exit status, and the lines of what was printed."""
    script = f"set -uo pipefail\n. {project}/.ci/stage.sh\n{stages}\nsummary\n"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout.splitlines()


def test_counts_of_all_stages_are_added_up(project: Path) -> None:
    status, lines = run(
        project,
        "stage 1 one echo '=== 3408 passed, 63 skipped in 719.63s (0:11:59) ==='\n"
        "stage 1 two echo '12 passed in 5.49s'\n"
        "stage 1 three true",
    )
    assert status == 0
    assert lines[-1] == "3420 passed, 0 failed, 63 skipped"
    assert [line.split()[0] for line in lines[-5:-2]] == ["one", "two", "three"]


def test_a_stage_over_its_limit_fails_by_name_and_the_next_one_runs(project: Path) -> None:
    status, lines = run(project, "stage 0.02 slow sleep 30\nstage 1 next echo '1 passed in 0.1s'")
    assert status == 1
    assert lines[-1] == "1 passed, 1 failed, 0 skipped"
    assert any(
        line.startswith("slow") and line.endswith("over its limit of 0.02 min") for line in lines
    )


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("false", "0 passed, 1 failed, 0 skipped"),
        (
            "bash -c 'echo 2 failed, 5 passed, 1 error in 3.2s; exit 1'",
            "5 passed, 3 failed, 0 skipped",
        ),
    ],
)
def test_a_stage_that_fails_counts(project: Path, command: str, told: str) -> None:
    status, lines = run(project, f"stage 1 broken {command}")
    assert status == 1
    assert lines[-1] == told
    assert any("failed with status 1" in line for line in lines)
