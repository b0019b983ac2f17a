"""Boxes out of the raw outputs of two detectors, and how many of one set are found in another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

_STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class Boxes:
    """What was detected in one picture.

    Attributes:
        corners: ``(n, 4)``: left, top, right, bottom.
        scores: ``(n,)``.
        classes: ``(n,)``.
    """

    corners: Floats
    scores: Floats
    classes: NDArray[np.int64]

    def over(self, score: float) -> Boxes:
        """Those with a higher score."""
        return self.take(np.flatnonzero(self.scores > score))

    def take(self, rows: NDArray[np.int64]) -> Boxes:
        """Some of them."""
        return Boxes(self.corners[rows], self.scores[rows], self.classes[rows])


def yolox(output: Floats, side: int, least: float) -> Boxes:
    """Boxes of YOLOX's dense output ``(cells, 5 + classes)``, in pixels of the input.

    Source: Ge et al. 2021; the decoding and the suppression at 0.45 of its ``demo/ONNXRuntime``.
    """
    rows: list[Floats] = []
    for stride in _STRIDES:
        ys, xs = np.mgrid[: side // stride, : side // stride]
        grid = np.stack([xs, ys], axis=-1).reshape(-1, 2)
        rows.append(np.concatenate([grid, np.full((len(grid), 1), stride)], axis=1))
    cells = np.concatenate(rows)
    centre = (output[:, :2] + cells[:, :2]) * cells[:, 2:]
    half = np.exp(np.clip(output[:, 2:4], -20, 20)) * cells[:, 2:] / 2
    scores = output[:, 4:5] * output[:, 5:]
    corners = np.concatenate([centre - half, centre + half], axis=1)
    classes = scores.argmax(axis=1)
    found = Boxes(corners, scores.max(axis=1), classes).over(least)
    return suppressed(found, 0.45)


def ultraface(scores: Floats, boxes: Floats, least: float) -> Boxes:
    """Faces of UltraFace's outputs ``(cells, 2)`` and ``(cells, 4)``, in shares of the picture.

    Source: github.com/Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB, suppression at 0.5.
    """
    faces = Boxes(boxes, scores[:, 1], np.zeros(len(boxes), np.int64)).over(least)
    return suppressed(faces, 0.5)


def suppressed(found: Boxes, overlap: float) -> Boxes:
    """The highest scores first, without what overlaps one of them of its class by more."""
    left = np.argsort(-found.scores, kind="stable")
    kept: list[int] = []
    while len(left):
        first, left = int(left[0]), left[1:]
        kept.append(first)
        same = found.classes[left] == found.classes[first]
        near = iou(found.corners[first : first + 1], found.corners[left])[0] > overlap
        left = left[~(same & near)]
    return found.take(np.asarray(kept, np.int64))


def iou(a: Floats, b: Floats) -> Floats:
    """Intersection over union of every box of ``a`` with every one of ``b``: ``(len(a), len(b))``."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(axis=1), (b[:, 2:] - b[:, :2]).prod(axis=1)
    return common / np.maximum(area_a[:, None] + area_b[None] - common, 1e-12)


def found_again(wanted: Boxes, found: Boxes, overlap: float) -> int:
    """How many of ``wanted`` have a box of their class in ``found`` that overlaps so much.

    A box answers for one other at most; the highest scores of ``wanted`` choose first.
    """
    if not len(wanted.scores) or not len(found.scores):
        return 0
    overlaps = iou(wanted.corners, found.corners)
    overlaps[wanted.classes[:, None] != found.classes[None]] = 0
    count = 0
    for row in np.argsort(-wanted.scores, kind="stable"):
        best = int(overlaps[row].argmax())
        if overlaps[row, best] >= overlap:
            count += 1
            overlaps[:, best] = 0
    return count
