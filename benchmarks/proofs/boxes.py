"""Does a detector's bundle still find the boxes of the original?

::

    python benchmarks/proofs/boxes.py yolox_nano BUNDLE [--pictures 200]
    python benchmarks/proofs/boxes.py ultraface BUNDLE

Both files run on the same pictures; each box of the original with a score over 0.5 (after non-maximum
suppression at IoU 0.45) counts as found again where the bundle gives one of the same class with an IoU of at
least 0.75 and a score over 0.5 too. How many it gives with a score over 0.4 is printed beside it: a score of
0.501 that becomes 0.499 is a miss in the first count, and none in the second.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepress.benchmarks import Images
from edgepress.runtime import Bundle, EngineOptions, Preprocessing, Session, open_engine
from networks import data_root

_OVER, _LENIENT, _SUPPRESS, _SAME = 0.5, 0.4, 0.45, 0.75
Boxes = NDArray[np.float64]  # rows of x0, y0, x1, y1, score, class


def yolox(outputs: dict[str, Any]) -> Boxes:
    """YOLOX's dense output as boxes: Ge et al. 2021 (arXiv:2107.08430), decoded as its demo does."""
    raw = outputs["output"][0].astype(np.float64)
    grids = [
        (np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2), 416 // n)
        for n in (52, 26, 13)
    ]
    places = np.concatenate([grid for grid, _ in grids])
    strides = np.concatenate([np.full(len(grid), stride) for grid, stride in grids])[:, None]
    centre, size = (raw[:, :2] + places) * strides, np.exp(raw[:, 2:4]) * strides
    scores = raw[:, 4:5] * raw[:, 5:]
    return np.column_stack([centre - size / 2, centre + size / 2, scores.max(1), scores.argmax(1)])


def ultraface(outputs: dict[str, Any]) -> Boxes:
    """UltraFace's outputs as boxes, in shares of the picture."""
    scores = outputs["scores"][0, :, 1]
    return np.column_stack([outputs["boxes"][0], scores, np.zeros(len(scores))]).astype(np.float64)


NETWORKS: dict[str, tuple[str, Any, Preprocessing, str]] = {
    "yolox_nano": (
        "yolox_nano_coco.onnx",
        yolox,
        Preprocessing(resize=(416, 416), channel_order="BGR", scale=1.0),
        "imagenette224_train",
    ),
    "ultraface": (
        "ultraface_rfb320.onnx",
        ultraface,
        Preprocessing(resize=(240, 320), scale=1.0, mean=(127.0,), std=(128.0,)),
        "imagenet_val650",
    ),
}


def iou(box: NDArray[np.float64], others: Boxes) -> NDArray[np.float64]:
    """Intersection over union of one box with others, ``(N,)``."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:4], others[:, 2:4])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(others[:, 2:4] - others[:, :2], axis=1) + np.prod(box[2:4] - box[:2])
    return common / np.maximum(areas - common, 1e-12)


def kept(boxes: Boxes, over: float) -> Boxes:
    """Those over a score, without those that a better one of their class covers."""
    left, found = boxes[boxes[:, 4] > over], []
    left = left[np.argsort(-left[:, 4], kind="stable")]
    while len(left):
        best, left = left[0], left[1:]
        found.append(best)
        left = left[(iou(best, left) < _SUPPRESS) | (left[:, 5] != best[5])]
    return np.array(found).reshape(-1, 6)


def main() -> None:
    """Run the proof."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--pictures", type=int, default=200)
    given = parser.parse_args()
    file, decode, preprocessing, data = NETWORKS[given.network]
    images = Images.open(data_root() / data)
    images = images.take(np.arange(0, len(images), max(1, len(images) // given.pictures)))
    original = (data_root() / "onnx" / file).read_bytes()
    wanted = strict = lenient = 0
    with (
        open_engine("onnxruntime")(original, EngineOptions()) as engine,
        Session.open(Bundle.open(given.bundle)) as session,
    ):
        for batch in images.batches(engine.inputs, preprocessing, 1):
            exact = kept(decode(engine.run(batch.inputs)), _OVER)
            raw = decode(session.run(batch.inputs))
            for box in exact:
                wanted += 1
                for over in (_OVER, _LENIENT):
                    others = kept(raw, over)
                    others = others[others[:, 5] == box[5]]
                    hit = bool(len(others) and iou(box, others).max() >= _SAME)
                    strict += hit and over == _OVER
                    lenient += hit and over == _LENIENT
    print(
        json.dumps(
            {
                "network": given.network,
                "pictures": len(images),
                "boxes_of_the_original": wanted,
                "found_again_over_0.5_percent": round(100 * strict / max(1, wanted), 2),
                "found_again_over_0.4_percent": round(100 * lenient / max(1, wanted), 2),
            }
        )
    )


if __name__ == "__main__":
    main()
