"""The package by which OpenVINO and NNCF send telemetry and write into the home folder, hidden."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from typing import Any

_PACKAGE = "openvino_telemetry"


@contextlib.contextmanager
def without_telemetry() -> Generator[None]:
    """Inside, that package is as if not installed; what is imported here takes its own stub."""
    modules: dict[str, Any] = sys.modules
    hidden = modules.get(_PACKAGE)
    modules[_PACKAGE] = None
    try:
        yield
    finally:
        if hidden is None:
            del modules[_PACKAGE]
        else:
            modules[_PACKAGE] = hidden
