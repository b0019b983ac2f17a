"""The engines, by name; each is one file and the only one that imports its backend."""

from __future__ import annotations

from ..engine import Engine
from ..errors import EngineError

__all__ = ["ENGINE_NAMES", "open_engine"]

ENGINE_NAMES = ("onnxruntime", "null")


def open_engine(name: str) -> type[Engine]:
    """The class of the engine called ``name``; only entering an engine imports its backend.

    Raises:
        EngineError: ``E_ENGINE`` for a name that is not an engine.
    """
    if name == "onnxruntime":
        from .onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine
    if name == "null":
        from .null import NullEngine

        return NullEngine
    raise EngineError(
        "E_ENGINE", f"unknown engine '{name}'.", mend="Known engines: " + ", ".join(ENGINE_NAMES)
    )
