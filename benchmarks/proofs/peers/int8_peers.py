"""Our INT8 beside that of other tools: the same networks, the same pictures, both CPU engines.

::

    python -m edgepress.benchmarks.proofs.peers.int8_peers [NETWORK ...] [--stage make,score,time] [--threads 1,2]
        [--modelopt PYTHON] [--minutes M] [--files FOLDER] [--out benchmarks/results/int8_peers]
    python -m edgepress.benchmarks.proofs.peers.int8_peers --brought NETWORKS.toml --out PATH

The first compares on the networks and pictures of ``../shared/data``, the second on your own: ``README.md`` says how
the file is written.

From one float32 graph and the same 300 calibration pictures (250 where there are 500) come the files of
``onnxruntime.quantization.quantize_static`` (MinMax, per channel, QDQ, uint8 activations), of ``nncf.quantize``
(its defaults), of ModelOpt, each as it was made and after ``edgepress transcode``, and our bundle for each engine
from the command line. In OpenVINO theirs run with their floats in float32 and, as it does by itself where the
processor has it, in bfloat16. Every file is scored through the runtime on the test pictures, and timed in turn with others
in fresh processes. A tool that fails is shown with its error.

It works in stages, each of which can be run alone and goes on where it was: ``make`` (peers, then our bundles, whose
INT8 has to be faster here to be kept: on a quiet machine), ``score``, and ``time``, which is split into comparisons
of seconds, the most telling first: ``--minutes`` ends it between two of them. On more than one thread ours is
timed against everything, and nothing besides.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from edgepress.benchmarks import Images, compare, fixed_batch
from edgepress.benchmarks.latency.fingerprint import fingerprint
from edgepress.runtime import EngineOptions, open_engine

from ..networks import FOREIGN, NETWORKS, Network, brought, edgepress, pictures
from .peer_scores import score
from .peer_shares import int8_share, macs_by_node
from .peer_table import markdown
from .peer_ways import ENGINES, OURS, WAYS, computed, pairs
from .peers import CALIBRATION, MODELOPT, PEERS, calibration_of, modelopt, transcode

_STAGES = ("make", "score", "time")
_BATCH = 50  # pictures scored at once


def main() -> None:
    """Run the proof."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK")
    parser.add_argument(
        "--brought", type=Path, metavar="NETWORKS.toml", help="networks of your own"
    )
    parser.add_argument("--stage", default=",".join(_STAGES), metavar="STAGE,...")
    parser.add_argument("--threads", default="1,2", metavar="N,...")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--modelopt", type=Path, help="a Python that has nvidia-modelopt")
    parser.add_argument("--minutes", type=float, default=1e9, help="how long to time, at most")
    parser.add_argument("--again", action="store_true", help="make, score and time anew")
    parser.add_argument("--files", type=Path, default=Path(".work/int8_peers"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/int8_peers"))
    parser.add_argument("--preset", default="quick")
    given = parser.parse_args()
    stages = given.stage.split(",")
    if set(stages) - set(_STAGES):
        parser.error(f"stages are {', '.join(_STAGES)}")
    known = {**NETWORKS, **FOREIGN} if given.brought is None else brought(given.brought)
    names = given.networks or list(known)
    if set(names) - set(known):
        parser.error(f"networks are {', '.join(known)}")
    until = time.monotonic() + 60 * given.minutes
    path = given.out.with_suffix(".json")
    told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"networks": {}}

    def keep() -> None:
        told["fingerprint"] = fingerprint()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps(told, indent=1) + "\n")
        os.replace(part, path)
        given.out.with_suffix(".md").write_text(markdown(told))

    for name in names:
        network, folder = known[name], given.files / name
        folder.mkdir(parents=True, exist_ok=True)
        if given.again or "recorded" in told["networks"].get(name, {"recorded": ""}):
            told["networks"][name] = {"files": {}, "ways": {}, "times": {}}
        state = told["networks"][name]
        if "make" in stages:
            make(network, folder, state, given.modelopt, keep)
        if "score" in stages:
            score_all(network, folder, state, keep)
        if "time" in stages:
            for threads in map(int, given.threads.split(",")):
                time_all(network, folder, state, threads, given.batch, given.preset, until, keep)
    print(markdown(told))


