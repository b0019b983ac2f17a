"""Options for inputs that are known before an engine is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .engine_registry import open_engine
from .engines.build_options import BuildOptions, Extent
from .engines.dimension_names import free_names
from .engines.engine import EngineOptions, Precision
from .tensors import Array


def build_options_for(
    model: bytes, batch: int, shapes: Mapping[str, Sequence[int]]
) -> BuildOptions:
    """How to build an engine that takes inputs of these shapes, and no others.

    Args:
        model: An ONNX model.
        batch: Samples at once, where dimension 0 is free.
        shapes: Of inputs, by name, as far as they are known; dimension 0 is not looked at.
    """
    return BuildOptions(batch=(batch, batch, batch), sizes=_sizes(model, shapes))


def engine_options_for(
    engine: str,
    model: bytes,
    sample: Mapping[str, Array],
    *,
    threads: int = 0,
    precision: Precision = "f32",
    cache: str | None = None,
) -> EngineOptions:
    """Options for an engine that judges a model, or is judged: for one sample at a time.

    An engine that is built is so for that alone, so that what scores, what is timed and what a
    receipt is read from is the same engine, and built once where there is a ``cache``.

    Args:
        engine: Its name.
        model: An ONNX model.
        sample: An input of the sizes that it is for, by name; dimension 0 is not looked at.
        threads: As :class:`~edgepress.runtime.engines.engine.EngineOptions` has it, like all that
            follows.
        precision: What floats are computed in.
        cache: Folder for what is built.
    """
    build = None
    if open_engine(engine).builds:
        build = build_options_for(model, 1, {name: array.shape for name, array in sample.items()})
    return EngineOptions(threads=threads, precision=precision, cache=cache, build=build)


def for_batches(engine: str, model: bytes, sample: Mapping[str, Array]) -> BuildOptions | None:
    """How an engine is built that is to ship: batches of the default sizes, one of all others.

    Args:
        engine: Its name.
        model: An ONNX model.
        sample: An input, by name; its sizes stand for those that are free.

    Returns:
        ``None`` for an engine that builds nothing.
    """
    if not open_engine(engine).builds:
        return None
    return BuildOptions(sizes=_sizes(model, {name: one.shape for name, one in sample.items()}))


def _sizes(model: bytes, shapes: Mapping[str, Sequence[int]]) -> dict[str, Extent]:
    return {
        name: (size, size, size)
        for given, names in free_names(model).items()
        for name, size in zip(names[1:], shapes.get(given, ())[1:], strict=False)
        if name
    }
