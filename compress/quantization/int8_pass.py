"""Passes: steps from a Graph to what might ship. They give an Outcome, never a verdict."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ...export.bundle_contents import ShippedModel
from ...export.calibration.ranges import Ranges
from ...export.graph.onnx_graph import Graph
from ...export.graph.precision_plan import NodePrecision, PrecisionPlan
from ...export.int8.adaptive_rounding import round_weights
from ...export.int8.dialect import dialect
from ...export.int8.int8_plan import plan_int8
from ...export.int8.qdq_writer import write_qdq
from ...export.int8.quantized_graph import QuantizedGraph
from ...export.receipt import int8_receipt
from ...export.sensitivity.measure import Int8Network
from ..recipe.pass_context import Context, Outcome
from ..recipe.settings import Fp16, Int8
from .candidate_quality import bias_corrected, sqnr_db


def run_pass(graph: Graph, settings: Int8 | Fp16, context: Context) -> Outcome:
    """Run the pass that some settings are for."""
    if isinstance(settings, Int8):
        return quantize_int8(graph, settings, context)
    from .fp16_pass import convert_to_fp16

    return convert_to_fp16(graph, settings, context)


def quantize_int8(graph: Graph, settings: Int8, context: Context) -> Outcome:
    """Post-training INT8.

    What it does: calibrates ranges, writes the target's dialect, equalises channels, rounds weights
    anew and corrects biases where that brings the outputs nearer to float32 on the selection
    pictures. On a target that computes in FP16, what stays float is written in that.
    When it is exact: never.
    When it refuses: names in ``keep_float`` that are no nodes; pictures that make a tensor NaN.
    Source: see :mod:`edgepress.export.calibration.ranges`,
        :mod:`edgepress.export.int8.cross_layer_equalization`,
    :mod:`edgepress.export.int8.adaptive_rounding`, :mod:`edgepress.export.int8.bias_correction`.
    """
    whole = prepare_int8(graph, settings, context)
    return finish_int8(whole, settings, context)


def prepare_int8(graph: Graph, settings: Int8, context: Context) -> Int8Network:
    """The network in INT8 as the recipe says, its biases not corrected yet.

    Raises:
        InputError: As :func:`quantize_int8`.
    """
    from .fp16_pass import fp16_ready_graph, has_fp16
    from .try_equalization import try_equalization
    from .try_outlier_ranges import try_outlier_ranges

    speech = dialect(context.target.dialect)
    given = None
    if settings.int8_nodes:
        reason = "the recipe's plan says so"
        given = PrecisionPlan(dict.fromkeys(settings.int8_nodes, NodePrecision("int8", reason)))
    if has_fp16(context):
        graph = fp16_ready_graph(graph, context)
    plan_int8(
        graph, Ranges(settings.ranges, 0, {}), speech, keep_float=settings.keep_float, given=given
    )  # names
    ranges = context.seen.of(graph, settings.ranges, context)
    plan = plan_int8(graph, ranges, speech, keep_float=settings.keep_float, given=given)
    plain = write_qdq(graph, ranges, plan, speech, weight_method=settings.weights)
    whole = Int8Network(graph, ranges, plan, speech, plain, settings.weights)
    whole = try_outlier_ranges(whole, settings, context)
    return try_equalization(whole, settings, context) if settings.equalization else whole


def finish_int8(whole: Int8Network, settings: Int8, context: Context) -> Outcome:
    """Correct the biases of a network in INT8 where that pays, and take its receipt."""
    from .fp16_pass import convert_floats_to_fp16, has_fp16

    graph, ranges, plain = whole.graph, whole.ranges, whole.quantized
    report: dict[str, object] = {
        "pictures": ranges.pictures,
        "ranges": ranges.method,
        "weights": settings.weights,
        **whole.told,
    }
    quantized = plain
    candidates = _improved(whole, settings, context)
    if len(candidates) > 1:
        sqnr = sqnr_db(graph, candidates, context)
        chosen = max(sqnr, key=lambda name: sqnr[name])
        quantized = candidates[chosen]
        report["sqnr_db_on_selection"] = {name: round(value, 3) for name, value in sqnr.items()}
        report["chosen"] = chosen
    if has_fp16(context):
        return convert_floats_to_fp16(
            graph, ranges, quantized, whole.plan, settings, report, context
        )
    engine = context.target.engine
    picture = next(iter(context.selection(1)))
    receipt = int8_receipt(graph, context.macs, quantized, whole.plan, engine, feeds=picture)
    shipped = ShippedModel(quantized.model, "int8", whole.dialect.name, engine, receipt.to_dict())
    written = replace(whole, quantized=quantized, corrected=None)
    return Outcome(shipped, bool(quantized.units), receipt, report, written=written)


def _improved(whole: Int8Network, settings: Int8, context: Context) -> dict[str, QuantizedGraph]:
    """A network in INT8 as it was calibrated, and what might be nearer to float32, by name."""
    found = {"as calibrated": whole.quantized}
    correct = settings.bias_correction and any(unit.bias for unit in whole.quantized.units)
    if correct:
        found["biases corrected"] = bias_corrected(whole, context)
    if settings.rounding:
        anew = round_weights(
            whole.graph,
            whole.quantized,
            context.calibration,
            held=context.codes,
            on_progress=partial(context.progress, "rounding weights"),
        )
        if anew is not None:
            other = replace(whole, quantized=anew, corrected=None)
            name = "weights rounded anew" + (", biases corrected" if correct else "")
            found[name] = bias_corrected(other, context) if correct else anew
    return found
