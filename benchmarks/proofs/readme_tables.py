"""The tables of the README, made from what is recorded.

::

    python -m edgepress.benchmarks.proofs.readme_tables [--check]

Each stands in the README between ``<!-- table: NAME -->`` and ``<!-- end -->`` and comes from ``benchmarks/results``
alone, so that no figure is typed by hand. ``--check`` writes nothing, and fails where the README says anything else.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from .matrix.matrix_table import ENGINES, aims, built_aims, peers_aims, pruning_aims

_ROOT = Path(__file__).resolve().parents[2]
_RESULTS = _ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_NETWORKS = {
    "resnet56": "ResNet-56, CIFAR-10",
    "resnet20": "ResNet-20, CIFAR-10",
    "resnet8": "ResNet-8, CIFAR-10",
    "efficientnet_lite0": "EfficientNet-Lite0, ImageNet",
    "mobilenetv2_features": "MobileNetV2 features",
    "osnet": "OSNet, people",
    "text_direction": "text direction",
    "yolox_nano": "YOLOX-Nano",
    "ultraface": "UltraFace",
}
_FILES = {
    "quantize_static": "`quantize_static`",
    "NNCF": "NNCF",
    "ModelOpt (made for TensorRT)": "ModelOpt, made for TensorRT",
}
_PEERS = {
    "ModelOpt, fp32": "ModelOpt, float32 around INT8",
    "ModelOpt, fp16": "ModelOpt, its default (float16 around INT8)",
    "quantize_static": "`quantize_static`",
    "quantize_static, placed as ModelOpt does": "`quantize_static`, placed as ModelOpt does",
}
_AIMS: tuple[tuple[str, str, float, float, float | None], ...] = (
    ("resnet56", "float32", 1.8, 92.9, None),
    ("resnet56", "float32", 2.0, 93.5, None),
    ("resnet56", "float32", 2.5, 93.2, None),
    ("resnet56", "int8", 4.5, 93.2, 300e3),
    ("resnet20", "float32", 1.6, 91.0, None),
)
"""What was to be reached: network, precision, times as fast, top-1 in percent, bytes at most."""


def main() -> None:
    """Write the tables, or look whether they are there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    readme = _ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    made = filled(text)
    if given.check:
        sys.exit(
            0
            if made == text
            else "README.md differs from benchmarks/results: run this without --check."
        )
    readme.write_text(made, encoding="utf-8")


def filled(text: str) -> str:
    """The README with its tables as they are recorded."""

    def block(found: re.Match[str]) -> str:
        source, table = _TABLES[found[2]]
        told = json.loads((_RESULTS / source).read_text(encoding="utf-8"))
        return f"{found[1]}{table(told)}\n{found[3]}"

    return _BLOCK.sub(block, text)


def int8(told: Mapping[str, Any]) -> str:
    """Our bundle in ONNX Runtime beside other ways to run the network there."""
    return _beside(told, "onnxruntime", "ONNX Runtime", ("float32",))


def openvino(told: Mapping[str, Any]) -> str:
    """The same in OpenVINO."""
    return _beside(told, "openvino", "OpenVINO", ("float32", "bfloat16"))


