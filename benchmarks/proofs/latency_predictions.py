"""How well does the latency table foretell networks that it has not seen?

    python -m edgepress.benchmarks.proofs.latency_predictions [--out benchmarks/results/latency_predictions]

ResNet-56 for CIFAR-10 is cut at random ten times. The table and the model (six other random
networks) predict each one's latency as a share of the whole network's, float32 and INT8, before all
of them are timed in turns on one thread. Weights are random: they do not matter to the time.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgepress.benchmarks.latency.fingerprint import fingerprint
from edgepress.compress.channels.structure import structure_of
from edgepress.compress.pruning.candidate_timing import CandidateTimer
from edgepress.compress.pruning.latency_model import RANDOM_NETWORKS, LatencyModel, random_widths
from edgepress.compress.pruning.latency_table import LatencyTable
from edgepress.compress.pruning.layer_costs import LayerWidths, macs_cost
from edgepress.compress.pruning.output_damage import widths_of
from edgepress.runtime.target import target as target_of

from .networks import data_root
from .peers.peer_table import print_machine

TARGET = "onnxruntime-cpu"
NETWORKS = 10


def main() -> None:
    """Print the table, and write it where ``--out`` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/latency_predictions"))
    out: Path = parser.parse_args().out
    sys.path.insert(0, str(data_root()))
    from backbones import resnet56  # type: ignore[import-not-found]

    torch.manual_seed(0)
    module = resnet56().eval()
    example = {"x": np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)}
    frame = LayerWidths(structure_of(module, example))
    target = target_of(TARGET)
    widths = [widths_of(group, target.channel_multiple) for group in frame.structure.groups]
    known = random_widths(frame, widths, RANDOM_NETWORKS, seed=0)
    unseen = random_widths(frame, widths, NETWORKS, seed=1)
    whole = frame.total(macs_cost, frame.whole)
    machine = fingerprint()
    lines = [
        "# Latencies predicted and measured: ResNet-56 cut at random",
        "",
        "Made by `python -m edgepress.benchmarks.proofs.latency_predictions`, ONNX Runtime, one thread, "
        "batch 1, shares of the whole network's latency in the same precision.",
        "",
    ]
    print_machine(lines, machine)
    lines += [
        "",
        "| precision | multiply-adds | predicted | measured | error |",
        "|---|---|---|---|---|",
    ]
    told: dict[str, Any] = {"fingerprint": machine, "precisions": {}}
    for precision in ("float32", "int8"):
        table = LatencyTable(target, precision)
        table.measure(frame, widths, _silent)
        watch = CandidateTimer(module, frame.structure, example, target, precision, _silent)
        model = LatencyModel(frame, table)
        ratios = watch([*known, *unseen])  # all of them in turns
        model.learn(known, lambda _, seen=ratios: seen[:RANDOM_NETWORKS])
        errors, rows = list[float](), list[dict[str, float]]()
        for choice, measured in zip(unseen, ratios[RANDOM_NETWORKS:], strict=True):
            predicted = model.predict(choice)
            errors.append(predicted / measured - 1)
            macs = frame.total(macs_cost, choice) / whole
            rows.append({"macs": macs, "predicted": predicted, "measured": measured})
            lines.append(
                f"| {precision} | {macs:.2f} | {predicted:.3f} | {measured:.3f} | "
                f"{100 * errors[-1]:+.1f} % |"
            )
        told["precisions"][precision] = rows
        near = sum(abs(error) <= 0.1 for error in errors)
        lines.append(f"| {precision} | | | within 10 % | **{near} of {len(errors)}** |")
    print("\n".join(lines))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _silent(stage: str, done: int, total: int | None) -> None:
    del stage, done, total


if __name__ == "__main__":
    main()
