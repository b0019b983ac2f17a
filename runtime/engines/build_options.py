"""How an engine is to be built: data, most of it part of the key of a cached engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeAlias

from ..errors import InputError
from ..tensors import Dimension, TensorSpec

Extent: TypeAlias = tuple[int, int, int]
"""Least, likeliest and largest size of a free dimension."""

Shapes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Least, likeliest and largest shape of one input."""

_BATCH: Extent = (1, 1, 16)
_NOT_BUILT = ("time_limit_s", "cuda_graph")


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is to be built.

    Attributes:
        batch: Least, likeliest and largest size of an input's first dimension where that is free;
            the engine is fastest for the likeliest, and takes none beyond the largest.
        sizes: The same for other free dimensions, by their name.
        workspace_bytes: Most device memory that one layer may take for its work; ``None`` leaves it
            to TensorRT (all that the GPU has).
        dla_core: The deep-learning accelerator that shall run it, where the device has some. It
            takes one size of each dimension: a batch of 1 where no other is given.
        gpu_fallback: Whether layers that the accelerator cannot run go to the GPU; without it such
            a network is refused.
        level: How long the builder searches, 0 to 5; ``None`` for TensorRT's own choice.
        time_limit_s: After this the builder is ended.
        cuda_graph: Whether to record the work of one inference and launch that: less work for the
            processor where layers are small.
    """

    batch: Extent = _BATCH
    sizes: Mapping[str, Extent] = field(default_factory=dict[str, Extent])
    workspace_bytes: int | None = None
    dla_core: int | None = None
    gpu_fallback: bool = False
    level: int | None = None
    time_limit_s: float = 1800.0
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        if self.dla_core is not None and self.batch == _BATCH:
            object.__setattr__(self, "batch", (1, 1, 1))
        for name, extent in (("batch", self.batch), *self.sizes.items()):
            if not 1 <= extent[0] <= extent[1] <= extent[2]:
                raise InputError(
                    "E_USAGE",
                    f"the sizes of '{name}' are {extent[0]}, {extent[1]} and {extent[2]}.",
                    mend="Give the least, the likeliest and the largest, in this order, from 1 up.",
                )
            if self.dla_core is not None and len(set(extent)) > 1:
                raise InputError(
                    "E_USAGE",
                    f"the sizes of '{name}' are {extent[0]}, {extent[1]} and {extent[2]}; a DLA "
                    "core takes one size.",
                    mend="Give that size three times, or run it on the GPU.",
                )
        if self.level is not None and not 0 <= self.level <= 5:
            raise InputError(
                "E_USAGE", f"the builder's level is {self.level}.", mend="Give 0 to 5."
            )

    def to_dict(self) -> dict[str, object]:
        """JSON form."""
        return {**asdict(self), "batch": list(self.batch), "sizes": dict(self.sizes)}

    def of_engine(self) -> dict[str, object]:
        """What of it tells one engine from another: not how long to build it, nor how it runs."""
        return {name: value for name, value in self.to_dict().items() if name not in _NOT_BUILT}

    @staticmethod
    def from_dict(values: Mapping[str, object]) -> BuildOptions:
        """What :meth:`to_dict` wrote."""
        given = dict(values)
        batch, sizes = given.pop("batch"), given.pop("sizes")
        return BuildOptions(
            batch=_extent(batch),
            sizes={str(k): _extent(v) for k, v in sizes.items()},  # pyright: ignore
            **given,  # pyright: ignore[reportArgumentType]
        )

    def shapes(self, spec: TensorSpec) -> Shapes | None:
        """Least, likeliest and largest shape of an input; ``None`` where all of it is fixed.

        Raises:
            InputError: ``E_SHAPE`` for a free dimension, other than the first, of no known size.
        """
        if all(isinstance(size, int) for size in spec.shape):
            return None
        extents = [self._extent(spec, axis, size) for axis, size in enumerate(spec.shape)]
        least, likely, largest = (tuple(one[i] for one in extents) for i in range(3))
        return least, likely, largest

    def _extent(self, spec: TensorSpec, axis: int, size: Dimension) -> Extent:
        if isinstance(size, int):
            return size, size, size
        if size in self.sizes:
            return self.sizes[size]
        if axis == 0:
            return self.batch
        raise InputError(
            "E_SHAPE",
            f"the dimension '{size}' of {spec} is free, and nothing tells its size.",
            mend="Give its least, likeliest and largest size: BuildOptions(sizes="
            f"{{'{size}': (MIN, OPT, MAX)}}), or 'edgepress engine --size {size}=MIN,OPT,MAX'.",
            path=spec.name,
        )


def _extent(values: object) -> Extent:
    if isinstance(values, Sequence) and not isinstance(values, str) and len(values) == 3:  # pyright: ignore
        return int(values[0]), int(values[1]), int(values[2])  # pyright: ignore
    raise InputError("E_USAGE", f"{values!r} are no three sizes.", mend="Give MIN,OPT,MAX.")
