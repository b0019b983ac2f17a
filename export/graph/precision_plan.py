"""The PrecisionPlan: for each node int8, fp16 or float32, and why. Data that runs nothing."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import onnx

from ...runtime.errors import InputError

PLAN_PRECISIONS = ("int8", "fp16", "float32")
"""What a plan can say of a node."""


_FORMAT = "edgepress-plan-1"


@dataclass(frozen=True)
class NodePrecision:
    """What one node runs in, and why."""

    precision: str
    reason: str


@dataclass(frozen=True)
class PrecisionPlan:
    """Precision by node name; what only moves data (Reshape, MaxPool, ...) follows its input."""

    nodes: Mapping[str, NodePrecision]

    def is_int8(self, node: onnx.NodeProto) -> bool:
        """Whether a node is to run in INT8."""
        choice = self.nodes.get(node.name)
        return choice is not None and choice.precision == "int8"

    def to_dict(self) -> dict[str, object]:
        """JSON form; :meth:`from_dict` reads it."""
        return {
            "format": _FORMAT,
            "nodes": {
                name: {"precision": choice.precision, "reason": choice.reason}
                for name, choice in self.nodes.items()
            },
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any], where: str = "the plan") -> PrecisionPlan:
        """A plan from its JSON form.

        Raises:
            InputError: ``E_PLAN`` for anything else.
        """
        nodes = values.get("nodes")
        if values.get("format") != _FORMAT or not isinstance(nodes, Mapping):
            raise InputError(
                "E_PLAN",
                f"{where} has the format {values.get('format')!r}, expected '{_FORMAT}'.",
                mend="Give a plan that PrecisionPlan.to_dict() wrote.",
                path=where,
            )
        found: dict[str, NodePrecision] = {}
        for name, one in cast("Mapping[str, object]", nodes).items():
            given = cast("Mapping[str, object]", one if isinstance(one, Mapping) else {})
            precision = given.get("precision")
            if precision not in PLAN_PRECISIONS:
                raise InputError(
                    "E_PLAN",
                    f"{where} has the precision {precision!r} for '{name}'.",
                    mend="It may be one of " + ", ".join(PLAN_PRECISIONS) + ".",
                    path=where,
                )
            found[name] = NodePrecision(str(precision), str(given.get("reason", "")))
        return PrecisionPlan(found)


UNNAMED = NodePrecision("float32", "the precision plan does not name it")


def check_node_names(wanted: Sequence[str], names: Sequence[str], who: str = "keep_float") -> None:
    """Check that nodes which a recipe names are there.

    Args:
        wanted: The names.
        names: Those that there are.
        who: Who names them, for the message.

    Raises:
        InputError: ``E_RECIPE`` for a name that no node has (the nearest are suggested).
    """
    known = set(names)
    for name in wanted:
        if name not in known:
            near = " or ".join(f"'{one}'" for one in difflib.get_close_matches(name, names, 3, 0.4))
            raise InputError(
                "E_RECIPE",
                f"{who} names '{name}', which is no node of this network.",
                mend=f"Did you mean {near}?"
                if near
                else "'edgepress inspect --nodes' lists the names.",
            )
