"""The runtime's commands: predict, verify, doctor, pack, combine."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import click

from .bundle.bundle import Bundle
from .bundle.bundle_writer import check_out, write_files, write_zip
from .bundle.combine import combine as combined
from .console import Console, report_errors
from .doctor import EngineReport, examine_engine
from .engine_registry import ENGINE_NAMES
from .engines.engine import PRECISION_WORDS
from .errors import EngineError, InputError
from .prediction import Prediction
from .session import Session
from .target import TARGET_NAMES, target
from .variants.variant_selection import unproved_variants

_MAX_VALUES = 4096

_bundle = click.argument("bundle", type=click.Path())
_threads = click.option(
    "--threads", type=click.IntRange(0, 1024), default=0, help="Threads; 0: the engine chooses."
)
_variant = click.option(
    "--variant",
    default=None,
    help="Which model of the bundle; by default the first that this machine suits.",
)
_fastest = click.option(
    "--fastest",
    is_flag=True,
    help="Time the models that suit and take the quickest. Where engines have to be built, that "
    "takes minutes: give --cache.",
)
_cache = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder that keeps what was quickest here and engines that had to be built; without it "
    "nothing is written.",
)


@click.command()
@_bundle
@click.argument("pictures", nargs=-1, required=True, type=click.Path())
@click.option("--top", type=click.IntRange(1, 100_000), default=5, help="Classes to show.")
@_variant
@_fastest
@_cache
@_threads
@report_errors
def predict(
    console: Console,
    bundle: str,
    pictures: tuple[str, ...],
    top: int,
    variant: str | None,
    fastest: bool,
    cache: Path | None,
    threads: int,
) -> None:
    """Run BUNDLE on PICTURES.

    A classification bundle gives the likeliest classes and their probabilities, any other the
    shapes and ranges of its outputs (with --json also the values, up to 4,096 an output).
    """
    found: list[dict[str, object]] = []
    with Session.open(
        bundle, threads=threads, variant=variant, fastest=fastest, cache=cache
    ) as session:
        for note in session.notes:
            console.note(f"Note: {note}")
        with console.progress() as report:
            for done, prediction in enumerate(session.predict_many(pictures), start=1):
                found.append(_told(pictures[done - 1], prediction, top))
                if not console.as_json:
                    _show(console, pictures[done - 1], prediction, top)
                report("pictures", done, len(pictures))
        console.result({"bundle": bundle, "engine": session.facts(), "predictions": found})


def _told(picture: str, prediction: Prediction, top: int) -> dict[str, object]:
    if prediction.is_classification:
        return {"picture": picture, "candidates": [vars(one) for one in prediction.top(top)]}
    outputs = {
        name: {
            "shape": list(array.shape),
            "dtype": array.dtype.name,
            "min": array.min() if array.size else None,
            "max": array.max() if array.size else None,
            "values": array if array.size <= _MAX_VALUES else None,
        }
        for name, array in prediction.outputs.items()
    }
    return {"picture": picture, "outputs": outputs}


def _show(console: Console, picture: str, prediction: Prediction, top: int) -> None:
    console.say(picture)
    if prediction.is_classification:
        for one in prediction.top(top):
            console.say(f"  {one.score:7.2%}  {one.label}")
        return
    for name, array in prediction.outputs.items():
        span = f"{array.min():.6g} to {array.max():.6g}" if array.size else "empty"
        console.say(f"  {name}: {array.dtype} {array.shape}, {span}")


@click.command()
@_bundle
@report_errors
def verify(console: Console, bundle: str) -> None:
    """Check BUNDLE: paths, hashes, manifest, and each model against the golden outputs.

    A model whose engine is not here, or that was made for another kind of processor, is not run
    where the bundle has one that suits; each is named, and why.
    """
    opened = Bundle.open(bundle)
    rows: list[tuple[str, ...]] = []
    variants: list[dict[str, object]] = []
    passed_over = unproved_variants(opened)
    for variant in opened.variants:
        if variant.name in passed_over:
            continue
        with Session.open(opened, variant=variant.name) as session:
            tests = [vars(test) for test in session.selftest]
            variants.append({"name": variant.name, "file": variant.file, "selftest": tests})
            rows += [
                (variant.name, test.output, f"{test.max_abs:.3g}", f"{test.cosine:.6f}")
                for test in session.selftest
            ]
    count = len(opened.files)
    console.say(
        f"{bundle} is whole: {count} files, {opened.size_bytes:,} bytes, all as they were made."
    )
    console.table(("variant", "output", ">largest difference", ">cosine"), rows)
    for name, why in passed_over.items():
        console.say(f"not proved: the variant '{name}', since {why}")
    console.say(
        "The hashes guard against accident, not against malice: whoever can write the files"
    )
    console.say("can write the hashes as well.")
    console.result(
        {
            "bundle": bundle,
            "ok": True,
            "files": count,
            "size_bytes": opened.size_bytes,
            "format_version": opened.manifest.format_version,
            "variants": variants,
            "not_proved": passed_over,
        }
    )


@click.command()
@report_errors
def doctor(console: Console) -> None:
    """Prove each engine of this machine by running a tiny model in a child process."""
    reports = [examine_engine(name) for name in ENGINE_NAMES]
    console.say(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    dialects = {name: target(name).dialect for name in TARGET_NAMES}
    for name, dialect in dialects.items():
        console.say(f"INT8 dialect for {name} on this processor: {dialect}")
    console.table(
        ("engine", "works", "version", "providers or reason"),
        [
            (
                one.engine,
                "yes" if one.ok else "NO" if one.installed else "-",
                one.version or "-",
                _serves(one) if one.ok else f"{one.reason} {one.mend}".strip(),
            )
            for one in reports
        ],
    )
    console.result(
        {
            "python": platform.python_version(),
            "executable": sys.executable,
            "machine": platform.machine(),
            "dialect": dialects["onnxruntime-cpu"],
            "dialects": dialects,
            "targets": list(TARGET_NAMES),
            "engines": [one.to_dict() for one in reports],
        }
    )
    broken = [one.engine for one in reports if one.installed and not one.ok]
    if broken:
        raise EngineError(
            "E_BACKEND",
            f"engines that do not work here: {', '.join(broken)}.",
            mend="The table says of each why not; install it again, or leave it out.",
        )


def _serves(report: EngineReport) -> str:
    more = [name for name in report.precisions if name != PRECISION_WORDS["f32"]]
    return ", ".join(report.providers) + "".join(f", computes in {name} too" for name in more)


@click.command()
@_bundle
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The .zip to write.")
@click.option("--force", is_flag=True, help="Replace a zip that is there.")
@report_errors
def pack(console: Console, bundle: str, out: Path, force: bool) -> None:
    """Write BUNDLE as one .zip, which every command reads as well as the folder.

    The same bundle gives the same bytes, whenever and wherever it is packed.
    """
    if out.suffix != ".zip":
        raise InputError(
            "E_USAGE",
            f"'{out}' does not end in .zip.",
            mend=f"Write --out {out}.zip",
            path=str(out),
        )
    opened = Bundle.open(bundle)
    write_zip(opened.files, out, force=force)
    size = out.stat().st_size
    console.say(f"{out}: {len(opened.files)} files, {size:,} bytes")
    console.result({"bundle": bundle, "out": str(out), "size_bytes": size})


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path())
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@report_errors
def combine(console: Console, bundles: tuple[str, ...], out: Path, force: bool) -> None:
    """Join BUNDLES of one network, made for different targets, into one.

    A session then takes the first variant that the machine suits, or the fastest where it is asked
    to. The first bundle's first variant stays the default, and ``model.onnx``.
    """
    check_out(out, force=force)
    files = combined([Bundle.open(path) for path in bundles])
    write_files(files, out, force=force)
    made = Bundle.open(out)
    console.table(
        ("variant", "engine", "dialect", "precision", ">bytes"),
        [
            (one.name, one.engine, one.dialect, one.precision, f"{len(made.model(one)):,}")
            for one in made.variants
        ],
    )
    console.say(f"Bundle: {out}, {made.size_bytes:,} bytes")
    names = [one.name for one in made.variants]
    console.result({"out": str(out), "variants": names, "size_bytes": made.size_bytes})
