"""OpenVINO: the graph that it executes, with precisions and performance counters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import onnx

from ...runtime.engines.openvino import ExecutedNode
from ..int8.quantized_graph import QuantizedNode
from .view import INT8, UNTOLD, ProfiledKernel, counted

_COMPUTING = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ENDINGS = ("WithoutBiases", "DequantizationMultiply", "DequantizationSubtract")


@dataclass(frozen=True)
class OpenVinoGraph:
    """Read from the graph that OpenVINO executes: each node's precision, and what it was made of.

    OpenVINO names what it fused by the nodes of the graph, or, where one gives an output of the
    network, by that output. A node with weights counts as INT8 only where a convolution or a matrix
    product reads codes; any other where what it was fused into does.

    Attributes:
        nodes: In order.
    """

    nodes: tuple[ExecutedNode, ...]
    _homes: dict[str, list[ExecutedNode]] = field(default_factory=dict[str, "list[ExecutedNode]"])

    def __post_init__(self) -> None:
        for node in self.nodes:
            for name in {_plain(one) for one in node.origins}:
                self._homes.setdefault(name, []).append(node)

    def kernel_of(self, unit: QuantizedNode) -> tuple[str, bool]:
        """As the protocol says."""
        names, kinds = (unit.node, unit.raw, unit.output), _COMPUTING
        if unit.product:
            kinds = (*kinds, "Subgraph")  # attention is one kernel
        best = self.home_of(names, unit.op_type, kinds)
        return (UNTOLD, False) if best is None else (kernel_title(best), best.precision in INT8)

    def home_of(
        self, names: Iterable[str], op_type: str, computing: Sequence[str] = _COMPUTING
    ) -> ExecutedNode | None:
        """What a node became, by its own name and those of what it gives; INT8 before others.

        A node with weights, or a product, became one of the kinds ``computing``.
        """
        homes = [home for name in dict.fromkeys(names) for home in self._homes.get(name, [])]
        if op_type in _WEIGHTED:
            homes = [home for home in homes if home.kind in computing]
        return next((home for home in homes if home.precision in INT8), next(iter(homes), None))

    def kernels(self) -> dict[str, int]:
        """As the protocol says."""
        ran = (node for node in self.nodes if node.kind not in _IDLE)
        return counted(f"{node.kind} {node.precision}" for node in ran)


def _plain(origin: str) -> str:
    """A name without the endings that OpenVINO adds to the parts of what it took apart."""
    head, slash, ending = origin.rpartition("/")
    while slash and ending in _ENDINGS:
        origin = head
        head, slash, ending = origin.rpartition("/")
    return origin


def kernel_title(node: ExecutedNode) -> str:
    """How a node that OpenVINO executes is called to people."""
    name = f"{node.kind} {node.precision}"
    return name if node.primitive.startswith("undef") else f"{name} ({node.primitive})"


_IDLE = ("Const", "Input", "Output")
_CHANGES = ("FakeQuantize", "Reorder", "Convert")


@dataclass(frozen=True)
class OpenVinoProfile:
    """From the graph that OpenVINO executes, with its performance counters."""

    nodes: tuple[ExecutedNode, ...]
    kernels: dict[str, ProfiledKernel] = field(default_factory=dict[str, ProfiledKernel])
    title: str = "OpenVINO"
    error: str = ""

    def __post_init__(self) -> None:
        for one in self.nodes:
            if one.kind not in _IDLE:
                changes = one.kind in _CHANGES
                int8 = one.precision in INT8 and not changes
                self.kernels[one.name] = ProfiledKernel(
                    one.name, kernel_title(one), int8, changes, False, one.ms
                )

    def home_of(self, node: onnx.NodeProto) -> ProfiledKernel | None:
        """As the protocol says."""
        home = OpenVinoGraph(self.nodes).home_of([node.name, *node.output], node.op_type)
        return None if home is None else self.kernels.get(home.name)

    def quantizers_around(self, kernel: ProfiledKernel) -> set[str]:
        """As the protocol says, through one another."""
        found, todo = set[str](), [kernel.name]
        reads = {one.name: one.reads for one in self.nodes}
        while todo:
            at = todo.pop()
            near = set(reads[at]) | {n for n, from_ in reads.items() if at in from_}
            near = {n for n in near - found if n in self.kernels and self.kernels[n].quantizes}
            found |= near
            todo += near
        return found
