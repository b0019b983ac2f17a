"""Does a detector's bundle still find the boxes of the original?

::

    python benchmarks/proofs/boxes.py yolox_nano BUNDLE [--pictures 200]
    python benchmarks/proofs/boxes.py ultraface BUNDLE

Both files run on the same pictures; each box of the original with a score over 0.5 (after the detector's
own non-maximum suppression) counts as found again where the bundle gives one of the same class with an IoU of at
least 0.75 and a score over 0.5 too. How many it gives with a score over 0.4 is printed beside it: a score of
0.501 that becomes 0.499 is a miss in the first count, and none in the second.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

import detections
from edgepress.benchmarks import Images
from edgepress.runtime import EngineOptions, Preprocessing, Session, open_engine
from edgepress.runtime.tensors import Arrays
from networks import data_root

_OVER, _LENIENT, _SAME, _SIDE = 0.5, 0.4, 0.75, 416


def yolox(outputs: Arrays, over: float) -> detections.Boxes:
    """YOLOX's boxes of one picture."""
    return detections.yolox(outputs["output"][0], _SIDE, over)


def ultraface(outputs: Arrays, over: float) -> detections.Boxes:
    """UltraFace's faces in one picture."""
    return detections.ultraface(outputs["scores"][0], outputs["boxes"][0], over)


NETWORKS: dict[str, tuple[str, Callable[[Arrays, float], detections.Boxes], Preprocessing, str]] = {
    "yolox_nano": (
        "yolox_nano_coco.onnx",
        yolox,
        Preprocessing(resize=(_SIDE, _SIDE), channel_order="BGR", scale=1.0),
        "imagenette224_train",
    ),
    "ultraface": (
        "ultraface_rfb320.onnx",
        ultraface,
        Preprocessing(resize=(240, 320), scale=128.0, mean=(127 / 128,)),
        "imagenet_val650",
    ),
}


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
    wanted, again = 0, dict.fromkeys((_OVER, _LENIENT), 0)
    with (
        open_engine("onnxruntime")(original, EngineOptions()) as engine,
        Session.open(given.bundle) as session,
    ):
        for batch in images.batches(engine.inputs, preprocessing, 1):
            exact = decode(engine.run(batch.inputs), _OVER)
            raw = session.run(batch.inputs)
            wanted += len(exact.scores)
            for over in again:
                again[over] += detections.found_again(exact, decode(raw, over), _SAME)
    told = {f"found_again_over_{over}": count for over, count in again.items()}
    print(
        json.dumps(
            {
                "network": given.network,
                "pictures": len(images),
                "boxes_of_the_original": wanted,
                **told,
            }
        )
    )


if __name__ == "__main__":
    main()