def _beside(told: Mapping[str, Any], engine: str, title: str, floats: tuple[str, ...]) -> str:
    heads = ["network", "float32", "edgepress", *(f"against {one}" for one in floats)]
    heads += [f"against {shown}" for shown in _FILES.values()]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, state in _known(told):
        ours = f"edgepress for {engine}"
        file, ways = state["files"][ours], state["ways"]
        if "score" not in ways.get(f"{ours} in {title}", {}):
            continue
        held = file.get("precision", "int8")
        shown = f"{_score(ways[f'{ours} in {title}']['score'])}, {_kilobytes(file['size_bytes'])}"
        plain = ways["float32 in ONNX Runtime"]["score"]
        size = _kilobytes(state["files"]["float32"]["size_bytes"])
        cells = [
            _NETWORKS[name],
            f"{_score(plain)}, {size}",
            shown + (f", {held}" if held != "int8" else ""),
        ]
        times = state["times"].get("1 thread", {})
        for other in (*floats, *_FILES):
            way, timed = _fastest(other, title, f"{ours} in {title} against", times)
            score = ways.get(way, {}).get("score")
            ratio = _ratio(timed) + (", with bfloat16" if " with bfloat16" in way else "")
            cells.append(
                ratio if other == "float32" else f"{_score(score)}: {ratio}" if score else "failed"
            )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _fastest(
    file: str, title: str, against: str, times: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any] | None]:
    """The fastest way to run a file on an engine, and ours against it."""
    ways = (f"{file} in {title}", f"{file} with bfloat16 in {title}")
    timed = {way: times.get(f"{against} {way}") for way in ways}
    known = [way for way in ways if "ratio" in (timed[way] or {})]
    fastest = min(known, key=lambda way: timed[way]["ratio"]) if known else ways[0]
    return fastest, timed[fastest]


def trained(told: Mapping[str, Any]) -> str:
    """Pruned, trained back and quantized networks."""
    lines = ["| bundle | model | top-1 | against the original |", "|---|---|---|---|"]
    for name, original in told["originals"].items():
        shown = f"{_NETWORKS[name].split(',')[0]}, float32"
        lines.append(
            f"| {shown} | {_kilobytes(original['size_bytes'])} | {_interval(original)} | |"
        )
        for row in (row for row in told["rows"] if row["network"] == name):
            found = row["bench"]["comparison"]
            speed = f"{found['ratio']:.2f}x ({found['ratio_low']:.2f} to {found['ratio_high']:.2f})"
            link = f"[`{row['bundle']}`](benchmarks/results/bundles/{row['bundle']})"
            lines.append(
                f"| {link} | {_kilobytes(row['size_bytes'])} | {_interval(row)} | {speed} |"
            )
    return "\n".join(lines)


def reached(told: Mapping[str, Any]) -> str:
    """What was to be reached by training back, and what comes nearest to it."""
    lines = ["| to be reached | nearest | |", "|---|---|---|"]
    for network, precision, speed, score, size in _AIMS:
        rows = [r for r in told["rows"] if (r["network"], r["precision"]) == (network, precision)]
        if not rows:
            continue

        best = min(rows, key=partial(_short, speed=speed, score=score))
        fast, top = best["bench"]["comparison"]["ratio"], best["score"]["value"]
        holds = fast >= speed and top >= score and (size is None or best["size_bytes"] < size)
        kind = "" if precision == "float32" else ", INT8"
        room = "" if size is None else f" in less than {_kilobytes(int(size))}"
        asked = f"{_NETWORKS[network].split(',')[0]}{kind}: {speed:.1f}x at {score:.1f} %{room}"
        found = f"`{best['bundle']}`: {fast:.2f}x at {top:.2f} %"
        found += "" if size is None else f" in {_kilobytes(best['size_bytes'])}"
        lines.append(f"| {asked} | {found} | {'reached' if holds else 'not reached'} |")
    return "\n".join(lines)


def _short(row: Mapping[str, Any], speed: float, score: float) -> tuple[float, float]:
    """Shares of the speed that are missing and of errors that are too many; then the score, if none are."""
    fast, top = row["bench"]["comparison"]["ratio"], row["score"]["value"]
    missing = max(0.0, 1 - fast / speed) + max(0.0, (100 - top) / (100 - score) - 1)
    return missing, -top


