"""Students in the pipeline: opened, trained back here or by the user's own loop, captured."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..benchmarks.images import Images
from ..export.graph import Graph
from ..runtime.errors import InputError
from ..runtime.preprocessing import Preprocessing
from .backbone import Backbone
from .material import Material
from .passes import Progress
from .recipe import Distil, Prune, Recipe
from .subject import Model, Subject, make_subject, open_model
from .training import Trained, distil
from .training.checkpoint import FILE, LOG
from .training.processes import Processes, several
from .weights import save_weights

Finetune = Callable[[nn.Module, nn.Module], nn.Module]
"""The user's own training: takes the student and its teacher, gives the trained student."""

_SHOWN = 5
_random: Any = torch.random  # where torch's own annotations do not say what is given


@dataclass(frozen=True)
class School:
    """What training back needs beside the networks.

    Attributes:
        settings: Of the pass ``distil``.
        finetune: The user's own training, which takes the place of ours.
        folder: Where checkpoints are kept.
        resume: Whether to go on from there.
        seed: Of everything random.
        processes: Who trains.
    """

    settings: Distil
    finetune: Finetune | None
    folder: Path
    resume: bool
    seed: int
    processes: Processes


@dataclass(frozen=True)
class Lesson:
    """What training back gave.

    Attributes:
        subject: The trained student, captured.
        report: How it was trained, JSON values only.
        notes: Remarks for people.
    """

    subject: Subject
    report: dict[str, object]
    notes: list[str]


class Pupil:
    """A student on its way through the pipeline; the networks that the user gave stay as they are.

    Args:
        student: From the weights it has.
        teacher: The original.
        preprocessing: The user's own, which goes before the one that the teacher came with.
        material: Pictures and task.
        school: Everything else.
    """

    def __init__(
        self,
        student: Backbone,
        teacher: Backbone,
        preprocessing: Preprocessing | None,
        material: Material,
        school: School,
    ) -> None:
        self._student, self._teacher, self._material = student, teacher, material
        self._preprocessing, self._school = preprocessing, school
        self._trained: nn.Module | None = None

    def learn(self, original: Subject, opset: int, progress: Progress) -> Lesson:
        """Train the student to its teacher, here or in the user's own loop, and capture it.

        What it does: see :func:`~edgepress.compress.training.distil`, or what ``finetune`` does.
        The untrained student is captured first, so that what cannot be exported is known before
        the long work.
        When it is exact: never.
        When it refuses: see below.
        Source: see :func:`~edgepress.compress.training.distil`.

        Args:
            original: The teacher, captured.
            opset: Of the exported graph.
            progress: Told how far the work is.

        Raises:
            InputError: As :func:`~edgepress.compress.training.distil`, :func:`tuned` and
                :func:`student_subject`.
        """
        images = self._material.split.calibration
        student = self._student
        student_subject(student, student.module, original, images, opset)
        found = self._train(progress)
        self._trained = found.module
        made = student_subject(student, found.module, original, images, opset)
        return Lesson(made, {"training": found.log}, list(found.notes))

    def go_along(self, progress: Progress) -> None:
        """What every process but the first does: train, and wait until the first has written.

        Raises:
            InputError: As :meth:`learn`; ``E_PROCESS`` where the first process ended early.
        """
        try:
            self._train(progress)
            self._school.processes.share(None)
        except RuntimeError as error:
            raise InputError(
                "E_PROCESS",
                "the first process ended before this one.",
                mend="Its own message says why.",
            ) from error

    def finish(self, weights_out: str | Path | None, *, force: bool) -> None:
        """The bundle is written: write the weights, remove checkpoints, let the others go."""
        if weights_out is not None and self._trained is not None:
            history = self._student.history
            save_weights(
                self._trained,
                weights_out,
                history=history if history.steps else None,
                force=force,
            )
        folder = self._school.folder
        for name in (FILE, LOG):
            (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is not there, or the user keeps something in it
            folder.rmdir()
        self._school.processes.share(None)

    def to_dict(self) -> dict[str, object]:
        """What a bundle's recipe says of it, JSON values only."""
        pictures = self._material.split.training
        return {
            "student": self._student.name,
            "student_weights_sha256": self._student.weights_sha256,
            "training_size": 0 if pictures is None else len(pictures),
        }

    def _train(self, progress: Progress) -> Trained:
        school, split = self._school, self._material.split
        student, teacher = self._student.module, self._teacher.module
        if school.finetune is not None:
            progress("your own training", 0, None)
            module = tuned(school.finetune, student, teacher)
            return Trained(module, {"trained_by": "the user's own loop"}, ())
        assert split.training is not None
        return distil(
            student,
            teacher,
            split.training,
            selection=split.selection,
            task=self._material.task,
            settings=school.settings,
            preprocessing=self._preprocessing or self._teacher.preprocessing,
            seed=school.seed,
            folder=school.folder,
            resume=school.resume,
            processes=school.processes,
            report=progress,
        )


def distil_settings(
    recipe: Recipe, student: Model | None, finetune: Finetune | None, resume: bool
) -> Distil | None:
    """The settings of the recipe's training; ``None`` where it has none.

    Raises:
        InputError: ``E_USAGE`` for a student, a training of the user's own or a resumption where
            nothing is trained, or no student where one is.
    """
    found = next((one for one in recipe.passes if isinstance(one, Distil)), None)
    prunes = any(isinstance(one, Prune) for one in recipe.passes)
    given = {"student": student, "finetune": finetune, "resume": resume or None}
    odd = [name for name, value in given.items() if value is not None]
    if found is None and odd:
        raise InputError(
            "E_USAGE",
            f"the recipe '{recipe.name}' trains nothing, and {' and '.join(odd)} was given.",
            mend="Take a recipe with the pass distil: distil, distil-int8.",
        )
    if found is not None and prunes and student is not None:
        raise InputError(
            "E_USAGE",
            f"the recipe '{recipe.name}' trains what it prunes, and a student was given.",
            mend="Leave the student out, or take the recipe distil or distil-int8.",
        )
    if found is not None and prunes and several():
        raise InputError(
            "E_USAGE",
            f"the recipe '{recipe.name}' prunes in one process, and torchrun started several.",
            mend="Prune first, in one process: --recipe prune --weights-out P.safetensors; then "
            "train with --recipe distil --student FACTORY --student-weights P.safetensors.",
        )
    if found is not None and student is None and not prunes:
        raise InputError(
            "E_USAGE",
            f"the recipe '{recipe.name}' trains a student, and there is none.",
            mend="Name a smaller network: --student path/to/file.py:factory (student=... in "
            "Python).",
        )
    if finetune is not None and several():
        raise InputError(
            "E_USAGE",
            "finetune runs in one process, and torchrun started several.",
            mend="Train in a script of your own, then compress the trained module in one process.",
        )
    return found


def open_student(student: Model, weights: str | None, seed: int) -> Backbone:
    """The student that the user named, its first weights drawn by ``seed`` where they are random.

    Raises:
        InputError: ``E_USAGE`` for an ONNX file; what opening it raises.
    """
    with _random.fork_rng([]):
        _random.manual_seed(seed)
        opened = open_model(student, weights)
    if not isinstance(opened, Backbone):
        raise InputError(
            "E_USAGE",
            f"the student {opened.source} is an ONNX file, which cannot be trained.",
            mend="Give path/to/file.py:factory, or a torch.nn.Module.",
        )
    return opened


def teacher_of(opened: Backbone | Graph) -> Backbone:
    """The original as a teacher.

    Raises:
        InputError: ``E_USAGE`` for an ONNX file.
    """
    if isinstance(opened, Backbone):
        return opened
    raise InputError(
        "E_USAGE",
        f"{opened.source} is an ONNX file; a teacher runs in torch.",
        mend="Give path/to/file.py:factory with --weights, or a torch.nn.Module.",
    )


def tuned(finetune: Finetune, student: nn.Module, teacher: nn.Module) -> nn.Module:
    """Call the user's own training and see that the student comes back.

    Args:
        finetune: Gets copies: the student in training mode, the teacher frozen in evaluation mode.
        student: Stays as it is.
        teacher: Stays as it is.

    Returns:
        What it gave, in evaluation mode, on the CPU, without the wrapper of DDP or of compiling.

    Raises:
        InputError: ``E_FINETUNE`` where it gives no module, or one of another architecture;
            ``E_NAN`` for weights that are not finite. What it raises itself comes through.
    """
    ours = copy.deepcopy(student).train()
    theirs = copy.deepcopy(teacher).eval().requires_grad_(False)
    given = cast("object", finetune(ours, theirs))
    if not isinstance(given, nn.Module):
        raise InputError(
            "E_FINETUNE",
            f"your finetune gave {'None' if given is None else f'a {type(given).__name__}'}.",
            mend="Return the trained student, a torch.nn.Module: def finetune(student, teacher): "
            "...; return student",
        )
    wanted = {key: tuple(value.shape) for key, value in student.state_dict().items()}
    module = given
    for name in ("_orig_mod", "module"):
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module) and set(module.state_dict()) != set(wanted):
            module = inner
    found = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    if found != wanted:
        raise InputError(
            "E_FINETUNE",
            "your finetune gave another architecture than the student's: " + _apart(wanted, found),
            mend="Train the module that it is given, and return that one. To ship another "
            "network, name it as the student.",
        )
    for key, value in module.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(
                "E_NAN",
                f"your finetune gave a student whose weight '{key}' is not finite.",
                mend="Its training diverged: take a smaller learning rate.",
                path=key,
            )
    return module.cpu().eval()


