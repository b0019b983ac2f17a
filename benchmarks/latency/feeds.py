"""Inputs to measure with: random, of the shapes that a network takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...runtime.errors import InputError
from ...runtime.tensors import Array, Arrays, TensorSpec


def make_feeds(
    specs: Sequence[TensorSpec],
    batch: int,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    golden: Mapping[str, Array] | None = None,
) -> Arrays:
    """Random inputs for a network.

    A free dimension 0 becomes the batch. Other free dimensions come from ``shapes``, else from the
    golden inputs. Floats are standard normal; bytes and booleans uniform; other integers are the
    golden inputs', repeated to the batch, or 0 where there are none, since 0 is an index that
    exists.

    Args:
        specs: The network's inputs.
        batch: Samples an inference.
        seed: Of the random numbers.
        shapes: Whole shapes by input name, dimension 0 included.
        golden: Example inputs by name.

    Raises:
        InputError: ``E_BATCH`` where every input has a fixed dimension 0 and it is not ``batch``;
            ``E_SHAPE`` where a dimension stays free, or a shape does not fit the input.
    """
    if batch < 1:
        raise InputError(
            "E_BATCH", f"batch {batch}, expected at least 1.", mend="Give 1, or how many at a time."
        )
    given = dict(shapes or {})
    unknown = [name for name in given if name not in {spec.name for spec in specs}]
    if unknown:
        raise InputError(
            "E_SHAPE",
            f"shapes are given for {unknown}, which are no inputs.",
            mend="The network takes: " + "; ".join(map(str, specs)),
        )
    _check_batch(specs, batch)
    sizes: dict[str, int] = {}
    for spec in specs:
        example = (golden or {}).get(spec.name)
        if spec.name in given:
            _bind(spec, given[spec.name], sizes, batch)
        elif example is not None and example.ndim == len(spec.shape):
            _bind(spec, (batch, *example.shape[1:]) if example.ndim else (), sizes, batch)
        elif spec.shape and isinstance(spec.shape[0], str):
            sizes.setdefault(spec.shape[0], batch)
    generator = np.random.default_rng(seed)
    return {
        spec.name: _values(spec, _shape(spec, sizes), generator, (golden or {}).get(spec.name))
        for spec in specs
    }


def _check_batch(specs: Sequence[TensorSpec], batch: int) -> None:
    ranked = [spec for spec in specs if spec.shape]
    fixed = [spec for spec in ranked if spec.batch is not None]
    if fixed and len(fixed) == len(ranked) and batch not in {spec.batch for spec in fixed}:
        raise InputError(
            "E_BATCH",
            f"batch {batch} was asked for, the network's is {fixed[0].batch} ({fixed[0]}).",
            mend=f"Use batch {fixed[0].batch}, or export the network with a dynamic batch",
            path=fixed[0].name,
        )


def _bind(spec: TensorSpec, shape: Sequence[int], sizes: dict[str, int], batch: int) -> None:
    """Learn from a whole shape what the symbols of ``spec`` stand for."""
    fits = len(shape) == len(spec.shape) and all(size > 0 for size in shape)
    for axis, (size, wanted) in enumerate(zip(shape, spec.shape, strict=False)):
        if isinstance(wanted, str):
            fits = fits and sizes.setdefault(wanted, size) == size and (axis > 0 or size == batch)
        elif axis > 0 or size != batch:
            fits = fits and wanted == size
    if not fits:
        raise InputError(
            "E_SHAPE",
            f"the shape {tuple(shape)} does not fit the input {spec} at batch {batch}.",
            mend="Give every dimension, the batch first; one symbol has one size in all inputs",
            path=spec.name,
        )


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    free = [size for size in spec.shape if isinstance(size, str) and size not in sizes]
    if free:
        known = (sizes.get(size, 224) if isinstance(size, str) else size for size in spec.shape)
        example = ",".join(map(str, known))
        raise InputError(
            "E_SHAPE",
            f"the input {spec} leaves {', '.join(free)} open.",
            mend=f"Say what to measure with: --shape {spec.name}={example} (in Python: shapes=...)",
            path=spec.name,
        )
    return tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)


def _values(
    spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator, golden: Array | None
) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        wide = generator.standard_normal(shape, dtype=np.float32)
        return np.asarray(wide).astype(dtype, copy=False)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    if golden is not None and golden.dtype == dtype and golden.shape[1:] == shape[1:] and shape:
        return golden[np.arange(shape[0]) % len(golden)]
    if dtype.itemsize == 1:
        bounds = np.iinfo(dtype)
        return generator.integers(bounds.min, bounds.max + 1, shape).astype(dtype)
    return np.zeros(shape, dtype)
