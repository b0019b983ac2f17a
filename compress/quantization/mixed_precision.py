"""Mixed precision: leave in float what does not pay in INT8, or costs more than is allowed.

What it does: measures each node's time in both precisions and the price of borders, and lets
:mod:`edgepress.compress.quantization.precision_milp` find the fastest plan; where what comes out
costs more of the score on the selection pictures than is allowed, measures each node's damage too,
and tightens the plan's bound until the score holds or no plan is faster than float. Every plan is
written, its biases are corrected, and it is scored and timed on its bytes before it is believed.
Where the engine is to compute floats in bfloat16, that is what all of it is timed and scored in.
When it is exact: never. When it refuses: where everything in INT8 is the best, it leaves that as it
is; where nothing holds, it says what was tried. Source: see
:mod:`edgepress.compress.quantization.precision_milp` and
:mod:`edgepress.export.sensitivity.node_noise`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ...export.calibration.ranges import batches_up_to
from ...export.graph.precision_plan import NodePrecision, PrecisionPlan
from ...export.int8.int8_plan import plan_int8
from ...export.int8.qdq_writer import write_qdq
from ...export.sensitivity.measure import Int8Network, measure_times, with_node_noise
from ...export.sensitivity.node_noise import SESSIONS
from ...export.sensitivity.node_profile import PROFILE_ROUNDS, PROFILED_ENGINES, kernels_ms
from ...export.sensitivity.sensitivity_table import SensitivityTable
from ...runtime.tensors import Arrays
from ..evaluation.score_drop import DropOf
from ..recipe.pass_context import Context, Outcome, StageProgress
from ..recipe.settings import Int8
from .int8_pass import finish_int8
from .precision_milp import (
    MixedPlan,
    borders_ms,
    decibels,
    decide_precisions,
    noise_by_node,
    noise_of,
    predicted_ms,
)

_WORTH = 0.98  # of the time with everything in INT8: less INT8 is less noise, too
_PAYS = 0.95  # of the float32 network's time; a plan that is predicted to take more is not tried
_ATTEMPTS = 5
_SCORED = 8  # nodes whose cost to the score is measured one by one
_STEP = (0.1, 0.7)  # what the bound on the noise is multiplied by, from one attempt to the next
_VALUES = 120_000_000  # activations that a graph of the damage may compute
_PICTURES = (4, 32)
_PROFILES = 3 * PROFILE_ROUNDS


@dataclass
class MixedSearch:
    """What was tried, in order.

    Attributes:
        blame: What was measured.
        attempts: One entry for each plan: what was predicted and what came out, JSON values only.
        drops: Points of the score that nodes cost when they alone are in INT8, by name.
    """

    blame: SensitivityTable
    attempts: list[dict[str, object]] = field(default_factory=list[dict[str, object]])
    drops: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class _Plan:
    """A plan that was written but not finished; ``decision`` is none for everything in INT8."""

    whole: Int8Network
    int8: frozenset[str]
    decision: MixedPlan | None
    told: dict[str, object]


@dataclass(frozen=True)
class _Try:
    """A finished candidate, and how many points it loses."""

    outcome: Outcome
    plan: _Plan
    drop: float


def mix_precisions(
    whole: Int8Network, settings: Int8, context: Context, drop: DropOf, max_drop: float | None
) -> Outcome:
    """The best of everything in INT8 and the plans that leave some of it in float32.

    Args:
        whole: Everything in INT8 that can be.
        settings: Of the pass.
        context: Of the pass.
        drop: Scores a candidate on the selection pictures, its floats in ``context.floats``.
        max_drop: Largest drop of the score, in points; ``None`` for any.

    Returns:
        The fastest that holds the bound on the selection pictures; where none does, the fastest.
        Its report has ``mixed``: what was measured and tried.
    """
    if not whole.quantized.units or context.target.engine not in PROFILED_ENGINES:
        return finish_int8(whole, settings, context)
    feeds = next(iter(context.selection(1)))
    progress = StageProgress(context, "timing every node", _PROFILES)
    blame = measure_times(whole, context.target.engine, feeds, progress.add, floats=context.floats)
    builder = _Builder(whole, settings, context, drop, feeds, MixedSearch(blame))
    best = builder.finished(_fastest(builder))
    if max_drop is not None and best.drop > max_drop:
        best = _hold(builder, best, max_drop) or best
    if settings.blame:
        builder.blame_nodes()
    report = {**best.outcome.report, "mixed": _report(builder.search, best.plan.int8)}
    if best.plan.decision is not None:
        report["int8_nodes"] = list(best.plan.decision.int8)
    return replace(best.outcome, report=report)


def _fastest(builder: _Builder) -> _Plan:
    """The fastest plan by prediction, where its kernels are faster than with everything in INT8."""
    blame = builder.search.blame
    everything = builder.everything()
    decision = decide_precisions(blame)
    if not decision.int8 or decision.predicted_ms > _WORTH * predicted_ms(blame, everything.int8):
        return everything
    found = builder.written(decision)
    return builder.faster(everything, found) or found


def _hold(builder: _Builder, best: _Try, max_drop: float) -> _Try | None:
    """The first plan that holds the bound, each with less noise than the one before."""
    search, blame = builder.search, builder.damaged()
    noise, lost = noise_of(blame, best.plan.int8), best.drop
    if not noise:
        told = "INT8 brings no noise that could be measured, and no plan can bring less"
        search.attempts.append({**decide_precisions(blame, noise).to_dict(), "not_built": told})
        return None
    for _ in range(_ATTEMPTS):
        noise *= min(max(0.6 * max_drop / lost, _STEP[0]), _STEP[1])
        decision = decide_precisions(blame, noise)
        if not decision.int8 or decision.predicted_ms > _PAYS * blame.float_ms:
            told = f"no plan within this noise is predicted to be faster than {blame.floats}"
            search.attempts.append({**decision.to_dict(), "not_built": told})
            return None
        found = builder.finished(builder.written(decision))
        if found.drop <= max_drop:
            return found if builder.faster(found.plan) else None
        noise, lost = min(noise, decision.predicted_noise or noise), found.drop
    return None


@dataclass
class _Builder:
    """Writes plans, times them, finishes and scores them, and writes down what came out."""

    whole: Int8Network
    settings: Int8
    context: Context
    drop: DropOf
    feeds: Arrays
    search: MixedSearch

    def everything(self) -> _Plan:
        """Everything in INT8 that can be, which is written already."""
        blame = self.search.blame
        int8 = frozenset(node.name for node in blame.nodes)
        told: dict[str, object] = {
            "plan": "everything",
            "predicted_ms": predicted_ms(blame, int8),
            "borders_ms": borders_ms(blame, int8),
        }
        return _Plan(self.whole, int8, None, told)

    def written(self, decision: MixedPlan) -> _Plan:
        """A decided plan, written in the dialect."""
        int8 = frozenset(decision.int8)
        told: dict[str, object] = {
            "plan": "decided",
            **decision.to_dict(),
            "borders_ms": borders_ms(self.search.blame, int8),
        }
        return _Plan(self.in_dialect(decision.plan), int8, decision, told)

    def damaged(self) -> SensitivityTable:
        """What was measured, the damage of every node too."""
        search = self.search
        if not search.blame.runs:
            pictures = list(_pictures(self.context, self.whole))
            progress = StageProgress(self.context, "measuring every node's damage", SESSIONS)
            search.blame = with_node_noise(search.blame, self.whole, pictures, progress.add)
        return search.blame

    def blame_nodes(self) -> None:
        """Score the nodes that bring most noise, each alone in INT8."""
        blame = self.damaged()
        noise = noise_by_node(blame)
        worst = sorted(noise, key=lambda name: -noise[name])[:_SCORED]
        progress = StageProgress(self.context, "scoring single nodes in INT8", len(worst))
        nodes = {node.name: node for node in blame.nodes}
        for name in worst:
            alone = {name, *nodes[name].together}
            given = {
                one.name: NodePrecision(
                    "int8" if one.name in alone else "float32", "looked at alone"
                )
                for one in blame.nodes
                if not one.follows
            }
            written = self.in_dialect(PrecisionPlan(given))
            self.search.drops[name] = self.drop(written.quantized.model)
            progress.add(1)

    def in_dialect(self, given: PrecisionPlan) -> Int8Network:
        """The network as a plan says, written."""
        whole = self.whole
        keep = self.settings.keep_float
        plan = plan_int8(whole.graph, whole.ranges, whole.dialect, keep_float=keep, given=given)
        made = write_qdq(
            whole.graph, whole.ranges, plan, whole.dialect, weight_method=whole.weight_method
        )
        return replace(whole, plan=plan, quantized=made, corrected=None)

    def finished(self, plan: _Plan) -> _Try:
        """Correct the biases of a plan, and score it."""
        outcome = finish_int8(plan.whole, self.settings, self.context)
        drop = self.drop(outcome.shipped.model)
        plan.told["drop_on_selection"] = drop
        self.search.attempts.append(plan.told)
        return _Try(outcome, plan, drop)

    def faster(self, *tried: _Plan) -> _Plan | None:
        """The fastest of some plans by their kernels, timed in turn with the float32 graph.

        Returns:
            ``None`` where that is the fastest.
        """
        context, floats = self.context, self.search.blame.floats
        models = (self.whole.graph.model, *(one.whole.quantized.model for one in tried))
        original, *taken = kernels_ms(
            context.target.engine, models, self.feeds, precision=context.floats
        )
        for one, ms in zip(tried, taken, strict=True):
            one.told.update({"measured_ms": ms, f"{floats}_ms": original})
        best = min(range(len(tried)), key=lambda i: taken[i])
        return tried[best] if taken[best] < original else None


def mixed_plan_notes(outcome: Outcome) -> list[str]:
    """In words, what a mixed plan leaves in float, or why there is none."""
    mixed: Any = outcome.report.get("mixed")
    if mixed is None:
        return []
    kept, total = mixed["of_nodes"] - mixed["int8_nodes"], mixed["of_nodes"]
    if kept:
        return [
            f"{kept} of {total} nodes that could run in INT8 stay in float, because they measure "
            "so on this machine; 'edgepress inspect' shows each."
        ]
    last = mixed["attempts"][-1]
    if "not_built" in last:
        return [
            f"every node was measured: {last['not_built']} ({last['predicted_ms']:.2f} ms against "
            f"{mixed['kernels_ms'][mixed['floats']]:.2f} ms, summed over kernels)."
        ]
    return []


def _pictures(context: Context, whole: Int8Network) -> Iterator[Arrays]:
    values = sum(one.elements for one in whole.ranges.tensors.values())
    low, high = _PICTURES
    limit = min(max(_VALUES // max(1, values), low), high)
    return batches_up_to(context.selection, min(limit, 8), limit)


def _report(search: MixedSearch, int8: frozenset[str]) -> dict[str, object]:
    blame = search.blame
    computing = [node for node in blame.nodes if not node.follows]
    noise_of_node = noise_by_node(blame)
    rows: list[dict[str, object]] = []
    for node in computing:
        rows.append(
            {
                "name": node.name,
                "op_type": node.op_type,
                "int8": node.name in int8,
                f"{blame.floats}_ms": round(node.float_ms, 4),
                "int8_ms": round(node.int8_ms, 4),
                "noise": float(f"{noise_of_node[node.name]:.3g}") if blame.runs else None,
                "score_drop": search.drops.get(node.name),
            }
        )
    noise = noise_of(blame, int8)
    return {
        "int8_nodes": sum(1 for node in computing if node.name in int8),
        "of_nodes": len(computing),
        "predicted_sqnr_db": decibels(noise) if blame.runs else None,
        "floats": blame.floats,
        "kernels_ms": {blame.floats: blame.float_ms, "int8": blame.int8_ms},
        "whole_ms": {blame.floats: blame.float_wall_ms, "int8": blame.int8_wall_ms},
        "damage": {"graphs": blame.runs, "pictures": blame.pictures, "outputs": blame.outputs},
        "attempts": search.attempts,
        "nodes": rows,
    }
