"""What each engine is asked about a graph: the kernels that it became, and their times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import onnx

from ..int8.quantized_graph import QuantizedNode

UNTOLD = "nothing that can be told"
INT8 = ("u8", "i8")


class RewrittenGraph(Protocol):
    """A graph as an engine rewrote it."""

    def kernel_of(self, unit: QuantizedNode) -> tuple[str, bool]:
        """The kernel that a unit became, and whether that computes on INT8 codes."""
        ...

    def kernels(self) -> dict[str, int]:
        """How often each kernel stands in it."""
        ...


def is_int8_kernel(kernel: str) -> bool:
    """Whether an operator of ONNX Runtime's rewritten graph computes on INT8 codes."""
    return kernel.startswith("QLinear") or kernel == "QGemm" or "Integer" in kernel


def counted(names: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, sorted by name."""
    counts: Mapping[str, int] = Counter(names)
    return dict(sorted(counts.items()))


@dataclass(frozen=True)
class ProfiledKernel:
    """One kernel that ran.

    Attributes:
        name: Its name in the engine's graph.
        told: How it is called to people.
        int8: Whether it computes on INT8 codes.
        quantizes: Whether it makes codes of floats, or floats of codes, and no more.
        halves: Whether it is there because of float16.
        ms: Lower quartile over the runs.
    """

    name: str
    told: str
    int8: bool
    quantizes: bool
    halves: bool
    ms: float


class KernelProfile(Protocol):
    """The kernels of a file, timed."""

    @property
    def title(self) -> str:
        """What the engine is called to people."""
        ...

    @property
    def error(self) -> str:
        """Why the engine cannot run the file as it optimizes it; empty where it can."""
        ...

    @property
    def kernels(self) -> Mapping[str, ProfiledKernel]:
        """By name."""
        ...

    def home_of(self, node: onnx.NodeProto) -> ProfiledKernel | None:
        """The kernel that a node of the file became; ``None`` where it was folded away."""
        ...

    def quantizers_around(self, kernel: ProfiledKernel) -> set[str]:
        """Names of the quantizers that write for or read from a kernel."""
        ...
