"""Tasks: what "as good as before" means. Each judges a run, whatever runs behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import InputError
from ..runtime.tensors import Array, Arrays
from .agreement import Agreements
from .images import Batch
from .running import Run
from .sources import Labels, data_error
from .statistics import wilson

Batches: TypeAlias = Callable[[], Iterable[Batch]]
"""Gives the batches to score, afresh at each call."""

TASK_NAMES = ("classification", "retrieval", "verification", "agreement")


@dataclass(frozen=True)
class Score:
    """What a task found.

    Attributes:
        task: The task's name.
        value: The larger the better.
        unit: ``percent``, or ``score`` for a scale of the user's own.
        count: Samples that were judged; 0 where the task does not tell.
        low: Lower end of the 95 % interval of the value, or ``None``.
        high: Upper end, or ``None``.
        details: More figures, JSON values only.
    """

    task: str
    value: float
    unit: Literal["percent", "score"]
    count: int
    low: float | None = None
    high: float | None = None
    details: dict[str, object] = field(default_factory=dict[str, object])

    def to_dict(self) -> dict[str, object]:
        """JSON form: the attributes."""
        return {
            "task": self.task,
            "value": self.value,
            "unit": self.unit,
            "count": self.count,
            "low": self.low,
            "high": self.high,
            "details": self.details,
        }


class Task(Protocol):
    """What is asked of a task."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def needs_labels(self) -> bool:
        """Whether the batches must carry class indices."""
        ...

    def score(self, run: Run, batches: Batches, reference: Run | None = None) -> Score:
        """Judge ``run``.

        Args:
            run: What is judged.
            batches: Gives the samples.
            reference: What it is compared with, where the task compares.
        """
        ...


@dataclass(frozen=True)
class Classification:
    """Top-1: the percentage of samples whose largest output is at their class index.

    The interval is Wilson's. A sample with an output that is not finite counts as wrong and is
    reported under ``non_finite``. With a reference, its agreement with ``run`` on the same samples
    is under ``agreement``.

    Attributes:
        output: The output with the class scores, ``(N, C)``; ``None`` takes the only one of that
            shape (``(N, C, 1, 1)`` counts as that shape).
    """

    output: str | None = None
    name: str = "classification"
    needs_labels: bool = True

    def score(self, run: Run, batches: Batches, reference: Run | None = None) -> Score:
        """Judge ``run``.

        Returns:
            Top-1 in percent; ``details`` has ``correct``, ``classes``, ``non_finite``, ``output``,
            ``top5_percent`` where there are more than five classes.

        Raises:
            InputError: ``E_DATA`` for no samples, samples without labels, or a label beyond the
                outputs; ``E_TASK`` where no output, or more than one, has class scores.
        """
        count = correct = in_top5 = non_finite = classes = 0
        name = self.output
        agreements = Agreements()
        for batch in batches():
            outputs = run(batch.inputs)
            if name is None:
                name = _class_output(outputs, len(batch))
            scores = _class_scores(outputs, name, len(batch))
            labels = _labels(batch, scores.shape[1])
            finite = np.isfinite(scores).all(axis=1)
            classes = scores.shape[1]
            count += len(batch)
            non_finite += int((~finite).sum())
            correct += int(((scores.argmax(axis=1) == labels) & finite).sum())
            in_top5 += _in_top(scores[finite], labels[finite], 5)
            if reference is not None:
                agreements.add(outputs, reference(batch.inputs), len(batch))
        if not count:
            raise data_error("there are no samples to classify.")
        low, high = wilson(correct, count)
        details: dict[str, object] = {
            "correct": correct,
            "classes": classes,
            "non_finite": non_finite,
            "output": name,
        }
        if classes > 5:
            details["top5_percent"] = 100 * in_top5 / count
        if reference is not None:
            details["agreement"] = agreements.to_dict()
        return Score(
            self.name, 100 * correct / count, "percent", count, 100 * low, 100 * high, details
        )


