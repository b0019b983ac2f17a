"""How near candidates in INT8 are to float32, and their biases corrected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import numpy as np

from ...benchmarks.data.batch_runner import fixed_batch
from ...export.calibration.malloc_retention import malloc_retained
from ...export.calibration.ranges import batches_up_to
from ...export.graph.onnx_graph import Graph, rows
from ...export.int8.bias_correction import BIAS_PICTURES, correct_biases
from ...export.int8.float_outputs import FloatEnds, comparable
from ...export.int8.quantized_graph import QuantizedGraph
from ...export.sensitivity.measure import Int8Network
from ...runtime.engine_registry import open_engine
from ...runtime.tensors import Arrays
from ..recipe.pass_context import Context, StageProgress
from ..source.source_network import batch_size

_FEW, _STEP, _WORK = 32, 16, 1.3e11
"""At least so many pictures, in steps, for about so many multiply-adds."""


_DECIBELS = 300.0  # stands for no noise at all


def bias_corrected(whole: Int8Network, context: Context) -> QuantizedGraph:
    """A network in INT8 with its biases corrected; where that was done before, as it was done."""
    if whole.corrected is not None:
        return whole.corrected
    layers = sum(1 for unit in whole.quantized.units if unit.bias)
    corrected, _ = correct_biases(
        whole.graph,
        whole.quantized,
        context.calibration,
        largest_tensor=max(one.elements for one in whole.ranges.tensors.values()),
        pictures=comparison_pictures(context),
        on_progress=StageProgress(context, "correcting biases", layers).add,
    )
    return corrected


def comparison_pictures(context: Context) -> int:
    """Pictures to compare INT8 with float32 on, layer by layer or as a whole.

    Both see the same pictures, so that few show what they differ in: 256, and from 0.5 G
    multiply-adds on fewer, 32 at least.
    """
    affordable = int(_WORK / max(1, sum(context.macs.values()))) // _STEP * _STEP
    return min(max(affordable, _FEW), BIAS_PICTURES)


@malloc_retained()
def sqnr_db(
    graph: Graph, candidates: Mapping[str, QuantizedGraph], context: Context
) -> dict[str, float]:
    """Signal over quantization noise of each candidate's worst output on selection pictures.

    Of whole numbers it is that of what they are made of
    (:mod:`edgepress.export.int8.float_outputs`). All candidates see a batch before the next is
    read, so that memory does not grow with the outputs.
    """
    signal: dict[str, float] = {}
    noise: dict[str, dict[str, float]] = {name: {} for name in candidates}
    ends = FloatEnds.of(graph)
    models = (graph.model, *(one.model for one in candidates.values()))
    shown = [ends.shown(model) for model in models]
    with ExitStack() as stack:
        engines = [
            stack.enter_context(open_engine(context.engine)(one.model, context.options(one.model)))
            for one in shown
        ]
        runs = [fixed_batch(engine.run, engine.inputs) for engine in engines]
        for feeds in _some(context):
            ran = zip(shown, runs, strict=True)
            wanted, *found = [one.pick(run(feeds), feeds) for one, run in ran]
            for key, value in wanted.items():
                exact = value[np.isfinite(value)].astype(np.float64)
                signal[key] = signal.get(key, 0.0) + float(np.sum(exact**2))
                for sums, outputs in zip(noise.values(), found, strict=True):
                    one, other = comparable(value, outputs[key])
                    lost = float(np.sum((one - other) ** 2))
                    sums[key] = sums.get(key, 0.0) + lost
    return {
        name: min((_decibels(signal[key], sums[key]) for key in sums), default=_DECIBELS)
        for name, sums in noise.items()
    }


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return _DECIBELS
    if signal == 0 or not np.isfinite(noise):
        return -_DECIBELS
    return float(np.clip(10 * np.log10(signal / noise), -_DECIBELS, _DECIBELS))


def _some(context: Context) -> Iterator[Arrays]:
    limit = comparison_pictures(context)
    size, count = batch_size(next(iter(context.selection(1)))), 0
    for feeds in batches_up_to(
        context.selection, size if limit == BIAS_PICTURES else min(size, _STEP), limit
    ):
        yield feeds
        count += rows(feeds)
        context.progress("comparing candidates with float32", count, None)
