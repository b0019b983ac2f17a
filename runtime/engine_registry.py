"""The engines, by name; each is one file and the only one that imports its backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .engines.engine import Engine, Precision
from .errors import EngineError

if TYPE_CHECKING:
    from .nvidia.driver import Gpu

__all__ = [
    "ENGINE_NAMES",
    "computes_in",
    "find_device",
    "import_backend",
    "load_backend",
    "open_engine",
]

ENGINE_NAMES = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "null")


def open_engine(name: str) -> type[Engine]:
    """The class of the engine called ``name``; only entering an engine imports its backend.

    Raises:
        EngineError: ``E_ENGINE`` for a name that is not an engine.
    """
    if name == "onnxruntime":
        from .engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine
    if name == "openvino":
        from .engines.openvino import OpenVinoEngine

        return OpenVinoEngine
    if name == "tensorrt":
        from .nvidia.tensorrt import TensorRtEngine

        return TensorRtEngine
    if name == "tensorrt-rtx":
        from .nvidia.tensorrt_rtx import TensorRtRtxEngine

        return TensorRtRtxEngine
    if name == "null":
        from .engines.null import NullEngine

        return NullEngine
    raise EngineError(
        "E_ENGINE", f"unknown engine '{name}'.", mend="Known engines: " + ", ".join(ENGINE_NAMES)
    )


def find_device(name: str) -> Gpu | None:
    """Ask for what the engine called ``name`` needs beside a processor, before it is imported.

    Returns:
        The GPU that it runs on where no other is asked for; ``None`` where it needs none.

    Raises:
        EngineError: ``E_DRIVER`` where it needs a GPU and there is none, or no driver;
            ``E_PROVIDER`` where it does not serve this GPU; ``E_BACKEND`` where the driver fails;
            ``E_ENGINE`` for a name that is not an engine.
    """
    open_engine(name)
    if name not in ("tensorrt", "tensorrt-rtx"):
        return None
    from .nvidia.driver import cuda

    gpu = cuda().gpu()
    if name == "tensorrt-rtx":
        from .nvidia.tensorrt_rtx import check_gpu

        check_gpu(gpu)
    return gpu


def import_backend(name: str) -> str | None:
    """Import what the engine called ``name`` stands on.

    Returns:
        Its version, or ``None`` for the null engine, which stands on nothing.

    Raises:
        EngineError: ``E_BACKEND`` where it cannot be imported, ``E_ENGINE`` for a name that is not
            an engine.
        MissingExtraError: Where it is an optional extra that is not installed.
    """
    open_engine(name)
    if name == "onnxruntime":
        from .engines.onnxruntime import backend_version as onnxruntime_version

        return onnxruntime_version()
    if name == "openvino":
        from .engines.openvino import backend_version as openvino_version

        return openvino_version()
    if name in ("tensorrt", "tensorrt-rtx"):
        return str(load_backend(name).__version__)
    return None


def computes_in(name: str, precision: Precision) -> bool:
    """Whether the engine called ``name`` can compute floats in ``precision`` on this processor.

    Raises:
        EngineError: ``E_ENGINE`` for a name that is not an engine; ``E_BACKEND`` where it must be
            asked and cannot be imported.
        MissingExtraError: Where it must be asked and is not installed.
    """
    open_engine(name)
    if precision == "bf16" and name == "openvino":
        from .engines.openvino import has_bf16

        return has_bf16()
    return precision == "f32"


def load_backend(name: str) -> Any:
    """The module that ``tensorrt`` or ``tensorrt-rtx`` stands on.

    Raises:
        EngineError: ``E_BACKEND`` where it cannot be imported, ``E_ENGINE`` for another engine.
        MissingExtraError: Where it is not installed.
    """
    if name == "tensorrt":
        from .nvidia.tensorrt import load as load_tensorrt

        return load_tensorrt()
    if name == "tensorrt-rtx":
        from .nvidia.tensorrt_rtx import load as load_tensorrt_rtx

        return load_tensorrt_rtx()
    raise EngineError("E_ENGINE", f"the engine '{name}' builds nothing.", mend="tensorrt does.")
