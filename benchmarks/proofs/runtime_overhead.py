"""What the runtime's checks cost.

::

    python -m edgepress.benchmarks.proofs.runtime_overhead BUNDLE PICTURE [--out benchmarks/results/runtime_overhead]

Two questions, each answered by medians of interleaved runs. A run: ``Session.run`` against a bare
``InferenceSession.run`` on the same bytes, in one process, in turn. A start: a fresh process that opens the
bundle (hashes, schema, self-test) and predicts one picture, against a fresh process in which onnxruntime and
Pillow do the same without any check.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from edgepress.benchmarks.latency.fingerprint import fingerprint
from edgepress.benchmarks.statistics import bootstrap_median
from edgepress.runtime import Session

_OURS = """
import sys
from edgepress.runtime import Session
with Session.open(sys.argv[1], threads=1) as session:
    print(session.predict(sys.argv[2]).top(1)[0].index)
"""

_BARE = """
import json, os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np, onnxruntime as ort
from PIL import Image
how = json.load(open(sys.argv[1] + "/manifest.json"))["preprocessing"]
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3
session = ort.InferenceSession(sys.argv[1] + "/model.onnx", options, providers=["CPUExecutionProvider"])
grey = how["channel_order"] == "GRAY"
picture = Image.open(sys.argv[2]).convert("L" if grey else "RGB")
if how.get("resize_shorter"):
    w, h = picture.size
    s = how["resize_shorter"] / min(w, h)
    picture = picture.resize((int(w * s), int(h * s)), Image.Resampling.BICUBIC)
if how.get("center_crop"):
    h, w = how["center_crop"]
    left, top = (picture.width - w) // 2, (picture.height - h) // 2
    picture = picture.crop((left, top, left + w, top + h))
x = np.asarray(picture, np.float32)
x = x[:, :, None] if grey else x
x = (x / np.float32(how["scale"]) - np.float32(how["mean"])) / np.float32(how["std"])
x = np.ascontiguousarray(x.transpose(2, 0, 1)[None], np.float32)
print(int(session.run(None, {session.get_inputs()[0].name: x})[0].argmax()))
"""


def a_run(bundle: Path, rounds: int) -> dict[str, Any]:
    """Median of one run, ours and bare, blocks in turn."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    with Session.open(bundle, threads=1) as session:
        bare = ort.InferenceSession(
            session.bundle.model(session.variant), options, providers=["CPUExecutionProvider"]
        )
        shape = [d if isinstance(d, int) else 1 for d in session.inputs[0].shape]
        feeds = {
            session.inputs[0].name: np.random.default_rng(0)
            .standard_normal(shape)
            .astype(np.float32)
        }
        names = [spec.name for spec in session.outputs]
        samples: dict[str, list[float]] = {"ours": [], "bare": []}
        calls = {"ours": lambda: session.run(feeds), "bare": lambda: bare.run(names, feeds)}
        for _ in range(50):
            for call in calls.values():
                call()
        for i in range(rounds):
            for name in ("ours", "bare") if i % 2 else ("bare", "ours"):
                for _ in range(10):
                    started = time.perf_counter_ns()
                    calls[name]()
                    samples[name].append((time.perf_counter_ns() - started) / 1e3)
    medians = {name: float(np.median(values)) for name, values in samples.items()}
    blocks = {
        name: np.median(np.reshape(values, (rounds, 10)), axis=1)
        for name, values in samples.items()
    }
    low, high = bootstrap_median(blocks["ours"] - blocks["bare"], 0)
    return {
        "ours_us": medians["ours"],
        "bare_us": medians["bare"],
        "added_us": float(np.median(blocks["ours"] - blocks["bare"])),
        "added_low_us": low,
        "added_high_us": high,
        "allowed_us": max(20.0, 0.03 * medians["bare"]),
        "runs": rounds * 10,
    }


def a_start(bundle: Path, picture: Path, rounds: int) -> dict[str, Any]:
    """Wall time of a fresh process, ours and bare, in turn."""
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    answers: dict[str, set[str]] = {"ours": set(), "bare": set()}
    for i in range(rounds + 1):
        for name, code in (
            (("ours", _OURS), ("bare", _BARE)) if i % 2 else (("bare", _BARE), ("ours", _OURS))
        ):
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", code, str(bundle), str(picture)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            if i:  # the first round warms the page cache
                times[name].append((time.perf_counter() - started) * 1e3)
            answers[name].add(done.stdout.strip())
    if answers["ours"] != answers["bare"]:
        sys.exit(f"The two predict different classes: {answers}")
    ratios = np.asarray(times["ours"]) / np.asarray(times["bare"])
    low, high = bootstrap_median(ratios, 0)
    return {
        "ours_ms": float(np.median(times["ours"])),
        "bare_ms": float(np.median(times["bare"])),
        "ratio": float(np.median(ratios)),
        "ratio_low": low,
        "ratio_high": high,
        "processes": rounds,
    }


def main() -> None:
    """Run the proof."""
    parser = argparse.ArgumentParser(description="What the runtime's checks cost.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--starts", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/runtime_overhead"))
    given = parser.parse_args()
    path = given.out.with_suffix(".json")
    told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"bundles": {}}
    told["fingerprint"] = fingerprint()
    told["bundles"][given.bundle.name] = {
        "run": a_run(given.bundle, given.rounds),
        "start": a_start(given.bundle, given.picture, given.starts),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n")
    lines = [
        "# What the runtime's checks cost",
        "",
        "Made by `python -m edgepress.benchmarks.proofs.runtime_overhead BUNDLE PICTURE`, one thread. A run is allowed the larger",
        "of 20 us and 3 % over a bare `InferenceSession.run`; a start (fresh process to first prediction) 1.3x of",
        "onnxruntime and Pillow alone.",
        "",
        "| bundle | run, bare | run, ours adds | allowed | start, bare | start, ours | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in told["bundles"].items():
        run, start = one["run"], one["start"]
        lines.append(
            f"| {name} | {run['bare_us']:.0f} us | {run['added_us']:+.1f} us "
            f"({run['added_low_us']:+.1f} to {run['added_high_us']:+.1f}) | {run['allowed_us']:.1f} us "
            f"| {start['bare_ms']:.0f} ms | {start['ours_ms']:.0f} ms "
            f"| {start['ratio']:.2f} ({start['ratio_low']:.2f} to {start['ratio_high']:.2f}) |"
        )
    cpu = told["fingerprint"]["cpu"]
    lines += [
        "",
        f"Machine: {cpu['model']}, {cpu['cores']} cores, virtual, shared and noisy; "
        f"onnxruntime {told['fingerprint']['software']['onnxruntime']}; {told['fingerprint']['time_utc'][:10]}.",
    ]
    given.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
