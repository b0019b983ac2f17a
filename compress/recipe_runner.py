"""One target's way through a recipe: its candidates are tried on its engine, the best ships."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from ..benchmarks.tasks.task import Score
from ..export.graph.onnx_graph import Graph
from ..export.receipt import count_macs
from ..runtime.target import Target
from ..runtime.tensors import Arrays
from .distillation.distil_pass import Lesson, Pupil
from .evaluation.acceptance import (
    Trial,
    best_rival,
    fallen_back,
    forgotten,
    is_faster,
    outrun,
    try_out,
)
from .evaluation.evaluator import Judge
from .evaluation.score_drop import Drop, Drops, drop_in
from .pruning.prune_pass import Cut, precision_after, prune_pass
from .quantization.bfloat16_pass import floats_beside_int8, int8_ways, note_of, untouched, ways
from .quantization.fp16_pass import beside_int8, has_fp16
from .quantization.int8_pass import finish, prepare, run_pass
from .quantization.mixed_precision import mix, notes_of
from .quantization.qat_pass import Tuned, Tuner, as_fast, held_against
from .recipe.absent_device import note
from .recipe.pass_context import Context, Outcome, RangesOnce, float32
from .recipe.recipe import Recipe
from .recipe.settings import Distil, Fp16, Int8, Prune, Qat
from .result import Result
from .source.backbone import Backbone
from .source.data_and_task import Material
from .source.source_network import Subject, fixed_batches, torch_network, with_batch


@dataclass(frozen=True)
class Work:
    """What is the same for every target.

    Attributes:
        opened: What the user brought, open.
        subject: That, captured.
        material: Pictures and task.
        recipe: What shall be done.
        example: One sample by input name.
        max_drop: Largest drop of the score, in points; ``None`` for any.
        seed: Of everything random.
        opset: Of exported graphs; an ONNX file's own.
        cache: Folder in which latencies of layers are kept, or ``None``.
        pupil: Who is trained, or ``None``.
        tuner: Trains for INT8, or ``None``.
        ranges: What calibration saw so far.
    """

    opened: Backbone | Graph
    subject: Subject
    material: Material
    recipe: Recipe
    example: Arrays
    max_drop: float | None
    seed: int
    opset: int
    cache: str | Path | None
    pupil: Pupil | None
    tuner: Tuner | None
    ranges: RangesOnce

    def context(self, target: Target, graph: Graph, judge: Judge, here: bool) -> Context:
        """What a pass from ``graph`` for a target may look at."""
        split, preprocessing = self.material.split, self.subject.preprocessing
        return Context(
            target=target,
            calibration=fixed_batches(graph, split.calibration, preprocessing),
            calibration_count=len(split.calibration),
            selection=fixed_batches(graph, split.selection, preprocessing),
            macs=count_macs(graph, with_batch(self.example, graph)),
            progress=judge.progress,
            device_here=here,
            seen=self.ranges,
            example=self.example,
            cache=judge.cache,
        )


@dataclass(frozen=True)
class Step:
    """What a pass on torch modules gave, for every target alike.

    Attributes:
        report: What the recipe in the bundle says of it.
        made: The network; ``None`` where it is judged when it has been trained.
        settings: Of the pass.
        made_on: The target that it was made on.
    """

    report: dict[str, object]
    made: Cut | Lesson | None
    settings: Prune | Distil
    made_on: Target

    def notes_for(self, target: Target) -> list[str]:
        """Remarks for people who look at what ships for a target."""
        told = list(self.made.notes) if isinstance(self.made, Lesson) else []
        narrow = isinstance(self.settings, Prune) and self.settings.max_latency_ratio
        if narrow and target != self.made_on:
            told.append(
                f"the network was pruned for its latency on {self.made_on.name}; for {target.name} "
                "the same network was tried, not pruned anew."
            )
        return told


class Networks:
    """Runs the passes that work on torch modules: each once, whatever the number of targets.

    Args:
        work: What is the same for every target.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._steps: dict[int, Step] = {}

    def step(self, number: int, settings: Prune | Distil, context: Context) -> Step:
        """What the pass gives.

        Args:
            number: Its place in the recipe.
            settings: Its settings.
            context: Of the original on the target that comes first: latencies are its own.
        """
        if number not in self._steps:
            report, made = self._made(number, settings, context)
            self._steps[number] = Step(report, made, settings, context.target)
        return self._steps[number]

    def _made(
        self, number: int, settings: Prune | Distil, context: Context
    ) -> tuple[dict[str, object], Cut | Lesson | None]:
        work = self._work
        pupil = work.pupil
        if isinstance(settings, Distil):
            assert pupil is not None
            lesson = pupil.learn(work.subject, work.opset, context.progress)
            return lesson.report, lesson
        precision = precision_after(work.recipe.passes, number)
        asked = {"precision": precision, "target": context.target.name, "seed": work.seed}
        asked |= asdict(settings)
        before = None if pupil is None else pupil.cut_before(asked)
        if pupil is not None and before is not None:
            return pupil.take(before, asked), None
        cut = prune_pass(
            work.opened,
            work.subject,
            work.material.split.calibration,
            settings,
            precision,
            context,
            task=work.material.task.name,
            seed=work.seed,
            opset=work.opset,
            cache=work.cache,
        )
        if pupil is not None:
            return pupil.take(cut.pruned, asked), None
        return cut.report, cut


