"""The peers' table as Markdown: a section for each network."""

from __future__ import annotations

from typing import Any

from .peer_ways import ENGINES, FLOAT, MADE, WAYS, Way, best_floats

HALF_A_POINT = 0.5


def markdown(told: dict[str, Any]) -> str:
    """All of it."""
    lines = [
        "# INT8 of several tools on two CPU engines",
        "",
        "Made by `python -m edgepress.benchmarks.proofs.peers.int8_peers`. All files come from one float32 graph and the same calibration",
        "pictures. *Transcoded* is the peer's file after `edgepress transcode`, which sees no pictures. Scores are of the",
        "files as the engine runs them, with a 95 % interval; SQNR, KL, cosine and same top-1 compare with float32 in ONNX",
        "Runtime. A ratio is the latency of the other over that of this one, both in turn in fresh processes, batch 1",
        "where none is told, with its 95 % interval: over 1, this row is faster (in the last column: ours is). ModelOpt's files are meant for",
        "TensorRT and run here on engines that they were not made for. In OpenVINO every file of another tool stands twice: with",
        "its floats in float32, and *with bfloat16*, which is what OpenVINO takes by itself on a processor that has it; the faster",
        "of the two is what ours is held against.",
        "",
    ]
    print_machine(lines, told["fingerprint"])
    lines += ["", *headline(told["networks"])]
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


def faster_than_ours(state: dict[str, Any], engine: str, load: str) -> dict[str, float] | None:
    """Ways on an engine that ours is slower than, by how much; ``None`` where that was not timed."""
    ours = MADE[engine]
    best = [times(state, load, ours, one) for one in best_floats(engine)]
    if not all(one is not None and "faster" in one for one in best):
        return None
    found: dict[str, float] = {}
    for other in (way for way in WAYS if way.engine == engine and way != ours):
        timed = times(state, load, ours, other)
        if timed is not None and timed.get("faster") == "b":
            found[other.key] = timed["ratio"]
    return found


def headline(networks: dict[str, Any]) -> list[str]:
    """On how many networks ours is what it is meant to be."""
    loads = sorted({load for state in networks.values() for load in state["times"]})
    lines = [
        "| engine | networks | no unquantized way is faster | no file of any tool is faster | who is, and what it loses |",
        "|---|---|---|---|---|",
    ]
    for engine, title in ENGINES.items():
        floats = {way.key for way in best_floats(engine)}
        for load in loads:
            states = {name: faster_than_ours(one, engine, load) for name, one in networks.items()}
            timed = {name: one for name, one in states.items() if one is not None}
            if not timed:
                continue
            near = {
                name: [way for way in one if _drop(networks[name], way) <= HALF_A_POINT]
                for name, one in timed.items()
            }
            fine = sum(1 for one in near.values() if not floats & set(one))
            first = sum(1 for one in near.values() if not one)
            who = "; ".join(
                f"{name}: {way.removesuffix(f' in {title}')} ({ratio:.2f}x, {_drop(networks[name], way):.2f} points)"
                for name, one in timed.items()
                for way, ratio in one.items()
            )
            lines.append(
                f"| {title}, {load} | {len(timed)} | {fine} | {first} | {who or 'nobody'} |"
            )
    lost = sorted(
        (
            (_drop(state, ours.key), f"{name} in {ENGINES[ours.engine]}")
            for name, state in networks.items()
            for ours in MADE.values()
            if "score" in state["ways"].get(ours.key, {})
        ),
        reverse=True,
    )
    far = [f"{name} {points:.2f}" for points, name in lost if points > HALF_A_POINT]
    return [
        *lines,
        "",
        "Counted are ways within half a point of float32. Faster is what `edgepress bench` calls so: by 3 % at least, and by more",
        "than the noise. In brackets: ours is that many times as fast, and the points of the score that the other loses.",
        f"Of our {len(lost)} files {len(lost) - len(far)} are within half a point of float32 (of boxes: found again with "
        f"a score over 0.4){'; not ' if far else ''}{', '.join(far)}.",
    ]


def _drop(state: dict[str, Any], way: str) -> float:
    """Points of 100 below float32."""
    plain, found = (state["ways"][key]["score"] for key in ("float32 in ONNX Runtime", way))
    key = "over_lower" if "over_lower" in plain else "value"
    return (100 if plain["judged"] == "cosine" else 1) * (plain[key] - found[key])


def aims(state: dict[str, Any], loads: list[str]) -> list[str]:
    """What ours is not faster than, in words."""
    lines: list[str] = []
    for engine, title in ENGINES.items():
        for load in loads:
            found = faster_than_ours(state, engine, load)
            if found is None:
                continue
            word = ", ".join(f"{way} ({ratio:.2f}x)" for way, ratio in found.items())
            lines += [
                "",
                f"{title}, {load}: faster than ours is {word or 'nothing that was timed'}.",
            ]
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
