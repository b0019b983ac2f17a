"""Run: whatever is judged, as a function from input arrays to output arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from ...runtime.errors import InputError
from ...runtime.tensors import Array, Arrays, TensorSpec

Run: TypeAlias = Callable[[Arrays], Arrays]
"""Takes an array for each input by name, gives one for each output; dimension 0 is the batch."""


def fixed_batch(run: Run, specs: Sequence[TensorSpec], largest: int | None = None) -> Run:
    """Let ``run`` take batches of any size where its inputs have a fixed one, or a largest.

    Larger batches are cut; where the size is fixed, the last part is filled up by repeating its
    rows, and what comes out for the repeats is cut off again. Where it is neither, ``run`` is given
    back as it is.

    Args:
        run: What is judged.
        specs: Its inputs.
        largest: Most rows that it takes at once, where their number is free; ``None`` for any.

    Returns:
        A run whose outputs have as many rows as its inputs.

    Raises:
        InputError: (from the returned run) ``E_BATCH`` where inputs differ in length, or an output
            has not one row for each row that went in.
    """
    sizes = {spec.batch for spec in specs if spec.batch is not None}
    fixed = len(sizes) == 1
    size = sizes.pop() if fixed else largest
    if size is None or sizes:
        return run

    def any_batch(feeds: Arrays) -> Arrays:
        counts = {len(array) if array.ndim else 0 for array in feeds.values()}
        if counts == {size} or (not fixed and max(counts, default=0) <= size):
            return run(feeds)
        if len(counts) != 1 or 0 in counts:
            raise InputError(
                "E_BATCH",
                f"the inputs have {sorted(counts)} rows, expected the same count in all of them.",
                mend=f"The network runs {size} rows at a time{'' if fixed else ' at most'}",
            )
        count = counts.pop()
        parts: dict[str, list[Array]] = {}
        for start in range(0, count, size):
            rows = min(size, count - start)
            given = size if fixed else rows
            filled = start + np.arange(given) % rows
            for name, array in run({key: feed[filled] for key, feed in feeds.items()}).items():
                parts.setdefault(name, []).append(_rows(name, array, given)[:rows])
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    return any_batch


def _rows(name: str, array: Array, size: int) -> Array:
    if array.ndim == 0 or len(array) != size:
        raise InputError(
            "E_BATCH",
            f"output '{name}' has shape {array.shape}, expected {size} rows as in the inputs.",
            mend=f"Run the network on batches of exactly {size}",
            path=name,
        )
    return array
