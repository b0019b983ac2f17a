"""Train pruned networks back and put them on record as bundles.

::

    python benchmarks/proofs/trained_bundles.py [NAME ...] [--resume] [--work FOLDER] [--out benchmarks/results/bundles]

Every name below is one run of ``edgepress compress`` on CIFAR-10's training pictures: a part of them chooses, and
``test_a`` is only scored. EfficientNet-Lite0 learns from 1,500 pictures without labels, ImageNet's and Imagenette's, by
its agreement with the original. What it ships is copied to ``--out``: the bundle, with its recipe, its seed, and the log
of the training in its manifest. The names with ``-int8`` quantize what the name before it trained. ``--resume``
goes on with a training that was interrupted. ``trade_off.py`` reads the bundles.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from networks import NETWORKS, Network, cifar, data_root, edgepress

_HERE = Path(__file__).parent
_PICTURES = 49_904


@dataclass(frozen=True)
class Run:
    """One run of the command line.

    Attributes:
        network: Of ``backbones.py``.
        recipe: A recipe's name, or a file in ``recipes/``.
        minutes: Of training, at most; 0 for none.
        after: Name of the run whose network it begins with; ``None`` for the trained weights.
        max_drop: Points below the network that it begins with.
    """

    network: Network
    recipe: str
    minutes: float = 0
    after: str | None = None
    max_drop: float = 1.5


RUNS = {
    "resnet56-1.8x": Run(NETWORKS["resnet56"], "resnet56-1.8x.toml", 55),
    "resnet56-1.8x-int8": Run(NETWORKS["resnet56"], "int8", after="resnet56-1.8x", max_drop=0.5),
    "resnet56-2x": Run(NETWORKS["resnet56"], "resnet56-2x.toml", 55),
    "resnet56-2x-int8": Run(NETWORKS["resnet56"], "int8", after="resnet56-2x", max_drop=0.5),
    "resnet20-1.6x": Run(NETWORKS["resnet20"], "resnet20-1.6x.toml", 30),
    "resnet20-1.6x-int8": Run(NETWORKS["resnet20"], "int8", after="resnet20-1.6x", max_drop=0.5),
    "lite0-1.3x": Run(NETWORKS["efficientnet_lite0"], "lite0-1.3x.toml", 45, max_drop=30),
    "lite0-1.3x-int8": Run(NETWORKS["efficientnet_lite0"], "int8", after="lite0-1.3x", max_drop=1),
}


def main() -> None:
    """Make what is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(RUNS), metavar="NAME")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--work", type=Path, default=Path(".work/trained"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/bundles"))
    given = parser.parse_args()
    unknown = set(given.names) - set(RUNS)
    if unknown:
        parser.error(f"no run is called {', '.join(sorted(unknown))}; there are {', '.join(RUNS)}")
    for name in given.names:
        made = make(name, given.work, resume=given.resume)
        kept = given.out / name
        if kept.exists():
            shutil.rmtree(kept)
        shutil.copytree(made, kept)


def make(name: str, work: Path, *, resume: bool) -> Path:
    """Run what is called so; the bundle's folder."""
    run = RUNS[name]
    data, test = pictures(run.network, work)
    model, weights = run.network.files()
    if run.after is not None:
        weights = str(work / f"{run.after}.safetensors")
    recipe = _HERE / "recipes" / run.recipe if run.recipe.endswith(".toml") else run.recipe
    out = work / name
    edgepress(
        *("compress", model, "--weights", weights),
        *("--data", data, "--test-data", test),
        *(() if run.network.pictures == "cifar" else ("--task", "agreement")),
        *("--preprocessing", run.network.how_file(work)),
        *("--recipe", recipe, "--max-drop", run.max_drop, "--out", out, "--force"),
        *(("--max-train-minutes", run.minutes) if run.minutes else ()),
        *(("--weights-out", work / f"{name}.safetensors") if run.after is None else ()),
        *(("--resume",) if resume and run.after is None else ()),
    )
    return out


def pictures(network: Network, work: Path) -> tuple[Path, Path]:
    """What a network is trained with, and what it is scored on."""
    if network.pictures == "cifar":
        return arrays(work)
    folder = work / "unlabelled"
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("imagenet_calib", "imagenette224_train"):
        for file in sorted((data_root() / part / "images").iterdir()):
            link = folder / f"{part}-{file.name}"
            if not link.exists():
                link.symlink_to(file.resolve())
    return folder, data_root() / "imagenet_val650"


def arrays(work: Path) -> tuple[Path, Path]:
    """CIFAR-10's training pictures and ``test_a`` as the command line takes them."""
    work.mkdir(parents=True, exist_ok=True)
    found: list[Path] = []
    for kind in ("train", "test_a"):
        path = work / f"{kind}.npz"
        if not path.exists():
            x, y = cifar(kind, _PICTURES)
            np.savez(path, x=x, y=y)
        found.append(path)
    return found[0], found[1]


if __name__ == "__main__":
    main()