@dataclass(frozen=True)
class Agreement:
    """Closeness to a reference: 100 times the smallest mean cosine over the outputs.

    An output of probabilities, rows ``(N, C)`` that sum to 1, must also choose the same: of it the
    share of equal first places counts, where that is the smaller number.
    """

    name: str = "agreement"
    needs_labels: bool = False

    def score(self, run: Run, batches: Batches, reference: Run | None = None) -> Score:
        """Compare ``run`` with ``reference`` on the same batches.

        Returns:
            The value in percent; ``details["outputs"]`` has for each output the mean and smallest
            cosine of a sample, the largest difference, the signal-to-noise ratio, and for ``(N,
            C)`` outputs how often the largest entry is the same.

        Raises:
            InputError: ``E_TASK`` without a reference, or where outputs cannot be compared;
                ``E_DATA`` for no samples.
        """
        if reference is None:
            raise InputError(
                "E_TASK",
                "agreement needs a reference to agree with.",
                mend="Give the original network, or use the task classification with labelled data",
            )
        agreements = Agreements()
        count = 0
        for batch in batches():
            agreements.add(run(batch.inputs), reference(batch.inputs), len(batch))
            count += len(batch)
        if not count or not agreements.outputs:
            raise data_error("there are no samples, or no outputs, to compare.")
        value = 100 * min(entry.closeness for entry in agreements.outputs.values())
        details: dict[str, object] = {"outputs": agreements.to_dict()}
        return Score(self.name, value, "percent", count, details=details)


@dataclass(frozen=True)
class UserTask:
    """A score of the user's own.

    Attributes:
        fn: Takes a run and gives a number, the larger the better. It brings its own samples.
        name: What reports call it.
    """

    fn: Callable[[Run], float]
    name: str = "user"
    needs_labels: bool = False

    def score(self, run: Run, batches: Batches, reference: Run | None = None) -> Score:
        """Call the user's function on ``run``; ``batches`` and ``reference`` are not used.

        Raises:
            InputError: ``E_TASK`` where it gives anything but a finite number. What the function
                itself raises comes through as it is.
        """
        value: Any = self.fn(run)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(
                "E_TASK",
                f"the task '{self.name}' gave {value!r}.",
                mend="Return a finite number, the larger the better",
            )
        return Score(self.name, number, "score", 0)


def task(name: str) -> Task:
    """The task called ``name``.

    Raises:
        InputError: ``E_TASK`` for a name that is not a task.
    """
    if name == "classification":
        return Classification()
    if name == "agreement":
        return Agreement()
    if name in TASK_NAMES:
        from .tasks_embeddings import Retrieval, Verification

        return Retrieval() if name == "retrieval" else Verification()
    raise InputError("E_TASK", f"unknown task '{name}'.", mend="Tasks: " + ", ".join(TASK_NAMES))


def _class_output(outputs: Arrays, count: int) -> str:
    fits = [name for name, array in outputs.items() if _is_class_scores(array, count)]
    if len(fits) != 1:
        shapes = {name: tuple(array.shape) for name, array in outputs.items()}
        raise InputError(
            "E_TASK",
            f"{len(fits)} outputs have class scores (N, C), expected one; outputs: {shapes}.",
            mend="Name the output: Classification(output=...), or use the task agreement",
        )
    return fits[0]


def _is_class_scores(array: Array, count: int) -> bool:
    return (
        array.ndim >= 2
        and array.shape[0] == count
        and array.shape[1] > 1
        and all(size == 1 for size in array.shape[2:])
    )


def _class_scores(outputs: Arrays, name: str, count: int) -> NDArray[Any]:
    """The named output as ``(N, C)``."""
    if name not in outputs or not _is_class_scores(outputs[name], count):
        found = tuple(outputs[name].shape) if name in outputs else "absent"
        raise InputError(
            "E_TASK",
            f"output '{name}' is {found}, expected class scores ({count}, C) with C over 1.",
            mend="The outputs are: " + ", ".join(outputs),
            path=name,
        )
    return np.reshape(outputs[name], (count, -1))


def _labels(batch: Batch, classes: int) -> Labels:
    labels = batch.labels
    if labels is None:
        raise data_error(
            "classification needs labels, the data has none.",
            "Give one folder per class, a labels.csv, or y; or use the task agreement",
        )
    largest = int(labels.max())
    if largest >= classes:
        raise data_error(
            f"the data has class index {largest}, the network has {classes} outputs "
            f"(0 .. {classes - 1}).",
            "Check that the data's classes are those the network was trained on, in that order",
        )
    return labels


def _in_top(scores: NDArray[Any], labels: Labels, top: int) -> int:
    if scores.shape[1] <= top or not len(scores):
        return 0
    chosen = np.argpartition(scores, -top, axis=1)[:, -top:]
    return int(np.any(chosen == labels[:, None], axis=1).sum())
