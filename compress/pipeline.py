"""The main job: a trained network becomes a verified bundle, or the answer why not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from ..benchmarks.data.images import Images
from ..export.graph.torch_capture import evaluating
from ..runtime.bundle.bundle import Bundle
from ..runtime.bundle.bundle_writer import check_out, write_files
from ..runtime.bundle.combine import combine
from ..runtime.errors import InputError
from ..runtime.files import disk_room
from ..runtime.pictures.preprocessing import Preprocessing
from ..runtime.progress import Progress, silent
from .distillation.distil_pass import DistillationOptions, Finetune, open_student_training
from .evaluation.acceptance import DEFAULT_MAX_DROP
from .evaluation.evaluator import Evaluator
from .evaluation.loader_check import check_loader
from .job import Job
from .pruning.prune_pass import with_limits
from .quantization.qat_pass import QatTraining
from .recipe.pass_context import RangesCache
from .recipe.recipe import Recipe
from .recipe.settings import Prune, Qat
from .recipe.target_availability import available_targets, check_latency
from .recipe_runner import run_recipe
from .result import Result, check_strict
from .source.backbone import Backbone
from .source.data_and_task import (
    AnyTask,
    Data,
    check_labels_fit,
    data_warnings,
    open_data_and_task,
    shipped_preprocessing,
)
from .source.source_network import (
    Model,
    first_rows,
    make_source_network,
    open_model,
    opset_for,
    torch_network,
)
from .source.weights import check_weights_out, save_weights
from .torch_passes import TorchPasses

CALIBRATION_SIZE = 300


def compress(
    model: Model,
    data: Data,
    *,
    out: str | Path,
    weights: str | None = None,
    test_data: Data | None = None,
    preprocessing: Preprocessing | str | Path | None = None,
    task: AnyTask = None,
    target: str | Sequence[str] = "onnxruntime-cpu",
    recipe: str | Recipe = "int8",
    max_drop: float | None = None,
    strict: bool = False,
    calibration_size: int = CALIBRATION_SIZE,
    seed: int = 0,
    opset: int | None = None,
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
    progress: Progress = silent,
) -> Bundle:
    """Compress a trained network for a target and write the bundle that ships.

    The network is captured as a float32 ONNX graph whose outputs are compared with torch's on real
    pictures; the recipe's passes make a candidate; the candidate is timed against float32 on this
    machine, interleaved, and scored on the bytes that ship. Where it is not measurably faster, or
    its score drops by more than ``max_drop`` on the selection pictures or on the test pictures, it
    is declined: the bundle then holds float32, or, on an engine and a processor that have it and
    where it pays, the same network computed in bfloat16; its notes say why.

    For several targets the network is captured, calibrated, pruned and trained once; every target's
    candidates are made, timed and scored on its own engine, and one bundle holds what came out for
    each. The first target's latency is what pruning goes by, and its variant is the default.

    Args:
        model: ``path/to/file.py:factory``, ``package.module:factory``, ``timm:NAME``,
            ``torchvision:NAME``, a trained ``.onnx`` file, a torch module (run in evaluation mode,
            then left as it was), a :class:`~edgepress.compress.source.backbone.Backbone`, or an
            ``onnx.ModelProto``.
        data: Pictures for calibration and selection, and for the test where ``test_data`` is not
            given: anything that :meth:`edgepress.benchmarks.Images.of` takes, a DataLoader of
            preprocessed tensors among them.
        out: Folder of the bundle.
        weights: File of the weights, where ``model`` names a factory.
        test_data: Pictures that are only scored.
        preprocessing: How pictures reach the network; by default what timm or torchvision say of
            theirs. Where ``data`` is preprocessed already it only goes into the bundle.
        task: ``classification``, ``retrieval``, ``verification``, ``agreement``, a Task, or the
            user's own ``score(run) -> float``, where ``run`` maps a dict of input arrays to a dict
            of output arrays. By default ``classification`` where there are labels, else
            ``agreement``.
        target: What to make it for; several, each once, for one bundle of all.
        recipe: Name of a built-in one, a ``.toml`` or ``.json`` file, the folder of a bundle, or a
            Recipe.
        max_drop: Largest drop of the score, in points; by default 1 for classification, 3 for
            agreement (a cosine of 0.97), any for a score of the user's own.
        strict: Raise instead of writing a bundle whose recipe was declined for any target, or whose
            engine takes less of it in INT8 than was written so.
        calibration_size: Pictures for calibration, at most.
        seed: Of the split and of everything else that is random.
        opset: Of the exported graph, 18 by default; an ONNX file keeps its own.
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
            history, which goes wherever weights of its factory go; written where it ships, and
            where it does not a note says so.
        force: Replace what is at ``out`` and ``weights_out``.
        progress: Told how far the work is.

    Returns:
        The bundle, opened and verified from where it was written.

    Raises:
        InputError: For anything that was handed over and cannot be used; nothing is written then.
        BoundError: ``E_DECLINED`` with ``strict``, where the recipe was declined, ``E_FALLBACK``
            where the engine took a part of it; nothing is written.
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
    distillation = DistillationOptions.of(steps, finetune, out, resume, seed)
    qat_training = QatTraining.of(steps, finetune, out, resume, seed, student=student is not None)
    if weights_out is not None:
        check_weights_out(weights_out, force=force)
        steps.check_makes_weights()
    if max_drop is not None and not (math.isfinite(max_drop) and max_drop >= 0):
        raise InputError("E_USAGE", f"max_drop is {max_drop}.", mend="Give 0 or more points.")
    places = available_targets(target, allowed=unproven)
    if qat_training is not None:
        qat_training.check_places(places)
    check_latency(steps, places)
    given = (
        Preprocessing.from_toml(preprocessing)
        if isinstance(preprocessing, (str, Path))
        else preprocessing
    )
    with disk_room(), ExitStack() as stack:
        opened = open_model(model, weights, given)
        opset = opset_for(opened, opset)
        if any(isinstance(one, (Prune, Qat)) for one in steps.passes):
            torch_network(opened)
        if isinstance(opened, Backbone):
            stack.enter_context(evaluating(opened.module))
        trains = not (distillation is None and qat_training is None) and finetune is None
        data_and_task = open_data_and_task(
            data, test_data, task, calibration_size, seed, training=trains
        )
        split = data_and_task.split
        student_training = open_student_training(
            distillation, student, student_weights, opened, given, data_and_task
        )
        if student_training is not None:
            stack.callback(student_training.leave)
            if not student_training.first:
                student_training.go_along(progress)
                return Bundle.open(out)
        progress("exporting", 0, None)
        source = make_source_network(model, opened, given, split.calibration, opset)
        graph = source.graph
        example = first_rows(split.calibration, graph.inputs, source.preprocessing, 1)
        if qat_training is not None:
            qat_training.check(opened, data_and_task, example, places[0].target.dialect)
        folder = stack.enter_context(TemporaryDirectory(prefix="edgepress-"))
        limit = DEFAULT_MAX_DROP.get(data_and_task.task.name) if max_drop is None else max_drop
        job = Job(
            opened,
            source,
            data_and_task,
            steps,
            example,
            limit,
            seed,
            opset,
            cache,
            student_training,
            qat_training,
            RangesCache(),
        )
        shipped = shipped_preprocessing(given, source.preprocessing, data_and_task, graph.inputs)
        networks, results = TorchPasses(job), list[Result]()
        for place in places:
            evaluator = Evaluator(
                graph,
                data_and_task.task,
                source.preprocessing,
                example,
                place.telling(progress, of=len(places)),
                place.engine,
                folder,
            )
            if not results:
                quietly = replace(evaluator, progress=silent)
                score = partial(quietly.score, graph.model, what="one picture")
                check_labels_fit(data_and_task, score)
            original = evaluator.score(
                graph.model, data_and_task.test, "float32 on the test pictures"
            )
            if not (distillation is None and qat_training is None) and not data_and_task.own_score:
                what = "float32 on the selection"  # too few pictures for the task are told now
                evaluator.score(graph.model, split.selection, what)
            if loader is not None and not results:
                check_loader(source, data_and_task, evaluator, Images.of(loader), original)
            found = run_recipe(job, evaluator, place.target, place.here, networks, original)
            if strict:
                check_strict(found, several=len(places) > 1)
            results.append(
                replace(found, notes=[*data_warnings(data_and_task, original), *found.notes])
            )
        made = next((one.pruned for one in results if one.pruned is not None), None)
        if weights_out is not None and made is None:
            note = "no pruned or trained network ships, so that no weights were written."
            results = [replace(one, notes=[*one.notes, note]) for one in results]
        bundles = [
            one.bundle(example, shipped, real_golden=golden_pictures, cache=folder)
            for one in results
        ]
        files = combine(bundles) if len(bundles) > 1 else bundles[0].files
        write_files(files, out, force=force)
        if weights_out is not None and made is not None:
            save_weights(made.module, weights_out, history=made.history, force=force)
        if qat_training is not None:
            qat_training.finish()
        if student_training is not None:
            student_training.finish(ships=any(one.outcome.trained for one in results))
    return Bundle.open(out)