def make(
    network: Network,
    folder: Path,
    state: dict[str, Any],
    python: Path | None,
    keep: Callable[[], None],
) -> None:
    """Every file: float32, the peers', those transcoded, ours."""
    calibration, test = pictures(network, folder)
    how, preprocessing = network.how(), network.how_file(folder)
    float32, images = folder / "float32.onnx", calibration_of(Images.open(calibration))
    model = network.words()
    if not network.onnx:
        model += ["--preprocessing", str(preprocessing)]

    def attempt(name: str, step: Callable[[], object]) -> None:
        if "error" in state["files"].get(name, {"error": ""}) or not file_of(folder, name).exists():
            print(f"{network.name}: {name}", flush=True)
            started = time.monotonic()
            try:
                step()
                state["files"][name] = {"size_bytes": file_of(folder, name).stat().st_size}
            except (Exception, SystemExit) as error:
                state["files"][name] = {"error": short(error)}
            state["files"][name]["seconds"] = round(time.monotonic() - started, 1)
            keep()

    data = () if network.onnx else ("--data", calibration)
    export = ("export", *model, *data, "--out", float32, "--force")
    attempt("float32", lambda: edgepress(*export))
    for peer, tool in PEERS.items():
        attempt(
            peer, lambda peer=peer, tool=tool: tool(float32, file_of(folder, peer), images, how)
        )
    attempt(MODELOPT, lambda: modelopt(python, float32, file_of(folder, MODELOPT), images, how))
    for peer in (*PEERS, MODELOPT):
        if "error" in state["files"][peer]:
            continue
        for engine in ENGINES:
            name = f"{peer}, transcoded for {engine}"
            source, out = file_of(folder, peer), file_of(folder, name)
            attempt(name, lambda s=source, o=out, e=engine: transcode(s, o, f"{e}-cpu"))
    for engine in ENGINES:
        name = OURS.format(engine=engine)
        words = ("compress", *model, *(("--preprocessing", preprocessing) if network.onnx else ()))
        words += ("--data", calibration, "--test-data", test, "--task", network.task)
        words += ("--target", f"{engine}-cpu", "--max-drop", network.max_drop, "--force")
        words += ("--calibration-size", CALIBRATION, "--out", file_of(folder, name).parent)
        attempt(name, lambda words=words: edgepress(*words))
        manifest = file_of(folder, name).with_name("manifest.json")
        if manifest.exists() and "error" not in state["files"][name]:
            bundle = json.loads(manifest.read_text())
            held = bundle["variants"][0]["precision"]
            state["files"][name].update(
                declined=bundle["declined"], notes=bundle["notes"], precision=held
            )
            keep()


def file_of(folder: Path, name: str) -> Path:
    """Where a file lies."""
    plain = "".join(c if c.isalnum() else "_" for c in name)
    return (
        folder / plain / "model.onnx" if name.startswith("edgepress") else folder / f"{plain}.onnx"
    )


def score_all(
    network: Network, folder: Path, state: dict[str, Any], keep: Callable[[], None]
) -> None:
    """Score and share in INT8 of every way to run a file."""
    _, test = pictures(network, folder)
    images, how = Images.open(test), network.how()
    float32 = file_of(folder, "float32")
    macs: dict[str, int] = {}
    for way in WAYS:
        if "error" in state["files"].get(way.file, {"error": ""}):
            continue
        if "score" in state["ways"].get(way.key, {}):
            continue
        file, told = file_of(folder, way.file), dict[str, Any]()
        print(f"{network.name}: scoring {way.key}", flush=True)
        try:
            options = EngineOptions(precision=computed(way, state["files"]))
            with (
                open_engine("onnxruntime")(float32.read_bytes(), EngineOptions()) as original,
                open_engine(way.engine)(file.read_bytes(), options) as engine,
            ):
                name, wanted = engine.inputs[0].name, fixed_batch(original.run, original.inputs)
                judged = fixed_batch(engine.run, engine.inputs)
                batches = images.batches(original.inputs, how, _BATCH)
                told["score"] = score(
                    network.judged,
                    lambda feeds, judged=judged, name=name: judged(
                        {name: next(iter(feeds.values()))}
                    ),
                    wanted,
                    batches,
                )
            if not macs:
                first = next(iter(images.take([0]).batches(original.inputs, how, 1)))
                macs = macs_by_node(float32, next(iter(first.inputs.values())).shape[1:])
            told["int8_share"] = int8_share(file, way.engine, macs, options.precision)
        except Exception as error:
            told["error"] = short(error)
        state["ways"][way.key] = told
        keep()


def time_all(
    network: Network,
    folder: Path,
    state: dict[str, Any],
    threads: int,
    batch: int,
    preset: str,
    until: float,
    keep: Callable[[], None],
) -> None:
    """Comparisons that are not recorded yet, until the time is up."""
    load = f"{threads} thread{'s' if threads > 1 else ''}" + (
        f", batch {batch}" if batch > 1 else ""
    )
    times = state["times"].setdefault(load, {})
    runs = {way.key for way in WAYS if "score" in state["ways"].get(way.key, {})}
    shapes = open_shapes(network, file_of(folder, "float32"), batch)
    for a, b in pairs(most=threads > 1):
        key = f"{a.key} against {b.key}"
        if "error" not in times.get(key, {"error": ""}) or a.key not in runs or b.key not in runs:
            continue
        if time.monotonic() > until:
            return
        print(f"{folder.name}, {load}: {key}", flush=True)
        try:
            # compare(a, b).ratio is b's latency over a's: how many times faster a is
            found = compare(
                file_of(folder, a.file),
                file_of(folder, b.file),
                threads=threads,
                batch=batch,
                preset=preset,
                shapes=shapes,
                engine=a.engine,
                precision=computed(a, state["files"]),
                against_engine=b.engine,
                against_precision=computed(b, state["files"]),
            )
            times[key] = {
                "ratio": found.ratio,
                "low": found.ratio_low,
                "high": found.ratio_high,
                "p50_ms": found.a.latency.p50_ms,
                "against_p50_ms": found.b.latency.p50_ms,
                "settled": found.settled,
                "faster": found.faster,
            }
        except Exception as error:
            times[key] = {"error": short(error)}
        keep()


def open_shapes(network: Network, model: Path, batch: int) -> dict[str, tuple[int, ...]] | None:
    """What stands for sizes that a model leaves open: those that its pictures have."""
    with open_engine("onnxruntime")(model.read_bytes(), EngineOptions()) as engine:
        (spec,) = engine.inputs
    sides = network.how().resize
    if not any(isinstance(length, str) for length in spec.shape[1:]) or sides is None:
        return None
    return {spec.name: (batch, 3, *sides)}


def short(error: BaseException) -> str:
    """The first line of an error."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:250]}"


if __name__ == "__main__":
    main()
