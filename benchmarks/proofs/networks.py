"""The networks and pictures that the proofs run on, out of a folder of weights and data."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgepress.runtime import Preprocessing
from edgepress.runtime.toml import parse_toml


def data_root() -> Path:
    """Where pictures and weights lie: ``$EDGEPRESS_DATA``, else ``../shared/data``."""
    root = Path(os.environ.get("EDGEPRESS_DATA", "../shared/data")).resolve()
    if not root.is_dir():
        sys.exit(f"There is no data at {root}; set EDGEPRESS_DATA.")
    return root


@dataclass(frozen=True)
class Network:
    """One trained network and the pictures it is judged on.

    Paths are relative to ``root``.

    Attributes:
        name: What tables call it.
        model: A factory, ``file.py:function``, or an ONNX file.
        weights: File of a factory's weights.
        preprocessing: File, or how pictures reach it.
        pictures: Where calibration and test pictures come from: a kind that :func:`pictures` knows, or two paths.
        task: As the command line knows it.
        batches: Batch sizes.
        judged: What it is scored by, see ``peer_scores.py``.
        max_drop: Points that our INT8 may lose; the product's own default is wider.
        root: Folder of its files; ``None`` for the data's.
    """

    name: str
    model: str
    weights: str | None
    preprocessing: str | Preprocessing
    pictures: str | tuple[str, str]
    task: str
    batches: tuple[int, ...] = (1, 16)
    judged: str = "top-1"
    max_drop: float = 1.0
    root: Path | None = None

    @property
    def onnx(self) -> bool:
        """Whether it is an ONNX file from elsewhere."""
        return self.model.endswith(".onnx")

    def path(self, file: str) -> Path:
        """Where one of its files lies."""
        return (self.root or data_root()) / file

    def files(self) -> tuple[str, str | None]:
        """Its factory or ONNX file, and its weights."""
        weights = None if self.weights is None else str(self.path(self.weights))
        return str(self.path(self.model)), weights

    def words(self) -> list[str]:
        """The same as the command line takes it."""
        model, weights = self.files()
        return [model] if weights is None else [model, "--weights", weights]

    def how(self) -> Preprocessing:
        """How pictures reach it."""
        if isinstance(self.preprocessing, Preprocessing):
            return self.preprocessing
        return Preprocessing.from_toml(self.path(self.preprocessing))

    def how_file(self, folder: Path) -> Path:
        """The same as a file, written to ``folder``."""
        path = folder / "preprocessing.toml"
        path.write_text(to_toml(self.how()))
        return path


def _factory(name: str, weights: str, preprocessing: str, *rest: Any, **more: Any) -> Network:
    return Network(name, f"backbones.py:{name}", f"weights/{weights}", preprocessing, *rest, **more)


def _cifar(name: str, weights: str, preprocessing: str) -> Network:
    return _factory(name, weights, preprocessing, "cifar", "classification", max_drop=0.5)


def _foreign(
    name: str, file: str, preprocessing: Preprocessing, pictures: str, judged: str, max_drop: float
) -> Network:
    return Network(
        name, f"onnx/{file}", None, preprocessing, pictures, "agreement", (1,), judged, max_drop
    )


NETWORKS = {
    n.name: n
    for n in (
        _cifar("resnet20", "cifar10_resnet20_akamaster.pt", "cifar.toml"),
        _cifar("resnet56", "cifar10_resnet56_akamaster.pt", "cifar.toml"),
        _cifar("resnet8", "cifar10_resnet8_mlperftiny.pt", "resnet8.toml"),
        _factory(
            "efficientnet_lite0",
            "timm_tf_efficientnet_lite0.pt",
            "lite0.toml",
            "imagenet",
            "classification",
            (1,),
        ),
        _factory(
            "mobilenetv2_features",
            "mobilenetv2_features_torchvision.pt",
            "mobilenetv2.toml",
            "imagenette",
            "agreement",
            (1,),
            "neighbours",
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


def brought(file: Path) -> dict[str, Network]:
    """Networks of somebody's own, from a TOML file with a table for each, as ``README.md`` has it.

    Its paths are relative to it.

    Raises:
        SystemExit: With what is missing, unknown or not there.
    """
    needed = {"model", "preprocessing", "data", "test", "task", "judged"}
    known = {*needed, "weights", "max_drop"}
    try:
        tables: Any = parse_toml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{file}: {error}")
    found: dict[str, Network] = {}
    for name, table in tables.items():
        if not isinstance(table, dict) or needed - set(table) or set(table) - known:
            sys.exit(
                f"{file}: [{name}] needs {sorted(needed)}, and may have 'weights', 'max_drop'."
            )
        network = Network(
            name,
            table["model"],
            table.get("weights"),
            table["preprocessing"],
            (table["data"], table["test"]),
            table["task"],
            (1,),
            table["judged"],
            float(table.get("max_drop", 1.0)),
            file.resolve().parent,
        )
        files = [table["model"].rpartition(":")[0] or table["model"]]
        files += [
            table[key] for key in ("weights", "preprocessing", "data", "test") if key in table
        ]
        for one in files:
            if not network.path(one).exists():
                sys.exit(f"{file}: [{name}] names {network.path(one)}, which is not there.")
        found[name] = network
    return found


def pictures(network: Network, folder: Path) -> tuple[Path, Path]:
    """Paths of the calibration and of the test pictures, made in ``folder`` where they are not files."""
    if not isinstance(network.pictures, str):
        calibration, test = network.pictures
        return network.path(calibration), network.path(test)
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
