"""How good a file is: what each network of the peers' table is judged by, with an interval.

Every judge sees what the file gives and what the float32 network gives in ONNX Runtime, picture by
picture. ``top-1`` and ``neighbours`` know the pictures' classes, the others compare with float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgepress.benchmarks.data.images import Batch
from edgepress.benchmarks.statistics import wilson
from edgepress.benchmarks.tasks.agreement import Agreements
from edgepress.runtime.tensors import Arrays

from ..detections import Boxes, found_again, ultraface, yolox

SURE, STILL, OVERLAP = 0.5, 0.4, 0.75
"""The original's boxes over the first score are looked for among the file's; a second count takes
those over the second score too, for which a box that slips from 0.501 to 0.499 is no miss."""

_DRAWS = 1000


class Judge(Protocol):
    """Adds up pictures."""

    def add(self, found: Arrays, wanted: Arrays, labels: NDArray[Any] | None) -> None:
        """One batch: what the file gives, what float32 gives."""
        ...

    def told(self) -> dict[str, Any]:
        """``value`` in percent (or a cosine), its 95 % interval ``low`` and ``high``, ``count``."""
        ...


def score(
    judged: str,
    run: Callable[[Arrays], Arrays],
    reference: Callable[[Arrays], Arrays],
    batches: Iterable[Batch],
) -> dict[str, Any]:
    """The score of a run, and its agreement with the reference."""
    judge, agreements = JUDGES[judged](), Agreements()
    for batch in batches:
        wanted = reference(batch.inputs)
        outputs = dict(zip(wanted, run(batch.inputs).values(), strict=True))
        agreements.add(outputs, wanted, len(batch))
        judge.add(outputs, wanted, batch.labels)
    near = min(agreements.to_dict().values(), key=lambda one: one["mean_cosine"])  # type: ignore[index,call-overload]
    return {"judged": judged, **judge.told(), "agreement": near}


class TopOne:
    """Top-1 accuracy; Wilson's interval."""

    def __init__(self) -> None:
        self.right = self.count = 0

    def add(self, found: Arrays, wanted: Arrays, labels: NDArray[Any] | None) -> None:
        assert labels is not None
        scores = next(iter(found.values()))
        self.right += int((scores.argmax(axis=1) == self.expected(wanted, labels)).sum())
        self.count += len(scores)

    def expected(self, wanted: Arrays, labels: NDArray[Any]) -> NDArray[Any]:
        del wanted
        return labels

    def told(self) -> dict[str, Any]:
        return share(self.right, self.count)


class SameTopOne(TopOne):
    """How often the largest output is float32's; Wilson's interval."""

    def expected(self, wanted: Arrays, labels: NDArray[Any]) -> NDArray[Any]:
        del labels
        return next(iter(wanted.values())).argmax(axis=1)


class Cosine:
    """The mean cosine with float32's output; a bootstrap interval over the pictures."""

    def __init__(self) -> None:
        self.agreements = Agreements()

    def add(self, found: Arrays, wanted: Arrays, labels: NDArray[Any] | None) -> None:
        del labels
        self.agreements.add(found, wanted, len(next(iter(wanted.values()))))

    def told(self) -> dict[str, Any]:
        (one,) = self.agreements.outputs.values()
        cosines = np.asarray(one.cosines)
        drawn = np.random.default_rng(0).choice(cosines, (_DRAWS, len(cosines))).mean(axis=1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        return {
            "value": float(cosines.mean()),
            "low": float(low),
            "high": float(high),
            "count": len(cosines),
        }


class Neighbours:
    """How often the nearest other picture, by cosine of the features, is of the same class."""

    def __init__(self) -> None:
        self.features: list[NDArray[Any]] = []
        self.labels: list[NDArray[Any]] = []

    def add(self, found: Arrays, wanted: Arrays, labels: NDArray[Any] | None) -> None:
        del wanted
        assert labels is not None
        features = next(iter(found.values())).astype(np.float64)
        self.features.append(features / np.linalg.norm(features, axis=1, keepdims=True))
        self.labels.append(labels)

    def told(self) -> dict[str, Any]:
        features, labels = np.concatenate(self.features), np.concatenate(self.labels)
        near = features @ features.T
        np.fill_diagonal(near, -np.inf)
        return share(int((labels[near.argmax(axis=1)] == labels).sum()), len(labels))


class Detections:
    """Share of the original's boxes that are found again; Wilson's interval over the boxes.

    Args:
        boxes: Decodes a picture's boxes, of the outputs and its row in them.
    """

    def __init__(self, boxes: Callable[[Arrays, int], Boxes]) -> None:
        self._boxes = boxes
        self.again = self.nearly = self.count = 0

    def add(self, found: Arrays, wanted: Arrays, labels: NDArray[Any] | None) -> None:
        del labels
        for row in range(len(next(iter(wanted.values())))):
            sure = self._boxes(wanted, row).over(SURE)
            ours = self._boxes(found, row)
            self.count += len(sure.scores)
            self.again += found_again(sure, ours.over(SURE), OVERLAP)
            self.nearly += found_again(sure, ours, OVERLAP)

    def told(self) -> dict[str, Any]:
        return {**share(self.again, self.count), "over_lower": 100 * self.nearly / self.count}


def of_yolox(outputs: Arrays, row: int) -> Boxes:
    return yolox(next(iter(outputs.values()))[row], 416, STILL)


def of_ultraface(outputs: Arrays, row: int) -> Boxes:
    return ultraface(outputs["scores"][row], outputs["boxes"][row], STILL)


JUDGES: dict[str, Callable[[], Judge]] = {
    "top-1": TopOne,
    "same top-1": SameTopOne,
    "cosine": Cosine,
    "neighbours": Neighbours,
    "yolox boxes": partial(Detections, of_yolox),
    "ultraface boxes": partial(Detections, of_ultraface),
}


def share(part: int, count: int) -> dict[str, Any]:
    """In percent, with Wilson's interval."""
    low, high = wilson(part, count)
    return {"value": 100 * part / count, "low": 100 * low, "high": 100 * high, "count": count}
