"""Random inputs for a network, of the first sizes that it runs with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from ...runtime.errors import EngineError
from ...runtime.tensors import Arrays, TensorSpec

TRIED_SIZES = (64, 224, 32, 320, 256, 1)
"""Lengths of free dimensions, in the order in which they are tried."""

T = TypeVar("T")


def random_inputs(
    inputs: tuple[TensorSpec, ...],
    *,
    seed: int = 0,
    batch: int = 2,
    size: int | tuple[int, int] = 64,
    narrow: bool = False,
) -> Arrays:
    """Random inputs: standard normal; of whole numbers 0 and 1, or 0 to 255 where those are uint8.

    Args:
        inputs: The inputs of a network.
        seed: Of the random numbers.
        batch: Length of every first dimension that is free.
        size: Length of every other free dimension; of two, the last dimension has the second.
        narrow: Whether uint8 is 0 and 1 as well, which numbers of rows and classes may have to be.
    """
    height, width = (size, size) if isinstance(size, int) else size
    generator = np.random.default_rng(seed)
    lengths: dict[str, int] = {}
    for spec in inputs:
        lengths.update({d: batch for d in spec.shape[:1] if isinstance(d, str)})
    feeds: Arrays = {}
    for spec in inputs:
        free = [height] * (len(spec.shape) - 1) + [width]
        pairs = zip(spec.shape, free, strict=False)
        shape = [d if isinstance(d, int) else lengths.get(d, length) for d, length in pairs]
        kind = np.dtype(spec.dtype)
        most = 255 if kind == np.uint8 and not narrow else 1
        normal = kind.kind == "f"
        values = (
            generator.standard_normal(shape)
            if normal
            else generator.integers(0, most, shape, endpoint=True)
        )
        feeds[spec.name] = np.asarray(values).astype(kind)
    return feeds


def _trials(
    inputs: tuple[TensorSpec, ...], batches: tuple[int, ...], picture: tuple[int, int] | None
) -> Iterator[Arrays]:
    sizes: list[int | tuple[int, int]] = (
        [picture, *TRIED_SIZES] if picture is not None else [*TRIED_SIZES]
    )
    bytes_in = any(spec.dtype == "uint8" for spec in inputs)
    for narrow in (False, True) if bytes_in else (False,):
        for batch in batches if has_free_dimension(inputs, slice(1)) else batches[:1]:
            for size in sizes if has_free_dimension(inputs, slice(1, None)) else sizes[:1]:
                yield random_inputs(inputs, batch=batch, size=size, narrow=narrow)


def has_free_dimension(inputs: tuple[TensorSpec, ...], dimensions: slice) -> bool:
    """Whether one of some dimensions is free in any input."""
    return any(isinstance(d, str) for spec in inputs for d in spec.shape[dimensions])


def run_on_random(
    inputs: tuple[TensorSpec, ...],
    run: Callable[[Arrays], T],
    *,
    batches: tuple[int, ...] = (1,),
    picture: tuple[int, int] | None = None,
) -> T:
    """What ``run`` gives for random inputs, the first that fit.

    Args:
        inputs: The inputs of a network.
        run: Is given them.
        batches: Lengths of first dimensions, in turn; the first alone where none is free.
        picture: Height and width to try before :data:`TRIED_SIZES`.

    Raises:
        EngineError: What it raised first, where none does.
    """
    failure: EngineError | None = None
    for feeds in _trials(inputs, batches=batches, picture=picture):
        try:
            return run(feeds)
        except EngineError as error:
            failure = failure or error
    raise failure or ValueError("no batch to try")
