"""Does a GPU compute of an FP16 graph what our simulation foretold?

::

    python -m edgepress.benchmarks.proofs.fp16_on_gpu --keep FOLDER [--only NETWORK,...] [--out benchmarks/results/fp16_on_gpu]

Needs an NVIDIA GPU and ``onnxruntime-gpu`` in the place of ``onnxruntime``, and networks that
``network_matrix.py --keep FOLDER`` has left. Of each the graphs that TensorRT is given are made (FP16,
and INT8 with FP16 around it), simulated on the CPU, and run by ONNX Runtime's CUDA kernels, which compute in real FP16
and may fuse; where some node had to stay on the CPU the table says so. Beside them stand the same network in float32 on
the GPU (in TF32, where it has that), and as ONNX Runtime's own converter writes it in FP16, everything cast. All are held against float32 on
the CPU. The INT8 graph is run as it stands as well as optimized, where ONNX Runtime loses biases
(:mod:`edgepress.export.inspection.lost_biases`). Nothing is timed: TensorRT's kernels are others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import onnx
import onnxruntime
import torch

from edgepress.benchmarks import fixed_batch
from edgepress.benchmarks.latency.fingerprint import fingerprint
from edgepress.benchmarks.tasks.agreement import Agreements
from edgepress.compress.source.source_network import (
    first_rows,
    fixed_batches,
    open_model,
    with_batch,
)
from edgepress.export import calibrate
from edgepress.export.fp16.fp16 import settle_fp16
from edgepress.export.fp16.fp16_writer import fp16_simulation
from edgepress.export.graph.normalize import with_opset
from edgepress.export.graph.onnx_graph import Graph
from edgepress.export.inspection.lost_biases import lost_biases
from edgepress.runtime import EdgepressError
from edgepress.runtime.engines.engine import EngineOptions
from edgepress.runtime.engines.onnxruntime import CPU_PROVIDER, OnnxRuntimeEngine
from edgepress.runtime.tensors import Arrays

from .matrix.matrix_networks import ENTRIES, Entry
from .matrix.matrix_tensorrt import OPSET, in_dialect
from .peers.peer_table import print_machine

Optimize: TypeAlias = Literal["all", "none"]
CUDA = "CUDAExecutionProvider"
CALIBRATION, TEST = 16, 32


def main() -> None:
    """Run the proof."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--only", metavar="NETWORK,...")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fp16_on_gpu"))
    parser.add_argument("--provider", default=CUDA, help="Whose kernels run the graphs.")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else [n for n in ENTRIES if kept(given.keep, n)]
    told: dict[str, Any] = {
        "gpu": gpu_name(),
        "provider": given.provider,
        "onnxruntime": onnxruntime.__version__,
        "fingerprint": fingerprint(),
        "pictures": {"calibration": CALIBRATION, "test": TEST},
        "networks": {},
    }
    for name in names:
        if name not in ENTRIES or not kept(given.keep, name):
            parser.error(
                f"{given.keep} has no float32.onnx of a network of the matrix called {name}"
            )
        print(name, flush=True)
        told["networks"][name] = one(ENTRIES[name], given.keep / name, given.provider)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(markdown(told))
    print(markdown(told))


def kept(folder: Path, name: str) -> bool:
    """Whether the matrix has left a network there."""
    return (folder / name / "float32.onnx").is_file()


def gpu_name() -> str:
    """What the graphs run on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def one(entry: Entry, folder: Path, provider: str) -> dict[str, Any]:
    """One network: each graph, foretold and on the GPU."""
    how, given = entry.how(), open_model(folder / "float32.onnx", None)
    assert isinstance(given, Graph)
    part = entry.share(0, CALIBRATION)
    example = first_rows(part, given.inputs, how, 2)
    graph = with_opset(given, OPSET, with_batch(example, given))
    batches = fixed_batches(graph, part, how)
    feeds = first_rows(entry.share(CALIBRATION, TEST), graph.inputs, how, TEST)
    exact = run(graph.model, feeds, CPU_PROVIDER)
    ranges = calibrate(graph, batches)
    settled = settle_fp16(graph, ranges, batches)
    codes, _ = in_dialect("tensorrt")(graph, ranges, batches, {})
    both = settle_fp16(graph, ranges, batches, quantized=codes)
    found: dict[str, Any] = {
        "trained": entry.trained,
        "classes": entry.network is not None and entry.network.judged in ("top-1", "same top-1"),
        "fp16_nodes": len(settled.half.nodes),
        "float32_nodes": len(graph.proto().graph.node) - len(settled.half.nodes),
        "float32": {"gpu": beside(exact, graph.model, feeds, provider)},
    }
    for kind, model in (("fp16", settled.half.model), ("int8", both.half.model)):
        found[kind] = {
            "foretold": beside(exact, fp16_simulation(model), feeds, CPU_PROVIDER),
            "gpu": beside(exact, model, feeds, provider),
        }
    found["int8"]["gpu_as_it_stands"] = beside(
        exact, both.half.model, feeds, provider, optimize="none"
    )
    found["int8"]["lost_biases"] = len(lost_biases(onnx.load_model_from_string(both.half.model)))
    found["cast"] = {"gpu": cast(exact, graph.model, feeds, provider)}
    return found


def cast(exact: Arrays, model: bytes, feeds: Arrays, provider: str) -> dict[str, Any]:
    """The same where ONNX Runtime's own converter casts everything."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        made: Any = convert_float_to_float16(onnx.load_model_from_string(model), keep_io_types=True)
        return beside(exact, made.SerializeToString(), feeds, provider)
    except Exception as error:  # what fails is a row, as for every other tool
        return {"failed": f"{type(error).__name__}: {error}"[:200]}


