"""What ``inspect`` shows of a file. An ONNX file needs the extra ``export``, a bundle does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runtime.bundle import Bundle
from ..runtime.console import Console


def show_file(console: Console, path: str, nodes: bool) -> None:
    """Show what is in a bundle or an .onnx file, for ``edgepress inspect``.

    Args:
        console: Where to.
        path: The bundle or file.
        nodes: Whether to list every node.

    Raises:
        MissingExtraError: For an .onnx file where onnx is not installed.
        EdgepressError: What opening it raises.
    """
    if path.lower().endswith(".onnx"):
        from .inspection import inspect_onnx

        console.result(_show_onnx(console, inspect_onnx(path), nodes))
        return
    bundle = Bundle.open(path)
    _show_bundle(console, bundle, nodes)
    console.result({"bundle": path, "size_bytes": bundle.size_bytes, **_as_dict(bundle)})


def _as_dict(bundle: Bundle) -> dict[str, object]:
    manifest = bundle.manifest
    return {
        "format_version": manifest.format_version,
        "created_by": manifest.created_by,
        "task": manifest.task,
        "declined": manifest.declined,
        "notes": list(manifest.notes),
        "inputs": [spec.to_dict() for spec in bundle.inputs],
        "outputs": [spec.to_dict() for spec in bundle.outputs],
        "preprocessing": bundle.preprocessing.to_dict() if bundle.preprocessing else None,
        "labels": list(bundle.labels) if bundle.labels else None,
        "variants": [variant.to_dict() for variant in bundle.variants],
        "recipe": dict(bundle.recipe),
        "scores": dict(bundle.scores or {}),
        "measurements": dict(bundle.measurements or {}),
        "files": [vars(entry) for entry in manifest.files],
    }


def _show_bundle(console: Console, bundle: Bundle, nodes: bool) -> None:
    manifest, measured = bundle.manifest, dict(bundle.measurements or {})
    recipe: Any = bundle.recipe
    console.say(
        f"{bundle.path}: {bundle.size_bytes:,} bytes, format {manifest.format_version}, "
        f"{manifest.created_by}"
    )
    console.say(
        f"  from        {recipe.get('model', 'unknown')}, recipe {recipe.get('name', 'unknown')}"
    )
    for spec in bundle.inputs:
        console.say(f"  in          {spec}")
    for spec in bundle.outputs:
        console.say(f"  out         {spec}")
    if bundle.preprocessing:
        told = ", ".join(
            f"{key} {value}"
            for key, value in bundle.preprocessing.to_dict().items()
            if value is not None
        )
        console.say(f"  pictures    {told}")
    if bundle.labels:
        shown = ", ".join(bundle.labels[:6]) + (", ..." if len(bundle.labels) > 6 else "")
        console.say(f"  labels      {len(bundle.labels)}: {shown}")
    scores: Any = bundle.scores
    if scores:
        unit = " %" if scores["original"]["unit"] == "percent" else ""
        console.say(
            f"  score       {scores['task']}: {scores['result']['value']:.2f}{unit}, the original "
            f"{scores['original']['value']:.2f}{unit}, on {scores['result']['count']} pictures of "
            f"{scores['test_data']}"
        )
    latency: Any = measured.get("latency")
    if latency:
        console.say(
            f"  latency     {latency['result_p50_ms']:.3f} ms against "
            f"{latency['original_p50_ms']:.3f} ms where it was made: {latency['speedup']:.2f}x "
            f"({latency['speedup_low']:.2f} to {latency['speedup_high']:.2f})"
        )
    if manifest.declined:
        console.say("  DECLINED    the recipe did not pay; the model is float32")
    for note in manifest.notes:
        console.say(f"  note        {note}")
    for variant in bundle.variants:
        console.say(
            f"  variant     {variant.name}: {variant.file} for {variant.engine}, "
            f"dialect {variant.dialect}"
        )
        _show_receipt(console, variant.receipt, nodes)


def _show_receipt(console: Console, receipt: Mapping[str, Any], nodes: bool) -> None:
    if not receipt:
        return
    engine = receipt.get("engine", {})
    console.say(
        f"  receipt     {receipt['fused_int8']} of {receipt['asked_int8']} nodes became INT8 "
        f"kernels in {engine.get('engine', 'the engine')} {engine.get('version', '')}: "
        f"{100 * receipt['int8_macs_share']:.1f} % of {receipt['macs']:,} multiply-adds"
    )
    kernels = receipt.get("kernels", {})
    console.say("  kernels     " + ", ".join(f"{count} {name}" for name, count in kernels.items()))
    rows = receipt.get("nodes", [])
    if nodes:
        console.table(
            ("node", "operator", ">multiply-adds", "precision", "why"),
            [
                (r["name"], r["op_type"], f"{r['macs']:,}", r["precision"], r["reason"])
                for r in rows
            ],
        )


def _show_onnx(console: Console, found: dict[str, Any], nodes: bool) -> dict[str, Any]:
    console.say(
        f"{Path(found['file']).name}: {found['size_bytes']:,} bytes, opset {found['opset']}, "
        f"IR {found['ir_version']}"
    )
    for spec in found["inputs"]:
        console.say(f"  in          {spec['name']}: {spec['dtype']} {tuple(spec['shape'])}")
    for spec in found["outputs"]:
        console.say(f"  out         {spec['name']}: {spec['dtype']} {tuple(spec['shape'])}")
    console.say(f"  parameters  {found['parameters']:,}")
    macs = "an unknown number of" if found["macs"] is None else f"{found['macs']:,}"
    console.say(f"  work        {macs} multiply-adds for one picture")
    console.say("  operators   " + ", ".join(f"{n} {op}" for op, n in found["operators"].items()))
    if found["kernels"] is not None:
        told = ", ".join(f"{n} {op}" for op, n in found["kernels"].items())
        console.say(f"  kernels     in onnxruntime: {told}")
        if found["quantized"]:
            console.say(
                f"  receipt     {found['int8_kernels']} INT8 kernels; {found['left_over']} "
                "QuantizeLinear and DequantizeLinear left over"
            )
    if nodes:
        console.table(
            ("node", "operator", "inputs", "outputs"),
            [
                (n["name"], n["op_type"], ", ".join(n["inputs"]), ", ".join(n["outputs"]))
                for n in found["nodes"]
            ],
        )
    return found
