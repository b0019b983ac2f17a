"""The commands compress, evaluate, export, inspect. None needs torch before it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from ..benchmarks.data.images import Batch, Images
from ..benchmarks.tasks.task_by_name import TASK_NAMES
from ..benchmarks.tasks.task_by_name import task as task_of
from ..runtime.console import Console, report_errors
from ..runtime.errors import InputError
from ..runtime.pictures.preprocessing import Preprocessing
from ..runtime.target import TARGET_NAMES
from .evaluation.evaluate_sources import aligned_reference, open_scored_source
from .report import show_bundle, show_graph, show_score, summary

_weights = click.option(
    "--weights",
    type=click.Path(),
    default=None,
    help="Trained weights: .safetensors, or .pt with tensors only.",
)
_preprocessing = click.option(
    "--preprocessing",
    type=click.Path(),
    default=None,
    help="A flat TOML (resize_shorter, center_crop, mean, std, ...); by default timm's or "
    "torchvision's own, or the bundle's.",
)
_task = click.option(
    "--task",
    type=click.Choice(TASK_NAMES),
    default=None,
    help="By default classification where there are labels, else agreement.",
)


_keep = click.option(
    "--keep",
    multiple=True,
    metavar="NAME",
    help="A module that pruning leaves whole; may be given again.",
)


@click.command()
@click.argument("model")
@_weights
@click.option(
    "--data", required=True, type=click.Path(), help="Pictures for calibration and choosing."
)
@click.option("--test-data", type=click.Path(), default=None, help="Pictures that are only scored.")
@_preprocessing
@_task
@click.option(
    "--target",
    type=click.Choice(TARGET_NAMES),
    multiple=True,
    default=("onnxruntime-cpu",),
    show_default=True,
    help="What to make it for; given again, one bundle for all, the first the default.",
)
@click.option(
    "--recipe",
    default="int8",
    show_default=True,
    help="int8, fp16, float32; prune, distil, prune-distil, and these three with -int8; int8-qat, "
    "distil-int8-qat, prune-distil-int8-qat; a .toml or .json file; or a bundle's folder.",
)
@click.option(
    "--student", default=None, help="A smaller network to train, as MODEL, for the recipe distil."
)
@click.option("--student-weights", type=click.Path(), default=None, help="What it begins with.")
@click.option(
    "--epochs",
    type=click.IntRange(1),
    default=None,
    help="Of each training, distil's and qat's; by default the recipe's.",
)
@click.option(
    "--max-train-minutes",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="Time for each training, distil's and qat's; its schedule is fitted to it.",
)
@click.option("--resume", is_flag=True, help="Go on with a training that was interrupted.")
@click.option(
    "--max-latency-ratio", type=float, default=None, help="Prune to this share of the latency."
)
@click.option(
    "--max-macs-ratio", type=float, default=None, help="Prune to this share of the multiply-adds."
)
@click.option("--max-size-mb", type=float, default=None, help="Prune to this size of the weights.")
@_keep
@click.option(
    "--weights-out",
    type=click.Path(),
    default=None,
    help="A .safetensors for the pruned or trained torch network, weights of its factory; none "
    "where that is declined.",
)
@click.option(
    "--cache",
    type=click.Path(),
    default=None,
    help="Folder for latencies of layers, written with --max-latency-ratio; by default the "
    "system's cache folder.",
)
@click.option(
    "--max-drop",
    type=float,
    default=None,
    metavar="POINTS",
    help="Largest drop of the score; by default 1, for agreement 3.",
)
@click.option(
    "--blame", is_flag=True, help="Measure what each node costs the score in INT8, for 'inspect'."
)
@click.option(
    "--strict",
    is_flag=True,
    help="Exit 3 and write nothing where the recipe is declined, or the engine takes less of the "
    "network in INT8 than was written so.",
)
@click.option(
    "--calibration-size",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    help="Pictures, at most.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--golden-pictures", is_flag=True, help="Let the self-test show a calibration picture."
)
@click.option(
    "--unproven",
    is_flag=True,
    help="Make a bundle for a device that is not here: not timed, scored by a stand-in, and so "
    "marked.",
)
@click.option("--out", required=True, type=click.Path(), help="Folder of the bundle.")
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@report_errors
def compress(console: Console, model: str, **options: Any) -> None:
    """Turn the trained network MODEL into a verified bundle for a target.

    MODEL: path/to/file.py:factory, package.module:factory, timm:NAME, torchvision:NAME, or a
    trained .onnx file.

    DATA: a folder with a folder per class, a folder with labels.csv, an .npz with x and y, or a
    folder of unlabelled pictures.
    """
    from ..runtime.cache import cache_folder
    from .pipeline import compress as compress_network
    from .recipe.recipe import Recipe

    data = options.pop("data")
    options["cache"] = cache_folder(options["cache"])
    length = options.pop("epochs"), options.pop("max_train_minutes")
    recipe = Recipe.open(options["recipe"]).trained_for(*length)
    options["recipe"] = recipe.blamed() if options.pop("blame") else recipe
    try:
        with console.progress() as progress:
            bundle = compress_network(model, data, progress=progress, **options)
    except KeyboardInterrupt:
        kept = Path(f"{options['out']}.training")
        if kept.is_dir():
            console.note(f"The training so far is kept in {kept}: --resume goes on from there.")
        raise
    show_bundle(console, bundle)
    console.result(summary(bundle))


@click.command()
@click.argument("model")
@_weights
@_preprocessing
@click.option(
    "--data", type=click.Path(), default=None, help="Pictures to compare torch and ONNX on."
)
@click.option("--opset", type=click.IntRange(13, 24), help="By default 18.")
@click.option(
    "--static-shape", default=None, metavar="N,C,H,W", help="Fix the input's shape, batch included."
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The .onnx file to write."
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@report_errors
def export(
    console: Console,
    model: str,
    weights: str | None,
    preprocessing: str | None,
    data: str | None,
    opset: int | None,
    static_shape: str | None,
    out: Path,
    force: bool,
) -> None:
    """Write the trained network MODEL as a clean float32 ONNX file, compared with torch.

    The input's shape follows from --static-shape, else from the preprocessing's crop, else from the
    pictures. A MODEL that is an .onnx file keeps its shapes and its opset (18 where it is older
    than 13).
    """
    from ..runtime.files import check_file, disk_room, write_file
    from .source.export_network import export_graph

    check_file(out, force=force)
    given = None if preprocessing is None else Preprocessing.from_toml(preprocessing)
    with console.progress() as progress, disk_room():
        progress("exporting", 0, None)
        graph = export_graph(
            model,
            weights=weights,
            preprocessing=given,
            data=data,
            opset=opset,
            static_shape=None if static_shape is None else _shape(static_shape),
        )
    write_file(graph.model, out, force=force)
    written = next(one.version for one in graph.proto().opset_import if not one.domain)
    show_graph(console, graph, out, written)
    console.result(
        {
            "out": str(out),
            "size_bytes": len(graph.model),
            "opset": written,
            "inputs": [spec.to_dict() for spec in graph.inputs],
            "outputs": [spec.to_dict() for spec in graph.outputs],
            "parity": graph.parity.to_dict() if graph.parity else None,
        }
    )


def _shape(text: str) -> tuple[int, ...]:
    parts = text.replace("x", ",").split(",")
    if len(parts) < 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(
            "E_USAGE",
            f"--static-shape is '{text}'.",
            mend="Write sizes with commas, such as 1,3,224,224.",
        )
    return tuple(map(int, parts))


@click.command()
@click.argument("model")
@_weights
@_preprocessing
@_task
@click.option("--data", required=True, type=click.Path(), help="Pictures to score on.")
@click.option(
    "--threads", type=click.IntRange(0, 1024), default=0, help="Threads; 0: the engine chooses."
)
@click.option("--batch", type=click.IntRange(1, 4096), default=32, show_default=True)
@click.option(
    "--reference", type=click.Path(), default=None, help="A bundle or .onnx to agree with."
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder that keeps engines that had to be built; without it nothing is written.",
)
@report_errors
def evaluate(
    console: Console,
    model: str,
    weights: str | None,
    preprocessing: str | None,
    task: str | None,
    data: str,
    threads: int,
    batch: int,
    reference: str | None,
    cache: Path | None,
) -> None:
    """Score MODEL on pictures: a bundle or .onnx file without torch, a factory in torch.

    The task agreement needs --reference, what is agreed with.
    """
    given = None if preprocessing is None else Preprocessing.from_toml(preprocessing)
    images = Images.open(data)
    chosen = task_of(task or ("classification" if images.labelled else "agreement"))
    if reference is None and chosen.name == "agreement":
        raise InputError(
            "E_TASK", "agreement needs something to agree with.", mend="Give --reference."
        )
    with ExitStack() as stack:
        judged = open_scored_source(stack, model, weights, threads, images, cache)
        against = None
        if reference is not None:
            other = open_scored_source(stack, reference, None, threads, images, cache)
            against = aligned_reference(other, judged)
        progress = stack.enter_context(console.progress())

        def batches() -> Iterator[Batch]:
            done = 0
            for one in images.batches(judged.inputs, given or judged.preprocessing, batch):
                yield one
                done += len(one)
                progress("scoring", done, len(images))

        found = chosen.score(judged.run, batches, against)
    for note in judged.notes:
        console.note(f"Note: {note}")
    if judged.labels and images.class_names and judged.labels != images.class_names:
        console.note(
            f"Note: the classes of {data} are not those of {model}, or in another order; class "
            "indices count by the order of the data's."
        )
    show_score(console, found, judged.how, data)
    console.result({"model": model, "ran": judged.how, "data": data, "score": found.to_dict()})


@click.command()
@click.argument("path", metavar="PATH")
@click.option("--nodes", is_flag=True, help="List every node with its precision and why.")
@click.option(
    "--why-slow",
    is_flag=True,
    help="For an INT8 .onnx file: what fell out of INT8, why, and what that costs here.",
)
@click.option(
    "--target",
    "target_name",
    default="onnxruntime-cpu",
    show_default=True,
    help="With --why-slow, what runs the file, one of: " + ", ".join(TARGET_NAMES) + ".",
)
@click.option("--prunable", is_flag=True, help="PATH is a network: what pruning could take out.")
@_weights
@_preprocessing
@click.option("--static-shape", default=None, metavar="N,C,H,W", help="The network's input.")
@_keep
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    default=180.0,
    show_default=True,
    help="Seconds for following a network's channels.",
)
@report_errors
def inspect(
    console: Console,
    path: str,
    nodes: bool,
    why_slow: bool,
    target_name: str,
    prunable: bool,
    weights: str | None,
    preprocessing: str | None,
    static_shape: str | None,
    keep: tuple[str, ...],
    time_limit: float,
) -> None:
    """Show what is in PATH, a bundle or an .onnx file; with --prunable, a network.

    Inputs, outputs, receipt, scores, how it was made. With --prunable, PATH is a network as
    compress takes it: which channels and residual blocks can leave, and why the others stay.
    """
    if prunable and (why_slow or nodes):
        raise InputError(
            "E_USAGE",
            "--prunable is of networks, --nodes and --why-slow are of files that an engine runs.",
            mend="Ask for one of them.",
            path=path,
        )
    if not prunable:
        if weights or preprocessing or static_shape or keep:
            raise InputError(
                "E_USAGE", "that goes with --prunable only.", mend="Add --prunable.", path=path
            )
        from ..export.commands import show_file

        show_file(console, path, nodes, slow_on=target_name if why_slow else None)
        return
    from .pruning.explain_groups import as_dict, show_prunable
    from .pruning.explain_groups import prunable as find

    with console.progress() as progress:
        found = find(
            path,
            weights=weights,
            preprocessing=None if preprocessing is None else Preprocessing.from_toml(preprocessing),
            static_shape=None if static_shape is None else _shape(static_shape),
            keep=keep,
            time_limit_s=time_limit,
            progress=progress,
        )
    show_prunable(console, path, found)
    console.result(as_dict(path, found))