def run(model: bytes, feeds: Arrays, provider: str, optimize: Optimize = "all") -> Arrays:
    """The outputs for all samples."""
    with OnnxRuntimeEngine(model, EngineOptions(provider=provider, optimize=optimize)) as engine:
        return fixed_batch(engine.run, engine.inputs)(feeds)


def beside(
    exact: Arrays, model: bytes, feeds: Arrays, provider: str, optimize: Optimize = "all"
) -> dict[str, Any]:
    """How far a graph is from float32 on the CPU: its worst output, and equal choices of a class."""
    try:
        outputs = run(model, feeds, provider, optimize)
    except EdgepressError as error:
        return {"failed": f"{error.code}: {error.message}"[:200]}
    agreements = Agreements()
    agreements.add(outputs, exact, TEST)
    found = [one.to_dict() for one in agreements.outputs.values()]
    told: dict[str, Any] = {
        "sqnr_db": min(
            (one["sqnr_db"] for one in found if one["sqnr_db"] is not None), default=None
        ),
        "finite": not any(one["non_finite"] for one in found),
    }
    if provider != CPU_PROVIDER:
        told["whole"] = whole(model, provider)
    if len(found) == 1 and "top1_agreement_percent" in found[0]:
        told["same_class"] = found[0]["top1_agreement_percent"] / 100
    return told


def whole(model: bytes, provider: str) -> bool:
    """Whether the provider takes every node, and leaves the CPU none."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        onnxruntime.InferenceSession(model, options, providers=[provider])
    except Exception:  # its own types, none of which tells this from the rest
        return False
    return True


def markdown(told: Mapping[str, Any]) -> str:
    """The table."""
    lines = [
        "# FP16 on a GPU, beside what was foretold",
        "",
        "Made by `python -m edgepress.benchmarks.proofs.fp16_on_gpu`. Signal over noise in decibels of the worst output, against float32 on",
        f"the CPU, over {told['pictures']['test']} pictures that set no range; in brackets the share of them that get the same class,",
        "where the network has classes and was trained. *Foretold* is our simulation on the CPU; *GPU* is what the kernels of ONNX",
        f"Runtime {told['onnxruntime']} for the {told['gpu']} ({told['provider']}) gave: float32 in TF32, where it is so set, of which what",
        "stays float32 in an FP16 graph has its part. *All cast* is what ONNX Runtime's own converter writes. *Optimized* is the INT8",
        "graph as ONNX Runtime rewrites it, which loses the float16 biases of so many layers (`edgepress inspect --why-slow`).",
        "",
    ]
    print_machine(lines, told["fingerprint"])
    lines += [
        "",
        *told.get("remarks", []),  # of a record of which a part is missing
        "| network | float32, GPU | nodes in FP16 (float32) | FP16 foretold | FP16, GPU | all cast, GPU "
        "| INT8 and FP16 foretold | GPU, as it stands | GPU, optimized | biases lost |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in told["networks"].items():
        found = (
            row["float32"]["gpu"],
            row["fp16"]["foretold"],
            row["fp16"]["gpu"],
            row["cast"]["gpu"],
            row["int8"]["foretold"],
            row["int8"].get("gpu_as_it_stands"),
            row["int8"]["gpu"],
        )
        cells = [shown(one, row["classes"]) for one in found]
        cells.insert(1, f"{row['fp16_nodes']} ({row['float32_nodes']})")
        cells.append(str(row["int8"]["lost_biases"]))
        lines.append(f"| {name if row['trained'] else f'{name}, random'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shown(found: Mapping[str, Any] | None, classes: bool) -> str:
    """One cell."""
    if found is None:
        return "not run"
    if "failed" in found:
        return f"failed: {found['failed']}"
    if not found["finite"]:
        return "not finite"
    text = "equal" if found["sqnr_db"] is None else f"{found['sqnr_db']:.1f} dB"
    same = found.get("same_class")
    if same is not None and classes:
        text += f" ({100 * same:.0f} %)"
    return text if found.get("whole", True) else f"{text}, in part on the CPU"


if __name__ == "__main__":
    main()
