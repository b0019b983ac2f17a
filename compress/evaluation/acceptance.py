"""Prove or decline: is a candidate faster on this machine, and as good as asked?

Everything is scored and timed on the bytes that would ship.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...benchmarks.latency.comparison import Comparison
from ...benchmarks.tasks.task import Score
from ...export.int8.dialect import DIALECTS
from ...runtime.engines.engine import PRECISION_WORDS, Precision, computed_in
from ..recipe.pass_context import Outcome
from ..source.data_and_task import DataAndTask
from .evaluator import Evaluator

DEFAULT_MAX_DROP = {
    "classification": 1.0,
    "retrieval": 1.0,
    "verification": 1.0,
    "agreement": 3.0,
}
"""Points that a score may drop by, where the user does not say."""


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate ships, and why not.

    Attributes:
        accepted: Whether it ships.
        reasons: Why it does not; empty where it does.
    """

    accepted: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class RivalPrecision:
    """Another way to run the untouched network on the target.

    Attributes:
        precision: What it computes in.
        drops: Original's score less its own, by the name of the pictures.
        keeps: Whether those are within the bound; what does not keep the score is no way to run it.
        comparison: The candidate (``a``) against it (``b``); ``None`` where it does not keep the
            score, or there is no candidate to time.
        over_float32: It (``a``) against float32 (``b``); measured where the candidate does not
            beat both, which leaves open which of the two is best.
        selection: Its score on the selection pictures; ``None`` for a score of the user's own.
        test: Its score on the test pictures.
    """

    precision: Precision
    drops: Mapping[str, float]
    keeps: bool
    comparison: Comparison | None
    over_float32: Comparison | None = None
    selection: Score | None = None
    test: Score | None = None

    @property
    def pays(self) -> bool:
        """Whether it keeps the score and was measured to be faster than float32."""
        return self.keeps and self.over_float32 is not None and self.over_float32.faster == "a"

    @property
    def holds_back(self) -> bool:
        """Whether a candidate that beats float32 is no better than it.

        It is where it is faster. Where neither is, it counts if it beats float32 as well.
        """
        if self.comparison is None or self.comparison.faster == "a":
            return False
        return self.comparison.faster == "b" or self.over_float32 is None or self.pays


@dataclass(frozen=True)
class EvaluatedCandidate:
    """A candidate, what was measured of it and what was decided.

    Attributes:
        outcome: The candidate.
        comparison: With float32; ``None`` where it is the float32 graph.
        selection: Its score on the selection pictures; ``None`` for a score of the user's own.
        test: Its score on the test pictures.
        verdict: What was decided.
        rivals: Other ways to run the untouched network, which the candidate had to beat as well.
        seen: The original's score on the selection pictures where it was trained on them, so that
            a drop there says nothing of a student; else ``None``.
    """

    outcome: Outcome
    comparison: Comparison | None
    selection: Score | None
    test: Score
    verdict: Verdict
    rivals: tuple[RivalPrecision, ...] = ()
    seen: Score | None = None


def evaluate_candidate(
    candidate: Outcome,
    evaluator: Evaluator,
    data_and_task: DataAndTask,
    original_test: Score,
    max_drop: float | None,
) -> EvaluatedCandidate:
    """Score and time a candidate, and decide.

    Args:
        candidate: What a pass made.
        evaluator: Of the network.
        data_and_task: Pictures and task.
        original_test: The original's score on the test pictures.
        max_drop: Largest drop of the score; ``None`` for any.
    """
    shipped = candidate.shipped
    original_selection = None
    if not data_and_task.own_score:
        part = data_and_task.split.selection
        original_selection = evaluator.score(
            evaluator.graph.model, part, "float32 on the selection"
        )
    seen = candidate.trained and has_seen(original_selection, original_test)
    told = original_selection if seen else None
    known = _Known(evaluator, data_and_task, original_selection, original_test, seen)
    if shipped.emulated is not None:  # its device is not here: what it scores, and no time
        selection, test, drops = known.scores(shipped.emulated, shipped.precision)
        verdict = decide_score(drops, max_drop)
        if not candidate.changed:
            verdict = decide_acceptance(None, drops, max_drop)
        return EvaluatedCandidate(candidate, None, selection, test, verdict, seen=told)
    selection, test, drops = known.scores(
        shipped.model, shipped.precision, computed_in(shipped.precision)
    )
    precision = computed_in(shipped.precision)
    comparison = evaluator.compare(shipped.model, precision) if candidate.changed else None
    missed = why_nothing_ran(candidate)
    so_far = decide_acceptance(comparison, drops, max_drop, name=candidate.name, missed=missed)
    rivals = tuple(
        _rival(other, known, max_drop, candidate, so_far) for other in evaluator.rivals()
    )
    verdict = decide_acceptance(comparison, drops, max_drop, rivals, candidate.name, missed)
    return EvaluatedCandidate(candidate, comparison, selection, test, verdict, rivals, told)


