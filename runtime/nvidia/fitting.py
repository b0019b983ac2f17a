"""Build options for inputs that are known before the engine is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..engines.symbols import free_names
from .options import BuildOptions, Extent


def fitting(model: bytes, batch: int, shapes: Mapping[str, Sequence[int]]) -> BuildOptions:
    """How to build an engine that takes inputs of these shapes, and no others.

    Args:
        model: An ONNX model.
        batch: Samples at once, where dimension 0 is free.
        shapes: Of inputs, by name, as far as they are known; dimension 0 is not looked at.
    """
    sizes: dict[str, Extent] = {
        name: (size, size, size)
        for given, names in free_names(model).items()
        for name, size in zip(names[1:], shapes.get(given, ())[1:], strict=False)
        if name
    }
    return BuildOptions(batch=(batch, batch, batch), sizes=sizes)
