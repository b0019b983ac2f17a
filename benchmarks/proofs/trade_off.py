"""What the recorded bundles give up in accuracy, and what they gain in speed: a table and a picture.

::

    python -m edgepress.benchmarks.proofs.trade_off [BUNDLE ...] [--drawing] [--out benchmarks/results/trade_off]

Each bundle (all in ``benchmarks/results/bundles`` by default) is scored on its network's test pictures by ``edgepress evaluate``, and
timed by ``edgepress bench`` in turns with the float32 original that it was made from, exported anew from the trained
weights: one thread, batch 1, fresh processes. Which network that is follows from the bundle's
name. A second picture, ``*_training.svg``, shows how its training went. ``--drawing`` measures nothing, and draws what was
measured. Pictures need ``pip install matplotlib``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edgepress.benchmarks.latency.fingerprint import fingerprint

from .networks import edgepress
from .peers.peer_table import print_machine
from .trained_bundles import earlier, is_run, pictures, run_of

_BUNDLES = Path("benchmarks/results/bundles")
_PLACES = ((-6, -22, "right"), (6, 8, "left"), (6, -22, "left"))
"""Where names stand beside their points, from the slowest on: across, up, and which side is set there."""
_COLOURS = {"float32": "#1f6fb4", "int8": "#d1495b"}


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".work/trained"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/trade_off"))
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--drawing", action="store_true")
    given = parser.parse_args()
    bundles = given.bundles or sorted(one for one in _BUNDLES.iterdir() if one.is_dir())
    unknown = [str(one) for one in bundles if not is_run(one.name)]
    if unknown:
        parser.error(f"no run of trained_bundles.py is called {', '.join(unknown)}.")
    if given.drawing:
        pictures_of(json.loads(given.out.with_suffix(".json").read_text()), given.out)
        return
    told: dict[str, Any] = {"originals": {}, "rows": []}
    for bundle in bundles:
        row = measured(bundle, given.work, given.preset, told["originals"])
        told["rows"].append(row)
    told["fingerprint"] = fingerprint()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(markdown(told))
    pictures_of(told, given.out)
    print(markdown(told))


def pictures_of(told: dict[str, Any], out: Path) -> None:
    """Draw both."""
    draw(told, out.with_suffix(".svg"))
    draw_training(told, out.with_name(f"{out.name}_training.svg"))


def measured(bundle: Path, work: Path, preset: str, originals: dict[str, Any]) -> dict[str, Any]:
    """One bundle's score, size and speed."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    network = run_of(bundle.name).network
    name = network.name
    float32 = work / f"{name}.onnx"
    _, test = pictures(network, work)
    if name not in originals:
        how = network.how_file(work)
        words = ("--preprocessing", how, "--data", test, "--out", float32, "--force")
        edgepress("export", *network.words(), *words)
        judged = ("--data", test, "--preprocessing", how, "--json")
        score = json.loads(edgepress("evaluate", float32, *judged))["score"]
        originals[name] = {"score": score, "size_bytes": float32.stat().st_size}
    score = json.loads(edgepress("evaluate", bundle, "--data", test, "--json"))["score"]
    against = ("--against", float32, "--threads", 1, "--preset", preset, "--json")
    return {
        "bundle": bundle.name,
        "network": name,
        "precision": manifest["variants"][0]["precision"],
        "score": score,
        "macs": manifest["measurements"]["macs"],
        "size_bytes": (bundle / manifest["variants"][0]["file"]).stat().st_size,
        "training": training([*(json.loads(one.read_text()) for one in earlier(bundle)), manifest]),
        "bench": json.loads(edgepress("bench", bundle, *against)),
    }


def training(manifests: list[dict[str, Any]]) -> dict[str, list[Any]] | None:
    """What the selection pictures scored after each epoch, by minutes, and what trained; ``None`` where nothing did.

    Args:
        manifests: Of one training after the other.
    """
    minutes: list[float] = []
    selection: list[float] = []
    devices: dict[str, None] = {}
    for manifest in manifests:
        before = minutes[-1] if minutes else 0.0
        for report in manifest["recipe"]["reports"]:
            epochs = report.get("training", {}).get("epochs", [])
            devices |= dict.fromkeys(
                report.get("training", {}).get("devices", ["CPU"] if epochs else [])
            )
            minutes += [round(before + one["seconds"] / 60, 2) for one in epochs]
            selection += [one["selection"] for one in epochs]
    found = {"minutes": minutes, "selection": selection, "devices": list(devices)}
    return found if minutes else None


