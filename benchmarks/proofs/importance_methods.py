"""Which measure of a channel's worth keeps most accuracy, before and after training back?

::

    python -m edgepress.benchmarks.proofs.importance_methods [NETWORK] [--shares 0.7,0.5] [--epochs 2] [--seeds 0,1]
        [--temperatures 1,4,8]

A CIFAR-10 network is cut to shares of its multiply-adds by every method there is, each with its own choice of widths,
once with whole residual blocks in the same choice and once without, and trained back for some epochs with the same
settings. What chooses nothing is scored: pictures of the training set that neither pruning nor training saw, since
``test_a`` is not for choosing a default. With ``--temperatures`` cuts of the default method are compared instead, their
damage judged by class scores divided so, and nothing is trained.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edgepress.benchmarks import Images, task
from edgepress.benchmarks.latency.fingerprint import fingerprint
from edgepress.compress import Backbone, prune
from edgepress.compress.pruning import channel_gates
from edgepress.compress.pruning.importance import IMPORTANCES
from edgepress.compress.recipe.settings import Distil
from edgepress.compress.training.train import distil

from .held_back import COUNT, seen_and_unseen, top1
from .networks import NETWORKS
from .peers.peer_table import print_machine


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", nargs="?", default="resnet20")
    parser.add_argument("--shares", default="0.7,0.5", metavar="SHARE,...")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", default="0,1", metavar="N,...")
    parser.add_argument("--temperatures", default="", metavar="T,...")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/importance_methods"))
    given = parser.parse_args()
    path = given.out.with_suffix(".json")
    told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    seen, unseen = seen_and_unseen()

    def keep(kind: str, key: str, row: dict[str, Any]) -> None:
        told.setdefault(kind, {})[key] = row
        told["fingerprint"] = fingerprint()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(markdown(told))

    shares = [float(one) for one in given.shares.split(",")]
    if given.temperatures:
        for share in shares:
            for warmth in map(float, given.temperatures.split(",")):
                key = f"{given.network} {share:g} {warmth:g}"
                print(key, flush=True)
                keep("temperatures", key, warmed(given.network, share, warmth, seen, unseen))
        print(markdown(told))
        return
    for share in shares:
        for blocks in (False, True):
            for method in IMPORTANCES:
                for seed in map(int, given.seeds.split(",")):
                    key = f"{given.network} {share:g} {'blocks' if blocks else 'channels'} {method} {seed}"
                    if key in told["rows"]:
                        continue
                    print(key, flush=True)
                    found = one(
                        given.network, method, share, blocks, seed, given.epochs, seen, unseen
                    )
                    keep("rows", key, found)
    print(markdown(told))


def one(
    name: str,
    method: str,
    share: float,
    blocks: bool,
    seed: int,
    epochs: int,
    seen: Images,
    unseen: Images,
) -> dict[str, Any]:
    """One cut, scored as it is and trained back."""
    network = NETWORKS[name]
    whole = Backbone.open(*network.files())
    how = network.how()
    part = seen.split(300, seed, True, training=True)
    cut = prune(
        whole,
        part.training,
        preprocessing=how,
        max_macs_ratio=share,
        importance=method,
        blocks=blocks,
        seed=seed,
    )
    before = top1(cut.module, unseen, how)
    settings = Distil(epochs=epochs, precision="bfloat16", layout="channels_last")
    trained = distil(
        cut.module,
        whole.module,
        part.training,
        selection=part.selection,
        task=task("classification"),
        settings=settings,
        preprocessing=how,
        seed=seed,
    )
    return {
        "network": name,
        "share": share,
        "blocks": blocks,
        "method": method,
        "seed": seed,
        "epochs": epochs,
        "cut": before,
        "trained": top1(trained.module, unseen, how),
        "pictures": len(unseen),
    }


def warmed(name: str, share: float, warmth: float, seen: Images, unseen: Images) -> dict[str, Any]:
    """A cut whose damage is judged at a temperature, as it is."""
    network, usual = NETWORKS[name], channel_gates.TEMPERATURE
    channel_gates.TEMPERATURE = warmth
    try:
        cut = prune(
            Backbone.open(*network.files()),
            seen.split(300, 0, True, training=True).training,
            preprocessing=network.how(),
            max_macs_ratio=share,
        )
    finally:
        channel_gates.TEMPERATURE = usual
    score = top1(cut.module, unseen, network.how())
    return {"network": name, "share": share, "temperature": warmth, "cut": score}


def markdown(told: dict[str, Any]) -> str:
    """The table: a row for each question, seeds side by side."""
    lines = [
        "# What channels are worth: methods compared",
        "",
        f"Made by `python -m edgepress.benchmarks.proofs.importance_methods`. Top-1 on {COUNT:,} training pictures of CIFAR-10 "
        "that neither pruning nor training saw: as cut (statistics of BatchNorm taken anew), and trained back with the "
        "original as teacher. Several seeds are divided by slashes.",
        "",
    ]
    print_machine(lines, told["fingerprint"])
    lines += [
        "",
        "| network | multiply-adds | blocks may leave | method | as cut | trained back | epochs |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in told["rows"].values():
        key = tuple(row[part] for part in ("network", "share", "blocks", "method", "epochs"))
        groups.setdefault(key, []).append(row)
    for (name, share, blocks, method, epochs), rows in groups.items():
        cut, back = (" / ".join(f"{row[part]:.2f}" for row in rows) for part in ("cut", "trained"))
        lines.append(
            f"| {name} | {share:.0%} | {'yes' if blocks else 'no'} | {method} | {cut} % | {back} % | {epochs} |"
        )
    warm = told.get("temperatures", {}).values()
    if warm:
        lines += [
            "",
            "The default method, blocks leaving too, its damage judged by class scores divided by a temperature:",
            "",
            "| network | multiply-adds | temperature | as cut |",
            "|---|---|---|---|",
        ]
        for row in warm:
            lines.append(
                f"| {row['network']} | {row['share']:.0%} | {row['temperature']:g} | {row['cut']:.2f} % |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
