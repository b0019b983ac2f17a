"""Train pruned networks back and put them on record as bundles.

::

    python -m edgepress.benchmarks.proofs.trained_bundles [NAME ...] [--resume] [--further [RECIPE]]
        [--minutes M] [--work FOLDER] [--out benchmarks/results/bundles]

Every name below is one run of ``edgepress compress`` on CIFAR-10's training pictures: a part of them chooses, and
``test_a`` is only scored. EfficientNet-Lite0 learns from 1,500 pictures without labels, ImageNet's and Imagenette's, by
its agreement with the original. What it ships is copied to ``--out``: the bundle, with its recipe, its seed, and the log
of the training in its manifest, and beside it the trained network's weights. ``NAME-int8`` quantizes what ``NAME``
trained, whose weights it finds there; a run may cut what another has trained once more, and then learns from the
original like every other. ``--resume`` goes on with a training that was interrupted; ``--further`` trains
what is on record once more (by ``recipes/further.toml``, or another that is named) and puts that in its place, beside the
manifest of the training before (``NAME.1.json``, and so on). ``trade_off.py`` reads the bundles.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .networks import NETWORKS, Network, cifar, data_root, edgepress

_HERE = Path(__file__).parent
_PICTURES = 49_904


@dataclass(frozen=True)
class Run:
    """One training by the command line.

    Attributes:
        network: Of ``backbones.py``.
        recipe: A file in ``recipes/``.
        minutes: Of training, at most.
        max_drop: Points below the network.
        int8_drop: Points that INT8 may lose of what was trained.
        student: Of ``students.py``, trained in the network's place; ``None`` where none is.
        cut: ``(NAME, RATIO)``: the student is what that run trained, cut to that share of its latency in INT8.
    """

    network: Network
    recipe: str
    minutes: float
    max_drop: float = 1.5
    int8_drop: float = 0.5
    student: str | None = None
    cut: tuple[str, float] | None = None

    @property
    def made_by(self) -> str:
        """The factory of what is trained."""
        if self.student is None:
            return self.network.files()[0]
        return f"{_HERE / 'students.py'}:{self.student}"


_INT8 = "-int8"
_FURTHER = "further.toml"
RUNS = {
    "resnet56-1.8x": Run(NETWORKS["resnet56"], "resnet56-1.8x.toml", 55),
    "resnet56-2x": Run(NETWORKS["resnet56"], "resnet56-2x.toml", 55),
    "resnet56-2.5x": Run(NETWORKS["resnet56"], _FURTHER, 45, 2.5, cut=("resnet56-2x", 0.84)),
    "resnet20-1.6x": Run(NETWORKS["resnet20"], "resnet20-1.6x.toml", 60),
    "resnet20-student": Run(NETWORKS["resnet20"], "student.toml", 20, 5, student="wide_27m"),
    "lite0-1.3x": Run(NETWORKS["efficientnet_lite0"], "lite0-1.3x.toml", 45, 30, 1),
}


def run_of(name: str) -> Run:
    """The training behind a bundle, itself or quantized."""
    return RUNS[name.removesuffix(_INT8)]


def is_run(name: str) -> bool:
    """Whether a bundle is one that a run makes."""
    return name.removesuffix(_INT8) in RUNS


def main() -> None:
    """Make what is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--further", nargs="?", const=_FURTHER, metavar="RECIPE")
    parser.add_argument("--minutes", type=float, help="Of training, in the place of the run's own.")
    parser.add_argument("--work", type=Path, default=Path(".work/trained"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/bundles"))
    given = parser.parse_args()
    known = [name + end for name in RUNS for end in ("", _INT8)]
    unknown = set(given.names) - set(known)
    if unknown:
        parser.error(f"no run is called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for name in given.names or known:
        given.out.mkdir(parents=True, exist_ok=True)
        made = make(name, given)
        kept = given.out / name
        if kept.exists():
            if given.further and not name.endswith(_INT8):
                count = len(earlier(kept)) + 1
                shutil.copy(kept / "manifest.json", kept.with_name(f"{name}.{count}.json"))
            shutil.rmtree(kept)
        shutil.copytree(made, kept)


def earlier(bundle: Path) -> list[Path]:
    """The manifests of the trainings that a recorded bundle's training went on from, in order."""
    return sorted(bundle.parent.glob(f"{bundle.name}.[0-9]*.json"))


def make(name: str, given: argparse.Namespace) -> Path:
    """Run what is called so (or with ``-int8`` behind it), as the command line says; the bundle's folder."""
    work, kept, resume, further = given.work, given.out, given.resume, given.further
    run, int8 = run_of(name), name.endswith(_INT8)
    data, test = pictures(run.network, work)
    model, weights = run.network.files()
    told: tuple[object, ...]
    if int8:
        model, weights = run.made_by, str(kept / f"{name.removesuffix(_INT8)}.safetensors")
        told = ("--recipe", "int8", "--max-drop", run.int8_drop)
    else:
        recipe = further or run.recipe
        told = ("--recipe", _HERE / "recipes" / recipe, "--max-drop", run.max_drop)
        told += ("--max-train-minutes", given.minutes or run.minutes)
        told += ("--weights-out", kept / f"{name}.safetensors")
        if further or run.cut is not None:
            start = work / f"{name}.before.safetensors"
            if further and not resume:
                shutil.copy(kept / f"{name}.safetensors", start)
            elif run.cut is not None and not resume:
                cut(run, *run.cut, kept, start, work)
            told += ("--student", run.made_by, "--student-weights", start)
        elif run.student is not None:
            told += ("--student", run.made_by)
        if resume:
            told += ("--resume",)
    out = work / name
    edgepress(
        *("compress", model, "--weights", weights, *told),
        *("--data", data, "--test-data", test),
        *(() if run.network.pictures == "cifar" else ("--task", "agreement")),
        *("--preprocessing", run.network.how_file(work), "--out", out, "--force"),
    )
    return out


def cut(run: Run, name: str, ratio: float, kept: Path, out: Path, work: Path) -> None:
    """Cut what another run trained, untrained since, however much that costs.

    Args:
        run: What it is cut for.
        name: Of the run that trained it.
        ratio: Share of its latency in INT8 that stays.
        kept: Where trained weights are kept.
        out: File of the cut network's weights.
        work: Where it is made.
    """
    data, test = pictures(run.network, work)
    edgepress(
        *("compress", run.made_by, "--weights", kept / f"{name}.safetensors"),
        *("--recipe", _HERE / "recipes" / "cut.toml", "--max-latency-ratio", ratio),
        *("--max-drop", 100, "--weights-out", out, "--data", data, "--test-data", test),
        *("--preprocessing", run.network.how_file(work), "--out", work / "cut", "--force"),
    )


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
