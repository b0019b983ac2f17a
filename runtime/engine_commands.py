"""The command ``engine``: build for NVIDIA's GPUs ahead of time, or tell how trtexec would."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from .bundle.bundle import Bundle
from .cache import cache_folder
from .console import Console, report_errors
from .engine_registry import open_engine
from .engines.build_options import BuildOptions, Extent
from .engines.engine import EngineOptions
from .errors import EngineError, InputError
from .files import read_file
from .nvidia.child_builder import build_engine
from .nvidia.trtexec import trtexec_line
from .tensors import TensorSpec
from .variants.variant_selection import variant_in_engine

_ENGINES = ("tensorrt", "tensorrt-rtx")
_MIB = 2**20


@click.command()
@click.argument("path")
@click.option(
    "--engine",
    "name",
    type=click.Choice(_ENGINES),
    default=None,
    help="By default the one that the bundle is for.",
)
@click.option("--variant", default=None, help="Which model of the bundle; its first by default.")
@click.option(
    "--batch",
    default="1,1,16",
    show_default=True,
    metavar="MIN,OPT,MAX",
    help="Sizes of a free batch.",
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="NAME=MIN,OPT,MAX",
    help="Sizes of another free dimension; may be given several times.",
)
@click.option("--workspace-mb", type=click.IntRange(1), default=None, help="Memory for one layer.")
@click.option("--dla-core", type=click.IntRange(0, 15), default=None, help="Run it on that core.")
@click.option("--gpu-fallback", is_flag=True, help="Layers that the DLA cannot run go to the GPU.")
@click.option(
    "--cuda-graph", is_flag=True, help="Record an inference once and launch that each time."
)
@click.option("--level", type=click.IntRange(0, 5), default=None, help="How long to search.")
@click.option(
    "--time-limit", type=click.FloatRange(1), default=1800.0, show_default=True, help="Seconds."
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=None,
    help="Where the engine is kept; by default $EDGEPRESS_CACHE, else the platform's own place.",
)
@click.option("--trtexec", "line_only", is_flag=True, help="Print the line for trtexec, no more.")
@click.option(
    "--prove", is_flag=True, help="Build and keep nothing: with tensorrt-rtx, without a GPU."
)
@report_errors
def engine(
    console: Console,
    path: str,
    name: str | None,
    variant: str | None,
    batch: str,
    sizes: tuple[str, ...],
    workspace_mb: int | None,
    dla_core: int | None,
    gpu_fallback: bool,
    cuda_graph: bool,
    level: int | None,
    time_limit: float,
    cache: Path | None,
    line_only: bool,
    prove: bool,
) -> None:
    """Build the engine of PATH, a bundle or an .onnx file, for the GPU of this machine.

    The engine is written into the cache folder, where Session.open(..., cache=FOLDER) and
    `edgepress predict --cache` find it, and take over how it was built. It is native code for this
    GPU, driver and version alone.
    """
    model, inputs, file, chosen = _model(path, variant, name)
    options = BuildOptions(
        batch=_extent(batch),
        sizes=dict(_named(one) for one in sizes),
        workspace_bytes=None if workspace_mb is None else workspace_mb * _MIB,
        dla_core=dla_core,
        gpu_fallback=gpu_fallback,
        level=level,
        time_limit_s=time_limit,
        cuda_graph=cuda_graph,
    )
    line = trtexec_line(chosen, file, inputs, options)
    told: dict[str, object] = {"path": path, "engine": chosen, "trtexec": line}
    if not prove and file != path and Path(path).is_file():
        unpack = shlex.join(["python3", "-m", "zipfile", "-e", path, "."])
        console.note(f"Note: '{file}' is inside of the zip; unpack it first: {unpack}")
    if line_only:
        console.say(line)
        console.result(told)
        return
    if prove:
        with console.progress() as progress:
            progress("building", 0, None)
            made = build_engine(chosen, model, options)
        console.say(
            f"{chosen} {made.facts['version']} parses and builds it: {made.facts['layers']} "
            f"layers, {len(made.plan):,} bytes. Nothing was kept or run."
        )
        console.result({**told, "proved": True, "size_bytes": len(made.plan), **made.facts})
        return
    folder = cache_folder(cache)
    with console.progress() as progress:
        progress("building", 0, None)
        facts = _build(chosen, model, options, folder)
    console.say(
        f"The engine is in {folder}; it was "
        + ("there already." if facts.get("from_cache") else f"built in {facts['build_s']} s.")
    )
    console.say(f"trtexec would build it with: {line}")
    console.result({**told, "cache": str(folder), **facts})


def _build(name: str, model: bytes, options: BuildOptions, folder: Path) -> dict[str, object]:
    """Build, keep and load an engine; what it says of itself."""
    made = open_engine(name)
    if not made.builds:
        raise EngineError(
            "E_ENGINE",
            f"the engine '{name}' builds nothing.",
            mend="Engines that do: " + ", ".join(_ENGINES),
        )
    with made(model, EngineOptions(cache=str(folder), build=options, remember=True)) as running:
        return running.facts()


def _model(
    path: str, variant: str | None, name: str | None
) -> tuple[bytes, tuple[TensorSpec, ...], str, str]:
    """The model, its inputs, the file that it is (in a zip: once unpacked), the engine to build."""
    if path.lower().endswith(".onnx"):
        if name is None:
            raise InputError(
                "E_USAGE",
                "an .onnx file does not say which engine it is for.",
                mend="Give --engine tensorrt or --engine tensorrt-rtx.",
                path=path,
            )
        model = read_file(path)
        with open_engine("onnxruntime")(model) as reader:
            return model, reader.inputs, path, name
    bundle = Bundle.open(path)
    chosen = bundle.variant(variant)
    if chosen.engine not in _ENGINES and name is None:
        raise InputError(
            "E_DIALECT",
            f"the variant '{chosen.name}' is for the engine {chosen.engine}, which needs no build.",
            mend="Compress it for the target tensorrt, or give --engine for its plain float32.",
            path=path,
        )
    if variant_in_engine(chosen, name) is None:
        raise EngineError(
            "E_DIALECT",
            f"the variant '{chosen.name}' is {chosen.dialect} for the engine {chosen.engine}, "
            f"the engine {name} was asked for.",
            mend="Choose a variant for that engine, or leave the engine to the bundle.",
            path=path,
        )
    file = chosen.file if Path(path).is_file() else str(Path(path) / chosen.file)
    return bundle.model(chosen), bundle.inputs, file, name or chosen.engine


def _named(text: str) -> tuple[str, Extent]:
    name, equals, sizes = text.partition("=")
    if not name or not equals:
        raise InputError("E_USAGE", f"--size is '{text}'.", mend="Write NAME=MIN,OPT,MAX.")
    return name, _extent(sizes)


def _extent(text: str) -> Extent:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(
            "E_USAGE", f"'{text}' are no three sizes.", mend="Write MIN,OPT,MAX, such as 1,1,16."
        )
    least, likely, largest = map(int, parts)
    return least, likely, largest
