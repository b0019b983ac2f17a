"""Mixed precision: leave in float32 what does not pay in INT8, or costs more than is allowed.

What it does: measures each node's time in both precisions and the price of borders, and lets
:mod:`edgepress.compress.trade` find the fastest plan; where what comes out costs more of the score
on the selection pictures than is allowed, measures each node's damage too, and tightens the plan's
bound until the score holds or no plan is faster than float32. Every plan is written, its biases
are corrected, and it is scored and timed on its bytes before it is believed.
When it is exact: never.
When it refuses: where everything in INT8 is the best, it leaves that as it is; where nothing holds,
it says what was tried.
Source: see :mod:`edgepress.compress.trade` and :mod:`edgepress.export.damage`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ..export.blame import Blame
from ..export.damage import SESSIONS
from ..export.dialects.qdq import write_qdq
from ..export.measuring import Whole, measure_times, with_damage
from ..export.plan import plan_int8
from ..export.timing import kernels_ms
from ..runtime.tensors import Arrays
from .passes import Context, Count, Outcome, finish
from .recipe import Int8
from .trade import Decision, borders_ms, decibels, decide, noise_of, predicted_ms

_WORTH = 0.95  # of the time before; a plan that is predicted to take more is not tried
_ATTEMPTS = 5
_STEP = (0.1, 0.7)  # what the bound on the noise is multiplied by, from one attempt to the next
_VALUES = 120_000_000  # activations that a graph of the damage may compute
_PICTURES = (4, 32)
_PROFILES = 6

Drop = Callable[[bytes], float]
"""How many points of the score a model's bytes lose on pictures that choose."""


@dataclass
class Search:
    """What was tried, in order.

    Attributes:
        blame: What was measured.
        attempts: One entry for each plan: what was predicted and what came out, JSON values only.
    """

    blame: Blame
    attempts: list[dict[str, object]] = field(default_factory=list[dict[str, object]])


@dataclass(frozen=True)
class _Try:
    """A candidate, and its entry in the report."""

    outcome: Outcome
    int8: frozenset[str]
    drop: float
    told: dict[str, object]


def mix(
    whole: Whole,
    plain: Outcome,
    settings: Int8,
    context: Context,
    drop: Drop,
    max_drop: float | None,
) -> Outcome:
    """The best of everything in INT8 and the plans that leave some of it in float32.

    Args:
        whole: Everything in INT8 that can be.
        plain: The same, finished.
        settings: Of the pass.
        context: Of the pass.
        drop: Scores a candidate on the selection pictures.
        max_drop: Largest drop of the score, in points; ``None`` for any.

    Returns:
        The fastest that holds the bound on the selection pictures; where none does, everything in
        INT8. Its report has ``mixed``: what was measured and tried.
    """
    if not whole.quantized.units:
        return plain
    feeds = next(iter(context.selection(1)))
    progress = Count(context, "timing every node", _PROFILES)
    blame = measure_times(whole, context.target.engine, feeds, progress.add)
    search = Search(blame)
    builder = _Builder(whole, settings, context, drop, feeds, search)
    everything = frozenset(node.name for node in blame.nodes)
    best = builder.judged(plain, everything, None)
    if max_drop is not None and best.drop > max_drop:
        best = _hold(builder, best, max_drop) or best
    else:
        best = _hurry(builder, best, max_drop)
    return replace(best.outcome, report={**best.outcome.report, "mixed": _report(search, best)})


def _hurry(builder: _Builder, best: _Try, max_drop: float | None) -> _Try:
    """The fastest plan, where it is faster than everything in INT8 and holds the bound too."""
    blame = builder.search.blame
    fastest = decide(blame)
    if not fastest.int8 or fastest.predicted_ms > _WORTH * predicted_ms(blame, best.int8):
        return best
    found = builder.build(fastest)
    if max_drop is not None and found.drop > max_drop:
        return best
    return builder.faster(best, found) or best


def _hold(builder: _Builder, best: _Try, max_drop: float) -> _Try | None:
    """The first plan that holds the bound, each with less noise than the one before."""
    context, search = builder.context, builder.search
    pictures = list(_pictures(context, builder.whole))
    progress = Count(context, "measuring every node's damage", SESSIONS)
    search.blame = blame = with_damage(search.blame, builder.whole, pictures, progress.add)
    noise, lost = noise_of(blame, best.int8), best.drop
    for _ in range(_ATTEMPTS):
        noise *= min(max(0.6 * max_drop / lost, _STEP[0]), _STEP[1])
        decision = decide(blame, noise)
        if not decision.int8 or decision.predicted_ms > _WORTH * blame.float32_ms:
            told = "no plan within this noise is predicted to be faster than float32"
            search.attempts.append({**decision.to_dict(), "not_built": told})
            return None
        found = builder.build(decision)
        if found.drop <= max_drop:
            return builder.faster(found)
        noise, lost = min(noise, decision.predicted_noise or noise), found.drop
    return None


