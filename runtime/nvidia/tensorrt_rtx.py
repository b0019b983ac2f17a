"""TensorRT-RTX: the only file that imports it. Everything else is shared with TensorRT.

Its builder needs neither a GPU nor a driver; its engines run on desktop RTX GPUs alone, and are
compiled to the end when they are loaded there.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

from ..errors import EngineError, MissingExtraError
from .driver import Gpu
from .engine import NvidiaEngine

_SERVED = ("7.5", "8.0", "8.6", "8.9")
_SERVED_FROM = 12


class TensorRtRtxEngine(NvidiaEngine):
    """Runs an ONNX graph in TensorRT-RTX."""

    name: ClassVar[str] = "tensorrt-rtx"
    compiles_late = True

    @classmethod
    def backend(cls) -> Any:
        """The module ``tensorrt_rtx``; see :func:`load`."""
        return load()

    def _check_gpu(self, gpu: Gpu) -> None:
        check_gpu(gpu)


def check_gpu(gpu: Gpu) -> None:
    """See that TensorRT-RTX serves a GPU.

    Source: what version 1.7.1 says of itself where it loads an engine; Turing, 7.5, is served by
    engines that are built for it.

    Raises:
        EngineError: ``E_PROVIDER`` for GPUs of data centres and of Jetsons.
    """
    major = int(gpu.compute_capability.split(".")[0])
    if gpu.compute_capability not in _SERVED and major < _SERVED_FROM:
        raise EngineError(
            "E_PROVIDER",
            f"TensorRT-RTX does not serve the {gpu.name}, whose compute capability is "
            f"{gpu.compute_capability}.",
            mend=f"It serves {', '.join(_SERVED)} and {_SERVED_FROM}.0 onwards: GPUs of desktops "
            "and workstations. TensorRT serves this one: the engine tensorrt.",
        )


def load() -> Any:
    """The module ``tensorrt_rtx``.

    Raises:
        MissingExtraError: Where it is not installed.
        EngineError: ``E_BACKEND`` where it cannot be imported.
    """
    try:
        return importlib.import_module("tensorrt_rtx")
    except ModuleNotFoundError as error:
        if error.name == "tensorrt_rtx":
            what = "the engine tensorrt-rtx"
            raise MissingExtraError("tensorrt-rtx", "tensorrt-rtx", what) from error
        raise _broken(error) from error
    except (ImportError, OSError) as error:
        raise _broken(error) from error


def _broken(error: Exception) -> EngineError:
    return EngineError(
        "E_BACKEND",
        f"TensorRT-RTX cannot be imported: {error}",
        mend="Install it again with: pip install --force-reinstall tensorrt-rtx",
    )
