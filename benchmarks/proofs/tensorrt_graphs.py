"""What is written for TensorRT, of real networks: does NVIDIA's builder take it, and what is lost?

    python benchmarks/proofs/tensorrt_graphs.py > benchmarks/results/tensorrt_graphs.md

Needs the extras compress and tensorrt-rtx, and the folder of data that networks.py names; no GPU. Each network is
written in FP16, in INT8 (dialects tensorrt and tensorrt-rtx) and in INT8 with FP16 floats, parsed and built by
TensorRT-RTX in a child process, and run in ONNX Runtime, with every FP16 tensor rounded, against float32 on pictures
that the calibration did not see.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepress.benchmarks import Images
from edgepress.export import (
    Graph,
    calibrate,
    correct_biases,
    count_macs,
    dialect,
    plan_int8,
    read_onnx,
    settle_fp16,
    tidy,
    write_qdq,
)
from edgepress.export.exact import with_opset
from edgepress.export.fp16_write import simulation
from edgepress.runtime import EdgepressError, EngineOptions, Preprocessing, open_engine
from edgepress.runtime.engines import import_backend
from edgepress.runtime.nvidia import BuildOptions
from edgepress.runtime.nvidia.builder import build_engine
from networks import NETWORKS, data_root, edgepress, pictures

CALIBRATION, TEST = 64, 32
Arrays = dict[str, NDArray[np.float32]]
FILES = {  # brought as ONNX: how their pictures are scaled, and the size of free dimensions
    "osnet_x0_25_msmt17.onnx": ("imagenet", (256, 128)),
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": ("half", (48, 192)),
    "yolox_nano_coco.onnx": ("none", (416, 416)),
    "ultraface_rfb320.onnx": ("half", (240, 320)),
}
SCALES = {
    "imagenet": Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "half": Preprocessing(scale=128.0, mean=(127 / 128,) * 3, std=(1.0,) * 3),
    "none": Preprocessing(scale=1.0, channel_order="BGR"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [*NETWORKS, *FILES]
    parser.add_argument("networks", nargs="*", default=names, help=f"of: {', '.join(names)}")
    wanted = parser.parse_args().networks
    version = import_backend("tensorrt-rtx")
    print("# What is written for TensorRT\n")
    print(
        "Made by `python benchmarks/proofs/tensorrt_graphs.py`; no GPU was there, and nothing was timed on one. SQNR is"
    )
    print(
        f"of the worst output against float32, on {TEST} pictures that the {CALIBRATION} of the calibration are not among, in ONNX"
    )
    print(
        "Runtime on the CPU with every FP16 tensor rounded. Share: of the multiply-adds, as written. Built: seconds that"
    )
    print(f"TensorRT-RTX {version} took to parse and build it in a child process.\n")
    print(
        f"Machine: {platform.system()} {platform.machine()}, Python {platform.python_version()}.\n"
    )
    print("| network | written | size | INT8 share | float32 nodes | casts | SQNR, dB | built, s |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            graph, seen, unseen = network(name, Path(folder))
            for row in rows(graph, seen, unseen):
                print(f"| {name} | " + " | ".join(row) + " |", flush=True)


def network(name: str, folder: Path) -> tuple[Graph, Arrays, Arrays]:
    """A network, pictures to calibrate on, and others."""
    root = data_root()
    if name in FILES:
        scale, (height, width) = FILES[name]
        graph = tidy(read_onnx(str(root / "onnx" / name)), source=name)
        rng = np.random.default_rng(0)
        files = sorted((root / "imagenette224_train").rglob("*.jp*g"))
        scaled = replace(SCALES[scale], resize=(height, width))
        chosen = [files[i] for i in rng.permutation(len(files))[: CALIBRATION + TEST]]
        array = np.concatenate([scaled(str(file)) for file in chosen])
        key = graph.inputs[0].name
        return graph, {key: array[:CALIBRATION]}, {key: array[CALIBRATION:]}
    known = NETWORKS[name]
    toml = root / known.preprocessing
    path = folder / f"{name}.onnx"
    weights = root / "weights" / known.weights
    calibration, test = pictures(known, folder)
    model = f"{root}/backbones.py:{name}"
    edgepress(
        "export",
        model,
        "--weights",
        weights,
        "--preprocessing",
        toml,
        "--data",
        calibration,
        "--out",
        path,
    )
    graph = tidy(read_onnx(str(path)), source=name)
    scale_by = Preprocessing.from_toml(toml)

    def some(source: Path, count: int) -> Arrays:
        images = Images.open(str(source))
        batch = next(iter(images.batches(graph.inputs, scale_by, count)))
        return dict(batch.inputs)

    return graph, some(calibration, CALIBRATION), some(test, TEST)


def rows(graph: Graph, seen: Arrays, unseen: Arrays) -> Iterator[list[str]]:
    calibration = batches_of(graph, seen)
    exact = run(graph, graph.model, unseen)
    sizes = {
        one: (length,) * 3
        for spec in graph.inputs
        for one, length in zip(spec.shape[1:], seen[spec.name].shape[1:], strict=True)
        if isinstance(one, str)
    }

    def row(what: str, model: bytes, share: float, kept: str, casts: str, runs: bytes) -> list[str]:
        built = attempt(model, BuildOptions(sizes=sizes))  # type: ignore[arg-type]
        noise = sqnr_db(exact, run(graph, runs, unseen))
        told = "-" if what == "float32" else f"{noise:.1f}"
        shown = f"{100 * share:.1f} %" if share else "-"
        return [what, f"{len(model) / 1e3:,.0f} kB", shown, kept, casts, told, built]

    yield row("float32", graph.model, 0.0, "-", "-", graph.model)
    half = settle_fp16(graph, calibrate(graph, calibration, method="minmax"), calibration)
    kept = sum(1 for one in half.plan.nodes.values() if one.precision != "fp16")
    casts = str(half.half.casts)
    yield row(
        "fp16",
        half.half.model,
        0.0,
        f"{kept} of {len(half.plan.nodes)}",
        casts,
        simulation(half.half.model),
    )
    raised = with_opset(graph, 19, next(iter(calibration(2))))
    ranges = calibrate(raised, calibration)
    macs = count_macs(raised, next(iter(calibration(2))))
    largest = max(one.elements for one in ranges.tensors.values())
    for speech in ("tensorrt", "tensorrt-rtx"):
        spoken = dialect(speech)
        made = write_qdq(raised, ranges, plan_int8(raised, ranges, spoken), spoken)
        made, _ = correct_biases(raised, made, calibration, largest_tensor=largest)
        share = sum(macs.get(unit.node, 0) for unit in made.units) / max(1, sum(macs.values()))
        yield row(f"{speech}, int8", made.model, share, "-", "-", made.model)
        mixed = settle_fp16(raised, ranges, calibration, quantized=made.model)
        kept = sum(1 for one in mixed.plan.nodes.values() if one.precision != "fp16")
        whole = f"{kept} of {len(mixed.plan.nodes)}"
        model = mixed.half.model
        yield row(
            f"{speech}, int8 and fp16",
            model,
            share,
            whole,
            str(mixed.half.casts),
            simulation(model),
        )


def batches_of(graph: Graph, feeds: Arrays) -> Callable[[int], Iterable[Arrays]]:
    fixed = graph.inputs[0].batch

    def batches(size: int) -> Iterator[Arrays]:
        step = fixed or size
        count = len(next(iter(feeds.values())))
        for start in range(0, count - step + 1, step):
            yield {name: array[start : start + step] for name, array in feeds.items()}

    return batches


def run(graph: Graph, model: bytes, feeds: Arrays) -> list[Arrays]:
    with open_engine("onnxruntime")(model, EngineOptions(optimize="basic")) as engine:
        return [engine.run(few) for few in batches_of(graph, feeds)(4)]


def sqnr_db(exact: list[Arrays], found: list[Arrays]) -> float:
    worst = 300.0
    for name in exact[0]:
        one = np.concatenate([part[name].ravel() for part in exact]).astype(np.float64)
        other = np.concatenate([part[name].ravel() for part in found]).astype(np.float64)
        noise = float(np.sum((one - other) ** 2))
        worst = min(worst, 10 * np.log10(np.sum(one**2) / noise)) if noise else worst
    return worst


def attempt(model: bytes, options: BuildOptions) -> str:
    started = time.perf_counter()
    try:
        build_engine("tensorrt-rtx", model, options)
    except EdgepressError as error:
        print(error, file=sys.stderr)
        return f"**refused**: {error.message[:120]}"
    return f"{time.perf_counter() - started:.1f}"


if __name__ == "__main__":
    main()