@dataclass
class _Builder:
    whole: Whole
    settings: Int8
    context: Context
    drop: Drop
    feeds: Arrays
    search: Search

    def build(self, decision: Decision) -> _Try:
        """Write a plan, correct its biases, score and time it."""
        whole = self.whole
        plan = plan_int8(
            whole.graph,
            whole.ranges,
            whole.dialect,
            keep_float=self.settings.keep_float,
            given=decision.plan,
        )
        written = write_qdq(
            whole.graph, whole.ranges, plan, whole.dialect, weight_method=whole.weight_method
        )
        outcome = finish(replace(whole, plan=plan, quantized=written), self.settings, self.context)
        outcome.report["int8_nodes"] = list(decision.int8)
        return self.judged(outcome, frozenset(decision.int8), decision)

    def judged(self, outcome: Outcome, int8: frozenset[str], decision: Decision | None) -> _Try:
        """Score a candidate, and write down what was predicted and what came out."""
        drop, blame = self.drop(outcome.shipped.model), self.search.blame
        told: dict[str, object] = {
            "plan": "everything" if decision is None else "decided",
            **({"predicted_ms": predicted_ms(blame, int8)} if decision is None else {}),
            **({} if decision is None else decision.to_dict()),
            "borders_ms": borders_ms(blame, int8),
            "drop_on_selection": drop,
        }
        self.search.attempts.append(told)
        return _Try(outcome, int8, drop, told)

    def faster(self, *tried: _Try) -> _Try | None:
        """The fastest of some candidates by their kernels, timed in turn with the float32 graph.

        Returns:
            ``None`` where that is the fastest.
        """
        models = (self.whole.graph.model, *(one.outcome.shipped.model for one in tried))
        original, *taken = kernels_ms(self.context.target.engine, models, self.feeds)
        for one, ms in zip(tried, taken, strict=True):
            one.told.update({"measured_ms": ms, "float32_ms": original})
        best = min(range(len(tried)), key=lambda i: taken[i])
        return tried[best] if taken[best] < original else None


def notes_of(outcome: Outcome) -> list[str]:
    """In words, what a mixed plan leaves in float32, or why there is none."""
    mixed: Any = outcome.report.get("mixed")
    if mixed is None:
        return []
    kept, total = mixed["of_nodes"] - mixed["int8_nodes"], mixed["of_nodes"]
    if kept:
        return [
            f"{kept} of {total} nodes that could run in INT8 stay in float32, because they measure "
            "so on this machine; 'edgepress inspect' shows each."
        ]
    last = mixed["attempts"][-1]
    if "not_built" in last:
        return [
            f"every node was measured: {last['not_built']} ({last['predicted_ms']:.2f} ms against "
            f"{mixed['kernels_ms']['float32']:.2f} ms, summed over kernels)."
        ]
    return []


def _pictures(context: Context, whole: Whole) -> Iterator[Arrays]:
    values = sum(one.elements for one in whole.ranges.tensors.values())
    low, high = _PICTURES
    limit, count = min(max(_VALUES // max(1, values), low), high), 0
    for feeds in context.selection(min(limit, 8)):
        yield feeds
        count += len(next(iter(feeds.values())))
        if count >= limit:
            return


def _report(search: Search, best: _Try) -> dict[str, object]:
    blame = search.blame
    computing = [node for node in blame.nodes if not node.follows]
    tensors = {tensor.name: tensor for tensor in blame.tensors}
    rows: list[dict[str, object]] = []
    for node in computing:
        given = [tensors[name] for name in node.gives if name in tensors]
        noise = max(node.damage.values(), default=0.0)
        noise += sum(max(one.damage.values(), default=0.0) for one in given)
        rows.append(
            {
                "name": node.name,
                "op_type": node.op_type,
                "int8": node.name in best.int8,
                "float32_ms": round(node.float32_ms, 4),
                "int8_ms": round(node.int8_ms, 4),
                "noise": float(f"{noise:.3g}") if blame.runs else None,
            }
        )
    noise = noise_of(blame, best.int8)
    return {
        "int8_nodes": sum(1 for node in computing if node.name in best.int8),
        "of_nodes": len(computing),
        "predicted_sqnr_db": decibels(noise) if blame.runs else None,
        "kernels_ms": {"float32": blame.float32_ms, "int8": blame.int8_ms},
        "whole_ms": {"float32": blame.float32_wall_ms, "int8": blame.int8_wall_ms},
        "damage": {"graphs": blame.runs, "pictures": blame.pictures, "outputs": blame.outputs},
        "attempts": search.attempts,
        "nodes": rows,
    }
