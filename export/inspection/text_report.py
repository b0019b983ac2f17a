"""What transcode and ``inspect --why-slow`` show to people."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ...runtime.console import Console
from ..transcode.transcode import Transcoded
from .why_slow import Slowness, remedy

_SHOWN = 12


def show_transcoded(
    console: Console, found: Transcoded, path: str, out: Path, nodes: bool
) -> dict[str, object]:
    """Tell what was changed; returns the JSON form."""
    near = found.equality
    console.say(f"{out}: {found.int8_nodes} nodes in INT8, dialect {found.dialect}")
    for rule, count in Counter(change.rule for change in found.changes).most_common():
        example = next(change for change in found.changes if change.rule == rule)
        console.say(f"  {count:4d} x  {rule}: {example.where}: {example.what}")
    if not found.changes:
        console.say("  nothing had to change")
    for change in found.kept_float:
        console.say(f"  float32  {change.where}: {change.what}")
    if nodes:
        console.table(("where", "rule", "what"), [(c.where, c.rule, c.what) for c in found.changes])
    console.say(
        f"  equal    {near.layers} layers, each given the same inputs: at most "
        f"{near.layer_steps:.2f} steps apart, at '{near.worst_tensor}'"
    )
    console.say(
        f"  whole    end to end on random inputs the outputs lie {near.output_steps:.2f} steps "
        f"apart, cosine {near.output_cosine:.5f}"
    )
    for name in near.not_compared:
        console.say(
            f"  left out '{name}' was not compared everywhere: its size follows from values, and "
            "it is empty or of another size than in the given file"
        )
    if near.unclipped_share:
        why = "all channels have one scale now"
        if found.dialect in ("tensorrt", "tensorrt-rtx"):
            why = "nothing but what INT8 layers read ends anywhere now"
        console.say(
            f"  wider    {100 * near.unclipped_share:.2f} % of the values ended where their codes "
            f"did in the given file and go on beyond: {why}"
        )
    if found.coarser:
        console.say(
            f"  coarser  {len(found.coarser)} activations have a step up to "
            f"{max(found.coarser.values()):.2f} times as coarse: their codes were not symmetric"
        )
    return {
        "file": path,
        "out": str(out),
        "given_bytes": Path(path).stat().st_size,
        "size_bytes": len(found.model),
        **found.to_dict(),
    }


def show_slowness(
    console: Console, found: Slowness, path: str, target: str, nodes: bool
) -> dict[str, object]:
    """Tell what fell out of INT8; returns the JSON form."""
    told = {"target": target, **found.to_dict()}
    _show_share(console, found)
    console.table(
        ("why", ">nodes", ">ms", ">share", "what transcode does about it"),
        [
            (
                rule,
                found.counts[rule],
                _ms(cost),
                _percent(found.share(cost)),
                remedy(rule),
            )
            for rule, cost in found.by_rule.items()
        ],
    )
    shown = found.fallen if nodes else found.fallen[:_SHOWN]
    if shown:
        console.table(
            ("node", "operator", "runs as", ">ms", ">quantizers ms", "why"),
            [
                (
                    node.node,
                    node.op_type,
                    node.kernel or "-",
                    _ms(node.kernel_ms),
                    _ms(node.quantizers_ms),
                    "; ".join(f"{one.rule}: {one.why}" for one in node.findings),
                )
                for node in shown
            ],
        )
    if len(found.fallen) > len(shown):
        console.say(f"  and {len(found.fallen) - len(shown)} more: --nodes lists them all")
    if found.by_rule:
        console.say(f"Try: edgepress transcode {path} --target {target} --out FIXED.onnx")
    return told


def _show_share(console: Console, found: Slowness) -> None:
    if found.total_ms is None or found.int8_ms is None:
        if not found.runs:
            console.say(f"  REFUSED     by {found.engine}'s builder: {found.error}")
        console.say(
            f"  INT8        by {found.engine}'s rules {found.int8_nodes} nodes read codes as it "
            f"wants them, {len(found.fallen)} do not; what it costs was not timed"
        )
        return
    if not found.runs:
        console.say(f"  DOES NOT RUN in {found.engine} as it optimizes it: {found.error}")
        console.say("  The times below are of the graph as it stands in the file, unoptimized.")
    console.say(
        f"  INT8        in {found.engine} {found.int8_nodes} kernels take "
        f"{found.int8_ms:.3f} of {found.total_ms:.3f} ms ({_percent(found.share(found.int8_ms))}); "
        f"{len(found.fallen)} nodes fell out"
    )
    if found.lost:
        name, why = next(iter(found.lost.items()))
        console.say(
            f"  WRONG       {found.engine} loses the float16 biases of {len(found.lost)} layers "
            f"when it makes int32 of them, and computes something else. '{name}': {why}. "
            "'edgepress transcode' writes float32, which bears them."
        )


def _ms(time_ms: float | None) -> str:
    return "-" if time_ms is None else f"{time_ms:.3f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
