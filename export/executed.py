"""What each engine made of a graph: the kernel that a node of the network ended up in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import onnx

from ..runtime.engine import EngineOptions
from ..runtime.engines import open_engine
from ..runtime.engines.onnxruntime import optimized_model
from ..runtime.engines.openvino import Executed, executed_graph
from ..runtime.errors import EngineError
from ..runtime.nvidia.engine import NvidiaEngine
from ..runtime.nvidia.inspection import Layer, layers_of
from .dialects.qdq import Unit
from .graph import Walk

UNTOLD = "nothing that can be told"
_COMPUTING = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ENDINGS = ("WithoutBiases", "DequantizationMultiply", "DequantizationSubtract")
INT8 = ("u8", "i8")


class Rewritten(Protocol):
    """A graph as an engine rewrote it."""

    def kernel_of(self, unit: Unit) -> tuple[str, bool]:
        """The kernel that a unit became, and whether that computes on INT8 codes."""
        ...

    def kernels(self) -> dict[str, int]:
        """How often each kernel stands in it."""
        ...


def rewritten(engine: str, model: bytes, options: EngineOptions | None = None) -> Rewritten:
    """What ``engine`` makes of a model on this machine.

    Args:
        engine: Which engine.
        model: Its model.
        options: How it runs it: OpenVINO computes floats in another precision than float32, and
            TensorRT's engine is built.

    Raises:
        EngineError: ``E_BACKEND`` where it cannot load the model; ``E_ENGINE`` for an engine that
            gives no receipts.
    """
    if engine == "onnxruntime":
        return InOnnxRuntime(model)
    if engine == "openvino":
        return InOpenVino(executed_graph(model, options))
    if engine in ("tensorrt", "tensorrt-rtx"):
        with open_engine(engine)(model, options) as running:
            if isinstance(running, NvidiaEngine):
                return InTensorRt(layers_of(running.layers()))
    raise EngineError(
        "E_ENGINE",
        f"the engine '{engine}' gives no receipts.",
        mend="Engines that do: onnxruntime, openvino, tensorrt, tensorrt-rtx.",
    )


@dataclass(frozen=True)
class InOnnxRuntime:
    """Read from the graph that ONNX Runtime writes out when it has optimized.

    Attributes:
        model: What it is given.
    """

    model: bytes
    _makers: dict[str, onnx.NodeProto] = field(default_factory=dict[str, onnx.NodeProto])

    def __post_init__(self) -> None:
        # The last level changes layouts and with them names; fusion happens one before.
        extended = onnx.load_model_from_string(optimized_model(self.model, "extended"))
        self._makers.update(Walk(extended).producer)

    def kernel_of(self, unit: Unit) -> tuple[str, bool]:
        """As the protocol says."""
        maker = self._makers.get(unit.output)
        kernel = maker.op_type if maker is not None else UNTOLD
        return kernel, is_int8_kernel(kernel)

    def kernels(self) -> dict[str, int]:
        """As the protocol says."""
        last = onnx.load_model_from_string(optimized_model(self.model, "all"))
        return dict(sorted(Counter(node.op_type for node in last.graph.node).items()))


@dataclass(frozen=True)
class InOpenVino:
    """Read from the graph that OpenVINO executes: each node's precision, and what it was made of.

    OpenVINO names what it fused by the nodes of the graph, or, where one gives an output of the
    network, by that output. A node with weights counts as INT8 only where a convolution or a matrix
    product reads codes; any other where what it was fused into does.

    Attributes:
        nodes: In order.
    """

    nodes: tuple[Executed, ...]
    _homes: dict[str, list[Executed]] = field(default_factory=dict[str, "list[Executed]"])

    def __post_init__(self) -> None:
        for node in self.nodes:
            for name in {_plain(one) for one in node.origins}:
                self._homes.setdefault(name, []).append(node)

    def kernel_of(self, unit: Unit) -> tuple[str, bool]:
        """As the protocol says."""
        names, kinds = (unit.node, unit.raw, unit.output), _COMPUTING
        if unit.product:
            kinds = (*kinds, "Subgraph")  # attention is one kernel
        best = self.home_of(names, unit.op_type, kinds)
        return (UNTOLD, False) if best is None else (told(best), best.precision in INT8)

    def home_of(
        self, names: Iterable[str], op_type: str, computing: Sequence[str] = _COMPUTING
    ) -> Executed | None:
        """What a node became, by its own name and those of what it gives; INT8 before others.

        A node with weights, or a product, became one of the kinds ``computing``.
        """
        homes = [home for name in dict.fromkeys(names) for home in self._homes.get(name, [])]
        if op_type in _WEIGHTED:
            homes = [home for home in homes if home.kind in computing]
        return next((home for home in homes if home.precision in INT8), next(iter(homes), None))

    def kernels(self) -> dict[str, int]:
        """As the protocol says."""
        counted = (node for node in self.nodes if node.kind not in ("Const", "Input", "Output"))
        return _count(f"{node.kind} {node.precision}" for node in counted)


@dataclass(frozen=True)
class InTensorRt:
    """Read from what TensorRT's engine inspector says of each layer.

    Networks are strongly typed, so that a layer computes in the type that it reads; one that was
    made of several nodes counts for each of them.

    Attributes:
        layers: In order.
    """

    layers: tuple[Layer, ...]

    @property
    def tells(self) -> bool:
        """Whether any layer tells a type; that of a free shape does not in TensorRT 10."""
        return any(layer.computes_in for layer in self.layers)

    def kernel_of(self, unit: Unit) -> tuple[str, bool]:
        """As the protocol says."""
        homes = self._homes(unit.node)
        best = next((one for one in homes if one.computes_in == "int8"), next(iter(homes), None))
        if best is None:
            return UNTOLD, False
        return f"{best.kind} {best.computes_in}".strip(), best.computes_in == "int8"

    def kernels(self) -> dict[str, int]:
        """As the protocol says."""
        return _count(f"{one.kind} {one.computes_in}".strip() for one in self.layers)

    def runs_in(self, node: str) -> str:
        """The type that a node's layer computes in; an empty text where that is not told."""
        return next((one.computes_in for one in self._homes(node)), "")

    def _homes(self, node: str) -> list[Layer]:
        return [one for one in self.layers if node in one.origins or node == one.name]


def is_int8_kernel(kernel: str) -> bool:
    """Whether an operator of ONNX Runtime's rewritten graph computes on INT8 codes."""
    return kernel.startswith("QLinear") or kernel == "QGemm" or "Integer" in kernel


def _count(names: Iterable[str]) -> dict[str, int]:
    counts: Mapping[str, int] = Counter(names)
    return dict(sorted(counts.items()))


def _plain(origin: str) -> str:
    """A name without the endings that OpenVINO adds to the parts of what it took apart."""
    head, slash, ending = origin.rpartition("/")
    while slash and ending in _ENDINGS:
        origin = head
        head, slash, ending = origin.rpartition("/")
    return origin


def told(node: Executed) -> str:
    """How a node that OpenVINO executes is called to people."""
    name = f"{node.kind} {node.precision}"
    return name if node.primitive.startswith("undef") else f"{name} ({node.primitive})"
