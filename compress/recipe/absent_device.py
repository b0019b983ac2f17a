"""Making a bundle for a device that is not here: what can be proved, and what must not be claimed.

TensorRT cannot run without its GPU. The graph can be written all the same, read and built by
TensorRT-RTX's builder, and scored by ONNX Runtime on the CPU, with every FP16 tensor rounded as
FP16. Its speed cannot be known, nor which kernels it gets: such a bundle has no latency and no
receipt, names its precision ``...-unproven``, and is only made where the user allows it. Its golden
self-test runs on the device when it is opened there, and refuses it if the numbers differ.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...export.bundle_contents import ShippedModel
from ...export.calibration.ranges import FeedBatches
from ...export.fp16.fp16 import SettledFp16
from ...export.fp16.fp16_writer import fp16_simulation
from ...export.graph.onnx_graph import Graph
from ...export.graph.precision_plan import PrecisionPlan
from ...export.int8.quantized_graph import QuantizedGraph
from ...export.receipt import NodeReceipt, Receipt
from ...runtime.engine_registry import find_device, import_backend, open_engine
from ...runtime.engines.build_options import BuildOptions
from ...runtime.errors import EngineError, InputError, MissingExtraError
from ...runtime.nvidia.child_builder import build_engine
from ...runtime.target import Target

STAND_IN = "onnxruntime"
"""The engine that scores what is made for a device that is not here."""

SUFFIX = "-unproven"
_BUILDER = "tensorrt-rtx"


def missing_device(target: Target) -> EngineError | None:
    """Why the device of a target is not here, or ``None`` where it is."""
    try:
        find_device(target.engine)
    except EngineError as error:
        return error
    return None


def check_device(target: Target, *, allowed: bool) -> bool:
    """Whether the device of a target is here.

    Args:
        target: What is made for.
        allowed: Whether a bundle may be made without it.

    Raises:
        InputError: ``E_UNPROVEN`` where it is not here and that is not allowed.
        MissingExtraError: Where it is here, its engine is not installed, and it is not allowed.
        EngineError: ``E_BACKEND`` where that cannot be imported.
    """
    missing = missing_device(target)
    if missing is None:
        try:
            import_backend(target.engine)  # before minutes of work, where it is not installed
        except MissingExtraError:
            if allowed and open_engine(target.engine).builds:  # a bundle for another GPU
                return False
            raise
        return True
    if allowed:
        return False
    raise InputError(
        "E_UNPROVEN",
        f"the target {target.name} cannot be measured here: {missing.message}",
        mend="Run this on the device itself; or allow a bundle whose speed was never measured, and "
        "which says so, with --unproven.",
    )


def absent_device_note(target: Target, receipt: Receipt) -> str:
    """What the bundle says of itself."""
    builder = receipt.engine.get("built_by")
    built = (
        f"TensorRT-RTX {receipt.engine.get('builder_version')} parses and builds its graph"
        if builder
        else "nothing here could parse its graph (pip install 'edgepress[tensorrt-rtx]')"
    )
    return (
        f"this bundle was made without a device of the target {target.name}: its time was not "
        f"measured, and which kernels it gets is not known. {built}; its score is that of ONNX "
        "Runtime on a CPU, with FP16 tensors rounded."
    )


def ship_unproven(
    graph: Graph,
    target: Target,
    macs: Mapping[str, int],
    batches: FeedBatches,
    *,
    quantized: QuantizedGraph | None = None,
    plan: PrecisionPlan | None = None,
    settled: SettledFp16 | None = None,
) -> tuple[ShippedModel, Receipt]:
    """What would ship, with what can be told of it here.

    Args:
        graph: The float32 network.
        target: What it is made for.
        macs: Multiply-adds by node.
        batches: Pictures; they tell the sizes that are free in the graph.
        quantized: The graph in INT8, if it is.
        plan: Which nodes were to be INT8.
        settled: The graph in FP16, if it is.

    Raises:
        EngineError: ``E_BACKEND`` where the builder does not take the graph.
    """
    model, precision = graph.model, "float32"
    if quantized is not None:
        model, precision = quantized.model, "int8"
    if settled is not None:
        model, precision = settled.half.model, "fp16" if quantized is None else precision
    units = {unit.node for unit in quantized.units} if quantized is not None else set[str]()
    half = settled.half.nodes if settled is not None else frozenset[str]()
    nodes: list[NodeReceipt] = []
    for node in graph.proto().graph.node:
        choices = [one.nodes.get(node.name) for one in (plan, settled and settled.plan) if one]
        reasons = [one.reason for one in choices if one is not None]
        told = "int8" if node.name in units else "fp16" if node.name in half else "float32"
        nodes.append(
            NodeReceipt(
                node.name,
                node.op_type,
                macs.get(node.name, 0),
                told if told == "float32" else f"{told} as written",
                "; ".join(dict.fromkeys(reasons)) or "not in the plan",
            )
        )
    facts = {"engine": target.engine, "unproven": True, **_built(graph, model, batches)}
    receipt = Receipt(facts, tuple(nodes), len(units), 0, {})
    emulated = fp16_simulation(model) if settled is not None else model
    name = f"{precision}{SUFFIX}"
    speech = "onnx" if quantized is None else target.dialect
    return ShippedModel(model, name, speech, target.engine, receipt.to_dict(), emulated), receipt


def _built(graph: Graph, model: bytes, batches: FeedBatches) -> dict[str, object]:
    """What TensorRT-RTX's builder says of a graph; it needs no GPU."""
    try:
        made = build_engine(_BUILDER, model, BuildOptions(sizes=_sizes(graph, batches)))
    except MissingExtraError:
        return {"built_by": None}
    return {
        "built_by": _BUILDER,
        "builder_version": made.facts["version"],
        "builder_layers": made.facts["layers"],
    }


def _sizes(graph: Graph, batches: FeedBatches) -> dict[str, tuple[int, int, int]]:
    feeds = next(iter(batches(1)))
    return {
        size: (length, length, length)
        for spec in graph.inputs
        for size, length in zip(spec.shape[1:], feeds[spec.name].shape[1:], strict=True)
        if isinstance(size, str)
    }