def follow(
    work: Work, judge: Judge, target: Target, here: bool, networks: Networks, original: Score
) -> Result:
    """Make the recipe's candidates for a target, try each, and keep the best.

    Args:
        work: What is the same for every target.
        judge: Of the original, on the target's engine.
        target: What is made for.
        here: Whether its device is here.
        networks: Runs the passes on torch modules.
        original: The original's score on the test pictures.
    """
    graph, material, passes = work.subject.graph, work.material, work.recipe.passes
    context = work.context(target, graph, judge, here)
    plain = outcome = float32(graph, context)
    now, at, shipped_macs = graph, context, context.macs
    best: Trial | None = None
    notes, trials, reports = list[str](), list[Trial](), list[dict[str, object]]()
    smaller: Cut | Lesson | Tuned | None = None
    dropping = partial(drop_in, judge, material, original)
    tried: list[Trial] = []
    for number, settings in enumerate(passes):
        made: Cut | Lesson | Tuned | None = None
        without: Trial | None = None
        if isinstance(settings, Qat):
            without = next((one for one in tried if one is best), tried[0])
            drops = Drops.of(dropping, now, best, at.floats)
            tuned = _in_vain(without, best) or _tuned(
                work, number, smaller, now, without, at, judge, drops
            )
            if isinstance(tuned, str):
                reports.append({"left_out": tuned})
                notes.append(f"qat was left out: {tuned}.")
                continue
            made, candidates = tuned, int8_ways(tuned.outcome, judge, at)
            reports.append(candidates[0].report)
            notes += tuned.notes
        elif isinstance(settings, (Prune, Distil)):
            step = networks.step(number, settings, context)
            made = step.made
            reports.append(step.report)
            notes += step.notes_for(target)
            if made is None:  # judged when it is trained
                continue
            candidates = ways(made.outcome(context), made.graph, judge)
        else:
            floats = floats_beside_int8(now, judge, dropping, work.max_drop)
            at = replace(at, floats=floats)
            drops = Drops.of(dropping, now, best, floats)
            floor = _in_fp16(now, settings, at, judge, work, original, trained=outcome.trained)
            if floor is not None:
                trials.append(floor)
                if floor.verdict.accepted and is_faster(floor, best, judge):
                    best, outcome, shipped_macs = floor, floor.outcome, at.macs
            candidate = _candidate(now, settings, at, drops.judged, work.max_drop)
            candidates = int8_ways(replace(candidate, trained=outcome.trained), judge, at)
            reports.append(candidates[0].report)
            notes += _without_blame(settings, at)
        tried = [try_out(one, judge, material, original, work.max_drop) for one in candidates]
        if without is not None:
            tried = [held_against(one, without) for one in tried]
        trials += tried
        fallen = fallen_back(candidates[0])
        notes += [*([f"{fallen}."] if fallen else []), *notes_of(candidates[0])]
        notes += forgotten(tried[0], original)
        if not any(trial.verdict.accepted for trial in tried):
            notes += [f"{settings.kind} was declined: {reason}." for reason in _why(tried)]
        for trial in tried:
            if not trial.verdict.accepted:
                continue
            if best is not None and not _better(trial, best, without, judge):
                notes += outrun(trial, best, judge)
            else:
                best, outcome = trial, trial.outcome
                if made is not None:
                    smaller, now = made, made.graph
                    at = work.context(target, now, judge, here)
                shipped_macs = at.macs
    rival = best_rival(trials)
    if rival is not None:
        best = untouched(rival, plain, graph)
        if best is not None:
            trials.append(best)
            outcome = best.outcome
    notes += [] if best is None else note_of(best)
    if not here:
        notes.append(note(target, outcome.receipt))
    recipe = {**_settled(work, target), "reports": reports}
    pruned = None if smaller is None else smaller.pruned
    return Result(
        work.subject, material, outcome, trials, original, shipped_macs, notes, recipe, pruned
    )


