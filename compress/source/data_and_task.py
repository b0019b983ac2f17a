"""Pictures and task, checked against each other and the network before the long work begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

from ...benchmarks.data.batch_runner import Run
from ...benchmarks.data.images import Images, Split
from ...benchmarks.tasks.classification import Classification
from ...benchmarks.tasks.task import Score, Task, UserTask
from ...benchmarks.tasks.task_by_name import task as task_of
from ...runtime.errors import InputError
from ...runtime.pictures.preprocessing import Preprocessing
from ...runtime.tensors import TensorSpec

Data: TypeAlias = "Images | str | Path | Iterable[object]"
AnyTask: TypeAlias = "str | Task | Callable[[Run], float] | None"


@dataclass(frozen=True)
class DataAndTask:
    """What a network is compressed and judged with.

    Attributes:
        images: What the user gave as ``data``.
        split: Its parts.
        test: Pictures that are only scored; not looked at where the task brings its own.
        task: What "as good as before" means.
    """

    images: Images
    split: Split
    test: Images
    task: Task

    @property
    def own_score(self) -> bool:
        """Whether the task is the user's own function, which brings its own samples."""
        return isinstance(self.task, UserTask)


def open_data_and_task(
    data: Data,
    test_data: Data | None,
    task: AnyTask,
    calibration: int,
    seed: int,
    *,
    training: bool = False,
) -> DataAndTask:
    """Open the pictures, split them, settle the task.

    Args:
        data: Pictures for calibration and selection, and for the test where there are no others.
        test_data: Pictures that are only scored, or ``None``.
        task: A name, a Task, a function, or ``None``: ``classification`` where there are labels.
        calibration: Calibration pictures, at most.
        seed: Of the split.
        training: Whether a part of the pictures is to train on.

    Raises:
        InputError: ``E_DATA`` for data that cannot be used, labels that are there only in part, or
            class names that differ; ``E_TASK`` for an unknown task.
    """
    images = Images.of(data)
    test = None if test_data is None else Images.of(test_data)
    chosen = _task(task, images, test or images)
    own_test = test is not None or isinstance(chosen, UserTask)
    split = images.split(calibration, seed, own_test, training=training)
    if test is not None:
        _check_names(images, test)
    return DataAndTask(images, split, test or split.test or split.selection, chosen)


def _task(task: AnyTask, images: Images, test: Images) -> Task:
    if task is None:
        if images.labelled != test.labelled:
            without = test if images.labelled else images
            raise InputError(
                "E_DATA",
                f"{without.source} has no labels, the other pictures have some.",
                mend="Label all of them, or ask for --task agreement, which needs no labels.",
                path=without.source,
            )
        return task_of("classification" if images.labelled else "agreement")
    if isinstance(task, str):
        chosen = task_of(task)
    else:
        is_task = hasattr(task, "score")
        chosen = cast("Task", task) if is_task else UserTask(cast("Callable[[Run], float]", task))
    for part in (images, test):
        if chosen.needs_labels and not part.labelled:
            raise InputError(
                "E_DATA",
                f"the task {chosen.name} needs labels, and {part.source} has none.",
                mend="Give labelled pictures, or the task agreement, which needs none.",
                path=part.source,
            )
    return chosen


def _check_names(images: Images, test: Images) -> None:
    """Class folders count by the order of their names: another set of them shifts every label."""
    ours, theirs = images.class_names, test.class_names
    if ours is None or theirs is None or ours == theirs:
        return
    odd = sorted(set(ours) ^ set(theirs))[:5] or list(theirs[:5])
    raise InputError(
        "E_DATA",
        f"{images.source} has {len(ours)} classes, {test.source} has {len(theirs)}, and they are "
        f"not the same: {', '.join(odd)}.",
        mend="Give both the same class folders, or a labels.csv that names the class indices.",
        path=test.source,
    )


def check_labels_fit(data_and_task: DataAndTask, score_first: Callable[[Images], Score]) -> None:
    """Refuse labels that the network has no output for, before minutes of calibration.

    Args:
        data_and_task: Pictures and task.
        score_first: Scores the original on some pictures.

    Raises:
        InputError: ``E_DATA`` for a label beyond the outputs, ``E_TASK`` where no output has class
            scores.
    """
    if not isinstance(data_and_task.task, Classification):
        return
    classes = score_first(data_and_task.test.take([0])).details["classes"]
    assert isinstance(classes, int)
    for part in (data_and_task.test, data_and_task.images):
        largest = int(part.labels.max()) if part.labels is not None else 0
        if largest >= classes:
            raise InputError(
                "E_DATA",
                f"{part.source} has class index {largest}, the network has {classes} outputs "
                f"(0 .. {classes - 1}).",
                mend="Check that the classes are those that the network was trained on, in that "
                "order.",
                path=part.source,
            )


def shipped_preprocessing(
    given: Preprocessing | None,
    used: Preprocessing | None,
    data_and_task: DataAndTask,
    inputs: Sequence[TensorSpec],
) -> Preprocessing | None:
    """What the bundle says of pictures.

    Args:
        given: The user's own.
        used: The one that the network's pictures went through, where they were pictures.
        data_and_task: The pictures; a loader's tensors have been through nobody knows what.
        inputs: The network's inputs.

    Raises:
        InputError: ``E_PREPROCESSING`` for the user's own where the network cannot take what it
            makes of a picture.
    """
    if not (data_and_task.images.preprocessed and data_and_task.test.preprocessed):
        return used
    if given is None:
        return None
    spec = inputs[0]
    made = ("N", given.channels or "C", *(given.size or ("H", "W")))
    fits = len(inputs) == 1 and spec.dtype == "float32" and len(spec.shape) == 4
    if fits and all(
        isinstance(wanted, str) or isinstance(size, str) or wanted == size
        for wanted, size in zip(spec.shape[1:], made[1:], strict=True)
    ):
        return given
    raise InputError(
        "E_PREPROCESSING",
        f"the preprocessing makes float32 ({', '.join(map(str, made))}) of a picture, the network "
        f"takes {'; '.join(map(str, inputs))}.",
        mend="Make it suit the network, or leave it out: your loader's tensors need none.",
    )


def class_labels(data_and_task: DataAndTask, original: Score) -> list[str] | None:
    """Class names in the order of the outputs: the data's, else their numbers."""
    classes = original.details.get("classes")
    if data_and_task.task.name != "classification" or not isinstance(classes, int):
        return None
    names = data_and_task.images.class_names or data_and_task.test.class_names
    if names is not None and len(names) == classes:
        return list(names)
    return [str(index) for index in range(classes)]


def data_warnings(data_and_task: DataAndTask, original: Score) -> list[str]:
    """What looks wrong in the user's data or preprocessing, in words for the report."""
    notes: list[str] = []
    classes = original.details.get("classes")
    if data_and_task.task.name == "classification" and isinstance(classes, int):
        if original.low is not None and original.low <= 100 / classes:
            notes.append(
                f"the original itself scores {original.value:.2f} % on {original.count} pictures, "
                f"which cannot be told from chance with {classes} classes: check the weights, the "
                "preprocessing and the order of the classes."
            )
        names = data_and_task.images.class_names or data_and_task.test.class_names
        if names is not None and len(names) != classes:
            notes.append(
                f"the data names {len(names)} classes, the network has {classes} outputs: the "
                "names are left out, and class indices follow the order of the data's names."
            )
    same = (
        data_and_task.test.source == data_and_task.images.source
        and Path(data_and_task.test.source).exists()
    )
    if same and data_and_task.split.test is None and not data_and_task.own_score:
        notes.append("the test pictures are also those of calibration and selection.")
    return notes