def why_nothing_ran(candidate: Outcome) -> str:
    """In words, that the engine took nothing of a candidate in INT8 or FP16; empty where it did.

    Where weights alone are codes, no kernel computes on them, nor was asked to.
    """
    receipt, speech = candidate.receipt, DIALECTS.get(candidate.shipped.dialect)
    if candidate.shipped.precision == "fp16" and candidate.changed:
        asked, taken = "nodes in FP16", receipt.count("fp16")
    else:
        asked, taken = f"{receipt.asked_int8} nodes in INT8", receipt.fused_int8
        if not receipt.asked_int8 or (speech and speech.weight_only):
            return ""
    if taken:
        return ""
    why = f"{candidate.name} is not what it runs"
    if not receipt.tells:
        why = "it does not tell what its layers compute in, so that nothing proves it"
    return f"the engine took none of the {asked} that were written so: {why}"


def fallen_back(candidate: Outcome) -> str:
    """In words, which nodes the engine did not take in INT8 although they were written so.

    Empty where it took all, and where its device is not here to tell.
    """
    receipt, speech = candidate.receipt, DIALECTS.get(candidate.shipped.dialect)
    if candidate.shipped.emulated is not None or (speech and speech.weight_only):
        return ""
    if receipt.fused_int8 == receipt.asked_int8:
        return ""
    fallen = [node.name for node in receipt.nodes if node.reason.startswith("asked for INT8")]
    more = ", ..." if len(fallen) > 5 else ""
    return (
        f"the engine took {receipt.fused_int8} of {receipt.asked_int8} nodes in INT8; "
        f"not {', '.join(fallen[:5])}{more}"
    )


def has_seen(selection: Score | None, test: Score) -> bool:
    """Whether the original scores clearly better on the selection than on the test pictures.

    Then it was trained on them, and what it knows of those by heart no student can.
    """
    if selection is None or selection.low is None or test.high is None:
        return False
    return selection.low > test.high


@dataclass(frozen=True)
class _Known:
    """The original's scores, which others are held against."""

    evaluator: Evaluator
    data_and_task: DataAndTask
    selection: Score | None
    test: Score
    seen: bool = False

    def scores(
        self, model: bytes, name: str, precision: Precision = "f32"
    ) -> tuple[Score | None, Score, dict[str, float]]:
        """Scores on the selection and on the test pictures, and how far they are below."""
        drops: dict[str, float] = {}
        selection = None
        if self.selection is not None:
            part = self.data_and_task.split.selection
            what = f"{name} on the selection pictures"
            selection = self.evaluator.score(model, part, what, precision)
            if not self.seen:
                drops["selection"] = self.selection.value - selection.value
        what = f"{name} on the test pictures"
        test = self.evaluator.score(model, self.data_and_task.test, what, precision)
        drops["test"] = self.test.value - test.value
        return selection, test, drops


def _rival(
    precision: Precision,
    known: _Known,
    max_drop: float | None,
    candidate: Outcome,
    so_far: Verdict,
) -> RivalPrecision:
    evaluator, shipped = known.evaluator, candidate.shipped
    selection, test, drops = known.scores(
        evaluator.graph.model, PRECISION_WORDS[precision], precision
    )
    keeps = max_drop is None or all(drop <= max_drop for drop in drops.values())
    against = over_float32 = None
    if keeps and candidate.changed:
        against = evaluator.compare(shipped.model, computed_in(shipped.precision), precision)
    beaten = so_far.accepted and against is not None and against.faster == "a"
    if keeps and not beaten:
        over_float32 = evaluator.compare(evaluator.graph.model, precision)
    return RivalPrecision(precision, drops, keeps, against, over_float32, selection, test)


