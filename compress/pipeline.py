"""The main job: a trained network becomes a verified bundle, or the answer why not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ..benchmarks.images import Images
from ..benchmarks.tasks import Score
from ..export.capture import evaluating
from ..export.graph import Graph
from ..export.receipt import count_macs
from ..runtime.bundle import Bundle
from ..runtime.errors import BoundError, InputError
from ..runtime.files import disk_room
from ..runtime.preprocessing import Preprocessing
from ..runtime.seal import check_out, write_files
from ..runtime.target import Target
from ..runtime.target import target as target_of
from ..runtime.tensors import Arrays
from .backbone import Backbone
from .history import Pruned
from .loader_check import check_loader
from .material import (
    AnyTask,
    Data,
    Material,
    check_labels,
    gather,
    shipped_preprocessing,
    suspicions,
)
from .mixing import mix, notes_of
from .passes import Context, Outcome, Progress, finish, float32, prepare, run_pass
from .prove import DEFAULT_MAX_DROP, Judge, Trial, best_rival, forgotten, is_faster, try_out
from .pruning_pass import precision_after, prune_pass, with_limits
from .qat import Tuner, as_fast, held_against
from .recipe import Distil, Fp16, Int8, Prune, Qat, Recipe
from .result import Result
from .students import Finetune, School, enrol
from .subject import (
    Model,
    Subject,
    first_rows,
    fixed_batches,
    make_subject,
    open_model,
    torch_network,
    with_batch,
)
from .unproven import STAND_IN, check_device, note
from .weights import check_weights_out, save_weights

CALIBRATION_SIZE = 300


def _silent(stage: str, done: int, total: int | None) -> None:
    del stage, done, total


def compress(
    model: Model,
    data: Data,
    *,
    out: str | Path,
    weights: str | None = None,
    test_data: Data | None = None,
    preprocessing: Preprocessing | str | Path | None = None,
    task: AnyTask = None,
    target: str = "onnxruntime-cpu",
    recipe: str | Recipe = "int8",
    max_drop: float | None = None,
    strict: bool = False,
    calibration_size: int = CALIBRATION_SIZE,
    seed: int = 0,
    opset: int = 18,
    loader: Iterable[object] | None = None,
    student: Model | None = None,
    student_weights: str | None = None,
    finetune: Finetune | None = None,
    resume: bool = False,
    golden_pictures: bool = False,
    unproven: bool = False,
    max_latency_ratio: float | None = None,
    max_macs_ratio: float | None = None,
    max_size_mb: float | None = None,
    keep: Sequence[str] = (),
    cache: str | Path | None = None,
    weights_out: str | Path | None = None,
    force: bool = False,
    progress: Progress = _silent,
) -> Bundle:
    """Compress a trained network for a target and write the bundle that ships.

    The network is captured as a float32 ONNX graph whose outputs are compared with torch's on real
    pictures; the recipe's passes make a candidate; the candidate is timed against float32 on this
    machine, interleaved, and scored on the bytes that ship. Where it is not measurably faster, or
    its score drops by more than ``max_drop`` on the selection pictures or on the test pictures, it
    is declined: the bundle then holds float32 and its notes say why.

    Args:
        model: ``path/to/file.py:factory``, ``package.module:factory``, ``timm:NAME``,
            ``torchvision:NAME``, a trained ``.onnx`` file, a torch module (run in evaluation mode,
            then left as it was), a :class:`~edgepress.compress.backbone.Backbone`, or an
            ``onnx.ModelProto``.
        data: Pictures for calibration and selection, and for the test where ``test_data`` is not
            given: anything that :meth:`edgepress.benchmarks.Images.of` takes, a DataLoader of
            preprocessed tensors among them.
        out: Folder of the bundle.
        weights: File of the weights, where ``model`` names a factory.
        test_data: Pictures that are only scored.
        preprocessing: How pictures reach the network; by default what timm or torchvision say of
            theirs. Where ``data`` is preprocessed already it only goes into the bundle.
        task: ``classification``, ``agreement``, a Task, or the user's own ``score(run) -> float``,
            where ``run`` maps a dict of input arrays to a dict of output arrays. By default
            ``classification`` where there are labels, else ``agreement``.
        target: What to make it for.
        recipe: ``int8``, ``float32``, a file, or a Recipe.
        max_drop: Largest drop of the score, in points; by default 1 for classification, 3 for
            agreement (a cosine of 0.97), any for a score of the user's own.
        strict: Raise instead of writing a bundle whose recipe was declined.
        calibration_size: Pictures for calibration, at most.
        seed: Of the split and of everything else that is random.
        opset: Of the exported graph.
        loader: The user's own loader over the *test* pictures, in their order: the original is
            scored through it as well, and a difference stops everything.
        student: A smaller network with the original's inputs and outputs, for the recipe
            ``distil``: what ``model`` may be, but for ONNX. It is trained from the weights it has.
        student_weights: File of its weights, where ``student`` names a factory.
        finetune: Your own training instead of ours: gets copies of the student, in training mode,
            and of the original, frozen, and gives back the trained student.
        resume: Go on with a training that was interrupted; its checkpoints lie beside the bundle,
            in ``OUT.training``, until the trained student ships.
        golden_pictures: Whether the bundle's self-test shows the first calibration picture; made up
            by default.
        unproven: Whether a bundle may be made for a device that is not here. Its time is not
            measured, ONNX Runtime on the CPU scores it, and it says so.
        max_latency_ratio: How far a recipe that prunes goes: latency as a share of the whole
            network's, in the precision that ships.
        max_macs_ratio: The same for multiply-adds.
        max_size_mb: The same for the size of the weights, in 10**6 bytes.
        keep: Names of modules that pruning leaves whole.
        cache: Folder in which the latencies of layers are kept; ``None`` to keep none.
        weights_out: A ``.safetensors`` file for the pruned or trained torch network's weights and
            history, which goes wherever weights of its factory go; written where it ships.
        force: Replace what is at ``out`` and ``weights_out``.
        progress: Told how far the work is.

    Returns:
        The bundle, opened and verified from where it was written.

    Raises:
        InputError: For anything that was handed over and cannot be used; nothing is written then.
        BoundError: ``E_DECLINED`` with ``strict``, where the recipe was declined; nothing is
            written.
    """
    out = Path(out)
    check_out(out, force=force)
    steps = recipe if isinstance(recipe, Recipe) else Recipe.open(str(recipe))
    limits = {
        "max_latency_ratio": max_latency_ratio,
        "max_macs_ratio": max_macs_ratio,
        "max_size_mb": max_size_mb,
    }
    steps = with_limits(steps, limits, keep)
    school = School.of(steps, finetune, out, resume, seed)
    tuner = Tuner.of(steps, finetune, out, resume, seed, student=student is not None)
    if weights_out is not None:
        check_weights_out(weights_out, force=force)
    if max_drop is not None and not (math.isfinite(max_drop) and max_drop >= 0):
        raise InputError("E_USAGE", f"max_drop is {max_drop}.", mend="Give 0 or more points.")
    destination = target_of(target)
    device_here = check_device(destination, allowed=unproven)
    given = (
        Preprocessing.from_toml(preprocessing)
        if isinstance(preprocessing, (str, Path))
        else preprocessing
    )
    with disk_room(), ExitStack() as stack:
        opened = open_model(model, weights)
        if any(isinstance(one, (Prune, Qat)) for one in steps.passes):
            torch_network(opened)
        if isinstance(opened, Backbone):
            stack.enter_context(evaluating(opened.module))
        trains = not (school is None and tuner is None) and finetune is None
        material = gather(data, test_data, task, calibration_size, seed, training=trains)
        split = material.split
        pupil = enrol(school, student, student_weights, opened, given, material)
        if pupil is not None:
            stack.callback(pupil.leave)
            if not pupil.first:
                pupil.go_along(progress)
                return Bundle.open(out)
        progress("exporting", 0, None)
        subject = make_subject(model, opened, given, split.calibration, opset)
        graph = subject.graph
        example = first_rows(split.calibration, graph.inputs, subject.preprocessing, 1)
        if tuner is not None:
            tuner.check(opened, material, example, destination.dialect)
        folder = stack.enter_context(TemporaryDirectory(prefix="edgepress-"))
        judge = Judge(
            graph,
            material.task,
            subject.preprocessing,
            example,
            progress,
            destination.engine if device_here else STAND_IN,
            folder,
        )
        quietly = replace(judge, progress=_silent)
        check_labels(material, lambda few: quietly.score(graph.model, few, "one picture"))
        shipped = shipped_preprocessing(given, subject.preprocessing, material, graph.inputs)
        original = judge.score(graph.model, material.test, "float32 on the test pictures")
        if loader is not None:
            check_loader(subject, material, judge, Images.of(loader), original)
        limit = DEFAULT_MAX_DROP.get(material.task.name) if max_drop is None else max_drop
        context = _context(subject, material, destination, example, progress, device_here)
        outcome = float32(graph, context)

        def again(made: Graph) -> Context:
            less = replace(subject, graph=made)
            return _context(less, material, destination, example, progress, device_here)

        notes, trials = suspicions(material, original), list[Trial]()
        now, at, shipped_macs = graph, context, context.macs
        pruned: Pruned | None = None
        best: Trial | None = None
        reports: list[dict[str, object]] = []
        for number, settings in enumerate(steps.passes):
            smaller: tuple[Graph, Pruned] | None = None
            if isinstance(settings, Prune) and pupil is not None and pupil.cut_before is not None:
                reports.append(pupil.take(pupil.cut_before))
                continue
            if isinstance(settings, Prune):
                cut = prune_pass(
                    opened,
                    subject,
                    split.calibration,
                    settings,
                    precision_after(steps.passes, number),
                    context,
                    task=material.task.name,
                    seed=seed,
                    opset=opset,
                    cache=cache,
                )
                if pupil is not None:  # judged when it is trained
                    reports.append(pupil.take(cut.pruned))
                    continue
                candidate, smaller = cut.outcome, (cut.graph, cut.pruned)
            elif isinstance(settings, Qat):
                assert tuner is not None
                whole = torch_network(opened)
                start, int8 = whole, steps.passes[number - 1]
                if pruned is not None:
                    start = replace(whole, module=pruned.module, history=pruned.history)
                assert isinstance(int8, Int8)
                drop = _drop(judge, material, original)
                reason = tuner.not_needed(trials[-1], drop, limit)
                if reason is not None:
                    reports.append({"left_out": reason})
                    notes.append(f"qat was left out: {reason}.")
                    continue
                tuned = tuner.tune(
                    start, whole, subject, material, now, int8, at, again, drop, limit, opset
                )
                candidate, smaller = tuned.outcome, (tuned.graph, tuned.pruned)
                notes += tuned.notes
            elif isinstance(settings, Distil):
                assert pupil is not None
                lesson = pupil.learn(subject, opset, progress)
                candidate, smaller = lesson.outcome(context), (lesson.graph, lesson.pruned)
                notes += lesson.notes
            else:
                candidate = _candidate(now, settings, at, judge, material, original, limit)
                candidate = replace(candidate, trained=outcome.trained)
            reports.append(candidate.report)
            trial = try_out(candidate, judge, material, original, limit)
            plain = trials[-1] if isinstance(settings, Qat) else None
            if plain is not None:
                trial = held_against(trial, plain)
            trials.append(trial)
            notes += [*(_fallen(candidate) if device_here else []), *notes_of(candidate)]
            notes += forgotten(trial, original)
            notes += [
                f"{settings.kind} was declined: {reason}." for reason in trial.verdict.reasons
            ]
            instead = best_rival(trial)
            notes += [] if instead is None else [instead]
            faster = is_faster(trial, best) or (plain is not None and as_fast(trial, plain, best))
            if trial.verdict.accepted and faster:
                best, outcome = trial, candidate
                if smaller is not None:
                    now, pruned = smaller
                    at = again(now)
                shipped_macs = at.macs
        if not device_here:
            notes.append(note(destination, outcome.receipt))
        settled = {
            **steps.to_dict(),
            "model": subject.name,
            "weights_sha256": subject.weights_sha256,
            "target": destination.name,
            "task": material.task.name,
            "max_drop": limit,
            "calibration_size": len(split.calibration),
            "selection_size": len(split.selection),
            **({} if pupil is None else pupil.to_dict()),
            "seed": seed,
            "opset": opset,
            "reports": reports,
        }
        result = Result(subject, material, outcome, trials, original, shipped_macs, notes, settled)
        if strict and result.declined:
            raise BoundError(
                "E_DECLINED",
                f"the recipe '{steps.name}' was declined: {'; '.join(result.reasons)}.",
                mend="Nothing was written, as --strict asks. Without it the bundle holds float32.",
            )
        files = result.files(example, shipped, real_golden=golden_pictures)
        write_files(files, out, force=force)
        if tuner is not None:
            tuner.finish()
        if pupil is not None:
            pupil.finish(ships=outcome.trained)
    if weights_out is not None and pruned is not None:
        save_weights(pruned.module, weights_out, history=pruned.history, force=force)
    return Bundle.open(out)


def _context(
    subject: Subject,
    material: Material,
    target: Target,
    example: Arrays,
    progress: Progress,
    device_here: bool,
) -> Context:
    graph, split = subject.graph, material.split
    return Context(
        target=target,
        calibration=fixed_batches(graph, split.calibration, subject.preprocessing),
        calibration_count=len(split.calibration),
        selection=fixed_batches(graph, split.selection, subject.preprocessing),
        macs=count_macs(graph, with_batch(example, graph)),
        progress=progress,
        device_here=device_here,
    )


def _candidate(
    graph: Graph,
    settings: Int8 | Fp16,
    context: Context,
    judge: Judge,
    material: Material,
    original: Score,
    max_drop: float | None,
) -> Outcome:
    """What a pass makes of the network, in mixed precision where that is better."""
    if not isinstance(settings, Int8) or "float16" in context.target.precisions:
        return run_pass(graph, settings, context)
    whole = prepare(graph, settings, context)
    if not settings.mixed or settings.int8_nodes:
        return finish(whole, settings, context)
    return mix(whole, settings, context, _drop(judge, material, original), max_drop)


def _drop(judge: Judge, material: Material, original: Score) -> Callable[[bytes], float]:
    """How many points of the score a model's bytes lose on the pictures that choose."""
    before, chosen_on = original, material.test
    if not material.own_score:  # which brings its own samples: nothing else can choose
        chosen_on = material.split.selection
        before = judge.score(judge.graph.model, chosen_on, "float32 on the selection")

    def drop(model: bytes) -> float:
        return before.value - judge.score(model, chosen_on, "a candidate on the selection").value

    return drop


def _fallen(candidate: Outcome) -> list[str]:
    """Which nodes the engine did not take in INT8 although they were written so."""
    receipt = candidate.receipt
    if receipt.fused_int8 == receipt.asked_int8:
        return []
    fallen = [node.name for node in receipt.nodes if node.reason.startswith("asked for INT8")]
    more = ", ..." if len(fallen) > 5 else ""
    return [
        f"the engine took {receipt.fused_int8} of {receipt.asked_int8} nodes in INT8; "
        f"not {', '.join(fallen[:5])}{more}."
    ]
