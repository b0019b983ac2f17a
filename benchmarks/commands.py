"""The command of this room: bench."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec

import click

from ..runtime.console import Console, report_errors
from ..runtime.engine_registry import ENGINE_NAMES
from ..runtime.engines.engine import FLOAT_PRECISIONS, Precision
from ..runtime.errors import InputError, UnsettledError
from .latency.comparison import UNSETTLED, Comparison, compare
from .latency.latency import measure
from .latency.measurement import PRESETS, Measurement

_P = ParamSpec("_P")

BENCH_FORMAT = "edgepress-bench"
BENCH_FORMAT_VERSION = "1.0"
_BUSY_STEAL_PERCENT = 5.0
_NAME_WIDTH = 26


def _unsettled_exits(command: Callable[_P, None]) -> Callable[_P, None]:
    """End with exit status 4 after the report, where the comparison would not settle."""

    @functools.wraps(command)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> None:
        command(*args, **kwargs)
        if click.get_current_context().meta.get(BENCH_FORMAT) == "unsettled":
            sys.exit(UnsettledError.exit_status)

    return wrapper


@click.command()
@click.argument("model", metavar="BUNDLE|FILE.onnx")
@click.option("--against", metavar="BUNDLE|FILE.onnx", help="Compare with another, both in turn.")
@click.option(
    "--threads",
    default=1,
    show_default=True,
    help="Threads for one inference; 0: the engine's choice.",
)
@click.option("--batch", default=1, show_default=True, help="Samples an inference.")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="quick",
    show_default=True,
    help="How long: at least 3 s or 10 s for each network.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINE_NAMES),
    default=None,
    help="What runs it: by default what the bundle was made for, for a file onnxruntime.",
)
@click.option(
    "--precision",
    type=click.Choice(FLOAT_PRECISIONS),
    default=None,
    help="What the engine computes floats in: by default what the bundle says, for a file f32.",
)
@click.option("--variant", default=None, help="Which model of the bundle.")
@click.option(
    "--against-engine",
    type=click.Choice(ENGINE_NAMES),
    default=None,
    help="What runs the other: by default its bundle's, for a file the same.",
)
@click.option(
    "--against-precision",
    type=click.Choice(FLOAT_PRECISIONS),
    default=None,
    help="By default what its bundle says, for a file the same, or f32 if its engine lacks it.",
)
@click.option("--against-variant", default=None, help="Which model of the other bundle.")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="INPUT=N,C,H,W",
    help="The shape of an input with free dimensions.",
)
@click.option("--seed", default=0, show_default=True, help="Of the random inputs.")
@_unsettled_exits
@report_errors
def bench(
    console: Console,
    model: str,
    against: str | None,
    threads: int,
    batch: int,
    preset: str,
    engine: str | None,
    precision: Precision | None,
    variant: str | None,
    against_engine: str | None,
    against_precision: Precision | None,
    against_variant: str | None,
    shapes: tuple[str, ...],
    seed: int,
) -> None:
    """Measure latency, size, load time and memory; with --against, compare.

    Each network runs in fresh processes, one inference after another on random inputs. With
    --against both run in turn, so that whatever else the machine does strikes both alike, and the
    answer is the ratio of their latencies with its 95 % interval. Exit status 4 says that the ratio
    would not settle within 5 %. Nothing is written.
    """
    wanted = _shapes(shapes)
    if against is None and (against_engine or against_precision or against_variant):
        raise InputError(
            "E_USAGE",
            "--against-engine, --against-precision and --against-variant are of the other.",
            mend="Give --against, or leave them out.",
        )
    with console.progress() as report:

        def progress(share: float) -> None:
            report("measuring (%)", round(100 * share), 100)

        if against is None:
            measured = measure(
                model,
                threads=threads,
                batch=batch,
                preset=preset,
                engine=engine,
                precision=precision,
                variant=variant,
                seed=seed,
                shapes=wanted,
                progress=progress,
            )
            found = None
        else:
            found = compare(
                model,
                against,
                threads=threads,
                batch=batch,
                preset=preset,
                engine=engine,
                precision=precision,
                variant=variant,
                against_engine=against_engine,
                against_precision=against_precision,
                against_variant=against_variant,
                seed=seed,
                shapes=wanted,
                progress=progress,
            )
            measured = found.a
    head: dict[str, object] = {"format": BENCH_FORMAT, "format_version": BENCH_FORMAT_VERSION}
    if found is None:
        console.result({**head, "measurement": measured.to_dict()})
        _show(console, [measured])
        return
    _show(console, [found.a, found.b])
    console.say("")
    console.say(_sentence(found))
    if found.settled:
        console.result({**head, "comparison": found.to_dict()})
        return
    click.get_current_context().meta[BENCH_FORMAT] = "unsettled"
    message = (
        "the comparison did not settle: its interval is wider than "
        f"{100 * UNSETTLED:.0f} % of the ratio to either side."
    )
    mend = "Stop other work on this machine, or use --preset standard"
    told = {"code": "E_UNSETTLED", "message": message, "mend": mend, "path": None}
    console.result({**head, "comparison": found.to_dict(), "error": told})
    console.note(f"Error: {message} [E_UNSETTLED]\n{mend}")


def _shapes(texts: Sequence[str]) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        words = [word.strip() for word in sizes.split(",")]
        if not equals or not name or not all(word.isascii() and word.isdigit() for word in words):
            raise InputError(
                "E_SHAPE",
                f"--shape {text} is no shape.",
                mend="Expected e.g. --shape input=1,3,224,224",
            )
        shapes[name] = [int(word) for word in words]
    return shapes


def _show(console: Console, measured: Sequence[Measurement]) -> None:
    names = _names([one.path for one in measured])
    columns = ["", *(f">{name}" for name in names)]
    rows = [[label, *(value(one) for one in measured)] for label, value in _ROWS]
    first = measured[0]
    engine = " against ".join(dict.fromkeys(_engine(one) for one in measured))
    threads = f"{first.threads} thread{'s' if first.threads != 1 else ''}"
    if first.threads == 0:
        threads = "as many threads as the engine likes"
    console.say(f"{engine}, {threads}, batch {first.batch}, {first.preset}")
    console.table(columns, rows)
    for name, one in zip(names, measured, strict=True):
        if not one.warmed_up:
            console.note(f"{name}: the warm-up never came to rest; this machine is busy.")
        if len(measured) == 1 and not one.settled:
            console.note(f"{name}: the median's interval was still over 2 % when time was up.")
    steal = first.steal_percent
    if steal is not None and steal >= _BUSY_STEAL_PERCENT:
        console.note(f"The hypervisor took {steal:.0f} % of the processors' time meanwhile.")


def _engine(one: Measurement) -> str:
    parts = [one.engine.get("engine"), one.engine.get("version"), one.engine.get("precision")]
    return " ".join(str(part) for part in parts if part)


def _names(paths: Sequence[str]) -> list[str]:
    """Short names that differ, as far as the paths do."""
    names = [Path(path).name or path for path in paths]
    if len(set(names)) < len(names) and len(set(paths)) == len(paths):
        names = list(paths)
    short = [
        name if len(name) <= _NAME_WIDTH else "..." + name[3 - _NAME_WIDTH :] for name in names
    ]
    if len(set(short)) < len(short):
        short = [f"{letter}: {name}" for letter, name in zip("AB", short, strict=False)]
    return short


def _sentence(found: Comparison) -> str:
    """Who is faster, by how much, how sure."""
    name_a, name_b = _names([found.a.path, found.b.path])
    ratio, low, high = found.ratio, found.ratio_low, found.ratio_high
    if ratio < 1:
        name_a, name_b = name_b, name_a
        ratio, low, high = 1 / ratio, 1 / high, 1 / low
    interval = f"95 % interval {low:.2f} to {high:.2f}, {2 * found.rounds} pairs in turn"
    if found.faster == "neither":
        return (
            f"Neither is clearly faster: {name_b} takes {ratio:.2f} times as long as {name_a} "
            f"({interval})."
        )
    return f"{name_a} is {ratio:.2f} times as fast as {name_b} ({interval})."


def _percentile(value: float | None, count: int) -> str:
    return f"n/a (n={count})" if value is None else _ms(value)


def _ms(value: float) -> str:
    return (
        f"{value:.1f} ms" if value >= 100 else f"{value:.3g} ms" if value < 1 else f"{value:.2f} ms"
    )


def _median(one: Measurement) -> str:
    latency = one.latency
    low, high = _ms(latency.p50_low_ms).removesuffix(" ms"), _ms(latency.p50_high_ms)
    return f"{_ms(latency.p50_ms)} ({low} to {high.removesuffix(' ms')})"


def _bytes(value: int | None) -> str:
    if value is None:
        return "n/a"
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if value >= size:
            return (
                f"{value / size:.2f} {unit}" if value < 100 * size else f"{value / size:.0f} {unit}"
            )
    return f"{value} B"


_ROWS: tuple[tuple[str, Callable[[Measurement], str]], ...] = (
    ("latency p50 (95 %)", _median),
    ("latency p90", lambda one: _percentile(one.latency.p90_ms, one.latency.count)),
    ("latency p99", lambda one: _percentile(one.latency.p99_ms, one.latency.count)),
    ("throughput", lambda one: f"{one.throughput_per_s:,.1f} /s"),
    ("CPU an inference", lambda one: _ms(one.cpu_ms)),
    ("import, read", lambda one: f"{_ms(one.import_ms)}, {_ms(one.read_ms)}"),
    ("load", lambda one: _ms(one.load_ms)),
    ("first inference", lambda one: _ms(one.first_ms)),
    ("peak memory", lambda one: _bytes(one.peak_memory_bytes)),
    ("size (package)", lambda one: f"{_bytes(one.size_bytes)} ({_bytes(one.package_bytes)})"),
    ("harness overhead", lambda one: f"{one.overhead_us:.1f} us"),
)
