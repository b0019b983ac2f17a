"""What does making cost: INT8 of a ResNet-50 beside ``quantize_static``, and pruning it?

::

    python -m edgepress.benchmarks.proofs.making_cost [--network resnet50] [--pictures 300] [--out benchmarks/results/making_cost]

Each line is a process of its own, the two that are compared three of them in turn; its seconds are those of the step
alone (imports and the export apart), the median and the range, its memory the peak of the whole process (VmHWM).
``quantize_static`` calibrates by minimum and maximum, which is its quickest way; ours by least squared error, writes the graph, corrects every channel's mean and spread in the INT8 kernels, and keeps
that where it is better. Pruning is asked for 60 % of the latency, twice: the second time the latencies of the layers lie in
the cache. Weights are random (BatchNorm statistics from real pictures), which changes none of these costs. Needs
``pip install pytorchcv``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgepress.benchmarks import Images
from edgepress.benchmarks.latency.fingerprint import fingerprint

from .matrix.matrix_networks import ENTRIES, Entry
from .matrix.matrix_steps import peak_kib
from .networks import data_root
from .peers.peer_table import print_machine
from .peers.peers import calibration_of, quantize_static

_LATENCY = 0.6


def export(entry: Entry, folder: Path, count: int) -> None:
    """The float32 graph that both tools start from."""
    from edgepress.compress import Backbone
    from edgepress.compress.source.export_network import export_graph

    del count
    graph = export_graph(
        Backbone.of(entry.module()), preprocessing=entry.how(), data=entry.share(0, 16)
    )
    (folder / "float32.onnx").write_bytes(graph.model)


def theirs(entry: Entry, folder: Path, count: int) -> None:
    """``quantize_static``."""
    del count  # the same 300 that peers.py takes
    images = calibration_of(Images.open(data_root() / "imagenette224_train"))
    quantize_static(folder / "float32.onnx", folder / "theirs.onnx", images, entry.how())


def ours(entry: Entry, folder: Path, count: int) -> None:
    """The pass ``int8``."""
    from edgepress.compress.quantization.int8_pass import quantize_int8
    from edgepress.compress.recipe.pass_context import Context
    from edgepress.compress.recipe.settings import Int8
    from edgepress.compress.source.source_network import first_rows, fixed_batches, open_model
    from edgepress.export.graph.onnx_graph import Graph
    from edgepress.export.receipt import count_macs
    from edgepress.runtime.target import target

    graph = open_model(folder / "float32.onnx", None)
    assert isinstance(graph, Graph)
    split = Images.open(data_root() / "imagenette224_train").split(count, 0, own_test=True)
    calibration = fixed_batches(graph, split.calibration, entry.how())
    selection = fixed_batches(graph, split.selection, entry.how())
    macs = count_macs(graph, first_rows(split.calibration, graph.inputs, entry.how(), 1))
    context = Context(
        target("onnxruntime-cpu"), calibration, count, selection, macs, lambda *_: None
    )
    made = quantize_int8(graph, Int8(), context)
    (folder / "ours.onnx").write_bytes(made.shipped.model)


def pruned(entry: Entry, folder: Path, count: int) -> None:
    """Pruning to a share of the latency, from following channels to the cut network."""
    from edgepress.compress import Backbone, prune

    del count
    prune(
        Backbone.of(entry.module()),
        Images.open(data_root() / "imagenette224_train"),
        preprocessing=entry.how(),
        max_latency_ratio=_LATENCY,
        cache=folder / "cache",
        progress=lambda stage, done, total: print(stage, done, total, file=sys.stderr),
    )


STEPS = {
    "export": export,
    "quantize_static, min-max": theirs,
    "edgepress, INT8": ours,
    "edgepress, INT8, a third of the pictures": ours,
    "edgepress, pruning": pruned,
    "edgepress, pruning, latencies cached": pruned,
}
_IN_TURN = ("quantize_static, min-max", "edgepress, INT8")
_TURNS = 3


def main() -> None:
    """Run the proof."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="resnet50", choices=list(ENTRIES))
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/making_cost"))
    parser.add_argument("--child", nargs=2, metavar=("STEP", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        name, folder = given.child
        count = given.pictures // 3 if name.endswith("a third of the pictures") else given.pictures
        started = time.monotonic()
        STEPS[name](ENTRIES[given.network], Path(folder), count)
        print(json.dumps({"seconds": time.monotonic() - started, "peak_kib": peak_kib()}))
        return
    rows: dict[str, Any] = {name: {"seconds": [], "peak_kib": 0} for name in STEPS}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("export", *_IN_TURN * _TURNS, *list(STEPS)[1 + len(_IN_TURN) :]):
            print(name, file=sys.stderr, flush=True)
            words = [
                sys.executable,
                "-m",
                f"{__package__}.making_cost",
                "--network",
                given.network,
                "--pictures",
            ]
            words += [str(given.pictures), "--child", name, folder]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            told, row = json.loads(done.stdout.splitlines()[-1]), rows[name]
            row["seconds"].append(told["seconds"])
            row["peak_kib"] = max(row["peak_kib"], told["peak_kib"])
    told = {"network": given.network, "pictures": given.pictures, "rows": rows}
    told["fingerprint"] = fingerprint()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(markdown(told))
    print(markdown(told))


def markdown(told: dict[str, Any]) -> str:
    """The table."""
    rows = told["rows"]
    theirs, ours = (rows[name]["seconds"] for name in _IN_TURN)
    ratios = sorted(b / a for a, b in zip(theirs, ours, strict=True))
    lines = [
        f"# What making costs: {told['network']}",
        "",
        f"Made by `python -m edgepress.benchmarks.proofs.making_cost`, {told['pictures']} pictures.",
        "",
    ]
    print_machine(lines, told["fingerprint"])
    lines += ["", "| step | seconds | peak of the process |", "|---|---|---|"]
    lines += [
        f"| {name} | {_seconds(row['seconds'])} | {row['peak_kib'] / 1024:,.0f} MiB |"
        for name, row in rows.items()
    ]
    lines += [
        "",
        f"INT8 takes {statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f}) of `quantize_static` "
        "(at most 1.5x is asked for).",
    ]
    return "\n".join(lines) + "\n"


def _seconds(found: list[float]) -> str:
    middle = f"{statistics.median(found):.1f}"
    return middle if len(found) == 1 else f"{middle} ({min(found):.1f} to {max(found):.1f})"


if __name__ == "__main__":
    main()
