"""Students in the pipeline: opened, trained back here or by the user's own loop, captured."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...export.graph.onnx_graph import Graph
from ...runtime.errors import InputError
from ...runtime.files import read_file, write_file
from ...runtime.pictures.preprocessing import Preprocessing
from ...runtime.progress import Progress
from ...runtime.tensors import Arrays
from ..channels.cut_history import History, Pruned
from ..pruning.prune_pass import pruned_outcome
from ..recipe.pass_context import Context, Outcome
from ..recipe.recipe import Recipe
from ..recipe.settings import Distil, Prune, Qat
from ..source.backbone import Backbone
from ..source.data_and_task import DataAndTask
from ..source.source_network import Model, SourceNetwork, first_rows, open_model, torch_network
from ..source.weights import load_weights, save_weights
from ..training.checkpoint_file import FILE, LOG, digest
from ..training.processes import Processes, several
from ..training.setup import picture_count_remarks
from ..training.train import Trained
from .training_driver import TrainingDriver
from .user_finetune import Finetune, student_graph

_CUT, _CUT_REPORT = "pruned.safetensors", "pruned.json"
_random: Any = torch.random  # where torch's own annotations do not say what is given


@dataclass(frozen=True)
class DistillationOptions(TrainingDriver):
    """What training back needs beside the networks and pictures.

    Attributes:
        prunes: Whether the student is cut out of the original.
    """

    prunes: bool

    @staticmethod
    def of(
        recipe: Recipe, finetune: Finetune | None, out: Path, resume: bool, seed: int
    ) -> DistillationOptions | None:
        """What the recipe's training needs; ``None`` where it trains nothing.

        Raises:
            InputError: ``E_USAGE`` for a training of the user's own or a resumption where nothing
                is trained, and for a training of the user's own in several processes;
                ``E_EXISTS`` as
                :meth:`~edgepress.compress.distillation.training_driver.TrainingDriver.check_begun`.
        """
        training = [one for one in recipe.passes if isinstance(one, Distil)]
        settings = next((one for one in training if not isinstance(one, Qat)), None)
        if settings is None:
            if training:  # of the original itself, see qat.py
                return None
            odd = "finetune" if finetune is not None else "resume" if resume else None
            if odd is not None:
                raise _trains_nothing(recipe.name, odd)
            return None
        if finetune is not None and several():
            raise InputError(
                "E_USAGE",
                "finetune runs in one process, and torchrun started several.",
                mend="Train in a script of your own, then compress the trained module in one "
                "process.",
            )
        prunes = any(isinstance(one, Prune) for one in recipe.passes)
        folder = out.with_name(f"{out.name}.training")
        distillation = DistillationOptions(settings, finetune, folder, resume, seed, prunes)
        distillation.check_begun(_CUT)
        return distillation


@dataclass(frozen=True)
class TrainedStudent:
    """What training back gave.

    Attributes:
        graph: The trained student, captured.
        pruned: The trained student, with what pruning did to it.
        report: How it was trained, JSON values only.
        notes: Remarks for people.
    """

    graph: Graph
    pruned: Pruned
    report: dict[str, object]
    notes: list[str]
    example: Arrays

    def outcome(self, context: Context) -> Outcome:
        """The student in float32 as what might ship.

        Args:
            context: Of the original.
        """
        made = pruned_outcome(self.graph, self.pruned, context, self.example)
        return replace(made, report=self.report, name="the student", trained=True)


class StudentTraining:
    """A student on its way through the pipeline; the networks that the user gave stay as they are.

    Args:
        student: From the weights it has; ``None`` where it is still to be cut out of the teacher.
        teacher: The original.
        preprocessing: The user's own, which goes before the one that the teacher came with.
        data_and_task: Pictures and task.
        distillation: Everything else.
        processes: Who trains.
    """

    def __init__(
        self,
        student: Backbone | None,
        teacher: Backbone,
        preprocessing: Preprocessing | None,
        data_and_task: DataAndTask,
        distillation: DistillationOptions,
        processes: Processes,
    ) -> None:
        self._student, self._teacher, self._material = student, teacher, data_and_task
        self._preprocessing, self._school = preprocessing, distillation
        self._processes = processes

    @property
    def first(self) -> bool:
        """Whether this process captures, judges and writes."""
        return self._processes.first

    def cut_before(self, asked: Mapping[str, object]) -> Pruned | None:
        """The student that was cut before the training was interrupted; a cut hangs on timings.

        Args:
            asked: All that decides how it is cut now, JSON values only.

        Raises:
            InputError: ``E_RESUME`` where something else was asked for then, or of another network;
                ``E_WEIGHTS`` where what was kept is damaged.
        """
        folder = self._school.folder
        file, told = folder / _CUT, folder / _CUT_REPORT
        if not (self._school.resume and file.exists() and told.exists()):
            return None
        try:
            held: dict[str, dict[str, object]] = json.loads(read_file(told))
            before, report = dict(held["asked"]), dict(held["report"])
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise InputError(
                "E_WEIGHTS",
                f"'{told}' does not say how the student was cut: it is damaged.",
                mend=f"Remove '{folder}' and start anew.",
                path=str(told),
            ) from error
        apart = [
            f"{name} ({before.get(name)!r}, now {value!r})"
            for name, value in self._asked(asked).items()
            if before.get(name) != value
        ]
        if apart:
            raise InputError(
                "E_RESUME",
                f"the student in '{folder}' was cut with other {', '.join(apart)}.",
                mend="Go on with the same, or remove that folder and start anew.",
                path=str(folder),
            )
        module = copy.deepcopy(self._teacher.module)
        _, history = load_weights(module, str(file))
        return Pruned(module.eval(), history.after(self._teacher.history), report)

    def _asked(self, asked: Mapping[str, object]) -> dict[str, object]:
        """With the network that is cut, and as it is read back."""
        whole = {**asked, "original": digest(self._teacher.module)}
        return json.loads(json.dumps(whole))

    def take(self, cut: Pruned, asked: Mapping[str, object]) -> dict[str, object]:
        """Take a cut network as the student; what the recipe says of it.

        Args:
            cut: The network, and how it was cut.
            asked: See :meth:`cut_before`.
        """
        name = f"{self._teacher.name}, pruned"
        self._student = Backbone(cut.module, name, history=cut.history)
        added = cut.history.since(self._teacher.history)  # the teacher has the steps before
        if self._school.finetune is None:
            folder = self._school.folder
            folder.mkdir(parents=True, exist_ok=True)
            save_weights(cut.module, folder / _CUT, history=added, force=True)
            told = {"asked": self._asked(asked), "report": dict(cut.report)}
            write_file(json.dumps(told).encode(), folder / _CUT_REPORT, force=True)
        self._processes.share(added.to_json())
        return cut.told()

    def learn(self, original: SourceNetwork, opset: int, progress: Progress) -> TrainedStudent:
        """Train the student to its teacher, here or in the user's own loop, and capture it.

        What it does: see :func:`~edgepress.compress.training.train.distil`, or what ``finetune``
        does. The untrained student is captured first, so that what cannot be exported is known
        before the long work. When it is exact: never. When it refuses: see below. Source: see
        :func:`~edgepress.compress.training.train.distil`.

        Args:
            original: The teacher, captured.
            opset: Of the exported graph.
            progress: Told how far the work is.

        Raises:
            InputError: As :func:`~edgepress.compress.training.train.distil`, :func:`tuned` and
                :func:`student_graph`.
        """
        images, student = self._material.split.calibration, self._student
        assert student is not None
        if not self._school.prunes:
            student_graph(student, student.module, original, images, opset)
        found = self._train(progress)
        graph = student_graph(student, found.module, original, images, opset)
        report: dict[str, object] = {"training": found.log}
        example = first_rows(images, graph.inputs, original.preprocessing, 1)
        pruned = Pruned(found.module, student.history, report)
        return TrainedStudent(graph, pruned, report, list(found.notes), example)

    def go_along(self, progress: Progress) -> None:
        """What every process but the first does: train, and wait until the first has written.

        Raises:
            InputError: As :meth:`learn`; ``E_PROCESS`` where the first process ended early.
        """
        try:
            if self._school.prunes:
                added = History.from_json(str(self._processes.share(None)))
                module = added.apply(copy.deepcopy(self._teacher.module))
                history = added.after(self._teacher.history)
                self._student = Backbone(module.eval(), self._teacher.name, history=history)
            self._train(progress)
            self._processes.share(None)
        except RuntimeError as error:
            raise InputError(
                "E_PROCESS",
                "the first process ended before this one.",
                mend="Its own message says why.",
            ) from error

    def finish(self, *, ships: bool) -> None:
        """The bundle is written: let the others go, and remove checkpoints of what ships.

        Args:
            ships: Whether the trained student does; else its training may go on another time.
        """
        if ships and self._school.finetune is None:
            for name in (FILE, LOG, _CUT, _CUT_REPORT):
                (self._school.folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it is not there, or the user keeps something in it
                self._school.folder.rmdir()
        self._processes.share(None)

    def leave(self) -> None:
        """Close what was opened for several processes."""
        self._processes.leave()

    def to_dict(self) -> dict[str, object]:
        """What a bundle's recipe says of it, JSON values only."""
        pictures, student = self._material.split.training, self._student
        return {
            "student": None if student is None else student.name,
            "student_weights_sha256": None if student is None else student.weights_sha256,
            "training_size": 0 if pictures is None else len(pictures),
        }

    def _train(self, progress: Progress) -> Trained:
        assert self._student is not None
        return self._school.train(
            self._student.module,
            self._teacher.module,
            self._material,
            self._preprocessing or self._teacher.preprocessing,
            progress,
            self._processes,
        )


