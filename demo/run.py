"""The whole way on a small trained network: compress, verify, score, predict, measure.

Run by ``make demo``. It prints each public command before it runs it, and ends in a table.
Everything that it writes lies under ``.work/demo``.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

DEMO = Path("demo")
OUT = Path(".work/demo")
BUNDLE, FLOAT = OUT / "fashion-int8", OUT / "fashion.onnx"
MODEL = ["demo/backbone.py:fashion_resnet", "--weights", "demo/weights/fashion_resnet.safetensors"]
PICTURES = ["--preprocessing", "demo/preprocessing.toml"]
RECIPE = ["--data", "demo/data/calibration.npz", "--recipe", "int8", "--max-drop", "0.5"]
COMPRESS = ["compress", *MODEL, *PICTURES, *RECIPE]


def run(*arguments: str | Path, quiet: bool = False) -> str:
    """Print and run one edgepress command; stop with its exit status where it fails."""
    words = [str(word) for word in arguments]
    print(f"\n$ edgepress {shlex.join(words)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "edgepress", *words],
        stdout=subprocess.PIPE if quiet else None,
        text=True,
        check=False,
    )
    if done.returncode == 4:
        print("(this machine is too busy for the comparison to settle; its figures are rough)")
    elif done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def main() -> None:
    """Run the demo."""
    OUT.mkdir(parents=True, exist_ok=True)
    run("doctor")
    run("export", *MODEL, *PICTURES, "--static-shape", "1,1,28,28", "--out", FLOAT, "--force")
    run(*COMPRESS, "--test-data", DEMO / "data/test.npz", "--out", BUNDLE, "--force")
    run("verify", BUNDLE)
    run("evaluate", BUNDLE, "--data", DEMO / "data/test.npz")
    run("predict", BUNDLE, *sorted((DEMO / "pictures").glob("*.png")), "--top", "2")
    told = json.loads(run("bench", BUNDLE, "--against", FLOAT, "--json", quiet=True))
    show(json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8")), told)


def show(manifest: dict[str, Any], bench: dict[str, Any]) -> None:
    """The table at the end."""
    scores, sizes = manifest["scores"], manifest["measurements"]["size_bytes"]
    comparison = bench["comparison"]
    table = Table(title="\nWhat edgepress made of it", title_justify="left")
    for name, justify in (("", "left"), ("original", "right"), ("result", "right"), ("", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_row(
        "model size",
        f"{sizes['original'] / 1000:.0f} kB",
        f"{sizes['result'] / 1000:.0f} kB",
        f"{sizes['original'] / sizes['result']:.2f}x smaller",
    )
    table.add_row(
        "latency, one picture, one thread",
        f"{comparison['b']['latency']['p50_ms']:.3f} ms",
        f"{comparison['a']['latency']['p50_ms']:.3f} ms",
        f"{comparison['ratio']:.2f}x faster "
        f"(95 %: {comparison['ratio_low']:.2f} to {comparison['ratio_high']:.2f})",
    )
    original, result = scores["original"], scores["result"]
    table.add_row(
        f"accuracy, {result['count']:,} test pictures",
        f"{original['value']:.2f} %",
        f"{result['value']:.2f} %",
        f"{result['value'] - original['value']:+.2f} points",
    )
    console = Console(width=100)
    console.print(table)
    if manifest["declined"]:
        print("INT8 was declined on this machine:", *manifest["notes"], sep="\n  ")
    print(f"The bundle is {BUNDLE}: {manifest['variants'][0]['precision']}, runs without torch.")
    print("Try next:")
    print(f"  .venv/bin/edgepress inspect {BUNDLE} --nodes")
    print(f"  .venv/bin/edgepress pack {BUNDLE} --out {OUT}/fashion-int8.zip")
    print("  .venv/bin/edgepress compress path/to/your.py:factory --weights W --data DATA --out B")


if __name__ == "__main__":
    main()
