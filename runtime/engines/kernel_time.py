"""What one kernel of a graph takes, summed up over runs."""

from __future__ import annotations

from dataclasses import dataclass

PROFILE_RUNS = 20
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


def kernel_time(kind: str, name: str, origins: tuple[str, ...], all_ms: list[float]) -> KernelTime:
    """A kernel from its time in each run."""
    return KernelTime(kind, name, origins, lower_quartile(all_ms))


def lower_quartile(times: list[float]) -> float:
    """Of at least one time, in whatever unit."""
    return sorted(times)[len(times) // 4]