def open_student_training(
    distillation: DistillationOptions | None,
    student: Model | None,
    student_weights: str | None,
    teacher: Backbone | Graph,
    preprocessing: Preprocessing | None,
    data_and_task: DataAndTask,
) -> StudentTraining | None:
    """Open the student and join the other processes; ``None`` where nothing is trained.

    Args:
        distillation: What the recipe's training needs, or ``None``.
        student: What the user named.
        student_weights: File of its weights.
        teacher: The original, open.
        preprocessing: The user's own.
        data_and_task: Pictures and task.

    Raises:
        InputError: ``E_USAGE`` for a student where none is trained, or is cut out of the original,
            none where one is needed, or an ONNX file; ``E_DATA`` for too few pictures; what
            opening the student raises.
    """
    if distillation is None:
        if student is not None or student_weights is not None:
            raise _trains_nothing("that was asked for", "student")
        return None
    if distillation.prunes and (student is not None or student_weights is not None):
        given = "another one was" if student is not None else "weights for another one were"
        raise InputError(
            "E_USAGE",
            f"the recipe cuts its student out of the original, and {given} given.",
            mend="Leave the student and its weights out, or take the recipe distil.",
        )
    if not distillation.prunes and student is None:
        raise InputError(
            "E_USAGE",
            "the recipe trains a student, and there is none.",
            mend="Name a smaller network: --student path/to/file.py:factory (student=... in "
            "Python); or take the recipe prune-distil.",
        )
    if distillation.finetune is None:
        pictures = data_and_task.split.training
        picture_count_remarks(0 if pictures is None else len(pictures))
    original = torch_network(teacher)
    opened = None if student is None else open_student(student, student_weights, distillation.seed)
    processes = Processes() if distillation.finetune is not None else Processes.join()
    return StudentTraining(opened, original, preprocessing, data_and_task, distillation, processes)


def open_student(student: Model, weights: str | None, seed: int) -> Backbone:
    """The student that the user named, its first weights drawn by ``seed`` where they are random.

    Raises:
        InputError: ``E_USAGE`` for an ONNX file; what opening it raises.
    """
    with _random.fork_rng([]):
        _random.manual_seed(seed)
        return torch_network(open_model(student, weights))


def _trains_nothing(recipe: str, given: str) -> InputError:
    return InputError(
        "E_USAGE",
        f"the recipe '{recipe}' trains nothing, and {given} was given.",
        mend="Take a recipe that does: distil, prune-distil, those with -int8, or with -qat.",
    )
