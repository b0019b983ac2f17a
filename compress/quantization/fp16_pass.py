"""The pass fp16, and FP16 for the floats of an INT8 graph, on targets that compute in it.

What it does: writes FP16 where the ranges of real activations allow it, and puts nodes back to
float32 until the outputs keep the bound; see :mod:`edgepress.export.fp16.fp16`.
When it is exact: never.
When it refuses: names in ``keep_float`` that are no nodes; a target that has no FP16.
Source: see :mod:`edgepress.export.fp16.fp16_plan`.
"""

from __future__ import annotations

from dataclasses import replace

from ...export.bundle_contents import ShippedModel
from ...export.calibration.ranges import Ranges
from ...export.fp16.fp16 import SettledFp16, settle_fp16
from ...export.graph.normalize import with_opset
from ...export.graph.onnx_graph import Graph, opset_of
from ...export.graph.precision_plan import PrecisionPlan
from ...export.int8.quantized_graph import QuantizedGraph
from ...export.receipt import Receipt, fp16_receipt, int8_receipt
from ...runtime.errors import InputError
from ..recipe.absent_device import ship_unproven
from ..recipe.pass_context import Context, Outcome
from ..recipe.settings import Fp16, Int8

_HALF_SCALES = 19  # the opset whose quantizers give FP16


def has_fp16(context: Context) -> bool:
    """Whether the target computes in FP16."""
    return "float16" in context.target.precisions


def fp16_ready_graph(graph: Graph, context: Context) -> Graph:
    """The same graph in an opset whose quantizers give FP16."""
    if opset_of(graph.proto()) >= _HALF_SCALES:
        return graph
    return with_opset(graph, _HALF_SCALES, next(iter(context.calibration(2))))


def convert_to_fp16(graph: Graph, settings: Fp16, context: Context) -> Outcome:
    """Post-training FP16; see the top of this file.

    Raises:
        InputError: ``E_RECIPE`` where the target has no FP16.
    """
    if not has_fp16(context):
        raise InputError(
            "E_RECIPE",
            f"the target {context.target.name} does not compute in FP16.",
            mend="Use the recipe int8, or a target on a GPU: tensorrt, tensorrt-rtx.",
        )
    ranges = context.seen.of(graph, "minmax", context)
    settled = _settled(graph, ranges, context, None, settings.keep_float, settings.bound_db)
    report: dict[str, object] = {"pictures": ranges.pictures, "fp16": settled.report()}
    shipped, receipt = _shipped(graph, context, settled=settled)
    return Outcome(shipped, bool(settled.half.nodes), receipt, report, name="FP16")


def fp16_rival(graph: Graph, settings: Int8, context: Context) -> Outcome | None:
    """The same network in FP16, which INT8 has to beat; ``None`` where nothing of it is in FP16.

    Args:
        graph: The float32 network.
        settings: Of INT8; what stays float there does so here.
        context: Of the pass.
    """
    if not has_fp16(context):
        return None
    halved = convert_to_fp16(graph, Fp16(keep_float=settings.keep_float), context)
    return halved if halved.changed else None


def convert_floats_to_fp16(
    graph: Graph,
    ranges: Ranges,
    quantized: QuantizedGraph,
    plan: PrecisionPlan,
    settings: Int8,
    report: dict[str, object],
    context: Context,
) -> Outcome:
    """FP16 for what an INT8 graph computes with floats."""
    settled = _settled(graph, ranges, context, quantized.model, settings.keep_float)
    report["fp16"] = settled.report()
    made = replace(quantized, model=settled.half.model)
    shipped, receipt = _shipped(graph, context, settled=settled, quantized=made, plan=plan)
    return Outcome(shipped, bool(quantized.units), receipt, report)


def _settled(
    graph: Graph,
    ranges: Ranges,
    context: Context,
    quantized: bytes | None,
    keep_float: tuple[str, ...],
    bound_db: float | None = None,
) -> SettledFp16:
    bound = Fp16().bound_db if bound_db is None else bound_db
    rounds = 0

    def measured(count: int) -> None:
        nonlocal rounds
        rounds += count
        context.progress("measuring FP16", rounds, None)

    return settle_fp16(
        graph,
        ranges,
        context.calibration,
        quantized=quantized,
        keep_float=keep_float,
        bound_db=bound,
        on_progress=measured,
    )


def _shipped(
    graph: Graph,
    context: Context,
    *,
    settled: SettledFp16,
    quantized: QuantizedGraph | None = None,
    plan: PrecisionPlan | None = None,
) -> tuple[ShippedModel, Receipt]:
    target = context.target
    if not context.device_here:
        return ship_unproven(
            graph,
            target,
            context.macs,
            context.calibration,
            quantized=quantized,
            plan=plan,
            settled=settled,
        )
    if quantized is None or plan is None:
        model = settled.half.model
        options = context.options(model)
        receipt = fp16_receipt(graph, context.macs, model, settled.plan, target.engine, options)
        return ShippedModel(model, "fp16", "onnx", target.engine, receipt.to_dict()), receipt
    model, options = quantized.model, context.options(quantized.model)
    receipt = int8_receipt(
        graph, context.macs, quantized, plan, target.engine, settled.plan, options
    )
    return ShippedModel(model, "int8", target.dialect, target.engine, receipt.to_dict()), receipt
