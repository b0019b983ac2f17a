"""TensorRT: the only file that imports it. Everything else is shared with TensorRT-RTX."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

from ..errors import EngineError, MissingExtraError
from .engine import NvidiaEngine


class TensorRtEngine(NvidiaEngine):
    """Runs an ONNX graph in TensorRT 10.3 to 11, on a GPU or a DLA core."""

    name: ClassVar[str] = "tensorrt"
    timing_caches = True

    @classmethod
    def backend(cls) -> Any:
        """The module ``tensorrt``; see :func:`load`."""
        return load()


def load() -> Any:
    """The module ``tensorrt``.

    Raises:
        MissingExtraError: Where it is not installed.
        EngineError: ``E_BACKEND`` where it cannot be imported.
    """
    try:
        return importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        if error.name == "tensorrt":
            raise MissingExtraError("tensorrt", "tensorrt", "the engine tensorrt") from error
        raise _broken(error) from error
    except (ImportError, OSError) as error:
        raise _broken(error) from error


def _broken(error: Exception) -> EngineError:
    return EngineError(
        "E_BACKEND",
        f"TensorRT cannot be imported: {error}",
        mend="Its libraries must suit the CUDA of the driver; on a Jetson use JetPack's own.",
    )
