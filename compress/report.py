"""What a person reads: of a bundle, of an exported graph, of a score. No torch, no onnx."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..benchmarks.tasks.task import Score
from ..runtime.bundle.bundle import Bundle
from ..runtime.bundle.manifest import Variant
from ..runtime.console import Console

if TYPE_CHECKING:
    from ..export.graph.onnx_graph import Graph


def summary(bundle: Bundle) -> dict[str, object]:
    """The bundle in short, JSON values only: what ``edgepress compress --json`` prints.

    What stands at the top is of the default variant; ``variants`` has each, those that were made
    for other targets with ``declined``, ``notes``, ``scores``, ``measurements`` and ``recipe`` of
    their own.
    """
    first = bundle.variants[0]
    return {
        "bundle": str(bundle.path),
        "declined": bundle.manifest.declined,
        "notes": list(bundle.manifest.notes),
        "precision": first.precision,
        "dialect": first.dialect,
        "scores": dict(bundle.scores or {}),
        "measurements": dict(bundle.measurements or {}),
        "receipt": _in_short(first),
        "recipe": dict(bundle.recipe),
        "variants": [
            {
                "name": one.name,
                "engine": one.engine,
                "precision": one.precision,
                "dialect": one.dialect,
                "receipt": _in_short(one),
                **(one.made or {}),
            }
            for one in bundle.variants
        ],
    }


def show_bundle(console: Console, bundle: Bundle) -> None:
    """Print what ``edgepress compress`` ends in: size, latency, score, and why it was declined."""
    manifest, first = bundle.manifest, bundle.variants[0]
    told: dict[str, Any] = {
        "measurements": manifest.measurements,
        "scores": manifest.scores,
        "declined": manifest.declined,
        "notes": manifest.notes,
    }
    own = {first.engine: (first, told)}
    for one in bundle.variants[1:]:
        if one.made is not None and one.engine not in own:  # else it stands in for the one before
            own[one.engine] = (one, dict(one.made))
    for variant, made in own.values():
        if len(own) > 1:
            console.say(f"Variant {variant.name}, for {variant.engine}:")
        _show_variant(console, variant, made)
    console.say(f"Bundle: {bundle.path}")
    predict = "" if bundle.preprocessing is None else f"edgepress predict {bundle.path} PICTURE; "
    console.say(f"Try next: {predict}edgepress inspect {bundle.path}")


def _show_variant(console: Console, variant: Variant, made: Mapping[str, Any]) -> None:
    """What was made for one target."""
    measured: Any = made["measurements"]
    sizes = measured["size_bytes"]
    smaller = f"{sizes['original'] / sizes['result']:.2f}x smaller"
    rows: list[tuple[str, ...]] = [
        ("precision", "float32", variant.precision, ""),
        (
            "model size",
            _kilobytes(sizes["original"]),
            _kilobytes(sizes["result"]),
            smaller if sizes["original"] != sizes["result"] else "",
        ),
    ]
    latency = measured.get("latency")
    if latency:
        between = f"{latency['speedup_low']:.2f} to {latency['speedup_high']:.2f}"
        rows.append(
            (
                f"latency p50, batch {latency['batch']}, {latency['threads']} thread",
                f"{latency['original_p50_ms']:.3f} ms",
                f"{latency['result_p50_ms']:.3f} ms",
                f"{latency['speedup']:.2f}x faster ({between})",
            )
        )
    rows.append(_score_row(made["scores"]))
    shares = {"INT8": measured["int8_macs_share"]}
    for word, name in (("bfloat16", "bfloat16"), ("fp16", "FP16")):
        shares[name] = measured.get(f"{word}_macs_share", 0.0)
    for what, share in shares.items():
        if share or (what == "INT8" and not any(shares.values())):
            rows.append((f"multiply-adds in {what}", "0 %", f"{100 * share:.1f} %", ""))
    console.table(("", ">original", ">result", "difference"), rows)
    if made["declined"]:
        how = variant.precision.partition("-")[0]
        console.say(f"Declined: the bundle holds the network as it came, in {how}.")
    for note in made["notes"]:
        console.say(f"Note: {note}")


def _in_short(variant: Variant) -> dict[str, object]:
    return {key: value for key, value in variant.receipt.items() if key != "nodes"}


def show_graph(console: Console, graph: Graph, out: Path, opset: int) -> None:
    """Print what ``edgepress export`` wrote, and how near it is to torch."""
    console.say(f"{out}: {_kilobytes(len(graph.model))}, opset {opset}")
    for spec in graph.inputs:
        console.say(f"  in   {spec}")
    for spec in graph.outputs:
        console.say(f"  out  {spec}")
    if graph.parity is None:
        return
    what = "pictures" if graph.parity.real else "synthetic inputs"
    for name, cosine in graph.parity.cosine.items():
        console.say(
            f"  '{name}' against torch on {graph.parity.pictures} {what}: largest difference "
            f"{graph.parity.max_abs[name]:.3g}, cosine {cosine:.8f}"
        )


def show_score(console: Console, found: Score, how: str, data: str) -> None:
    """Print what ``edgepress evaluate`` found."""
    value = _score(found.to_dict())
    console.say(f"{found.task} on {found.count} pictures of {data}, run by {how}: {value}")
    top5 = found.details.get("top5_percent")
    if isinstance(top5, float):
        console.say(f"  top-5: {top5:.2f} %")
    rank1 = found.details.get("rank1_percent")
    if isinstance(rank1, float):
        console.say(f"  rank-1: {rank1:.2f} %")
    threshold = found.details.get("threshold")
    if isinstance(threshold, float):
        console.say(f"  at a cosine over {threshold:.4f}, false accepts {found.details['far']:g}")
    agreement: Any = found.details.get("outputs") or found.details.get("agreement") or {}
    for name, one in agreement.items():
        parts = [
            f"mean cosine {one['mean_cosine']:.6f}",
            f"largest difference {one['max_abs']:.4g}",
        ]
        if one.get("sqnr_db") is not None:
            parts.append(f"SQNR {one['sqnr_db']:.2f} dB")
        if one.get("top1_agreement_percent") is not None:
            parts.append(f"same top-1 {one['top1_agreement_percent']:.2f} %")
        console.say(f"  '{name}': " + ", ".join(parts))


def _score_row(scores: Mapping[str, Any]) -> tuple[str, str, str, str]:
    original, result = scores["original"], scores["result"]
    count = f" on {original['count']} test pictures" if original["count"] else ""
    change = result["value"] - original["value"]
    unit = " points" if original["unit"] == "percent" else ""
    return (
        f"{scores['task']}{count}",
        _score(original),
        _score(result),
        f"{change:+.2f}{unit}" if change else "the same",
    )


def _score(given: Mapping[str, Any]) -> str:
    """A score with its interval."""
    unit = " %" if given["unit"] == "percent" else ""
    text = f"{given['value']:.2f}{unit}"
    low, high = given.get("low"), given.get("high")
    return text if low is None or high is None else f"{text} ({low:.2f} to {high:.2f})"


def _kilobytes(size: int) -> str:
    """Bytes for people: kB below ten million, MB above."""
    return f"{size / 1e3:,.0f} kB" if size < 10_000_000 else f"{size / 1e6:,.1f} MB"
