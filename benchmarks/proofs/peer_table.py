"""The peers' table as Markdown: a section for each network."""

from __future__ import annotations

from typing import Any

from peer_ways import ENGINES, FLOAT, MADE, WAYS, Way, best_floats

_UNITS = {"cosine": ""}


def markdown(told: dict[str, Any]) -> str:
    """All of it."""
    lines = [
        "# INT8 of several tools on two CPU engines",
        "",
        "Made by `python benchmarks/proofs/int8_peers.py`. All files come from one float32 graph and the same calibration",
        "pictures. *Transcoded* is the peer's file after `edgepress transcode`, which sees no pictures. Scores are of the",
        "files as the engine runs them, with a 95 % interval; SQNR, KL, cosine and same top-1 compare with float32 in ONNX",
        "Runtime. A ratio is the latency of the other over that of this one, both in turn in fresh processes, batch 1",
        "where none is told, with its 95 % interval: over 1, this row is faster (in the last column: ours is). ModelOpt's files are meant for",
        "TensorRT and run here on engines that they were not made for.",
        "",
    ]
    print_machine(lines, told["fingerprint"])
    for name, state in told["networks"].items():
        lines += ["", f"## {name}", ""]
        lines += section(state)
    return "\n".join(lines) + "\n"


def section(state: dict[str, Any]) -> list[str]:
    """One network."""
    judged = next((w["score"]["judged"] for w in state["ways"].values() if "score" in w), "score")
    loads = list(state["times"])
    heads = [f"{load}: against float32" for load in loads]
    heads += [f"{load}: ours against it" for load in loads]
    lines = [
        f"| file and engine | size | {judged} | SQNR | KL | same top-1 | cosine | in INT8 | "
        + " | ".join(heads)
        + " |",
        "|---" * (8 + len(heads)) + "|",
    ]
    for way in WAYS:
        file, run = state["files"].get(way.file), state["ways"].get(way.key)
        if file is None and run is None:
            continue
        error = (file or {}).get("error") or (run or {}).get("error")
        if error is not None:
            told = error.removeprefix("LookupError: ")
            told = told if told.startswith("not made") else f"failed: {told}"
            lines.append(f"| {way.key} | {told} |" + " |" * (6 + len(heads)))
            continue
        if run is None:
            continue
        cells = [label(way, file or {}), *scores(file or {}, run)]
        cells += [ratio(state, n, way, FLOAT[way.engine]) for n in loads]
        cells += [ratio(state, n, MADE[way.engine], way) for n in loads]
        lines.append(f"| {' | '.join(cells)} |")
    if "recorded" in state:
        lines += ["", f"Recorded {state['recorded']}."]
    for engine, ours in MADE.items():
        for note in state["files"].get(ours.file, {}).get("notes", []):
            lines += ["", f"Our bundle for {ENGINES[engine]} says: {note}"]
    return lines + aims(state, loads)


def label(way: Way, file: dict[str, Any]) -> str:
    held = file.get("precision", "float32")
    return f"{way.key}, holds {held}" if file.get("declined") else way.key


def scores(file: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """Size, score and closeness to float32."""
    found = run["score"]
    near = found["agreement"]
    digits = 4 if found["judged"] == "cosine" else 2
    value = f"{found['value']:.{digits}f}"
    if found["low"] is not None:
        value += f" ({found['low']:.{digits}f} to {found['high']:.{digits}f})"
    if "over_lower" in found:
        value += f"; with scores over 0.4 {found['over_lower']:.2f}"

    def number(key: str, places: int) -> str:
        return "-" if near.get(key) is None else f"{near[key]:.{places}f}"

    share = run.get("int8_share")
    return [
        f"{file['size_bytes'] / 1000:.0f} kB",
        value,
        number("sqnr_db", 2),
        number("kl_nats", 5),
        number("top1_agreement_percent", 2),
        number("mean_cosine", 5),
        "-" if share is None else f"{100 * share:.1f} %",
    ]


def times(state: dict[str, Any], threads: str, a: Way, b: Way) -> dict[str, Any] | None:
    return state["times"].get(threads, {}).get(f"{a.key} against {b.key}")


def ratio(state: dict[str, Any], threads: str, a: Way, b: Way) -> str:
    found = times(state, threads, a, b)
    if found is None or "error" in found:
        return "-" if found is None else f"failed: {found['error']}"
    mark = "" if found["settled"] else ", unsettled"
    return f"{found['ratio']:.2f}x ({found['low']:.2f} to {found['high']:.2f}{mark})"


def aims(state: dict[str, Any], loads: list[str]) -> list[str]:
    """What ours is not faster than, in words."""
    lines: list[str] = []
    for engine, ours in MADE.items():
        for n in loads:
            slower: list[str] = []
            others = [w for w in WAYS if w.engine == engine and w.key != ours.key]
            for other in others:
                found = times(state, n, ours, other)
                if found is not None and found.get("faster") == "b":
                    slower.append(f"{other.key} ({found['ratio']:.2f}x)")
            best = [times(state, n, ours, one) for one in best_floats(engine)]
            if all(one is not None and "faster" in one for one in best):
                word = ", ".join(slower) if slower else "nothing that was timed"
                lines += ["", f"{ENGINES[engine]}, {n}: faster than ours is {word}."]
    return lines


def print_machine(lines: list[str], found: dict[str, Any]) -> None:
    """What it ran on, in a line."""
    cpu, software = found["cpu"], found["software"]
    versions = ", ".join(
        f"{name} {software[name]}" for name in ("onnxruntime", "openvino") if software.get(name)
    )
    lines.append(
        f"Machine: {cpu['model']} ({', '.join(cpu['flags'])}), {cpu['cores']} cores, virtual, shared and noisy; "
        f"{versions}, Python {software['python']}; {found['time_utc'][:10]}."
    )
