"""The null engine: no backend and no work, for pricing a harness and for tests without a device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np

from ..errors import EngineError
from ..tensors import Array, Arrays, Dimension, TensorSpec
from .engine import Engine, EngineOptions

_DEFAULT = (
    b'{"inputs": [{"name": "input", "dtype": "float32", "shape": ["N", "C", "H", "W"]}],'
    b' "outputs": [{"name": "output", "dtype": "float32", "shape": ["N", 1]}]}'
)


class NullEngine(Engine):
    """Returns zeros.

    Its model is JSON, ``{"inputs": [spec, ...], "outputs": [spec, ...]}`` with specs as
    `TensorSpec.to_dict` writes them; a symbol takes its size from the feeds, and is 1 where no
    input has it. An empty model is one float32 input ``(N, C, H, W)`` and one float32 output ``(N,
    1)``.
    """

    name: ClassVar[str] = "null"

    def __init__(self, model: bytes = b"", options: EngineOptions | None = None) -> None:
        super().__init__(model, options)

    def facts(self) -> dict[str, object]:
        """What served: nothing."""
        return {**super().facts(), "version": "1", "providers": ["null"], "fell_back": False}

    def _load(self) -> None:
        try:
            parts: Any = json.loads(self.model or _DEFAULT)
            self.inputs = tuple(_spec(item) for item in parts["inputs"])
            self.outputs = tuple(_spec(item) for item in parts["outputs"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise EngineError(
                "E_BACKEND",
                f"the null engine cannot read its model: {error!r}",
                mend='Expected JSON: {"inputs": [{"name", "dtype", "shape"}], "outputs": [...]}',
            ) from error

    def _unload(self) -> None:
        self.inputs = self.outputs = ()

    def _run(self, feeds: Mapping[str, Array]) -> Arrays:
        sizes: dict[Dimension, int] = {}
        for spec in self.inputs:
            sizes.update(zip(spec.shape, feeds[spec.name].shape, strict=True))
        return {
            spec.name: np.zeros(
                [size if isinstance(size, int) else sizes.get(size, 1) for size in spec.shape],
                np.dtype(spec.dtype),
            )
            for spec in self.outputs
        }


def _spec(item: object) -> TensorSpec:
    fields = cast("dict[str, Any]", item)
    dtype = np.dtype(fields["dtype"])
    if dtype.hasobject:
        raise TypeError("object arrays are not tensors")
    shape = tuple(size if isinstance(size, int) else str(size) for size in fields["shape"])
    return TensorSpec(str(fields["name"]), dtype.name, shape)
