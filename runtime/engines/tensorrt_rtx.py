"""TensorRT-RTX: the only file that imports it. Everything else is shared with TensorRT.

Its builder needs neither a GPU nor a driver; its engines run on desktop RTX GPUs alone, and are
compiled to the end when they are loaded there.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

from ..errors import EngineError, MissingExtraError
from ..nvidia.engine import NvidiaEngine


class TensorRtRtxEngine(NvidiaEngine):
    """Runs an ONNX graph in TensorRT-RTX."""

    name: ClassVar[str] = "tensorrt-rtx"

    @classmethod
    def backend(cls) -> Any:
        """The module ``tensorrt_rtx``; see :func:`load`."""
        return load()


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
