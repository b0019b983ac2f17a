"""A graph in INT8 as it was written: the model, and what became of each node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...runtime.tensors import Array


@dataclass(frozen=True)
class QuantizedNode:
    """One INT8 node as it was written.

    Attributes:
        node: The node's name, the same as in the float32 graph.
        op_type: Its operator.
        output: The tensor that the engine's INT8 kernel gives: codes, or float32 where it gives
            that straight out.
        raw: The tensor that the node itself gives, before the ReLU and the quantizer.
        bias: The initializer of its bias, int32 codes or floats; empty for a unit that has none.
        bias_scale: float32, the scale of each of the bias's codes; ``None`` where it has none.
        product: Whether it multiplies two activations.
    """

    node: str
    op_type: str
    output: str
    raw: str
    bias: str = ""
    bias_scale: Array | None = None
    product: bool = False


@dataclass(frozen=True)
class QuantizedGraph:
    """A graph in a dialect.

    Attributes:
        model: The bytes of the ONNX file.
        units: What was written in INT8, in the order of the graph.
        moved: Nodes that only move codes, or put them together.
        absorbed: Activation functions that a quantizer does the work of: name, and the unit's.
        codes: By tensor of the float32 graph, the tensor that holds its codes.
    """

    model: bytes
    units: tuple[QuantizedNode, ...]
    moved: tuple[str, ...]
    absorbed: Mapping[str, str]
    codes: Mapping[str, str] = field(default_factory=dict[str, str])