def _apart(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> str:
    odd = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    lines = [f"{key} is {found.get(key, 'absent')}, was {wanted.get(key, 'absent')}" for key in odd]
    return "; ".join(lines[:_SHOWN]) + (f"; and {len(odd) - _SHOWN} more" * (len(odd) > _SHOWN))


def student_subject(
    student: Backbone, trained: nn.Module, original: Subject, images: Images, opset: int
) -> Subject:
    """The trained student as a Graph, which takes the original's place.

    Raises:
        InputError: What capturing raises; ``E_STUDENT`` where its inputs or outputs are others.
    """
    named = replace(student, module=trained)
    made = make_subject(trained, named, original.preprocessing, images, opset)
    for what in ("inputs", "outputs"):
        ours: Any = getattr(made.graph, what)
        theirs: Any = getattr(original.graph, what)
        alike = [one.name for one in ours] == [one.name for one in theirs] and all(
            len(a.shape) == len(b.shape) and a.dtype == b.dtype and _fits(a.shape, b.shape)
            for a, b in zip(ours, theirs, strict=True)
        )
        if not alike:
            raise InputError(
                "E_STUDENT",
                f"the student's {what} are {'; '.join(map(str, ours))}, the original's "
                f"{'; '.join(map(str, theirs))}.",
                mend="Give its forward the same parameters and what it returns the same form: it "
                "takes the original's place.",
            )
    return made


def _fits(ours: tuple[object, ...], theirs: tuple[object, ...]) -> bool:
    return all(
        a == b or isinstance(a, str) or isinstance(b, str)
        for a, b in zip(ours[1:], theirs[1:], strict=True)
    )
