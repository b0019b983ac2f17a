"""INT8 for networks whose calibration pictures hold values far away from all others."""

from __future__ import annotations

from dataclasses import replace

from ...export.calibration.ranges import Ranges
from ...export.int8.qdq_writer import write_qdq
from ...export.sensitivity.measure import Int8Network
from ..recipe.pass_context import Context
from ..recipe.settings import Int8
from .candidate_quality import sqnr_db

_FAR = 10  # times as wide as without outliers
_METHOD = "entropy"  # its bins are as fine beside an outlier as they are without one


def try_outlier_ranges(whole: Int8Network, settings: Int8, context: Context) -> Int8Network:
    """The better of a network and the same with outliers clipped where there are some.

    The squared error of clipping one value of a million outweighs that of losing all the others, so
    that the method that minimizes it keeps the one. Layers spread it; behind the first, whole
    places of that picture lie apart. Whether it matters is seen on the selection pictures.
    """
    before = whole.ranges.tensors
    if settings.ranges == _METHOD or not any(seen.outlying for seen in before.values()):
        return whole
    around = context.seen.of(whole.graph, _METHOD, context)
    changed = {
        name: seen
        for name, seen in around.tensors.items()
        if before[name].high - before[name].low > _FAR * (seen.high - seen.low)
    }
    if not changed:
        return whole
    tensors = {**before, **changed}
    ranges = Ranges(whole.ranges.method, whole.ranges.pictures, tensors)
    written = write_qdq(
        whole.graph, ranges, whole.plan, whole.dialect, weight_method=whole.weight_method
    )
    other = replace(whole, ranges=ranges, quantized=written)
    both = {"kept": whole, "clipped": other}
    sqnr = sqnr_db(whole.graph, {name: one.quantized for name, one in both.items()}, context)
    better = max(sqnr, key=lambda name: sqnr[name])  # the first where they are equal
    told: dict[str, object] = {
        "outliers": {
            "tensors": sorted(changed),
            "sqnr_db_on_selection": {name: round(value, 3) for name, value in sqnr.items()},
            "chosen": better,
        }
    }
    return replace(both[better], told={**whole.told, **told})
