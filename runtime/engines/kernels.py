"""What each kernel of an engine takes: its own profile of a graph, in one form for all engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..engine import Precision
from ..errors import EngineError
from ..tensors import Array

RUNS = 20
"""Inferences that a profile looks at, where the caller does not say."""


@dataclass(frozen=True)
class KernelTime:
    """One kernel of a graph as the engine runs it.

    Attributes:
        kind: The engine's own word for it, e.g. ``QLinearConv``, ``Convolution``.
        name: Its name in the engine's rewritten graph.
        origins: Names of the nodes or tensors that it was made of, where the engine tells them.
        ms: Lower quartile of its time over the runs, in milliseconds: what others do on the machine
            only ever adds to a time.
    """

    kind: str
    name: str
    origins: tuple[str, ...]
    ms: float


def kernel_times(
    engine: str,
    model: bytes,
    feeds: Mapping[str, Array],
    *,
    threads: int = 1,
    runs: int = RUNS,
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


def summarized(kind: str, name: str, origins: tuple[str, ...], all_ms: list[float]) -> KernelTime:
    """A kernel from its time in each run."""
    return KernelTime(kind, name, origins, lower_quartile(all_ms))


def lower_quartile(times: list[float]) -> float:
    """Of at least one time, in whatever unit."""
    return sorted(times)[len(times) // 4]
