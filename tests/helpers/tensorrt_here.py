"""What of NVIDIA's is on this machine, for the tests of its engines."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgepress.runtime import EngineError, MissingExtraError
from edgepress.runtime.engine_registry import import_backend
from edgepress.runtime.nvidia.driver import cuda

ENGINES = ("tensorrt", "tensorrt-rtx")
every_engine = pytest.mark.parametrize("name", ENGINES)
Tiny = Callable[..., bytes]


def missing_driver() -> str:
    """Why there is no GPU here; empty where there is one."""
    try:
        cuda()
    except EngineError as error:
        return error.message
    return ""


NO_GPU = missing_driver()
gpu = [pytest.mark.gpu, pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU)]
without_gpu = pytest.mark.skipif(not NO_GPU, reason="this machine has a GPU")


def installed(name: str) -> bool:
    try:
        import_backend(name)
    except MissingExtraError:
        return False
    return True


needs_rtx = pytest.mark.skipif(
    not installed("tensorrt-rtx"), reason="the extra tensorrt-rtx is not installed"
)
