"""Names, types and shapes of what goes into a network and comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = dict[str, Array]
Dimension: TypeAlias = "int | str"


@dataclass(frozen=True)
class TensorSpec:
    """One named input or output.

    Attributes:
        name: The name in the graph.
        dtype: A numpy type name such as ``float32`` or ``uint8``.
        shape: One entry a dimension: a size, or a symbol such as ``N`` for one that is free.
    """

    name: str
    dtype: str
    shape: tuple[Dimension, ...]

    @property
    def batch(self) -> int | None:
        """The fixed size of dimension 0, or ``None`` where it is free (or there is none)."""
        return self.shape[0] if self.shape and isinstance(self.shape[0], int) else None

    def to_dict(self) -> dict[str, object]:
        """JSON form: ``{"name", "dtype", "shape"}``."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} ({', '.join(map(str, self.shape))})"


def check_arrays(specs: Sequence[TensorSpec], arrays: Mapping[str, object]) -> None:
    """Check that ``arrays`` are exactly what ``specs`` ask for.

    Args:
        specs: The inputs of a network.
        arrays: Arrays by name. That floats are finite is not checked here: it costs a pass over
            them.

    Raises:
        InputError: ``E_INPUT`` for a missing or unknown name, another dtype, rank or size, an empty
            array, one symbol with two sizes, or something that is not a numpy array.
    """
    if len(arrays) != len(specs) or any(spec.name not in arrays for spec in specs):
        missing = [spec.name for spec in specs if spec.name not in arrays]
        extra = [name for name in arrays if name not in {spec.name for spec in specs}]
        raise InputError(
            "E_INPUT",
            f"inputs do not match: missing {missing or 'none'}, unknown {extra or 'none'}.",
            mend="The network takes: " + "; ".join(map(str, specs)),
        )
    symbols: dict[str, int] = {}
    for spec in specs:
        given = arrays[spec.name]
        if not isinstance(given, np.ndarray):
            raise InputError(
                "E_INPUT",
                f"input '{spec.name}' is a {type(given).__name__}, not a numpy array.",
                mend=f"Expected {spec}",
                path=spec.name,
            )
        array = cast("Array", given)
        shape = array.shape
        if array.dtype != spec.dtype or len(shape) != len(spec.shape):
            raise _mismatch(spec, array)
        for size, wanted in zip(shape, spec.shape):  # noqa: B905  equal lengths, and this is hot
            if size == 0:
                raise _mismatch(spec, array)
            if isinstance(wanted, int):
                if size != wanted:
                    raise _mismatch(spec, array)
            elif symbols.setdefault(wanted, size) != size:
                raise _mismatch(spec, array)


def _mismatch(spec: TensorSpec, array: Array) -> InputError:
    order = "" if array.dtype.isnative else " (of foreign byte order)"
    return InputError(
        "E_INPUT",
        f"input '{spec.name}' is {array.dtype.name}{order} {array.shape}.",
        mend=f"Expected {spec}, no dimension empty",
        path=spec.name,
    )
