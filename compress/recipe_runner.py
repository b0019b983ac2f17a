"""One target's way through a recipe: its candidates are tried on its engine, the best ships."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ..benchmarks.tasks.task import Score
from ..export.graph.onnx_graph import Graph
from ..runtime.target import Target
from .distillation.distil_pass import TrainedStudent
from .evaluation.acceptance import (
    EvaluatedCandidate,
    best_rival,
    evaluate_candidate,
    fallen_back,
    forgotten_drop_note,
    is_faster,
    why_not_faster,
)
from .evaluation.evaluator import Evaluator
from .evaluation.score_drop import DropOf, ScoreDrops, score_drop
from .job import Job
from .pruning.prune_pass import PruneResult
from .quantization.bfloat16_pass import (
    float_candidates,
    floats_beside_int8,
    half_precision_note,
    int8_candidates,
    unchanged_network,
)
from .quantization.fp16_pass import fp16_rival, has_fp16
from .quantization.int8_pass import finish_int8, prepare_int8, run_pass
from .quantization.mixed_precision import mix_precisions, mixed_plan_notes
from .quantization.qat_pass import QatResult, held_against_ptq, replaces_ptq
from .recipe.absent_device import absent_device_note
from .recipe.pass_context import Context, Outcome, float32_outcome
from .recipe.settings import Distil, Fp16, Int8, Prune, Qat
from .result import Result
from .source.source_network import torch_network
from .torch_passes import TorchPasses


def run_recipe(
    job: Job,
    evaluator: Evaluator,
    target: Target,
    here: bool,
    networks: TorchPasses,
    original: Score,
) -> Result:
    """Make the recipe's candidates for a target, try each, and keep the best.

    Args:
        job: What is the same for every target.
        evaluator: Of the original, on the target's engine.
        target: What is made for.
        here: Whether its device is here.
        networks: Runs the passes on torch modules.
        original: The original's score on the test pictures.
    """
    graph, data_and_task, passes = job.source.graph, job.data_and_task, job.recipe.passes
    context = job.context(target, graph, evaluator, here)
    plain = outcome = float32_outcome(graph, context)
    now, at, shipped_macs = graph, context, context.macs
    best: EvaluatedCandidate | None = None
    notes, trials, reports = list[str](), list[EvaluatedCandidate](), list[dict[str, object]]()
    smaller: PruneResult | TrainedStudent | QatResult | None = None
    dropping = partial(score_drop, evaluator, data_and_task, original)
    tried: list[EvaluatedCandidate] = []
    for number, settings in enumerate(passes):
        made: PruneResult | TrainedStudent | QatResult | None = None
        without: EvaluatedCandidate | None = None
        if isinstance(settings, Qat):
            without = next((one for one in tried if one is best), tried[0])
            drops = ScoreDrops.of(dropping, now, best, at.floats)
            tuned = _in_vain(without, best) or _tuned(
                job, number, smaller, now, without, at, evaluator, drops
            )
            if isinstance(tuned, str):
                reports.append({"left_out": tuned})
                notes.append(f"qat was left out: {tuned}.")
                continue
            made, candidates = tuned, int8_candidates(tuned.outcome, evaluator, at)
            reports.append(candidates[0].report)
            notes += tuned.notes
        elif isinstance(settings, (Prune, Distil)):
            step = networks.step(number, settings, context)
            made = step.made
            reports.append(step.report)
            notes += step.notes_for(target)
            if made is None:  # judged when it is trained
                continue
            candidates = float_candidates(made.outcome(context), made.graph, evaluator)
        else:
            floats = floats_beside_int8(now, evaluator, dropping, job.max_drop)
            at = replace(at, floats=floats)
            drops = ScoreDrops.of(dropping, now, best, floats)
            floor = _in_fp16(now, settings, at, evaluator, job, original, trained=outcome.trained)
            if floor is not None:
                trials.append(floor)
                if floor.verdict.accepted and is_faster(floor, best, evaluator):
                    best, outcome, shipped_macs = floor, floor.outcome, at.macs
            candidate = _candidate(now, settings, at, drops.judged, job.max_drop)
            candidates = int8_candidates(replace(candidate, trained=outcome.trained), evaluator, at)
            reports.append(candidates[0].report)
            notes += _without_blame(settings, at)
        tried = [
            evaluate_candidate(one, evaluator, data_and_task, original, job.max_drop)
            for one in candidates
        ]
        if without is not None:
            tried = [held_against_ptq(one, without) for one in tried]
        trials += tried
        fallen = fallen_back(candidates[0])
        notes += [*([f"{fallen}."] if fallen else []), *mixed_plan_notes(candidates[0])]
        notes += forgotten_drop_note(tried[0], original)
        if not any(trial.verdict.accepted for trial in tried):
            notes += [f"{settings.kind} was declined: {reason}." for reason in _why(tried)]
        for trial in tried:
            if not trial.verdict.accepted:
                continue
            if best is not None and not _better(trial, best, without, evaluator):
                notes += why_not_faster(trial, best, evaluator)
            else:
                best, outcome = trial, trial.outcome
                if made is not None:
                    smaller, now = made, made.graph
                    at = job.context(target, now, evaluator, here)
                shipped_macs = at.macs
    rival = best_rival(trials)
    if rival is not None:
        best = unchanged_network(rival, plain, graph)
        if best is not None:
            trials.append(best)
            outcome = best.outcome
    notes += [] if best is None else half_precision_note(best)
    if not here:
        notes.append(absent_device_note(target, outcome.receipt))
    recipe = {**job.settled(target), "reports": reports}
    pruned = None if smaller is None else smaller.pruned
    return Result(
        job.source, data_and_task, outcome, trials, original, shipped_macs, notes, recipe, pruned
    )


def _why(tried: Sequence[EvaluatedCandidate]) -> list[str]:
    """The reasons of all, each once."""
    return list(dict.fromkeys(reason for trial in tried for reason in trial.verdict.reasons))


def _tuned(
    job: Job,
    number: int,
    smaller: PruneResult | TrainedStudent | QatResult | None,
    graph: Graph,
    without: EvaluatedCandidate,
    context: Context,
    evaluator: Evaluator,
    drops: ScoreDrops,
) -> QatResult | str:
    """The network trained for INT8, or why that is not needed."""
    qat_training, whole, int8 = (
        job.qat_training,
        torch_network(job.opened),
        job.recipe.passes[number - 1],
    )
    assert qat_training is not None
    assert isinstance(int8, Int8)
    reason = qat_training.not_needed(without, drops.judged, job.max_drop, drops.before)
    if reason is not None:
        return reason
    start = whole
    if smaller is not None:
        start = replace(whole, module=smaller.pruned.module, history=smaller.pruned.history)
    return qat_training.tune(
        start,
        whole,
        job.source,
        job.data_and_task,
        graph,
        int8,
        context,
        lambda made: replace(
            job.context(context.target, made, evaluator, context.device_here),
            floats=context.floats,
        ),
        drops.judged,
        job.max_drop,
        job.opset,
    )


def _in_vain(without: EvaluatedCandidate, best: EvaluatedCandidate | None) -> str | None:
    """Why training for INT8 could not make it ship, or ``None``."""
    if best is None or best is without or not without.verdict.accepted:
        return None
    return (
        f"{without.outcome.name} keeps the score and is not faster than {best.outcome.name}, which "
        "no training changes"
    )


def _better(
    trial: EvaluatedCandidate,
    best: EvaluatedCandidate,
    without: EvaluatedCandidate | None,
    evaluator: Evaluator,
) -> bool:
    """Whether a trial takes the best one's place; ``without`` is that of INT8 without training."""
    if without is not None and replaces_ptq(trial, without, best):
        return True
    return is_faster(trial, best, evaluator)


def _in_fp16(
    graph: Graph,
    settings: Int8 | Fp16,
    context: Context,
    evaluator: Evaluator,
    job: Job,
    original: Score,
    *,
    trained: bool,
) -> EvaluatedCandidate | None:
    """On a target that computes in FP16: the network in that, which INT8 has to beat."""
    made = fp16_rival(graph, settings, context) if isinstance(settings, Int8) else None
    if made is None:
        return None
    made = replace(made, trained=trained, stand_in=graph is job.source.graph)
    return evaluate_candidate(made, evaluator, job.data_and_task, original, job.max_drop)


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
    graph: Graph, settings: Int8 | Fp16, context: Context, drop: DropOf, max_drop: float | None
) -> Outcome:
    """What a pass makes of the network, in mixed precision where that is better."""
    if not isinstance(settings, Int8) or has_fp16(context):
        return run_pass(graph, settings, context)
    whole = prepare_int8(graph, settings, context)
    if not settings.mixed or settings.int8_nodes:
        return finish_int8(whole, settings, context)
    return mix_precisions(whole, settings, context, drop, max_drop)
