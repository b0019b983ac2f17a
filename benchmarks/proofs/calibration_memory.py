"""Does memory grow with the number of calibration pictures?

::

    python -m edgepress.benchmarks.proofs.calibration_memory [--out benchmarks/results/calibration_memory]

EfficientNet-Lite0 is quantized twice in fresh processes, once with 100 pictures and once with 1,000, decoded
from JPEG as the command line does; the peak of each process (VmHWM) is read when it is done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgepress.benchmarks.latency.fingerprint import fingerprint

from .networks import data_root, edgepress

_COUNTS = (100, 1000)


def quantize(model: str, count: int) -> dict[str, Any]:
    """Calibrate and quantize in this process; its peak."""
    from edgepress.benchmarks import Images
    from edgepress.compress.quantization.int8_pass import quantize_int8 as int8
    from edgepress.compress.recipe.pass_context import Context
    from edgepress.compress.recipe.settings import Int8
    from edgepress.compress.source.source_network import fixed_batches, open_model
    from edgepress.export.graph.onnx_graph import Graph
    from edgepress.runtime import Preprocessing
    from edgepress.runtime.target import target

    graph = open_model(model, None)
    assert isinstance(graph, Graph)
    preprocessing = Preprocessing.from_toml(data_root() / "lite0.toml")
    images = Images.open(data_root() / "imagenette224_train")
    selection = fixed_batches(
        graph, Images.open(data_root() / "imagenet_calib").take(range(64)), preprocessing
    )
    calibration = fixed_batches(graph, images.take(range(count)), preprocessing)
    started = time.monotonic()
    context = Context(target("onnxruntime-cpu"), calibration, count, selection, {}, lambda *_: None)
    int8(graph, Int8(), context)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {"pictures": count, "peak_kib": peak, "seconds": time.monotonic() - started}


def main() -> None:
    """Run the proof."""
    parser = argparse.ArgumentParser(
        description="Does memory grow with the number of calibration pictures?"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/calibration_memory"))
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "COUNT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(quantize(given.child[0], int(given.child[1]))))
        return
    root = data_root()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "lite0.onnx"
        edgepress(
            *("export", f"{root}/backbones.py:efficientnet_lite0"),
            *("--weights", root / "weights/timm_tf_efficientnet_lite0.pt"),
            *("--preprocessing", root / "lite0.toml", "--out", model),
        )
        for count in _COUNTS:
            words = [
                sys.executable,
                "-m",
                f"{__package__}.calibration_memory",
                "--child",
                str(model),
                str(count),
            ]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout))
    growth = rows[1]["peak_kib"] / rows[0]["peak_kib"] - 1
    told = {"rows": rows, "growth": growth, "fingerprint": fingerprint()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
    lines = [
        "# Memory of calibration",
        "",
        "Made by `python -m edgepress.benchmarks.proofs.calibration_memory`: EfficientNet-Lite0, fresh processes.",
        "",
        "| pictures | peak of the process | seconds |",
        "|---|---|---|",
        *(
            f"| {r['pictures']:,} | {r['peak_kib'] / 1024:.0f} MiB | {r['seconds']:.0f} |"
            for r in rows
        ),
        "",
        f"Ten times the pictures: {100 * growth:+.1f} % peak memory (at most +10 % is asked for).",
    ]
    given.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
