"""Thirty networks and more: what INT8 makes of each, on each engine, and what making it costs.

::

    python -m edgepress.benchmarks.proofs.matrix.network_matrix [--only NETWORK,...] [--steps onnxruntime,openvino,peers,tensorrt,pruning]
        [--resume] [--no-timing] [--out benchmarks/results/network_matrix] [--keep FOLDER]
    python -m edgepress.benchmarks.proofs.matrix.network_matrix --brought NETWORKS.toml --out PATH

The second takes networks and pictures of your own: ``README.md`` says how the file is written.

Every step of every network (capture, INT8 for an engine, pruning) runs in a process of its own under a limit
of time and memory, and is written to the JSON when it is done: whatever ends this script, nothing
that was finished is lost, and ``--resume`` goes on with what is missing or failed. A network that
fails is a row with its error.

pytorchcv, timm and torchvision are needed for the networks that come from them, the extras ``openvino`` and
``tensorrt-rtx`` for those steps; the latter parses and builds, which takes no GPU, and times nothing. ``peers`` makes the
files of other tools and times them beside the bundles that the steps of the engines left in the same run, or in the folder
that ``--keep`` names.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgepress.benchmarks.latency.fingerprint import fingerprint

from .matrix_networks import Entry, entries
from .matrix_steps import CALIBRATION, MAX_DROP, SELECTION, STEPS, TEST
from .matrix_table import markdown

_STEPS = [name for name in STEPS if name != "capture"]
_ALONE = {"pruning"}  # steps that need no float32 graph
_POLL_SECONDS = 0.2


def main() -> None:
    """Run the proof."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="NETWORK,...")
    parser.add_argument("--brought", type=Path, metavar="NETWORKS.toml")
    parser.add_argument("--steps", default=",".join(_STEPS), metavar="STEP,...")
    parser.add_argument("--resume", action="store_true", help="Do what is missing or failed.")
    parser.add_argument("--no-timing", action="store_true", help="For a machine that is busy.")
    parser.add_argument("--minutes", type=float, default=20, help="Limit of a step.")
    parser.add_argument("--gib", type=float, default=10, help="Limit of a step's memory.")
    parser.add_argument("--keep", type=Path, help="Keep the graphs of each network in this folder.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/network_matrix"))
    given = parser.parse_args()
    there = entries(given.brought)
    names, wanted = (given.only or ",".join(there)).split(","), given.steps.split(",")
    for word, known in [*((n, there) for n in names), *((s, _STEPS) for s in wanted)]:
        if word not in known:
            parser.error(f"unknown: {word}. Known: {', '.join(known)}")
    path = given.out.with_suffix(".json")
    told = json.loads(path.read_text()) if path.exists() else {"networks": {}}
    told["pictures"] = {"calibration": CALIBRATION, "selection": SELECTION, "test": TEST}
    told["max_drop"] = MAX_DROP
    for count, name in enumerate(names, 1):
        entry = there[name]
        row = told["networks"].get(name, {}) if given.resume else {}
        told["networks"][name] = row
        row.update(source=entry.where, trained=entry.trained, size=entry.sides())
        first = [] if set(wanted) <= _ALONE else ["capture"]
        steps = [step for step in (*first, *wanted) if not done(row, step, given.no_timing)]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) if given.keep is None else given.keep / name
            folder.mkdir(parents=True, exist_ok=True)
            if (
                set(steps) - _ALONE - {"capture"}
                and "capture" not in steps
                and not (folder / "float32.onnx").exists()
            ):
                steps.insert(0, "capture")
            for step in steps:
                print(f"[{count}/{len(names)}] {name}: {step}", file=sys.stderr, flush=True)
                row[step] = run(step, entry, folder, given)
                told["fingerprint"] = fingerprint()
                write(path, json.dumps(told, indent=1) + "\n")
                write(given.out.with_suffix(".md"), markdown(told, there))
                if step == "capture" and "error" in row[step]:
                    break
    print(markdown(told, there))


def done(row: dict[str, Any], step: str, no_timing: bool) -> bool:
    """Whether a step is recorded and whole; one without timing is not whole where that is wanted."""
    found = row.get(step)
    if found is None or "error" in found:
        return False
    return no_timing or found.get("latency", True) is not None


def run(step: str, entry: Entry, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One step in a process of its own; what became of it."""
    out, log = folder / f"{step}.json", folder / f"{step}.log"
    out.unlink(missing_ok=True)
    words = [sys.executable, "-m", f"{__package__}.matrix_steps", step, entry.name]
    words += [str(folder), str(out), *(["--no-timing"] if given.no_timing else [])]
    words += [] if given.brought is None else ["--brought", str(given.brought)]
    started = time.monotonic()
    with log.open("wb") as file:
        child = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)
        try:
            why = watch(child, started + 60 * given.minutes, given.gib * 2**20)
        finally:
            if child.poll() is None:  # stopped at a limit, or by Ctrl-C: its own children as well
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    if out.exists():
        return json.loads(out.read_text())
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or [""]
    seconds = round(time.monotonic() - started, 1)
    return {"error": f"{why or ending(child.returncode)}: {last[0][:400]}", "seconds": seconds}


def ending(status: int) -> str:
    """How a process ended that gave no answer."""
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"


def watch(child: subprocess.Popen[bytes], until: float, kib: float) -> str:
    """Wait for the child to end or to cross a limit, which is then told."""
    status = Path(f"/proc/{child.pid}/status")
    while child.poll() is None:
        if time.monotonic() > until:
            return "stopped at its time limit"
        try:
            lines = status.read_text().splitlines()
        except OSError:
            lines = []
        if any(line.startswith("VmRSS") and int(line.split()[1]) > kib for line in lines):
            return "stopped at its memory limit"
        time.sleep(_POLL_SECONDS)
    return ""


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    os.replace(part, path)


if __name__ == "__main__":
    main()
