"""What each kernel of an engine takes: its own profile of a graph, in one form for all engines."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import EngineError
from ..tensors import Array
from .engine import Precision
from .kernel_time import PROFILE_RUNS, KernelTime


def kernel_times(
    engine: str,
    model: bytes,
    feeds: Mapping[str, Array],
    *,
    threads: int = 1,
    runs: int = PROFILE_RUNS,
    precision: Precision = "f32",
) -> tuple[KernelTime, ...]:
    """Run a graph with the engine's profiler on.

    Args:
        engine: ``onnxruntime`` or ``openvino``.
        model: The graph's bytes.
        feeds: One array for each input, by name.
        threads: For one inference.
        runs: Inferences that are looked at, after two that are not.
        precision: What the engine computes floats in; only OpenVINO has more than float32.

    Raises:
        EngineError: ``E_BACKEND`` where it cannot be loaded or run; ``E_ENGINE`` for an engine that
            has no profiler; ``E_PRECISION``.
        MissingExtraError: Where the engine is not installed.
    """
    if engine != "openvino" and precision != "f32":
        raise EngineError(
            "E_PRECISION",
            f"the engine '{engine}' computes floats in f32, {precision} was asked for.",
            mend="Ask for the precision 'f32', or use the engine openvino.",
        )
    if engine == "onnxruntime":
        from .onnxruntime import profile as profile_onnxruntime

        return profile_onnxruntime(model, feeds, threads, runs)
    if engine == "openvino":
        from .openvino import profile as profile_openvino

        return profile_openvino(model, feeds, threads, runs, precision)
    raise EngineError(
        "E_ENGINE",
        f"the engine '{engine}' tells no times of its kernels.",
        mend="Engines that do: onnxruntime, openvino.",
    )
