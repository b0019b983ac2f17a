"""OpenVINO: the only file that imports it.

``import openvino`` sends telemetry and writes ``~/intel/stats`` by way of the package
``openvino_telemetry``; importing it through this file hides that package for the time of the
import, so that OpenVINO takes the stub that it has for its absence, for the whole process.

A graph whose batch is free is compiled for any batch, which costs some percent of the speed of the
same graph with a fixed one, and no pause where another size comes along.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, ClassVar

import numpy as np

from ..errors import EngineError, MissingExtraError
from ..tensors import Array, Arrays, TensorSpec, check_arrays
from .dimension_names import free_names
from .engine import SIZES_MEND, Engine, EngineOptions, Precision
from .kernel_time import KernelTime, lower_quartile
from .telemetry import without_telemetry

CPU_DEVICE = "CPU"
_NOT_LOOKED_AT = 2  # inferences in which kernels are chosen and built
_DTYPES = {
    "f32": "float32",
    "f64": "float64",
    "f16": "float16",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "boolean": "bool",
}


class OpenVinoEngine(Engine):
    """Runs an ONNX graph on one device of OpenVINO, by default the CPU.

    Floats are computed in ``options.precision``, whatever the device would take by itself.
    """

    name: ClassVar[str] = "openvino"

    def __init__(self, model: bytes, options: EngineOptions | None = None) -> None:
        super().__init__(model, options)
        self._ov: Any = None
        self._request: Any = None
        self._facts: dict[str, object] = {}
        self._busy = Lock()  # a request serves one caller at a time

    def facts(self) -> dict[str, object]:
        """Version, device asked for, device that serves, precision of floats, threads."""
        return {**super().facts(), **self._facts}

    def _load(self) -> None:
        ov = _backend()
        if self.options.optimize != "all":
            raise EngineError(
                "E_USAGE",
                f"OpenVINO cannot be told to optimize '{self.options.optimize}'.",
                mend="Leave the option at 'all', or use the engine onnxruntime for it.",
            )
        core, wanted = _core(ov), self.options.provider or CPU_DEVICE
        available = [str(name) for name in core.available_devices]
        serves = wanted in available
        if not serves and not self.options.allow_fallback:
            raise EngineError(
                "E_PROVIDER",
                f"OpenVINO {_version(ov)} has no device {wanted}; it has {', '.join(available)}.",
                mend="Install the driver that it needs, or allow the fall-back to the CPU.",
            )
        device = wanted if serves else CPU_DEVICE
        compiled = _compile(ov, core, self.model, device, self.options)
        self._ov, self._request = ov, compiled.create_infer_request()
        symbols = free_names(self.model)
        self.inputs = _specs(compiled.inputs, "input", symbols)
        self.outputs = _specs(compiled.outputs, "output", symbols)
        ends = {size for spec in self.outputs for size in spec.shape if isinstance(size, str)}
        ends -= {size for spec in self.inputs for size in spec.shape}  # shapes made of values
        self._values_matter = bool(ends) or any("float" not in one.dtype for one in self.inputs)
        threads = compiled.get_property("INFERENCE_NUM_THREADS") if device == CPU_DEVICE else None
        self._alone, self._ran = threads == 1, list[tuple[int, ...]]()
        self._facts = {
            "version": _version(ov),
            "provider_asked": wanted,
            "providers": [device],
            "fell_back": not serves,
            "device": str(core.get_property(device, "FULL_DEVICE_NAME")),
            "precision": self.options.precision,
            "threads_used": threads,
        }

    def _unload(self) -> None:
        self._request = None

    def _run(self, feeds: Mapping[str, Array]) -> Arrays:
        request, tensor = self._request, self._ov.Tensor
        with self._busy:
            try:
                for index, spec in enumerate(self.inputs):
                    array = feeds[spec.name]
                    if not (array.flags.c_contiguous and array.flags.writeable):
                        array = np.array(array, order="C")  # memory is shared with none other
                    request.set_input_tensor(index, tensor(array, shared_memory=True))
                shapes = [feeds[spec.name].shape for spec in self.inputs]
                if not self._alone or (shapes == self._ran and not self._values_matter):
                    request.infer(share_inputs=True)
                else:  # where infer() swallows what fails, and leaves the outputs of the run before
                    request.start_async(share_inputs=True)  # which wakes another thread
                    request.wait()
                self._ran = shapes
                given = enumerate(self.outputs)
                return {one.name: np.array(request.get_output_tensor(i).data) for i, one in given}
            except Exception as error:  # RuntimeError, and what the bindings raise besides
                told = f"OpenVINO failed while running: {_reason(error)}"
                raise EngineError("E_BACKEND", told, mend=SIZES_MEND) from error


@dataclass(frozen=True)
class ExecutedNode:
    """One node of a graph as OpenVINO executes it.

    Attributes:
        kind: Its type, e.g. ``Convolution``.
        precision: What it computes in, e.g. ``u8``, ``f32``, ``bf16``.
        primitive: The kernel, e.g. ``brgconv_avx512_I8``; starts with ``undef`` where the first
            inference decides it.
        origins: Names of what it was made of: the graph's nodes, or the outputs that they give,
            with OpenVINO's own endings.
        name: Its own name.
        reads: Names of the nodes that it reads from.
        ms: What it took, the lower quartile over the runs; 0 where it was not timed, or not run.
    """

    kind: str
    precision: str
    primitive: str
    origins: tuple[str, ...]
    name: str = ""
    reads: tuple[str, ...] = ()
    ms: float = 0.0


def executed_graph(model: bytes, options: EngineOptions | None = None) -> tuple[ExecutedNode, ...]:
    """What the CPU executes for a model, in order, as OpenVINO itself tells it.

    Args:
        model: An ONNX model.
        options: How to run it.

    Raises:
        EngineError: ``E_BACKEND`` where it cannot be read; ``E_PRECISION``.
        MissingExtraError: Where OpenVINO is not installed.
    """
    ov = _backend()
    return _executed(_compile(ov, _core(ov), model, CPU_DEVICE, options or EngineOptions()), {})


def executed_times(
    model: bytes,
    feeds: Mapping[str, Array],
    *,
    runs: int = 20,
    threads: int = 1,
    precision: Precision = "f32",
) -> tuple[ExecutedNode, ...]:
    """As :func:`executed_graph`, with what each node takes on the CPU.

    Args:
        model: An ONNX model.
        feeds: Inputs by name.
        runs: How often; two more go before and do not count.
        threads: Threads for one inference.
        precision: What floats are computed in.

    Raises:
        InputError: ``E_INPUT`` where the feeds are not what the graph takes.
        EngineError: ``E_BACKEND`` where it cannot be read or run; ``E_PRECISION``.
        MissingExtraError: Where OpenVINO is not installed.
    """
    ov = _backend()
    options = EngineOptions(threads=threads, precision=precision)
    timed = {"PERF_COUNT": True}
    compiled = _compile(ov, _core(ov), model, CPU_DEVICE, options, timed)
    request, took = compiled.create_infer_request(), dict[str, list[float]]()
    inputs = _specs(compiled.inputs, "input", free_names(model))
    check_arrays(inputs, feeds)
    try:
        request.start_async([feeds[spec.name] for spec in inputs])
        request.wait()  # which tells what fails on one thread, too
        for run in range(runs + _NOT_LOOKED_AT - 1):
            request.infer([feeds[spec.name] for spec in inputs])
            for part in request.get_profiling_info() if run >= _NOT_LOOKED_AT - 1 else ():
                took.setdefault(str(part.node_name), []).append(part.real_time.total_seconds())
    except Exception as error:  # RuntimeError, and what the bindings raise besides
        told = f"OpenVINO failed while running: {_reason(error)}"
        raise EngineError("E_BACKEND", told, mend=SIZES_MEND) from error
    return _executed(compiled, {name: 1e3 * lower_quartile(s) for name, s in took.items()})


def _executed(compiled: Any, times_ms: Mapping[str, float]) -> tuple[ExecutedNode, ...]:
    found: list[ExecutedNode] = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        told = {str(key): str(value.astype(str)) for key, value in node.get_rt_info().items()}
        names = tuple(name for name in told.get("originalLayersNames", "").split(",") if name)
        name = str(node.get_friendly_name())
        sources = (port.get_source_output().get_node() for port in node.inputs())
        found.append(
            ExecutedNode(
                told.get("layerType", ""),
                told.get("runtimePrecision", ""),
                told.get("primitiveType", ""),
                names,
                name,
                tuple(str(source.get_friendly_name()) for source in sources),
                times_ms.get(name, 0.0),
            )
        )
    return tuple(found)


def profile(
    model: bytes, feeds: Mapping[str, Array], threads: int, runs: int, precision: Precision
) -> tuple[KernelTime, ...]:
    """What each kernel takes on the CPU, from OpenVINO's performance counters.

    See :func:`edgepress.runtime.engines.kernel_times.kernel_times`.
    """
    return tuple(
        KernelTime(one.kind, one.name, one.origins, one.ms)
        for one in executed_times(model, feeds, runs=runs, threads=threads, precision=precision)
    )


def has_bf16() -> bool:
    """Whether this processor computes in bfloat16, as OpenVINO sees it.

    Raises:
        MissingExtraError: Where OpenVINO is not installed.
        EngineError: ``E_BACKEND`` where it cannot be imported.
    """
    return _computes_in_bf16(_core(_backend()), CPU_DEVICE)


def backend_version() -> str:
    """The version of the OpenVINO that is installed.

    Raises:
        MissingExtraError: Where it is not installed.
        EngineError: ``E_BACKEND`` where it cannot be imported.
    """
    return _version(_backend())


def _backend() -> Any:
    if sys.modules.get("openvino") is not None:
        return importlib.import_module("openvino")
    try:
        with without_telemetry():
            return importlib.import_module("openvino")
    except ModuleNotFoundError as error:
        if error.name == "openvino":
            raise MissingExtraError("openvino", "openvino", "the engine openvino") from error
        raise _broken(error) from error
    except ImportError as error:
        raise _broken(error) from error


def _broken(error: ImportError) -> EngineError:
    return EngineError(
        "E_BACKEND",
        f"OpenVINO cannot be imported: {error}",
        mend="Install it again with: pip install --force-reinstall openvino",
    )


def _version(ov: Any) -> str:
    return str(ov.get_version()).partition("-")[0]


def _core(ov: Any) -> Any:
    try:
        return ov.Core()
    except Exception as error:
        raise EngineError(
            "E_BACKEND",
            f"OpenVINO does not start: {_reason(error)}",
            mend="Install it again with: pip install --force-reinstall openvino",
        ) from error


def _computes_in_bf16(core: Any, device: str) -> bool:
    return "BF16" in core.get_property(device, "OPTIMIZATION_CAPABILITIES")


def _compile(
    ov: Any,
    core: Any,
    model: bytes,
    device: str,
    options: EngineOptions,
    more: Mapping[str, object] | None = None,
) -> Any:
    if not model:
        raise EngineError(
            "E_BACKEND", "the model is empty (0 bytes).", mend="Expected an ONNX model."
        )
    precision = options.precision
    if precision == "bf16" and not _computes_in_bf16(core, device):
        raise _refused(precision, f"OpenVINO says that {device} here has no bfloat16")
    settings: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        **(more or {}),
    }
    if device == CPU_DEVICE:
        # Pinned threads of two engines, or of two processes, would share the first cores.
        settings["ENABLE_CPU_PINNING"] = False
        settings["NUM_STREAMS"] = 1
        if options.threads:
            settings["INFERENCE_NUM_THREADS"] = options.threads
    try:
        compiled = core.compile_model(core.read_model(model), device, settings)
        given = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    except Exception as error:
        raise EngineError(
            "E_BACKEND",
            f"OpenVINO {_version(ov)} cannot load the model: {_reason(error)}",
            mend="Expected an ONNX model whose operators it knows.",
        ) from error
    if given != precision:
        raise _refused(precision, f"OpenVINO would compute in {given}")
    return compiled


def _refused(precision: Precision, why: str) -> EngineError:
    return EngineError(
        "E_PRECISION",
        f"the precision {precision} was asked for: {why}.",
        mend="Ask for the precision 'f32', which every processor has.",
    )


def _specs(
    ports: Sequence[Any], kind: str, symbols: Mapping[str, tuple[str, ...]]
) -> tuple[TensorSpec, ...]:
    specs: list[TensorSpec] = []
    for index, port in enumerate(ports):
        name, shape = _name(port, kind), port.get_partial_shape()
        given = str(port.get_element_type().get_type_name())
        if given not in _DTYPES or shape.rank.is_dynamic:
            what = f"the type {given}" if given not in _DTYPES else "no number of dimensions"
            raise EngineError(
                "E_BACKEND",
                f"{kind} '{name}' has {what}, which edgepress cannot pass.",
                mend="Expected a tensor of numbers or booleans, its dimensions counted.",
            )
        told = symbols.get(name, ())
        names = told if len(told) == len(shape) else ("",) * len(shape)
        sizes = tuple(
            int(size.get_length()) if size.is_static else names[axis] or f"d{index}_{axis}"
            for axis, size in enumerate(shape)
        )
        specs.append(TensorSpec(name, _DTYPES[given], sizes))
    return tuple(specs)


def _name(port: Any, kind: str) -> str:
    """The name in the ONNX graph; one port may have several where nodes were merged."""
    node = port.get_node()
    name = str(node.get_friendly_name()).removesuffix("/sink_port_0")
    known = {str(one) for one in port.get_names()}
    if name in known or not known:
        return name
    if len(known) == 1:
        return known.pop()
    raise EngineError(
        "E_BACKEND",
        f"OpenVINO merged the {kind}s {', '.join(sorted(known))} and told no name for one of them.",
        mend="Export the network with outputs of their own.",
    )


def _reason(error: Exception) -> str:
    """The line of OpenVINO's message that says something: not where in its source it was."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return (told or lines or [type(error).__name__])[0]
