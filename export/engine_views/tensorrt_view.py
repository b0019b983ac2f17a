"""TensorRT: what its engine inspector says of each layer."""

from __future__ import annotations

from dataclasses import dataclass

from ...runtime.nvidia.engine_inspector import EngineLayer
from ..int8.quantized_graph import QuantizedNode
from .view import UNTOLD, counted


@dataclass(frozen=True)
class TensorRtGraph:
    """Read from what TensorRT's engine inspector says of each layer.

    Networks are strongly typed, so that a layer computes in the type that it reads; one that was
    made of several nodes counts for each of them.

    Attributes:
        layers: In order.
    """

    layers: tuple[EngineLayer, ...]

    @property
    def tells(self) -> bool:
        """Whether any layer tells a type; that of a free shape does not in TensorRT 10."""
        return any(layer.computes_in for layer in self.layers)

    def kernel_of(self, unit: QuantizedNode) -> tuple[str, bool]:
        """As the protocol says."""
        homes = self._homes(unit.node)
        best = next((one for one in homes if one.computes_in == "int8"), next(iter(homes), None))
        if best is None:
            return UNTOLD, False
        return f"{best.kind} {best.computes_in}".strip(), best.computes_in == "int8"

    def kernels(self) -> dict[str, int]:
        """As the protocol says."""
        return counted(f"{one.kind} {one.computes_in}".strip() for one in self.layers)

    def runs_in(self, node: str) -> str:
        """The type that a node's layer computes in; an empty text where that is not told."""
        return next((one.computes_in for one in self._homes(node)), "")

    def _homes(self, node: str) -> list[EngineLayer]:
        return [one for one in self.layers if node in one.origins or node == one.name]
