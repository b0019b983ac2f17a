"""The networks and pictures that the proofs run on, out of a folder of weights and data."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def data_root() -> Path:
    """Where pictures and weights lie: ``$EDGEPRESS_DATA``, else ``../shared/data``."""
    root = Path(os.environ.get("EDGEPRESS_DATA", "../shared/data")).resolve()
    if not root.is_dir():
        sys.exit(f"There is no data at {root}; set EDGEPRESS_DATA.")
    return root


@dataclass(frozen=True)
class Network:
    """One trained network and the pictures it is judged on."""

    name: str
    weights: str
    preprocessing: str
    pictures: str
    task: str
    batches: tuple[int, ...] = (1, 16)


NETWORKS = {
    n.name: n
    for n in (
        Network(
            "resnet20", "cifar10_resnet20_akamaster.pt", "cifar.toml", "cifar", "classification"
        ),
        Network(
            "resnet56", "cifar10_resnet56_akamaster.pt", "cifar.toml", "cifar", "classification"
        ),
        Network(
            "resnet8", "cifar10_resnet8_mlperftiny.pt", "resnet8.toml", "cifar", "classification"
        ),
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
            "imagenet",
            "agreement",
            (1,),
        ),
    )
}


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
    if network.pictures == "imagenet":
        return data_root() / "imagenet_calib", data_root() / "imagenet_val650"
    found: list[Path] = []
    for kind, count in (("train", 5000), ("test_a", 5000)):
        path = folder / f"{kind}.npz"
        if not path.exists():
            x, y = cifar(kind, count)
            np.savez(path, x=x, y=y)
        found.append(path)
    return found[0], found[1]


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
