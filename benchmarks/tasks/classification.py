"""Classification: the share of pictures whose largest output is at their class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import InputError
from ...runtime.tensors import Array, Arrays
from ..data.batch_runner import Run
from ..data.images import Batch
from ..data.sources import Labels, data_error
from ..statistics import wilson
from .agreement import Agreements
from .task import Batches, Score


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
