"""Makes the demo's data files from the four idx files of Fashion-MNIST.

The idx files come with the Debian package `dataset-fashion-mnist` (in its folder
`usr/share/datasets/fashion-mnist`) or from https://github.com/zalandoresearch/fashion-mnist:
`{train,t10k}-images-idx3-ubyte.gz` and `{train,t10k}-labels-idx1-ubyte.gz`.

Run it as

    python prepare_data.py --data FOLDER_WITH_THE_IDX_FILES

It writes, into this script's folder or the folder given with `--out`:

* `data/test.npz`: the official test set: `x` uint8 (10000, 28, 28, 1), `y` int64 (10000,) and
  `labels`, the ten class names.
* `data/calibration.npz`: 1,500 pictures, 150 a class, in the same form. They belong to the
  official training set, but to the 5,000 pictures that `train.py` holds out, so no weight was
  trained on them.
* `pictures/*.png`: four pictures of the test set, named after their class.
* `preprocessing.toml`: how a picture becomes the network's input, (x / scale - mean) / std, with
  the training pictures' mean and standard deviation.

The output depends on nothing but the input, so a second run with the same library versions
writes the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SPLIT_SEED = 0
SELECTION_COUNT = 5000
CALIBRATION_PER_CLASS = 150
SAMPLE_CLASSES = ("Sneaker", "Trouser", "Bag", "Ankle boot")


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped idx file of unsigned bytes.

    Args:
        path: The file: two zero bytes, the type (8: unsigned byte), the number of dimensions,
            each dimension as a big-endian 32-bit integer, then the values.

    Returns:
        The values, uint8, in the shape that the file states.

    Raises:
        ValueError: If the file is not an idx file of unsigned bytes, or has the wrong length.
    """
    raw = gzip.decompress(path.read_bytes())
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: not an idx file of unsigned bytes")
    ndim = raw[3]
    start = 4 + 4 * ndim
    if len(raw) < start:
        raise ValueError(f"{path}: the header is cut off")
    shape = tuple(int(n) for n in np.frombuffer(raw, dtype=">u4", count=ndim, offset=4))
    values = np.frombuffer(raw, dtype=np.uint8, offset=start)
    if values.size != int(np.prod(shape)):
        raise ValueError(f"{path}: holds {values.size} values, but its header says {shape}")
    return values.reshape(shape)


def read_split(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads one official split.

    Args:
        folder: The folder of the idx files.
        name: `train` or `t10k`.

    Returns:
        Pictures, uint8 (N, 28, 28), and classes, int64 (N,).

    Raises:
        ValueError: If the files do not belong together.
    """
    images = read_idx(folder / f"{name}-images-idx3-ubyte.gz")
    classes = read_idx(folder / f"{name}-labels-idx1-ubyte.gz").astype(np.int64)
    if images.shape[1:] != (28, 28) or classes.shape != images.shape[:1]:
        raise ValueError(f"{folder}: {name} has pictures {images.shape}, classes {classes.shape}")
    return images, classes


def training_statistics(images: np.ndarray) -> tuple[float, float]:
    """Returns the mean and standard deviation of all pixels, as numbers from 0 to 1.

    Args:
        images: All official training pictures, uint8 (N, 28, 28).

    Returns:
        Mean and standard deviation, rounded to four digits.
    """
    levels = np.arange(256) / 255.0
    share = np.bincount(images.ravel(), minlength=256) / images.size
    mean = float(share @ levels)
    std = float(np.sqrt(share @ (levels - mean) ** 2))
    return round(mean, 4), round(std, 4)


def split_indices(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits the official training set, always in the same way.

    Args:
        count: Number of official training pictures.

    Returns:
        Indices of the pictures to train on, and of the 5,000 held out for selection.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(count)
    return np.sort(order[SELECTION_COUNT:]), np.sort(order[:SELECTION_COUNT])


def save_npz(path: Path, images: np.ndarray, classes: np.ndarray) -> None:
    """Writes pictures, classes and class names as a compressed npz file.

    Args:
        path: The file to write.
        images: uint8 (N, 28, 28); written as `x` of shape (N, 28, 28, 1).
        classes: int64 (N,); written as `y`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, x=images[..., None], y=classes, labels=np.array(LABELS))


def main() -> None:
    """Reads the command line and writes the files."""
    parser = argparse.ArgumentParser(description="Makes the demo's data files.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the four idx files")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write into"
    )
    args = parser.parse_args()

    train_images, train_classes = read_split(args.data, "train")
    test_images, test_classes = read_split(args.data, "t10k")

    save_npz(args.out / "data" / "test.npz", test_images, test_classes)

    selection = split_indices(len(train_images))[1]
    rng = np.random.default_rng(SPLIT_SEED)
    chosen = [
        rng.choice(selection[train_classes[selection] == c], CALIBRATION_PER_CLASS, replace=False)
        for c in range(len(LABELS))
    ]
    calibration = rng.permutation(np.concatenate(chosen))
    save_npz(
        args.out / "data" / "calibration.npz",
        train_images[calibration],
        train_classes[calibration],
    )

    (args.out / "pictures").mkdir(parents=True, exist_ok=True)
    for name in SAMPLE_CLASSES:
        first = int(np.flatnonzero(test_classes == LABELS.index(name))[0])
        file = args.out / "pictures" / f"{name.lower().replace(' ', '_')}.png"
        Image.fromarray(test_images[first]).save(file, optimize=True)

    mean, std = training_statistics(train_images)
    (args.out / "preprocessing.toml").write_text(
        f'channel_order = "GRAY"\nscale = 255.0\nmean = [{mean}]\nstd = [{std}]\n',
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
