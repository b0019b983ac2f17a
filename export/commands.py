"""What ``inspect`` shows of a file, and the command transcode.

An ONNX file needs the extra ``export``, a bundle does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.bundle.bundle import Bundle
from ..runtime.console import Console, report_errors
from ..runtime.engines.engine import HALF_PRECISIONS
from ..runtime.errors import InputError
from ..runtime.files import check_file, write_file
from ..runtime.target import TARGET_NAMES, target
from .inspection.sensitivity_report import show_sensitivity

if TYPE_CHECKING:
    from .int8.dialect import Dialect


def show_file(console: Console, path: str, nodes: bool, *, slow_on: str | None = None) -> None:
    """Show what is in a bundle or an .onnx file, for ``edgepress inspect``.

    Args:
        console: Where to.
        path: The bundle or file.
        nodes: Whether to list every node.
        slow_on: A target; says for an INT8 .onnx file why it is slow there.

    Raises:
        MissingExtraError: For an .onnx file where onnx is not installed.
        EdgepressError: What opening it raises.
    """
    if path.lower().endswith(".onnx"):
        from .inspection.inspect_file import inspect_onnx

        shown = _show_onnx(console, inspect_onnx(path), nodes and slow_on is None)
        if slow_on is not None:
            from .inspection.text_report import show_slowness
            from .inspection.why_slow import why_slow as find

            given = target(slow_on)
            found = find(path, _dialect(slow_on, None), engine=given.engine)
            told = show_slowness(console, found, path, slow_on, nodes)
            shown = {**shown, "why_slow": told}
        console.result(shown)
        return
    if slow_on is not None:
        raise InputError(
            "E_USAGE",
            f"--why-slow looks at an .onnx file, '{path}' is none.",
            mend="Give the file; in a bundle it is model.onnx.",
            path=path,
        )
    bundle = Bundle.open(path)
    _show_bundle(console, bundle, nodes)
    console.result({"bundle": path, "size_bytes": bundle.size_bytes, **_as_dict(bundle)})


@click.command()
@click.argument("path", metavar="FILE.onnx")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where to write it.")
@click.option(
    "--target",
    "target_name",
    default="onnxruntime-cpu",
    show_default=True,
    help="What shall run it, one of: "
    + ", ".join(TARGET_NAMES)
    + "; its dialect is chosen for this "
    "processor.",
)
@click.option(
    "--dialect",
    "dialect_name",
    help="Another dialect than the target's own, such as onnxruntime-arm.",
)
@click.option("--force", is_flag=True, help="Replace the file at --out.")
@click.option(
    "--accept-difference",
    is_flag=True,
    help="Write it where a layer lies more than a quantization step from the given file, too.",
)
@click.option("--nodes", is_flag=True, help="List every change.")
@report_errors
def transcode(
    console: Console,
    path: str,
    out: Path,
    target_name: str,
    dialect_name: str | None,
    force: bool,
    accept_difference: bool,
    nodes: bool,
) -> None:
    """Rewrite the INT8 file FILE.onnx, made by any tool, the way a target runs it in INT8.

    Same scales, no data, no recalibration. Every layer is proved on random inputs to lie within a
    quantization step of the given file's before anything is written; exit status 3 where one does
    not.
    """
    from .inspection.text_report import show_transcoded
    from .transcode.transcode import transcode as rewrite

    dialect = _dialect(target_name, dialect_name)
    check_file(out, force=force)
    engine = target(target_name).engine
    found = rewrite(path, dialect, engine=engine, force=accept_difference)
    write_file(found.model, out, force=force)
    console.result(show_transcoded(console, found, path, out, nodes))


def _dialect(target_name: str, dialect_name: str | None) -> Dialect:
    from .int8.dialect import dialect

    return dialect(dialect_name or target(target_name).dialect)


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
    _show_measured(console, {**vars(manifest), "measurements": measured})
    for variant in bundle.variants:
        console.say(
            f"  variant     {variant.name}: {variant.file} for {variant.engine}, "
            f"dialect {variant.dialect}"
        )
        if variant.made is not None:
            _show_measured(console, variant.made)
        _show_receipt(console, variant.receipt, nodes)
    recipes: list[Any] = [recipe]
    for own in [(variant.made or {}).get("recipe") for variant in bundle.variants]:
        recipes += [own] if own and own not in recipes else []
    for one in recipes:
        for mixed in [report["mixed"] for report in one.get("reports", []) if "mixed" in report]:
            if len(recipes) > 1:
                console.say(f"  plan        for {one.get('target', 'its target')}")
            show_sensitivity(console, mixed, everything=nodes)


def _show_measured(console: Console, made: Mapping[str, Any]) -> None:
    """Score, latency and notes: a bundle's, or a variant's own."""
    scores: Any = made.get("scores")
    if scores:
        unit = " %" if scores["original"]["unit"] == "percent" else ""
        console.say(
            f"  score       {scores['task']}: {scores['result']['value']:.2f}{unit}, the original "
            f"{scores['original']['value']:.2f}{unit}, on {scores['result']['count']} pictures of "
            f"{scores['test_data']}"
        )
    measured: Any = made.get("measurements") or {}
    latency: Any = measured.get("latency")
    if latency:
        console.say(
            f"  latency     {latency['result_p50_ms']:.3f} ms against "
            f"{latency['original_p50_ms']:.3f} ms where it was made: {latency['speedup']:.2f}x "
            f"({latency['speedup_low']:.2f} to {latency['speedup_high']:.2f})"
        )
    if made.get("declined"):
        console.say("  DECLINED    the recipe did not pay; the model is as it came")
    for note in made.get("notes", ()):
        console.say(f"  note        {note}")


def _show_receipt(console: Console, receipt: Mapping[str, Any], nodes: bool) -> None:
    if not receipt:
        return
    engine = receipt.get("engine", {})
    where = f"{engine.get('engine', 'the engine')} {engine.get('version', '')}"
    halves = {
        word: receipt[f"{word}_macs_share"]
        for word in HALF_PRECISIONS
        if f"{word}_nodes" in receipt
    }
    if not halves or receipt["asked_int8"]:
        told = (
            f"{receipt['fused_int8']} of {receipt['asked_int8']} nodes became INT8 kernels in "
            f"{where}: {100 * receipt['int8_macs_share']:.1f} % of {receipt['macs']:,} "
            "multiply-adds"
        )
        time = receipt.get("int8_time_share")
        if time is not None:
            told += f", {100 * time:.1f} % of the kernels' time"
        console.say(f"  receipt     {told}")
    for word, share in halves.items():
        told = (
            f"{where} computes {100 * share:.1f} % of {receipt['macs']:,} multiply-adds in "
            f"{word}, {receipt[f'{word}_nodes']} nodes"
        )
        console.say(f"  receipt     {told}")
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
