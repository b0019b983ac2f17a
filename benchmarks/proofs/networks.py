"""The networks and pictures that the proofs run on, out of a folder of weights and data."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgepress.runtime import Preprocessing


def data_root() -> Path:
    """Where pictures and weights lie: ``$EDGEPRESS_DATA``, else ``../shared/data``."""
    root = Path(os.environ.get("EDGEPRESS_DATA", "../shared/data")).resolve()
    if not root.is_dir():
        sys.exit(f"There is no data at {root}; set EDGEPRESS_DATA.")
    return root


@dataclass(frozen=True)
class Network:
    """One trained network and the pictures it is judged on.

    Attributes:
        name: What tables call it; of a factory of ``backbones.py``, that factory's name.
        weights: File of its weights, or the ONNX file that it is.
        preprocessing: File under the data's root, or how pictures reach an ONNX file.
        pictures: Where calibration and test pictures come from; see :func:`pictures`.
        task: ``classification`` or ``agreement``, as the command line knows it.
        batches: Batch sizes.
        judged: What it is scored by, see ``peer_scores.py``.
        max_drop: Points that our INT8 may lose; the product's own default is wider.
    """

    name: str
    weights: str
    preprocessing: str | Preprocessing
    pictures: str
    task: str
    batches: tuple[int, ...] = (1, 16)
    judged: str = "top-1"
    max_drop: float = 1.0

    @property
    def onnx(self) -> bool:
        """Whether it is an ONNX file from elsewhere."""
        return self.weights.endswith(".onnx")

    def how(self) -> Preprocessing:
        """How pictures reach it."""
        if isinstance(self.preprocessing, Preprocessing):
            return self.preprocessing
        return Preprocessing.from_toml(data_root() / self.preprocessing)


def _cifar(name: str, weights: str, preprocessing: str) -> Network:
    return Network(name, weights, preprocessing, "cifar", "classification", max_drop=0.5)


def _foreign(
    name: str, file: str, preprocessing: Preprocessing, pictures: str, judged: str, max_drop: float
) -> Network:
    return Network(name, file, preprocessing, pictures, "agreement", (1,), judged, max_drop)


NETWORKS = {
    n.name: n
    for n in (
        _cifar("resnet20", "cifar10_resnet20_akamaster.pt", "cifar.toml"),
        _cifar("resnet56", "cifar10_resnet56_akamaster.pt", "cifar.toml"),
        _cifar("resnet8", "cifar10_resnet8_mlperftiny.pt", "resnet8.toml"),
        Network(
            "efficientnet_lite0",
            "timm_tf_efficientnet_lite0.pt",
            "lite0.toml",
            "imagenet",
            "classification",
            (1,),
        ),
        Network(
            "mobilenetv2_features",
            "mobilenetv2_features_torchvision.pt",
            "mobilenetv2.toml",
            "imagenette",
            "agreement",
            (1,),
            "neighbours",
            1.0,
        ),
    )
}
"""Trained weights for ``backbones.py``."""

FOREIGN = {
    n.name: n
    for n in (
        _foreign(
            "osnet",
            "osnet_x0_25_msmt17.onnx",
            Preprocessing(resize=(256, 128), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
            "calib",
            "cosine",
            0.7,
        ),
        _foreign(
            "text_direction",
            "ch_ppocr_mobile_v2.0_cls_infer.onnx",
            Preprocessing(resize=(48, 192), channel_order="BGR", mean=(0.5,), std=(0.5,)),
            "calib",
            "same top-1",
            0.5,
        ),
        _foreign(
            "yolox_nano",
            "yolox_nano_coco.onnx",
            Preprocessing(resize=(416, 416), channel_order="BGR", scale=1.0),
            "imagenette",
            "yolox boxes",
            3.0,
        ),
        _foreign(
            "ultraface",
            "ultraface_rfb320.onnx",
            Preprocessing(resize=(240, 320), scale=1.0, mean=(127.0,), std=(128.0,)),
            "imagenette",
            "ultraface boxes",
            3.0,
        ),
    )
}
"""Trained ONNX files from elsewhere."""


def cifar(kind: str, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first ``count`` pictures ``(N, 32, 32, 3)`` of a part, and their classes."""
    root = data_root() / "cifar10"
    labels = np.load(root / "labels.npz")[kind]
    sheets: list[NDArray[np.uint8]] = []
    for file in sorted(root.glob(f"{kind}_*.webp")):
        sheet = np.asarray(Image.open(file).convert("RGB"))
        rows = sheet.shape[0] // 32
        cut = sheet.reshape(rows, 32, 50, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
        sheets.append(cut)
        if sum(map(len, sheets)) >= count:
            break
    count = min(count, len(labels))
    return np.concatenate(sheets)[:count], labels[:count].astype(np.int64)


def pictures(network: Network, folder: Path) -> tuple[Path, Path]:
    """Paths of the calibration and of the test pictures, made in ``folder`` where they are not files."""
    if network.pictures != "cifar":
        calibration, test = {
            "imagenet": ("imagenet_calib", "imagenet_val650"),
            "imagenette": ("imagenet_calib", "imagenette224_train"),
            "calib": ("imagenette224_train", "imagenet_calib"),
        }[network.pictures]
        return data_root() / calibration, data_root() / test
    found: list[Path] = []
    for kind, count in (("train", 5000), ("test_a", 5000)):
        path = folder / f"{kind}.npz"
        if not path.exists():
            x, y = cifar(kind, count)
            np.savez(path, x=x, y=y)
        found.append(path)
    return found[0], found[1]


def to_toml(how: Preprocessing) -> str:
    """A preprocessing as the command line takes it."""
    lines: list[str] = []
    for key, value in how.to_dict().items():
        if value is not None:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def labels_of(folder: Path) -> NDArray[np.int64]:
    """Class indices of a folder with ``labels.csv``."""
    with (folder / "labels.csv").open(encoding="utf-8") as file:
        return np.array([int(row["class_index"]) for row in csv.DictReader(file)], np.int64)


def edgepress(*arguments: object) -> str:
    """Run the command line in a process of its own; stop where it fails."""
    words = [str(word) for word in arguments]
    print("$ edgepress", *words, file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "edgepress", *words], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in (0, 4):
        sys.exit(f"edgepress ended with {done.returncode}")
    return done.stdout
