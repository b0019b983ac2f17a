"""What transcode and ``inspect --why-slow`` show to people."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ..runtime.console import Console
from .fusion_rules import RULES
from .slowness import Slowness
from .transcoding import Transcoded

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
    if near.unclipped_share:
        console.say(
            f"  wider    {100 * near.unclipped_share:.2f} % of the values ended at their channel's "
            "own scale in the given file and go on beyond it: all channels have one scale now"
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
    if not found.runs:
        console.say(f"  DOES NOT RUN in {found.engine} as it optimizes it: {found.error}")
        console.say("  The times below are of the graph as it stands in the file, unoptimized.")
    share = 100 * found.int8_ms / found.total_ms if found.total_ms else 0.0
    console.say(
        f"  INT8        in {found.engine} {found.int8_nodes} kernels take "
        f"{found.int8_ms:.3f} of {found.total_ms:.3f} ms ({share:.0f} %); "
        f"{len(found.fallen)} nodes fell out"
    )
    console.table(
        ("why", ">nodes", ">ms", ">share", "what transcode does about it"),
        [
            (
                rule,
                found.counts[rule],
                f"{cost:.3f}",
                f"{100 * cost / found.total_ms if found.total_ms else 0:.0f} %",
                RULES[rule],
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
                    node.kernel,
                    f"{node.kernel_ms:.3f}",
                    f"{node.quantizers_ms:.3f}",
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
