"""The matrix as Markdown: one table of captures, one for each engine, and what of the aims holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

_ALIKE = 0.001  # of the cosine
COSINE, CONVOLUTIONS = 0.98, 0.95
"""What is asked for: agreement with float32, and the share of convolution work in INT8."""

SHARE = 0.7
"""Of the multiply-adds, what pruning may leave."""

ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def markdown(told: dict[str, Any], entries: Mapping[str, Any]) -> str:
    """All tables."""
    rows = {name: told["networks"][name] for name in entries if name in told["networks"]}
    pictures = told["pictures"]
    lines = [
        "# INT8 across networks",
        "",
        "Made by `python -m edgepress.benchmarks.proofs.matrix.network_matrix`, a process for each step. Networks marked *random* have no",
        "trained weights here: their BatchNorm statistics are set from real pictures, and all that is said of them is how",
        f"far INT8 agrees with the same network in float32. {pictures['calibration']} pictures for calibration, "
        f"{pictures['selection']} for selection, {pictures['test']} for the",
        "figures. A ratio is float32's latency over INT8's in the same engine, one thread, batch 1, in turn, with its 95 %",
        "interval; seconds and memory are those of the whole step's process, timing included where there is some.",
        "",
        *machine(told["fingerprint"]),
        "",
    ]
    missing = [name for name in entries if name not in rows]
    if missing:
        lines += [f"Not run yet: {', '.join(missing)}.", ""]
    if not any(row.get(e, {}).get("latency") for row in rows.values() for e in ENGINES):
        lines += [
            "Nothing is timed here yet (`--no-timing`), and without that no bundle is made: all layers are in INT8 that can be,",
            "since what goes back to float32 is decided from measured times and damage.",
            "",
        ]
    for engine, title in ENGINES.items():
        held = {name: row[engine] for name, row in rows.items() if engine in row}
        if held:
            lines += [f"## {title}", "", *aims(held), "", *engine_table(held, rows), ""]
    beside = {name: row["peers"] for name, row in rows.items() if "peers" in row}
    if beside:
        lines += ["## Other tools", "", *peers_table(beside, rows), ""]
    built = {name: row["tensorrt"] for name, row in rows.items() if "tensorrt" in row}
    if built:
        lines += ["## TensorRT", "", *built_table(built), ""]
    cut = {name: row["pruning"] for name, row in rows.items() if "pruning" in row}
    if cut:
        lines += ["## Pruning", "", *pruning_table(cut), ""]
    lines += ["## Capture", "", *capture_table(rows)]
    return "\n".join(lines) + "\n"


def machine(found: dict[str, Any]) -> list[str]:
    """What it ran on."""
    cpu, software = found["cpu"], found["software"]
    versions = ", ".join(
        f"{name} {software[name]}" for name in ("onnxruntime", "openvino") if software.get(name)
    )
    return [
        f"Machine: {cpu['model']} ({', '.join(cpu['flags'])}), {cpu['cores']} cores, virtual, shared and noisy; "
        f"{versions}; {found['time_utc'][:10]}."
    ]


def aims(held: Mapping[str, dict[str, Any]]) -> list[str]:
    """How many networks meet what is asked for."""
    whole = {name: one for name, one in held.items() if "error" not in one}
    finite = [name for name, one in whole.items() if not non_finite(one)]
    close = [name for name, one in whole.items() if cosine(one) >= COSINE]
    most = [name for name, one in whole.items() if convolution_share(one) >= CONVOLUTIONS]
    floats = [n for n in whole if n not in close and whole[n].get("accepted") is False]
    apart = [name for name in whole if name not in [*close, *floats]]
    lines = [
        f"- {len(whole)} of {len(held)} networks made and run; finite outputs: {len(finite)}.",
        f"- Cosine {COSINE} or better: {len(close)}"
        + (f"; not, so that the bundle holds floats: {', '.join(floats)}" if floats else "")
        + (f"; not {', '.join(apart)}." if apart else "."),
        f"- At least {100 * CONVOLUTIONS:.0f} % of the convolutions' multiply-adds in INT8: {len(most)}; "
        "the table says why not of the rest.",
    ]
    timed = [one for one in whole.values() if one["latency"]]
    if timed:
        faster = sum(one["latency"]["faster"] == "result" for one in timed)
        kept = sum(one["accepted"] for one in timed)
        others = sorted(
            {one.get("holds", "float32") for one in timed if not one["accepted"]}, reverse=True
        )
        lines.append(
            f"- INT8 faster than float32 in the same engine: {faster} of {len(timed)}; the bundle holds "
            f"INT8 in {kept}" + (f", else {' or '.join(others)}." if others else ".")
        )
    return lines


def engine_table(
    held: Mapping[str, dict[str, Any]], rows: Mapping[str, dict[str, Any]]
) -> list[str]:
    """INT8 on one engine."""
    lines = [
        "| network | weights | cosine | SQNR | convolutions in INT8 | all in INT8 | not in INT8 | against float32 "
        "| bundle | seconds | peak |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in held.items():
        weights = "trained" if rows[name]["trained"] else "random"
        cost = f"{one['seconds']:.0f} | {mib(one)}"
        if "error" in one:
            lines.append(f"| {name} | {weights} | failed: {one['error']} | | | | | | | {cost} |")
            continue
        near = worst(one)
        sqnr = "-" if near["sqnr_db"] is None else f"{near['sqnr_db']:.1f} dB"
        receipt = one["receipt"]
        cells = [
            *(name, weights, f"{cosine(one):.4f}", sqnr, percent(convolution_share(one))),
            *(percent(receipt["int8_macs_share"]), why_float(receipt), speed(one), bundle(one)),
        ]
        lines.append(f"| {' | '.join(cells)} | {cost} |")
    return lines


def peers_aims(held: Mapping[str, Any], rows: Mapping[str, Any]) -> list[str]:
    """On how many networks no file of another tool that agrees as well is faster than what we ship."""
    lines: list[str] = []
    for engine, title in ENGINES.items():
        known = {n: one[engine] for n, one in held.items() if engine in one}
        beaten: list[str] = []
        for name, peers in known.items():
            ours = rows[name].get(engine, {})
            least = cosine(ours) - _ALIKE if ours.get("accepted") else COSINE  # or it holds floats
            faster = [
                f"{peer} on {name} ({1 / found['ratio']:.2f}x, cosine {found['cosine']:.4f})"
                for peer, found in peers.items()
                if found.get("faster") == "b" and found["cosine"] >= min(least, COSINE)
            ]
            beaten += faster[:1]
        told = f"; faster are {', '.join(beaten)}" if beaten else ""
        lines.append(
            f"- {title}: on {len(known) - len(beaten)} of {len(known)} networks no file of another tool that agrees with "
            f"float32 as well (or to {COSINE}) is faster than what our bundle holds{told}."
        )
    return lines


def peers_table(held: Mapping[str, Any], rows: Mapping[str, Any]) -> list[str]:
    """How many times as fast ours is as the files of other tools, and how far those agree."""
    whole = {name: one for name, one in held.items() if "error" not in one}
    heads = [
        (engine, peer)
        for engine in ENGINES
        for peer in dict.fromkeys(p for one in whole.values() for p in one.get(engine, {}))
    ]
    shown = [f"{peer} in {ENGINES[engine]}" for engine, peer in heads]
    lines = [
        "Files of other tools, made from the same graph and pictures with the tools' defaults: the cosine of their outputs with",
        "float32, and how many times as fast what our bundle holds for that engine is, in turn, one thread, batch 1.",
        "",
        *peers_aims(whole, rows),
        "",
        f"| network | {' | '.join(shown)} | seconds | peak |",
        "|---" * (3 + len(heads)) + "|",
    ]
    for name, one in held.items():
        cost = f"{one['seconds']:.0f} | {mib(one)} |"
        if "error" in one:
            lines.append(
                f"| {name} | failed: {one['error']} |" + " |" * (len(heads) - 1) + f" {cost}"
            )
            continue
        cells = [_peer(one.get(engine, {}).get(peer)) for engine, peer in heads]
        lines.append(f"| {name} | {' | '.join(cells)} | {cost}")
    return lines


def _peer(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    if "error" in found:
        return f"failed: {found['error']}"
    mark = "" if found["settled"] else ", unsettled"
    ratio = f"{found['ratio']:.2f}x ({found['low']:.2f} to {found['high']:.2f}{mark})"
    return f"{found['cosine']:.4f}: {ratio}"


def built_table(held: Mapping[str, dict[str, Any]]) -> list[str]:
    """What is written for NVIDIA: built by TensorRT-RTX, judged in ONNX Runtime."""
    graphs = graphs_of(held)
    lines = built_aims(held)
    heads = [f"{g}: {what}" for g in graphs for what in ("built", "in INT8", "cosine")]
    lines += [
        "",
        f"| network | {' | '.join(heads)} | seconds | peak |",
        "|---" * (3 + len(heads)) + "|",
    ]
    for name, one in held.items():
        cost = f"{one['seconds']:.0f} | {mib(one)}"
        if "error" in one:
            lines.append(
                f"| {name} | failed: {one['error']} |" + " |" * (len(heads) - 1) + f" {cost} |"
            )
            continue
        cells: list[str] = []
        for graph in graphs:
            found = one["graphs"][graph]
            refused = f"refused: {found.get('refused')}"
            cells.append(f"{found['build_seconds']} s" if "build_seconds" in found else refused)
            cells += [percent(found["int8_share"]), f"{cosine(found):.4f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {cost} |")
    return lines


def graphs_of(held: Mapping[str, dict[str, Any]]) -> list[str]:
    return sorted({g for one in held.values() for g in one.get("graphs", {})})


def built_aims(held: Mapping[str, dict[str, Any]]) -> list[str]:
    """How many graphs of each kind NVIDIA's builder takes."""
    built = {
        g: sum("build_seconds" in o.get("graphs", {}).get(g, {}) for o in held.values())
        for g in graphs_of(held)
    }
    return [
        f"- {g}: {n} of {len(held)} parsed and built by TensorRT-RTX." for g, n in built.items()
    ]


