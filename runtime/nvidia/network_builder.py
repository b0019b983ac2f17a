"""Build an engine in this process: :mod:`~edgepress.runtime.nvidia.build_child` does so.

Networks are strongly typed: what is FP16 or INT8 stands in the graph, and the builder adds nothing.
Where TensorRT 10 needs that to be asked for, it is; TensorRT 11 knows nothing else. TF32 is off:
what the graph says is float32 is computed in float32. An input whose free dimensions have one size
each is fixed to it in the network: DLA cores want that, and the engine inspector of TensorRT 10
tells no types where a shape is free.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from ..engines.build_options import BuildOptions
from ..engines.dimension_names import free_names
from ..errors import EngineError, InputError
from ..tensors import TensorSpec

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""TensorRT's types by the name of the enumeration, and numpy's."""

_MOST_ERRORS = 3
_TURING = "7.5"


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that was built.

    Attributes:
        plan: Its bytes: native code, for this GPU, driver and TensorRT alone.
        timing_cache: What the builder measured, to be faster the next time; empty where it tells
            nothing.
        facts: Version, number of layers, seconds that it took.
    """

    plan: bytes
    timing_cache: bytes
    facts: dict[str, object]


def build_in_process(
    trt: Any,
    model: bytes,
    options: BuildOptions,
    timing_cache: bytes | None = None,
    *,
    compute_capability: str = "",
) -> BuiltEngine:
    """Parse an ONNX model and build an engine.

    Args:
        trt: The module ``tensorrt`` or ``tensorrt_rtx``.
        model: An ONNX model.
        options: How.
        timing_cache: What an earlier build measured; empty to start one, ``None`` for none at all.
        compute_capability: Of the GPU that it is for, such as ``7.5``; empty for none in
            particular.

    Raises:
        EngineError: ``E_BACKEND`` where the model cannot be parsed or built, ``E_PROVIDER`` for an
            accelerator that is not there.
        InputError: ``E_SHAPE`` as :meth:`BuildOptions.shapes`.
    """
    started = time.perf_counter()
    logger = quiet_logger(trt)
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        told = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
        raise _refused(trt, "cannot read the model", told or logger.errors)
    config = builder_config(trt, builder, network, model, options)
    _aim(trt, config, compute_capability)
    if timing_cache is not None:
        cache = config.create_timing_cache(timing_cache)
        if cache is None:  # of another GPU or version: begin anew
            cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refused(trt, "cannot build an engine", logger.errors)
    measured = b""
    if timing_cache is not None:
        measured = bytes(memoryview(config.get_timing_cache().serialize()))
    facts: dict[str, object] = {
        "version": str(trt.__version__),
        "layers": int(network.num_layers),
        "build_s": round(time.perf_counter() - started, 3),
    }
    return BuiltEngine(bytes(memoryview(plan)), measured, facts)


def builder_config(
    trt: Any, builder: Any, network: Any, model: bytes, options: BuildOptions
) -> Any:
    """The builder's configuration; sizes that are one alone are fixed in ``network``.

    Raises:
        EngineError: ``E_PROVIDER`` for an accelerator that is not there.
        InputError: ``E_SHAPE`` as :meth:`BuildOptions.shapes`.
    """
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.dla_core is not None:
        if not 0 <= options.dla_core < int(builder.num_DLA_cores):
            raise EngineError(
                "E_PROVIDER",
                f"DLA core {options.dla_core} was asked for, this device has "
                f"{int(builder.num_DLA_cores)} that TensorRT {trt.__version__} can use.",
                mend="Leave it out to run on the GPU.",
            )
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla_core
        if options.gpu_fallback:
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    profile, free = builder.create_optimization_profile(), False
    for number, spec in enumerate(network_inputs(network, model)):
        shapes = options.shapes(spec)
        if shapes is None:
            continue
        if len(set(shapes)) == 1:
            network.get_input(number).shape = shapes[0]
            continue
        free = True
        profile.set_shape(spec.name, *shapes)
    if free:
        config.add_optimization_profile(profile)
    return config


def _aim(trt: Any, config: Any, compute_capability: str) -> None:
    """Name a GPU of the Turing generation, which TensorRT-RTX serves only where it is named.

    Source: TensorRT-RTX documentation, "CPU-only AOT and TensorRT-RTX engines".
    """
    if compute_capability == _TURING and hasattr(trt, "ComputeCapability"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM75, 0)


def network_inputs(network: Any, model: bytes) -> list[TensorSpec]:
    """The inputs of a parsed network, free dimensions by their names in the ONNX file."""
    names, specs = free_names(model), list[TensorSpec]()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        specs.append(spec_of(tensor.name, tensor.dtype, tensor.shape, names.get(tensor.name, ())))
    return specs


def spec_of(name: str, dtype: Any, shape: Any, symbols: tuple[str, ...]) -> TensorSpec:
    """One tensor of TensorRT's; ``-1`` is a free dimension, named by ``symbols`` where they tell.

    Raises:
        EngineError: ``E_BACKEND`` for a type that numpy does not have.
    """
    if dtype.name not in DTYPES:
        raise EngineError(
            "E_BACKEND",
            f"'{name}' has the type {dtype.name}, which edgepress cannot pass.",
            mend="Expected numbers or booleans of at most 64 bits.",
        )
    sizes = [int(size) for size in shape]
    told = symbols if len(symbols) == len(sizes) else ("",) * len(sizes)
    free = [told[axis] or ("N" if axis == 0 else f"{name}_{axis}") for axis in range(len(sizes))]
    return TensorSpec(
        name,
        DTYPES[dtype.name],
        tuple(size if size >= 0 else free[axis] for axis, size in enumerate(sizes)),
    )


def quiet_logger(trt: Any) -> Any:
    """A logger that keeps what went wrong, in ``errors``, and prints nothing."""

    class Log(trt.ILogger):
        """See above."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(str(msg).strip())

    return Log()


def _parser_error(error: Any) -> str:
    where = f"node '{error.node_name()}' ({error.node_operator()}): " if error.node_name() else ""
    return f"{where}{str(error.desc()).strip()}"


def _refused(trt: Any, what: str, told: list[str]) -> EngineError:
    first = "; ".join(told[:_MOST_ERRORS]) or "it does not say why"
    return EngineError(
        "E_BACKEND",
        f"{trt.__name__} {trt.__version__} {what}: {first}.",
        mend="Keep the node that it names in float (keep_float in the recipe), or update TensorRT.",
    )


def check_model(model: bytes) -> None:
    """Refuse what is no model before a native parser sees it.

    Raises:
        InputError: ``E_MODEL`` for nothing at all, or what has not even the names of a graph.
    """
    if not free_names(model):
        raise InputError(
            "E_MODEL",
            f"the model ({len(model)} bytes) is no ONNX file, or was cut short.",
            mend="Expected an ONNX model with named inputs and outputs.",
        )
