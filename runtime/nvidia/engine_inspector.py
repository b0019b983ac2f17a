"""What an engine really runs: its layers, out of the JSON of TensorRT's engine inspector.

Engines are built with detailed verbosity, so that each layer tells the types of what it reads and
gives, and which nodes of the ONNX graph it was made of.

Source: NVIDIA TensorRT documentation, "Engine inspector" (fields ``LayerType``, ``Inputs``,
``Outputs`` with ``Format/Datatype``, ``Metadata`` with ``[ONNX Layer: NAME]``).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from ..errors import EngineError

_ORIGIN = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_TYPES = (
    ("uint8", ("uint8",)),
    ("int8", ("int8",)),
    ("fp16", ("fp16", "half")),
    ("fp8", ("fp8",)),
    ("bf16", ("bf16", "bfloat16")),
    ("float32", ("fp32", "float")),
    ("int32", ("int32",)),
    ("int64", ("int64",)),
    ("bool", ("bool",)),
)


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        name: Its name.
        kind: Its type, e.g. ``CaskConvolution``.
        reads: Types of its inputs, e.g. ``int8``; empty text where it does not tell.
        gives: Types of its outputs.
        origins: Names of the ONNX nodes that it was made of.
    """

    name: str
    kind: str
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    origins: tuple[str, ...]

    @property
    def computes_in(self) -> str:
        """The narrowest type that it reads; what it gives where it reads nothing."""
        types = self.reads or self.gives
        return next((word for word, _ in _TYPES if word in types), "")


def engine_layers(information: str) -> tuple[EngineLayer, ...]:
    """The layers that an engine inspector tells of.

    Args:
        information: What ``get_engine_information`` gives as JSON.

    Raises:
        EngineError: ``E_BACKEND`` where it is no such JSON, or was built without details.
    """
    try:
        told: Any = json.loads(information)
        return tuple(_layer(one) for one in told["Layers"])
    except (ValueError, TypeError, KeyError) as error:
        raise EngineError(
            "E_BACKEND",
            f"the engine inspector tells no layers: {error!r}",
            mend="Build the engine with detailed profiling verbosity.",
        ) from error


def _layer(told: Any) -> EngineLayer:
    name = str(told["Name"])
    origins = tuple(_ORIGIN.findall(str(told.get("Metadata", ""))))
    return EngineLayer(
        name,
        str(told["LayerType"]),
        tuple(_type(one) for one in told["Inputs"]),
        tuple(_type(one) for one in told["Outputs"]),
        origins,
    )


def _type(tensor: Any) -> str:
    text = str(tensor.get("Format/Datatype") or tensor.get("Datatype") or "").lower()
    return next((word for word, signs in _TYPES if any(sign in text for sign in signs)), "")
