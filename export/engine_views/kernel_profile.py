"""What every kernel of a file takes in an engine, and which of them a node of the file became."""

from __future__ import annotations

import onnx

from ...runtime.engines.engine import Precision
from ...runtime.engines.onnxruntime import profile
from ...runtime.engines.openvino import executed_times
from ...runtime.errors import EngineError
from ...runtime.tensors import Arrays
from ..graph.random_inputs import run_on_random
from .onnxruntime_view import OnnxRuntimeProfile, fed_inputs
from .openvino_view import OpenVinoProfile
from .view import KernelProfile, is_int8_kernel

_RUNS = 8  # that a share is taken from


def profile_kernels(
    engine: str, model: onnx.ModelProto, *, runs: int, threads: int
) -> KernelProfile:
    """Time the kernels of a file; its nodes have names of their own.

    Raises:
        EngineError: ``E_BACKEND`` where the engine runs it in no way; ``E_ENGINE`` for an engine
            that cannot be looked into.
        MissingExtraError: Where the engine is not installed.
    """
    if engine == "onnxruntime":
        return OnnxRuntimeProfile.of(model, runs, threads)
    if engine == "openvino":
        data = model.SerializeToString()
        seen = run_on_random(
            fed_inputs(model), lambda f: executed_times(data, f, runs=runs, threads=threads)
        )
        return OpenVinoProfile(seen)
    raise EngineError(
        "E_ENGINE",
        f"the engine '{engine}' does not tell what its kernels take.",
        mend="Engines that do: onnxruntime, openvino.",
    )


def int8_time_share(
    engine: str, model: bytes, feeds: Arrays, precision: Precision = "f32"
) -> float | None:
    """Share of the kernels' time, on one thread, that INT8 kernels take; 0 to 1.

    What only moves codes, or makes them and takes them apart, is in the whole and not in the part.
    Each kernel's time is its lower quartile over the runs, so that what else the machine did in
    some of them hardly matters.

    Args:
        engine: What runs it.
        model: Its bytes.
        feeds: One picture.
        precision: What the engine computes floats in.

    Returns:
        ``None`` for an engine that does not tell what its kernels take.

    Raises:
        EngineError: ``E_BACKEND`` where it does not run.
        MissingExtraError: Where the engine is not installed.
    """
    if engine == "onnxruntime":
        times = profile(model, feeds, 1, _RUNS)
        taken = [(is_int8_kernel(time.kind), time.ms) for time in times]
    elif engine == "openvino":
        seen = OpenVinoProfile(executed_times(model, feeds, runs=_RUNS, precision=precision))
        taken = [(kernel.int8, kernel.ms) for kernel in seen.kernels.values()]
    else:
        return None
    total = sum(ms for _, ms in taken)
    return sum(ms for int8, ms in taken if int8) / total if total else 0.0
