"""ONNX Runtime: the only file that imports it.

ONNX Runtime sends telemetry and writes a database in the home folder unless
``ORT_DISABLE_TELEMETRY`` is set before it is imported; importing it through this file sets that for
the whole process.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from ..errors import EngineError
from ..files import check_room, temporary_folder
from ..tensors import Array, Arrays, Dimension, TensorSpec
from .engine import SIZES_MEND, Engine, EngineOptions
from .kernel_time import KernelTime, kernel_time

OptimizationLevel: TypeAlias = Literal["basic", "extended", "all"]

CPU_PROVIDER = "CPUExecutionProvider"
_QUIET = 4  # ONNX Runtime's severity "fatal": what it logs as an error, it raises as well
_NOT_LOOKED_AT = 2  # inferences of a profile in which memory is laid out
_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}


class OnnxRuntimeEngine(Engine):
    """Runs an ONNX graph on one execution provider of ONNX Runtime, by default the CPU's."""

    name: ClassVar[str] = "onnxruntime"

    def __init__(self, model: bytes, options: EngineOptions | None = None) -> None:
        super().__init__(model, options)
        self._session: Any = None
        self._output_names: list[str] = []
        self._facts: dict[str, object] = {}

    def facts(self) -> dict[str, object]:
        """Version, provider asked for, providers that serve, threads, whether it fell back."""
        return {**super().facts(), **self._facts}

    def _load(self) -> None:
        ort = _backend()
        if self.options.precision != "f32":
            raise EngineError(
                "E_PRECISION",
                f"ONNX Runtime computes floats in f32, {self.options.precision} was asked for.",
                mend="Ask for the precision 'f32', or use the engine openvino.",
            )
        wanted = self.options.provider or CPU_PROVIDER
        available = list(ort.get_available_providers())
        if wanted not in available and not self.options.allow_fallback:
            raise EngineError(
                "E_PROVIDER",
                f"ONNX Runtime {ort.__version__} has no {wanted}; it has {', '.join(available)}.",
                mend="Install the onnxruntime that has it, or allow the fall-back to another.",
            )
        options = _session_options(ort, self.options.optimize, self.options.threads)
        providers = [wanted] if wanted in available else [CPU_PROVIDER]
        self._session = _create(ort, self.model, options, providers)
        used = list(self._session.get_providers())
        if (not used or used[0] != wanted) and not self.options.allow_fallback:
            self._session = None
            raise EngineError(
                "E_PROVIDER",
                f"{wanted} was asked for, ONNX Runtime serves with {', '.join(used) or 'none'}.",
                mend="Check the driver and libraries it needs, or allow the fall-back to another.",
            )
        self.inputs = _specs(self._session.get_inputs(), "input")
        self.outputs = _specs(self._session.get_outputs(), "output")
        self._output_names = [spec.name for spec in self.outputs]
        self._facts = {
            "version": str(ort.__version__),
            "provider_asked": wanted,
            "providers": used,
            "fell_back": not used or used[0] != wanted,
            "optimize": self.options.optimize,
        }

    def _unload(self) -> None:
        self._session = None

    def _run(self, feeds: Mapping[str, Array]) -> Arrays:
        for array in feeds.values():
            if not array.flags.c_contiguous:
                feeds = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
                break
        try:
            results = self._session.run(self._output_names, feeds)
        except (
            Exception
        ) as error:  # ONNX Runtime raises its own types and, at times, UnicodeDecodeError
            raise EngineError(
                "E_BACKEND",
                f"ONNX Runtime failed while running: {_first_line(error)}",
                mend=SIZES_MEND,
            ) from error
        return dict(zip(self._output_names, results, strict=True))


