"""A training that is killed in its middle, taken up again, and one that is not: do they end the same?

::

    python -m edgepress.benchmarks.proofs.killed_training [--kills 0.35,0.7] [--out benchmarks/results/killed_training]

A ResNet-20 is cut to 60 % of its multiply-adds and trained back on CIFAR-10 by ``recipes/killed.toml``, twice, from
one seed. The second process gets SIGKILL at these shares of its steps, in the middle of an epoch, and goes on with
``--resume``. Both students are scored on ``test_a``, picture by picture.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgepress.benchmarks.latency.fingerprint import fingerprint

from .networks import NETWORKS, edgepress
from .peers.peer_table import print_machine
from .trained_bundles import arrays

_HERE = Path(__file__).parent
_NETWORK = NETWORKS["resnet20"]
_STEPS = re.compile(r"training: (\d+) of (\d+)")


def main() -> None:
    """Train twice, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", default="0.35,0.7", metavar="SHARE,...")
    parser.add_argument("--work", type=Path, default=Path(".work/trained"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/killed_training"))
    given = parser.parse_args()
    kills = sorted(float(one) for one in given.kills.split(","))
    whole, _ = train(given.work, "unbroken", [])
    broken, killed = train(given.work, "killed", kills)
    told = {
        **compared(whole, broken, given.work),
        "killed_at": killed,
        "fingerprint": fingerprint(),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(markdown(told))
    print(markdown(told))


def train(work: Path, name: str, kills: list[float]) -> tuple[Path, list[dict[str, int]]]:
    """One training, killed at these shares of its steps.

    Returns:
        The bundle, and where it was killed.
    """
    pictures, test = arrays(work)
    out, killed = work / f"resnet20-{name}", list[dict[str, int]]()
    words = [sys.executable, "-m", "edgepress", "compress", *_NETWORK.words()]
    words += ["--data", str(pictures), "--test-data", str(test), "--max-drop", "3", "--force"]
    words += ["--preprocessing", str(_NETWORK.how_file(work))]
    words += ["--recipe", str(_HERE / "recipes" / "killed.toml"), "--out", str(out)]
    for share in [*kills, 2.0]:
        more = ["--resume"] if killed else []
        print("$", *words[2:], *more, file=sys.stderr, flush=True)
        with subprocess.Popen([*words, *more], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                found = _STEPS.search(line)
                if found and int(found[1]) >= share * int(found[2]):
                    process.send_signal(signal.SIGKILL)
                    killed.append({"step": int(found[1]), "of": int(found[2])})
                    print(f"killed at step {found[1]} of {found[2]}", file=sys.stderr, flush=True)
                    break
        if killed and len(killed) <= len(kills) and process.returncode == -signal.SIGKILL:
            time.sleep(1)
            continue
        if process.returncode != 0:
            sys.exit(f"edgepress ended with {process.returncode}")
        break
    return out, killed


def compared(whole: Path, broken: Path, work: Path) -> dict[str, Any]:
    """Scores of both on ``test_a``, how they were trained, and how far they choose the same."""
    _, test = arrays(work)
    told: dict[str, Any] = {}
    for name, bundle in (("unbroken", whole), ("killed", broken)):
        score = json.loads(edgepress("evaluate", bundle, "--data", test, "--json"))["score"]
        manifest = json.loads((bundle / "manifest.json").read_text())
        told[name] = {"score": score, "epochs": _epochs(manifest)}
    judged = ("--data", test, "--task", "agreement", "--reference", whole, "--json")
    found = json.loads(edgepress("evaluate", broken, *judged))["score"]["details"]["outputs"]
    told["same_top1_percent"] = next(iter(found.values()))["top1_agreement_percent"]
    told["same_bytes"] = (whole / "model.onnx").read_bytes() == (broken / "model.onnx").read_bytes()
    return told


def _epochs(manifest: Any) -> list[Any]:
    """The log of the epochs, wherever the manifest keeps it."""
    stack: list[Any] = [manifest]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            if isinstance(one.get("epochs"), list):
                return one["epochs"]
            stack += one.values()
        elif isinstance(one, list):
            stack += one
    return []


def markdown(told: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# A training that was killed",
        "",
        "Made by `python -m edgepress.benchmarks.proofs.killed_training`: ResNet-20 at 60 % of its multiply-adds, trained back by",
        "`recipes/killed.toml`, once unbroken, once killed with -9 and taken up with `--resume`; `test_a` of CIFAR-10.",
        "",
    ]
    print_machine(lines, told["fingerprint"])
    lines += ["", "| training | top-1 | last loss |", "|---|---|---|"]
    for name in ("unbroken", "killed"):
        found, last = told[name]["score"], told[name]["epochs"][-1]["loss"]
        where = (
            ", ".join(f"{one['step']} of {one['of']}" for one in told["killed_at"])
            if name == "killed"
            else ""
        )
        shown = f"killed at step {where}" if where else name
        loss = ", ".join(f"{key} {value:.4f}" for key, value in last.items())
        lines.append(
            f"| {shown} | {found['value']:.2f} % ({found['low']:.2f} to {found['high']:.2f}) | {loss} |"
        )
    same = "the same bytes" if told["same_bytes"] else "different bytes"
    lines += [
        "",
        f"The two students are {same} and choose the same class on {told['same_top1_percent']:.2f} % of the pictures.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