def decide_acceptance(
    comparison: Comparison | None,
    drops: Mapping[str, float],
    max_drop: float | None,
    rivals: Sequence[RivalPrecision] = (),
    name: str = "INT8",
    missed: str = "",
) -> Verdict:
    """Whether a candidate ships. A pure function of what was measured.

    Args:
        comparison: Candidate (``a``) against float32 (``b``); ``None`` where nothing was changed.
        drops: Original's score less the candidate's, by the name of the pictures.
        max_drop: The largest drop allowed, in the unit of the score; ``None`` for any.
        rivals: Other ways to run the untouched network; the candidate must be faster than each that
            keeps the score (and, where the two are as fast as each other, beats float32).
        name: What the candidate is called.
        missed: In words, what was asked of the engine and not taken by it; empty where all was.
    """
    reasons: list[str] = [missed] if missed else []
    if comparison is None:
        reasons.append(f"no layer of this network can run in {name} on this target")
    else:
        if comparison.faster != "a":
            reasons.append(_slower(name, "float32", comparison))
        for one in rivals:
            if one.comparison is not None and one.holds_back:
                reasons.append(_slower(name, PRECISION_WORDS[one.precision], one.comparison))
    reasons += decide_score(drops, max_drop).reasons
    return Verdict(not reasons, tuple(reasons))


def decide_score(drops: Mapping[str, float], max_drop: float | None) -> Verdict:
    """Whether a candidate's score will do; arguments as for :func:`decide_acceptance`."""
    reasons = tuple(
        f"the score drops by {drop:.2f} on the {where} pictures, {max_drop:g} are allowed"
        for where, drop in drops.items()
        if max_drop is not None and not drop <= max_drop
    )
    return Verdict(not reasons, reasons)


def _slower(name: str, other: str, found: Comparison) -> str:
    how = "slower" if found.faster == "b" else "not measurably faster"
    busy = "" if found.settled else "; it did not settle, the machine is busy"
    return (
        f"{name} is {how} on this machine: {found.ratio:.2f}x the speed of {other} "
        f"(95 % interval {found.ratio_low:.2f} to {found.ratio_high:.2f}{busy})"
    )


def forgotten_drop_note(trial: EvaluatedCandidate, original: Score) -> list[str]:
    """In words, why a student's drop on the selection pictures is not held against it."""
    if trial.seen is None:
        return []
    return [
        f"the original scores {trial.seen.value:.2f} on the selection pictures and "
        f"{original.value:.2f} on the test pictures: it was trained on the former, so that only "
        "the latter judge the student."
    ]


def is_faster(
    trial: EvaluatedCandidate, before: EvaluatedCandidate | None, evaluator: Evaluator
) -> bool:
    """Whether a candidate that passed takes the place of one that passed before it.

    Its speed over the original is higher, and where the two are timed in turns it is measurably
    faster: each pass costs something of the score, which a gain within the noise does not pay for.

    Args:
        trial: Of the candidate.
        before: Of what would ship so far; ``None`` for nothing.
        evaluator: Times them; nothing is timed for a device that is not here.
    """
    if before is None or before.comparison is None:
        return True
    return _leads(trial, before) and _in_turns(trial, before, evaluator).faster == "a"


def why_not_faster(
    trial: EvaluatedCandidate, best: EvaluatedCandidate, evaluator: Evaluator
) -> list[str]:
    """In words, why a candidate that passed does not ship: it is not faster than another one."""
    if trial.comparison is None or best.comparison is None:
        return []
    ours, theirs = trial.outcome.name, best.outcome.name
    told = (
        f"{ours} would do, at {trial.comparison.ratio:.2f}x the speed of the original; {theirs} "
        f"ships, at {best.comparison.ratio:.2f}x."
    )
    if _leads(trial, best):
        told = f"{told[:-1]}: {_slower(ours, theirs, _in_turns(trial, best, evaluator))}."
    return [told]


def _leads(trial: EvaluatedCandidate, other: EvaluatedCandidate) -> bool:
    if trial.comparison is None or other.comparison is None:
        return False
    return trial.comparison.ratio > other.comparison.ratio


def _in_turns(
    trial: EvaluatedCandidate, other: EvaluatedCandidate, evaluator: Evaluator
) -> Comparison:
    """A candidate (``a``) against another one (``b``)."""
    ours, theirs = trial.outcome.shipped, other.outcome.shipped
    precisions = computed_in(ours.precision), computed_in(theirs.precision)
    return evaluator.compare(ours.model, *precisions, other=theirs.model)


def best_rival(trials: Sequence[EvaluatedCandidate]) -> RivalPrecision | None:
    """The untouched network in another precision, where that pays and no candidate ships."""
    if any(trial.verdict.accepted for trial in trials):
        return None
    return next((rival for trial in trials for rival in trial.rivals if rival.pays), None)
