"""The command line, called in this process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgepress.__main__ import main


def run_cli(capture: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    """The exit status and the JSON that ``edgepress WORDS --json`` gives."""
    return run_cli_told(capture, *words)[:2]


def run_cli_told(
    capture: pytest.CaptureFixture[str], *words: object
) -> tuple[int, dict[str, Any], str]:
    """As `run_cli`, with what was said on standard error."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words), "--json"])
    told = capture.readouterr()
    assert isinstance(ended.value.code, int), told.err
    return ended.value.code, json.loads(told.out), told.err