def _why(tried: Sequence[Trial]) -> list[str]:
    """The reasons of all, each once."""
    return list(dict.fromkeys(reason for trial in tried for reason in trial.verdict.reasons))


def _settled(work: Work, target: Target) -> dict[str, object]:
    """The recipe and all that it was run with."""
    split = work.material.split
    return {
        **work.recipe.to_dict(),
        "model": work.subject.name,
        "weights_sha256": work.subject.weights_sha256,
        "target": target.name,
        "task": work.material.task.name,
        "max_drop": work.max_drop,
        "calibration_size": len(split.calibration),
        "selection_size": len(split.selection),
        **({} if work.pupil is None else work.pupil.to_dict()),
        "seed": work.seed,
        "opset": work.opset,
    }


def _tuned(
    work: Work,
    number: int,
    smaller: Cut | Lesson | Tuned | None,
    graph: Graph,
    without: Trial,
    context: Context,
    judge: Judge,
    drops: Drops,
) -> Tuned | str:
    """The network trained for INT8, or why that is not needed."""
    tuner, whole, int8 = work.tuner, torch_network(work.opened), work.recipe.passes[number - 1]
    assert tuner is not None
    assert isinstance(int8, Int8)
    reason = tuner.not_needed(without, drops.judged, work.max_drop, drops.before)
    if reason is not None:
        return reason
    start = whole
    if smaller is not None:
        start = replace(whole, module=smaller.pruned.module, history=smaller.pruned.history)
    return tuner.tune(
        start,
        whole,
        work.subject,
        work.material,
        graph,
        int8,
        context,
        lambda made: replace(
            work.context(context.target, made, judge, context.device_here),
            floats=context.floats,
        ),
        drops.judged,
        work.max_drop,
        work.opset,
    )


def _in_vain(without: Trial, best: Trial | None) -> str | None:
    """Why training for INT8 could not make it ship, or ``None``."""
    if best is None or best is without or not without.verdict.accepted:
        return None
    return (
        f"{without.outcome.name} keeps the score and is not faster than {best.outcome.name}, which "
        "no training changes"
    )


def _better(trial: Trial, best: Trial, without: Trial | None, judge: Judge) -> bool:
    """Whether a trial takes the best one's place; ``without`` is that of INT8 without training."""
    if without is not None and as_fast(trial, without, best):
        return True
    return is_faster(trial, best, judge)


def _in_fp16(
    graph: Graph,
    settings: Int8 | Fp16,
    context: Context,
    judge: Judge,
    work: Work,
    original: Score,
    *,
    trained: bool,
) -> Trial | None:
    """On a target that computes in FP16: the network in that, which INT8 has to beat."""
    made = beside_int8(graph, settings, context) if isinstance(settings, Int8) else None
    if made is None:
        return None
    made = replace(made, trained=trained, stand_in=graph is work.subject.graph)
    return try_out(made, judge, work.material, original, work.max_drop)


def _without_blame(settings: Int8 | Fp16, context: Context) -> list[str]:
    """In words, why what each node costs was not measured although it was asked for."""
    if not isinstance(settings, Int8) or not settings.blame:
        return []
    if has_fp16(context):
        why = f"nodes are not timed one by one in {context.engine}"
    elif settings.int8_nodes:
        why = "the recipe names the nodes that are INT8"
    elif not settings.mixed:
        why = "the recipe has no mixed precision"
    else:
        return []
    return [f"what each node costs the score was not measured: {why}."]


def _candidate(
    graph: Graph, settings: Int8 | Fp16, context: Context, drop: Drop, max_drop: float | None
) -> Outcome:
    """What a pass makes of the network, in mixed precision where that is better."""
    if not isinstance(settings, Int8) or has_fp16(context):
        return run_pass(graph, settings, context)
    whole = prepare(graph, settings, context)
    if not settings.mixed or settings.int8_nodes:
        return finish(whole, settings, context)
    return mix(whole, settings, context, drop, max_drop)
