"""Blame: for each node what INT8 does to the outputs and what it saves, measured, as frozen data.

It holds all that a decision needs: who reads and who gives which tensor, too. It is measured by
:mod:`edgepress.export.sensitivity.node_noise` and :mod:`edgepress.export.sensitivity.node_profile`;
what decides on it runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from ...runtime.errors import InputError

_FORMAT = "edgepress-blame-1"


@dataclass(frozen=True)
class NodeSensitivity:
    """One node that can run in INT8, or that moves codes between those that do.

    Attributes:
        name: The node's name; of a node with the ReLU or Clip that its quantizer absorbs.
        op_type: Its operator.
        reads: Tensors that it reads as codes.
        gives: Tensors that it gives.
        together: Names of nodes that the engine runs in one kernel with it in float32; they change
            precision together. Its own among them.
        follows: Whether it only moves values, and follows its neighbours.
        joins: Whether it puts codes of one scale together: what it gives are those that it reads.
        free_output: Whether it may read codes and give float32 straight out.
        float_ms: Its time in the float32 graph; of a kernel of several nodes the last has all.
        int8_ms: Its time in the INT8 graph.
        damage: By output of the network: noise over signal (powers) with nothing but its weights
            quantized.
    """

    name: str
    op_type: str
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    together: tuple[str, ...]
    follows: bool
    free_output: bool
    float_ms: float
    int8_ms: float
    damage: Mapping[str, float]
    joins: bool = False

    @property
    def carries(self) -> bool:
        """Whether what it gives are the codes that it reads, so that it brings no noise itself."""
        return self.follows or self.joins


@dataclass(frozen=True)
class TensorSensitivity:
    """One tensor that is codes where a node beside it runs in INT8.

    Attributes:
        name: As in the float32 graph.
        elements: Values in one picture's share of it.
        float_maker: Whether what gives it is always float32: an input, or a node without kernel.
        float_reader: Whether something always reads it as float32, the network's user included.
        quantize_ms: What it takes to make codes of it.
        dequantize_ms: What it takes to make floats of its codes.
        damage: By output: noise over signal with nothing but this tensor quantized.
    """

    name: str
    elements: int
    float_maker: bool
    float_reader: bool
    quantize_ms: float
    dequantize_ms: float
    damage: Mapping[str, float]


@dataclass(frozen=True)
class SensitivityTable:
    """What was measured of a network in one dialect on one machine.

    Attributes:
        dialect: The dialect.
        engine: What ran it.
        pictures: On how many pictures damage was measured.
        outputs: Names of what it was measured at; see :mod:`edgepress.export.int8.float_outputs`.
        nodes: In the order of the graph.
        tensors: In the order of the graph.
        float_ms: The whole float32 graph: sum over its kernels.
        int8_ms: The whole INT8 graph: sum over its kernels.
        float_wall_ms: The whole float32 graph, timed without a profiler, to hold the sum against.
        int8_wall_ms: The same of the INT8 graph.
        runs: How many graphs were opened to measure the damage.
        floats: What the engine computed floats in, in the float32 graph and beside INT8.
    """

    dialect: str
    engine: str
    pictures: int
    outputs: tuple[str, ...]
    nodes: tuple[NodeSensitivity, ...]
    tensors: tuple[TensorSensitivity, ...]
    float_ms: float
    int8_ms: float
    float_wall_ms: float
    int8_wall_ms: float
    runs: int
    floats: str = "float32"

    def to_dict(self) -> dict[str, object]:
        """JSON form; :meth:`from_dict` reads it."""
        return {"format": _FORMAT, **asdict(self)}

    @staticmethod
    def from_dict(values: Mapping[str, Any], where: str = "the blame") -> SensitivityTable:
        """From the JSON form.

        Raises:
            InputError: ``E_BLAME`` for anything else.
        """
        if values.get("format") != _FORMAT:
            raise InputError(
                "E_BLAME",
                f"{where} has the format {values.get('format')!r}, expected '{_FORMAT}'.",
                mend="Measure it again with this version.",
                path=where,
            )
        try:
            plain = {key: value for key, value in values.items() if key != "format"}
            nodes = tuple(NodeSensitivity(**_tuples(one)) for one in plain.pop("nodes"))
            tensors = tuple(TensorSensitivity(**one) for one in plain.pop("tensors"))
            return SensitivityTable(nodes=nodes, tensors=tensors, **_tuples(plain))
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(
                "E_BLAME", f"{where} cannot be used: {error}", mend="Measure it again.", path=where
            ) from error

    def worst(self, count: int) -> list[tuple[str, str, float]]:
        """What costs the outputs most: name, ``weights`` or ``tensor``, noise over signal."""
        told = [(n.name, "weights", max(n.damage.values(), default=0.0)) for n in self.nodes]
        told += [(t.name, "tensor", max(t.damage.values(), default=0.0)) for t in self.tensors]
        return sorted(told, key=lambda one: -one[2])[:count]


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: tuple(cast("Sequence[object]", value)) if isinstance(value, list) else value
        for key, value in values.items()
    }
