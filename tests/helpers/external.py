"""Tools from outside of the Python environment, which tests marked ``external`` need."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(reason: str, *, install: str) -> NoReturn:
    """Skip the test for want of a tool; fail it under CI, where every tool has to be there.

    Args:
        reason: What is not there.
        install: The package that brings it.
    """
    told = f"{reason}: install {install}"
    if os.environ.get("EDGEPRESS_CI") == "1":  # conftest.py takes CI itself away
        pytest.fail(told, pytrace=False)
    pytest.skip(told)