def markdown(told: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# Pruned, trained back, quantized: what it costs and what it brings",
        "",
        "Made by `python -m edgepress.benchmarks.proofs.trade_off` from the bundles in `benchmarks/results/bundles`, which "
        "`trained_bundles.py` made. Accuracy on the 5,000 pictures of CIFAR-10's `test_a`, or on 650 of ImageNet's, with "
        "its 95 % interval; "
        "speed in turns with the float32 original in ONNX Runtime, one thread, batch 1.",
        "",
    ]
    print_machine(lines, told["fingerprint"])
    lines += [
        "",
        "| network | bundle | precision | multiply-adds | model | top-1 | against the original |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, original in told["originals"].items():
        lines.append(
            f"| {name} | - | float32 | | {_kilobytes(original)} | {_percent(original)} | 1 |"
        )
        for row in told["rows"]:
            if row["network"] == name:
                low, mid, high = _speed(row)
                lines.append(
                    f"| {name} | {row['bundle']} | {row['precision']} | {row['macs'] / 1e6:.1f} M | "
                    f"{_kilobytes(row)} | {_percent(row)} | {mid:.2f}x ({low:.2f} to {high:.2f}) |"
                )
    return "\n".join(lines) + "\n"


def draw(told: dict[str, Any], path: Path) -> None:
    """The picture: speed to the right, accuracy upwards, one panel for each network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "edgepress"  # the same file from the same figures
    names = list(told["originals"])
    figure, panels = pyplot.subplots(
        1, len(names), figsize=(4.6 * len(names), 3.4), squeeze=False, layout="constrained"
    )
    for name, panel in zip(names, panels[0], strict=True):
        value = told["originals"][name]["score"]["value"]
        panel.axhline(value, color="#999999", linewidth=1, linestyle="--")
        panel.plot([1], [value], "s", color="#555555")
        panel.annotate("original", (1, value), (4, 5), textcoords="offset points", fontsize=8)
        rows = sorted((row for row in told["rows"] if row["network"] == name), key=_speed)
        for row in rows:
            low, mid, high = _speed(row)
            score, colour = row["score"], _COLOURS[row["precision"]]
            alike = [one for one in rows if one["precision"] == row["precision"]]
            across, up, side = _PLACES[alike.index(row) % len(_PLACES)]
            panel.errorbar(
                mid,
                score["value"],
                xerr=[[mid - low], [high - mid]],
                yerr=[[score["value"] - score["low"]], [score["high"] - score["value"]]],
                fmt="o",
                color=colour,
                elinewidth=0.8,
                capsize=2,
            )
            label = row["bundle"].removeprefix(f"{name}-")
            panel.annotate(
                f"{label}\n{row['size_bytes'] / 1000:.0f} kB",
                (mid, score["value"]),
                (across, up),
                textcoords="offset points",
                ha=side,
                fontsize=8,
                color=colour,
            )
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("times as fast as the float32 original, measured")
        panel.set_ylabel("top-1, %")
        panel.margins(x=0.28, y=0.12)
        panel.grid(alpha=0.25)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def draw_training(told: dict[str, Any], path: Path) -> None:
    """How trainings went: minutes to the right, the score of the selection pictures upwards."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "edgepress"
    names = [
        name
        for name in told["originals"]
        if any(row["network"] == name and row["training"] for row in told["rows"])
    ]
    figure, panels = pyplot.subplots(
        1, len(names), figsize=(4.6 * len(names), 3.4), squeeze=False, layout="constrained"
    )
    for name, panel in zip(names, panels[0], strict=True):
        for row in told["rows"]:
            found = row["training"]
            if row["network"] != name or found is None:
                continue
            label = f"{row['bundle'].removeprefix(f'{name}-')}: test {row['score']['value']:.2f} %"
            if found["devices"] != ["CPU"]:
                label += f" ({', then '.join(found['devices'])})"
            panel.plot(found["minutes"], found["selection"], label=label)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("minutes of training, on two CPU cores if not said")
        panel.set_ylabel("score of the selection pictures, %")
        panel.set_xlim(left=0)
        panel.legend(fontsize=8, loc="lower right")
        panel.grid(alpha=0.25)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _speed(row: dict[str, Any]) -> tuple[float, float, float]:
    found = row["bench"]["comparison"]
    return found["ratio_low"], found["ratio"], found["ratio_high"]


def _kilobytes(row: dict[str, Any]) -> str:
    return f"{row['size_bytes'] / 1000:.0f} kB"


def _percent(row: dict[str, Any]) -> str:
    score = row["score"]
    return f"{score['value']:.2f} % ({score['low']:.2f} to {score['high']:.2f})"


if __name__ == "__main__":
    main()