def pruning_aims(held: Mapping[str, dict[str, Any]]) -> list[str]:
    """How many networks are cut as far as asked, and come back from their file."""
    torch = {name: one for name, one in held.items() if "refused" not in one}
    good = [
        name
        for name, one in torch.items()
        if one.get("rebuilt_equal") and one["macs_left"] <= SHARE
    ]
    whole = sorted(set(torch) - set(good))
    return [
        f"- {len(good)} of {len(torch)} networks: cut so far, rebuilt to equal outputs, exported and run"
        + (f"; not {', '.join(whole)}." if whole else ".")
    ]


def pruning_table(held: Mapping[str, dict[str, Any]]) -> list[str]:
    """Cut to a share of the multiply-adds, saved, rebuilt, exported and run."""
    lines = [
        f"Channels leave by their magnitude until {100 * SHARE:.0f} % of the multiply-adds or fewer are left; nothing is trained",
        "back. *Rebuilt* compares the outputs of the cut network with those of one made from its factory and the saved",
        "file; *exported* is the ONNX file in ONNX Runtime against torch.",
        "",
        *pruning_aims(held),
        "",
        "| network | groups | blocks | layers that stay whole | multiply-adds left | rebuilt | exported, cosine | seconds | peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in held.items():
        cost = f"{one['seconds']:.0f} | {mib(one)} |"
        why = one.get("refused") or (f"failed: {one['error']}" if "error" in one else None)
        if why:
            lines.append(f"| {name} | | | {why} | | | | {cost}")
            continue
        equal = "equal" if one["rebuilt_equal"] else "**not equal**"
        lines.append(
            f"| {name} | {one['groups']} | {one['blocks']} | {len(one['stays_whole'])} | "
            f"{percent(one['macs_left'])} | {equal} | {one['cosine']:.6f} | {cost}"
        )
    return lines


def capture_table(rows: Mapping[str, dict[str, Any]]) -> list[str]:
    """Torch to ONNX."""
    lines = [
        "| network | from | input | parameters | multiply-adds | file | cosine with torch | seconds | peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        one = row.get("capture")
        if one is None:
            continue
        head = f"| {name} | `{row['source']}` | {row['size'][0]}x{row['size'][1]} |"
        cost = f"{one['seconds']:.0f} | {mib(one)} |"
        if "error" in one:
            lines.append(f"{head} | | failed: {one['error']} | | {cost}")
            continue
        parameters = "-" if one["parameters"] is None else f"{one['parameters'] / 1e6:.1f} M"
        macs = next((macs_of(row[e]) for e in ENGINES if "receipt" in row.get(e, {})), None)
        work = "-" if macs is None else f"{macs / 1e6:,.0f} M"
        near = "-" if one["parity"] is None else f"{min(one['parity']['cosine'].values()):.6f}"
        size = f"{one['size_bytes'] / 1e6:.1f} MB"
        lines.append(f"{head} {parameters} | {work} | {size} | {near} | {cost}")
    return lines


def worst(one: dict[str, Any]) -> dict[str, Any]:
    """The agreement of the output that agrees least."""
    details = one["test_score"]["details"]
    if details.get("reference"):  # nothing of it was changed
        return {"mean_cosine": 1.0, "sqnr_db": None, "non_finite": 0}
    outputs = details["outputs"].values()
    return min(outputs, key=lambda output: output["mean_cosine"])


def cosine(one: dict[str, Any]) -> float:
    return worst(one)["mean_cosine"]


def non_finite(one: dict[str, Any]) -> int:
    outputs = one["test_score"]["details"].get("outputs", {})
    return sum(o["non_finite"] for o in outputs.values())


def macs_of(one: dict[str, Any]) -> int:
    return sum(work["macs"] for work in one["receipt"]["operators"].values())


def convolution_share(one: dict[str, Any]) -> float:
    """Share of the convolutions' multiply-adds that run in INT8 kernels; 1 where there are none."""
    works = [one["receipt"]["operators"].get(op) for op in _CONVOLUTIONS]
    whole = sum(work["macs"] for work in works if work)
    return sum(work["int8_macs"] for work in works if work) / whole if whole else 1.0


def why_float(receipt: dict[str, Any]) -> str:
    """The reasons of what computes in float32, each with its share of all work."""
    whole = sum(work["macs"] for work in receipt["operators"].values())
    found: dict[str, list[int]] = defaultdict(list)
    for layer in receipt["float32_layers"]:
        found[f"{layer['op_type']}: {layer['reason']}"].append(layer["macs"])
    told = sorted(found.items(), key=lambda item: -sum(item[1]))
    return "; ".join(f"{len(m)} {why} ({percent(sum(m) / whole)})" for why, m in told[:3]) or "-"


def speed(one: dict[str, Any]) -> str:
    found = one["latency"]
    if found is None:
        return "-"
    mark = "" if found["settled"] else ", unsettled"
    low, high = found["speedup_low"], found["speedup_high"]
    return f"{found['speedup']:.2f}x ({low:.2f} to {high:.2f}{mark})"


def bundle(one: dict[str, Any]) -> str:
    if "accepted" not in one:
        return "not made"
    held = one.get("holds", "float32")
    if one["accepted"]:
        return "INT8 and bfloat16" if held == "int8-bfloat16" else "INT8"
    return f"{held}: " + "; ".join(one["reasons"])


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def mib(one: dict[str, Any]) -> str:
    return f"{one['peak_kib'] / 1024:.0f} MiB" if "peak_kib" in one else "-"
