"""Cross-layer equalisation where it helps: it is tried on depthwise networks, and has to measure.

What it does: brings the ranges of channels together across neighbouring layers, calibrates what
that changed, and keeps it where the outputs come nearer to float32 on the selection pictures, both
with their biases corrected where the recipe asks for that.
When it is exact: see :mod:`edgepress.export.int8.cross_layer_equalization`; the INT8 network is
never. When it refuses: networks without depthwise layers, or whose channels lie close together
already, are left alone and cost nothing. Source: see
:mod:`edgepress.export.int8.cross_layer_equalization`.
"""

from __future__ import annotations

from dataclasses import replace

from ...export.calibration.ranges import Ranges, calibrate
from ...export.int8.cross_layer_equalization import EQUALIZATION_PICTURES, equalize
from ...export.int8.qdq_writer import write_qdq
from ...export.sensitivity.measure import Int8Network
from ..recipe.pass_context import Context, StageProgress
from ..recipe.settings import Int8
from .candidate_quality import bias_corrected, sqnr_db


def try_equalization(whole: Int8Network, settings: Int8, context: Context) -> Int8Network:
    """The better of a network and the same with its channels brought together."""
    looked = StageProgress(
        context, "looking at channels", min(EQUALIZATION_PICTURES, context.calibration_count)
    )
    found = equalize(whole.graph, context.calibration, on_progress=looked.add)
    if found is None:
        return whole
    again = StageProgress(context, "calibrating equalised layers", context.calibration_count)
    changed = calibrate(
        found.graph,
        context.calibration,
        method=settings.ranges,
        only=found.changed,
        on_progress=again.add,
    )
    tensors = {**whole.ranges.tensors, **changed.tensors}
    ranges = Ranges(whole.ranges.method, whole.ranges.pictures, tensors)
    written = write_qdq(
        found.graph, ranges, whole.plan, whole.dialect, weight_method=whole.weight_method
    )
    other = replace(whole, graph=found.graph, ranges=ranges, quantized=written)
    pair = {"as trained": whole, "equalised": other}
    if settings.bias_correction and any(unit.bias for unit in written.units):
        pair = {name: replace(o, corrected=bias_corrected(o, context)) for name, o in pair.items()}
    candidates = {name: one.corrected or one.quantized for name, one in pair.items()}
    sqnr = sqnr_db(whole.graph, candidates, context)
    better = max(sqnr, key=lambda name: sqnr[name])  # the first where they are equal
    told: dict[str, object] = {
        "equalization": {
            "tensors": len(found.factors),
            "sqnr_db_on_selection": {name: round(value, 3) for name, value in sqnr.items()},
            "chosen": better,
        }
    }
    return replace(pair[better], told={**whole.told, **told})