def transcoded(told: Mapping[str, Any]) -> str:
    """Files of other tools in ONNX Runtime, as they came and after `edgepress transcode`."""
    lines = [
        "| file | says | came | transcoded | p50 came | p50 transcoded | faster |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in told["networks"].items():
        for peer, row in rows.items():
            found = row.get("targets", {}).get("onnxruntime-cpu", {})
            if "error" in found.get("came", {"error": ""}) or "error" in found.get(
                "time", {"error": ""}
            ):
                continue
            time, network = found["time"], _NETWORKS[name].split(",")[0]
            tops = [row["said"]["top1"], found["came"]["top1"], found["fixed"]["top1"]]
            cells = [f"{network}, {_PEERS.get(peer, peer)}", *(f"{top:.2f} %" for top in tops)]
            cells += [f"{time[key]:.2f} ms" for key in ("came_p50_ms", "fixed_p50_ms")]
            lines.append(f"| {' | '.join(cells)} | {_ratio(time)} |")
    return "\n".join(lines)


def pruning(told: Mapping[str, Any]) -> str:
    """How many networks can be cut."""
    rows = told["networks"].items()
    return "\n".join(pruning_aims({name: row["pruning"] for name, row in rows if "pruning" in row}))


def matrix(told: Mapping[str, Any]) -> str:
    """What of the matrix's aims holds, engine by engine."""
    rows = told["networks"].items()
    lines: list[str] = []
    for engine, title in ENGINES.items():
        held = {name: row[engine] for name, row in rows if engine in row}
        lines += ["", f"In {title}:", "", *aims(held)] if held else []
    beside = {
        name: row["peers"] for name, row in rows if "error" not in row.get("peers", {"error": ""})
    }
    lines += ["", "Beside other tools:", "", *peers_aims(beside, dict(rows))] if beside else []
    built = {name: row["tensorrt"] for name, row in rows if "tensorrt" in row}
    lines += ["", "For NVIDIA:", "", *built_aims(built)] if built else []
    return "\n".join(lines).strip()


def making(told: Mapping[str, Any]) -> str:
    """What making costs."""
    rows, pictures = told["rows"], told["pictures"]
    theirs, ours, fewer, cut = (
        rows[name]
        for name in (
            "quantize_static, min-max",
            "edgepress, INT8",
            "edgepress, INT8, a third of the pictures",
            "edgepress, pruning, latencies cached",
        )
    )
    ratios = [b / a for a, b in zip(theirs["seconds"], ours["seconds"], strict=True)]
    return (
        f"INT8 of a ResNet-50 from {pictures} pictures takes {median(ours['seconds']):.0f} s on two cores, "
        f"{median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}) of\n`quantize_static` with minimum and maximum, "
        f"and {ours['peak_kib'] / 1024:,.0f} MiB; with {pictures // 3} pictures {fewer['peak_kib'] / 1024:,.0f} MiB. "
        f"Cutting it to 60 % of its latency\ntakes {median(cut['seconds']):.0f} s once its layers are in the "
        f"latency table, and {cut['peak_kib'] / 1024:,.0f} MiB."
    )


_TABLES: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "int8": ("int8_peers.json", int8),
    "openvino": ("int8_peers.json", openvino),
    "making": ("making_cost.json", making),
    "matrix": ("network_matrix.json", matrix),
    "pruning": ("network_matrix.json", pruning),
    "reached": ("trade_off.json", reached),
    "trained": ("trade_off.json", trained),
    "transcoded": ("transcode_peers.json", transcoded),
}


def _known(told: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, told["networks"][name]) for name in _NETWORKS if name in told["networks"]]


def _kilobytes(size: int) -> str:
    return f"{size / 1000:,.0f} kB"


def _score(found: Mapping[str, Any]) -> str:
    judged, value = found["judged"], found["value"]
    if judged == "cosine":
        return f"cosine {value:.4f}"
    if "over_lower" in found:
        return f"{found['over_lower']:.1f} % ({value:.1f} %) of boxes"
    return f"{value:.2f} %" + ("" if judged == "top-1" else f" {judged}")


def _interval(row: Mapping[str, Any]) -> str:
    found = row["score"]
    return f"{found['value']:.2f} % ({found['low']:.2f} to {found['high']:.2f})"


def _ratio(found: Mapping[str, Any] | None) -> str:
    if found is None or "error" in found:
        return "-"
    digits = 1 if found["ratio"] >= 9.995 else 2
    ends = f"{found['low']:.{digits}f} to {found['high']:.{digits}f}"
    return f"{found['ratio']:.{digits}f}x ({ends})" + ("" if found["settled"] else ", unsettled")


if __name__ == "__main__":
    main()
