"""The same graph with its floats in bfloat16, on an engine and a processor that have it.

What it does: nothing to the graph, float32 or INT8. The bundle asks the engine to compute in
bfloat16 what is float in it, and holds the same model as a second variant whose floats are float32,
for processors without.
When it is exact: never; 8 bits of every product's factors are kept, sums are float32.
When it refuses: where the engine computes none of a float network's multiply-adds in bfloat16 after
all; where nothing of an INT8 network is left for it, or that is not measurably faster so.
Source: OpenVINO's ``INFERENCE_PRECISION_HINT``; the precisions of the graph that it executes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...export.graph.onnx_graph import Graph
from ...export.receipt import Receipt, bf16_receipt, int8_receipt
from ...export.sensitivity.measure import Int8Network
from ...export.sensitivity.node_profile import kernels_ms
from ...runtime.engines.engine import (
    FLOAT_PRECISIONS,
    PRECISION_WORDS,
    EngineOptions,
    Precision,
    computed_in,
)
from ...runtime.tensors import Arrays
from ..evaluation.acceptance import EvaluatedCandidate, RivalPrecision, Verdict
from ..evaluation.evaluator import Evaluator
from ..evaluation.score_drop import DropOf
from ..recipe.pass_context import Context, Outcome

NAME = PRECISION_WORDS["bf16"]
_SHARE = 0.5  # of what the score may drop by, for bfloat16 alone
_WORTH = 0.98  # of the kernels' time with floats in float32; else it is not timed in turn


def in_bfloat16(outcome: Outcome, graph: Graph) -> Outcome | None:
    """A float network computed in bfloat16, as what might ship; ``None`` where nothing of it is.

    Args:
        outcome: The network in float32; it ships beside.
        graph: Its graph.
    """
    macs = {node.name: node.macs for node in outcome.receipt.nodes}
    receipt = bf16_receipt(graph, macs, outcome.shipped.engine)
    if not receipt.share(NAME):
        return None
    return _computed(outcome, receipt, NAME, f"{outcome.name} in {NAME}")


def with_bfloat16(outcome: Outcome, written: Int8Network, feeds: Arrays) -> Outcome | None:
    """An INT8 network whose floats are computed in bfloat16; ``None`` where no kernel is.

    Args:
        outcome: The same with floats in float32; it ships beside.
        written: As it was written.
        feeds: One picture, to time the kernels on.
    """
    plain = outcome.shipped
    macs = {node.name: node.macs for node in outcome.receipt.nodes}
    quantized, plan = written.quantized, written.plan
    options = EngineOptions(precision=computed_in(NAME))
    receipt = int8_receipt(
        written.graph, macs, quantized, plan, plain.engine, options=options, feeds=feeds
    )
    if not receipt.count(NAME):
        return None
    name = f"{outcome.name} and {NAME}"
    return _computed(outcome, receipt, f"{plain.precision}-{NAME}", name)


def _computed(plain: Outcome, receipt: Receipt, precision: str, name: str) -> Outcome:
    """The same file, computed otherwise; as it was it ships beside."""
    shipped = replace(
        plain.shipped, precision=precision, receipt=receipt.to_dict(), beside=(plain.shipped,)
    )
    return replace(plain, shipped=shipped, receipt=receipt, name=name)


def float_candidates(candidate: Outcome, graph: Graph, evaluator: Evaluator) -> list[Outcome]:
    """A float network in every precision that the engine computes it in here, float32 first."""
    found = [in_bfloat16(candidate, graph)] if "bf16" in evaluator.rivals() else []
    return [candidate, *(one for one in found if one is not None)]


def floats_beside_int8(
    graph: Graph,
    evaluator: Evaluator,
    drop_in: Callable[[Precision], DropOf],
    max_drop: float | None,
) -> Precision:
    """What is float beside INT8 is to be computed in.

    That is bfloat16 where the engine has it here, and the network in bfloat16 alone loses no more
    than half of what is allowed: the other half is for INT8.

    Args:
        graph: The network in float32.
        evaluator: Of the original, on the target's engine.
        drop_in: Gives what a model's bytes lose when it is computed in a precision.
        max_drop: Largest drop of the score, in points; ``None`` for any.
    """
    if "bf16" not in evaluator.rivals():
        return "f32"
    if max_drop is None:
        return "bf16"
    lost = drop_in("bf16")(graph.model) - drop_in("f32")(graph.model)
    return "bf16" if lost <= _SHARE * max_drop else "f32"


def int8_candidates(candidate: Outcome, evaluator: Evaluator, context: Context) -> list[Outcome]:
    """An INT8 network with its floats in every precision that pays here, float32 first.

    bfloat16 pays where some kernel is left for it, and the same file is faster so: by its kernels,
    and then timed in turn. Nothing is scored for that; the report has what was measured.
    """
    written, model = candidate.written, candidate.shipped.model
    if context.floats == "f32" or written is None or not candidate.changed:
        return [candidate]
    feeds = next(iter(context.selection(1)))
    other = with_bfloat16(candidate, written, feeds)
    if other is None:
        return [candidate]
    took = {
        PRECISION_WORDS[one]: kernels_ms(context.engine, [model], feeds, precision=one)[0]
        for one in FLOAT_PRECISIONS
    }
    told: dict[str, object] = {"kernels_ms": took}
    pays = took[NAME] <= _WORTH * took[PRECISION_WORDS["f32"]]
    if pays:
        found = evaluator.compare(model, "bf16", other=model)
        told |= {"ratio": found.ratio, "low": found.ratio_low, "high": found.ratio_high}
        pays = found.faster == "a"
    report = {**candidate.report, "floats_in_bfloat16": {**told, "faster": pays}}
    plain = replace(candidate, report=report)
    return [plain, replace(other, report=report)] if pays else [plain]


def unchanged_network(
    rival: RivalPrecision, original: Outcome, graph: Graph
) -> EvaluatedCandidate | None:
    """The network as it came, computed in a precision that was proved on the way.

    Args:
        rival: What was measured of it.
        original: The network in float32.
        graph: Its graph.
    """
    named = replace(original, name="the network as it came")
    outcome = in_bfloat16(named, graph)
    if outcome is None or rival.test is None:
        return None
    kept = Verdict(accepted=True, reasons=())
    return EvaluatedCandidate(outcome, rival.over_float32, rival.selection, rival.test, kept)


def half_precision_note(trial: EvaluatedCandidate) -> list[str]:
    """In words, what of that which ships is bfloat16 or FP16, and what it means elsewhere."""
    found, shipped = trial.comparison, trial.outcome.shipped
    if trial.outcome.stand_in:
        fast = "" if found is None else f", at {found.ratio:.2f}x the speed of float32"
        return [f"the bundle holds the network as it came, written in FP16{fast}."]
    if computed_in(shipped.precision) != "bf16" or found is None:
        return []
    what = "the network as it came" if not trial.outcome.changed else "its network"
    how = NAME if shipped.precision == NAME else f"INT8, and in {NAME} what stays float"
    (other,) = shipped.beside
    return [
        f"the bundle runs {what} in {how}: {found.ratio:.2f}x the speed of the original in "
        f"float32 ({found.ratio_low:.2f} to {found.ratio_high:.2f}). On a processor without "
        f"{NAME} its variant {other.precision} runs, which is not as fast."
    ]
