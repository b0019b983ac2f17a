"""What a person reads of a sensitivity table: which nodes cost time or score in INT8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtime.console import Console

_SHOWN = 8


def show_sensitivity(console: Console, mixed: Mapping[str, Any], *, everything: bool) -> None:
    """Print what was measured node by node, as a bundle's recipe reports it under ``mixed``.

    Args:
        console: Where to.
        mixed: What :func:`edgepress.compress.quantization.mixed_precision.mix_precisions` reported.
        everything: Every node; otherwise those that cost most.
    """
    sums, whole, floats = mixed["kernels_ms"], mixed["whole_ms"], mixed.get("floats", "float32")
    console.say(
        f"  measured    {mixed['int8_nodes']} of {mixed['of_nodes']} nodes were chosen for INT8; "
        f"all in {floats} {sums[floats]:.3f} ms, all in INT8 {sums['int8']:.3f} ms, summed over "
        f"kernels (whole: {whole[floats]:.3f} and {whole['int8']:.3f} ms)"
    )
    for one in mixed["attempts"]:
        drop, reason = one.get("drop_on_selection"), one.get("not_built")
        told = f"dropped {drop:.3f} on the selection pictures" if reason is None else reason
        console.say(f"  tried       {one.get('int8_nodes', 'all')} nodes in INT8: {told}")
    rows: list[Mapping[str, Any]] = list(mixed["nodes"])
    if not everything:
        rows = _worst(rows, floats)
    console.table(
        ("node", "operator", f">{floats} ms", ">INT8 ms", ">noise", ">points lost", "chosen"),
        [
            (
                row["name"],
                row["op_type"],
                f"{row[f'{floats}_ms']:.3f}",
                f"{row['int8_ms']:.3f}",
                "-" if row["noise"] is None else f"{100 * row['noise']:.2g} %",
                "-" if row.get("score_drop") is None else f"{row['score_drop']:.3f}",
                "int8" if row["int8"] else floats,
            )
            for row in rows
        ],
    )


def _worst(rows: list[Mapping[str, Any]], floats: str) -> list[Mapping[str, Any]]:
    """Those that bring most noise, then those that INT8 slows down most."""
    noisy = sorted((r for r in rows if r["noise"]), key=lambda r: -r["noise"])[:_SHOWN]
    slow = sorted(rows, key=lambda r: r[f"{floats}_ms"] - r["int8_ms"])[:_SHOWN]
    slow = [row for row in slow if row["int8_ms"] > row[f"{floats}_ms"]]
    return list({row["name"]: row for row in [*noisy, *slow]}.values())