def optimized_model(model: bytes, level: OptimizationLevel) -> bytes:
    """The graph as ONNX Runtime rewrites it for this machine's CPU.

    Args:
        model: An ONNX model.
        level: How far it may rewrite; ``all`` includes layouts that only this processor
            understands.

    Returns:
        The rewritten model, as ONNX Runtime serializes it.

    Raises:
        EngineError: ``E_BACKEND`` where it cannot be read or written out.
        InputError: ``E_WRITE`` where the temporary folder has no room, or there is none.
    """
    ort = _backend()
    with temporary_folder() as folder:
        path = folder / "optimized.onnx"
        options = _session_options(ort, level, 1)
        options.optimized_model_filepath = str(path)
        try:
            _create(ort, model, options, [CPU_PROVIDER])
        except EngineError:
            check_room(path)  # ONNX Runtime calls a full disk a failed serialization
            raise
        try:
            return path.read_bytes()
        except OSError as error:
            raise EngineError(
                "E_BACKEND",
                f"ONNX Runtime did not write its optimized graph: {error}",
                mend="Check the room and the rights in the temporary folder ($TMPDIR).",
            ) from error


def profile(
    model: bytes,
    feeds: Mapping[str, Array],
    threads: int,
    runs: int,
    optimize: Literal["all", "none"] = "all",
) -> tuple[KernelTime, ...]:
    """What each kernel takes on the CPU, from ONNX Runtime's profiler.

    See :func:`edgepress.runtime.engines.kernel_times.kernel_times`; ``optimize`` says how far the
    graph may be rewritten.
    """
    ort = _backend()
    with temporary_folder() as folder:
        options = _session_options(ort, optimize, threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        session = _create(ort, model, options, [CPU_PROVIDER])
        try:
            for _ in range(runs + _NOT_LOOKED_AT):
                session.run(None, dict(feeds))
            events: Any = json.loads(Path(session.end_profiling()).read_bytes())
        except Exception as error:  # ONNX Runtime's own types, OSError and ValueError
            raise EngineError(
                "E_BACKEND",
                f"ONNX Runtime failed while its profiler ran: {_first_line(error)}",
                mend=f"{SIZES_MEND} Check the disk's room, too.",
            ) from error
    ending, seen = "_kernel_time", dict[tuple[str, str], list[float]]()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(ending):
            key = (str(event["args"]["op_name"]), str(event["name"]).removesuffix(ending))
            seen.setdefault(key, []).append(event["dur"] / 1000)
    return tuple(
        kernel_time(kind, name, (), found[_NOT_LOOKED_AT:] or found)
        for (kind, name), found in seen.items()
    )


def backend_version() -> str:
    """The version of the ONNX Runtime that is installed.

    Raises:
        EngineError: ``E_BACKEND`` where it cannot be imported.
    """
    return str(_backend().__version__)


def _backend() -> Any:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise EngineError(
            "E_BACKEND",
            f"ONNX Runtime cannot be imported: {error}",
            mend="Install it with: pip install onnxruntime",
        ) from error


def _session_options(ort: Any, level: str, threads: int) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[level])
    return options


def _create(ort: Any, model: bytes, options: Any, providers: list[str]) -> Any:
    if not model:
        raise EngineError(
            "E_BACKEND", "the model is empty (0 bytes).", mend="Expected an ONNX model."
        )
    try:
        return ort.InferenceSession(model, sess_options=options, providers=providers)
    except Exception as error:  # its own types, RuntimeError and UnicodeDecodeError come out
        raise EngineError(
            "E_BACKEND",
            f"ONNX Runtime {ort.__version__} cannot load the model: {_first_line(error)}",
            mend="Expected an ONNX model of an opset and IR version that it reads.",
        ) from error


def _specs(nodes: Sequence[Any], kind: str) -> tuple[TensorSpec, ...]:
    specs: list[TensorSpec] = []
    for index, node in enumerate(nodes):
        dtype = _DTYPES.get(node.type)
        if dtype is None:
            raise EngineError(
                "E_BACKEND",
                f"{kind} '{node.name}' has the type {node.type}, which edgepress cannot pass.",
                mend="Expected a tensor of numbers or booleans.",
            )
        shape = tuple(_dimension(size, f"d{index}_{axis}") for axis, size in enumerate(node.shape))
        specs.append(TensorSpec(str(node.name), dtype, shape))
    return tuple(specs)


def _dimension(size: object, symbol: str) -> Dimension:
    """The size or its name; ``symbol`` where it is free and has none."""
    if isinstance(size, int):
        return size if size >= 0 else symbol
    return size if isinstance(size, str) and size not in ("", "?") else symbol


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
