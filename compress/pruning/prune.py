"""Pruning: measure, decide, apply. What comes out is a plain module, to train back with any loop.

What it does: finds the channels and residual blocks that can leave, what each is worth, and what
the network costs at every width; solves for the least damage within the bounds; cuts a copy.
When it is exact: only where nothing but dead channels leaves.
When it refuses: bounds below what the smallest legal network reaches; networks whose channels
cannot be followed; too few pictures.
Source: dependencies by Torch-Pruning (Fang et al. 2023, "DepGraph"), worth as
:mod:`edgepress.compress.pruning.importance`, choice as
:mod:`edgepress.compress.pruning.width_milp`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import nn

from ...benchmarks.data.images import Images
from ...export.graph.torch_capture import evaluating, input_names, run_module, tensors_from
from ...runtime.errors import InputError
from ...runtime.pictures.preprocessing import Preprocessing
from ...runtime.progress import Progress, silent
from ...runtime.target import target as target_of
from ...runtime.tensors import Arrays
from ..channels.channel_groups import ResidualBlock, Structure
from ..channels.cut_history import History, Pruned, apply_cut_step
from ..channels.cut_verification import NamedTensors
from ..channels.structure import TIME_LIMIT_S, structure_of
from ..source.backbone import Backbone
from ..source.data_and_task import Data
from ..source.source_network import Model, first_rows, open_model, torch_network
from .batchnorm_recalibration import recalibrate
from .candidate_timing import cut_step_by
from .channel_gates import Outputs
from .importance import Scores, importance
from .layer_costs import LayerWidths, Widths, macs_cost
from .output_damage import measure_output_damage, widths_of
from .width_search import PruneLimits, latency_model, search_widths, sum_bounds

IMPORTANCE_PICTURES = 256
_FEWEST = 8
_BATCH = 64
_BATCH_BYTES = 2**26
_REMEMBERED_BYTES = 2**30
_REMEMBERED = (
    16  # bytes for each value that a layer makes: itself, its norm, its activation, a gate
)


def prune(
    model: Model,
    data: Data,
    *,
    max_latency_ratio: float | None = None,
    max_macs_ratio: float | None = None,
    max_size_mb: float | None = None,
    weights: str | None = None,
    preprocessing: Preprocessing | str | Path | None = None,
    target: str = "onnxruntime-cpu",
    precision: str = "float32",
    keep: Sequence[str] = (),
    blocks: bool = True,
    importance: str = "fisher",
    outputs: Outputs | None = None,
    pictures: int = IMPORTANCE_PICTURES,
    seed: int = 0,
    time_limit_s: float = TIME_LIMIT_S,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Pruned:
    """Cut a trained network down to a bound, and give back a plain module to train.

    Args:
        model: A torch module (left as it is), a
            :class:`~edgepress.compress.source.backbone.Backbone`, or a factory's name as
            :func:`~edgepress.compress.compress` takes it; not an ONNX file.
        data: Pictures, labelled or not: anything that
            :meth:`~edgepress.benchmarks.data.images.Images.of` takes.
        max_latency_ratio: Latency on the target, as a share of the whole network's in the same
            precision.
        max_macs_ratio: Multiply-adds, as a share of the whole network's.
        max_size_mb: Size of the weights in the precision that ships, in 10**6 bytes.
        weights: File of the weights, where ``model`` names a factory.
        preprocessing: How pictures reach the network.
        target: What it shall run on; its table of latencies is measured there.
        precision: What will ship, ``float32`` or ``int8``: the table is measured in it.
        keep: Names of modules that stay whole.
        blocks: Whether whole residual blocks may leave.
        importance: ``fisher``, ``taylor``, ``magnitude`` or ``activation``.
        outputs: ``logits`` for class scores, ``features`` for embeddings and everything else; by
            default ``logits`` where the pictures have labels.
        pictures: How many are looked at, at most.
        seed: Of their choice and of what the importance draws.
        time_limit_s: For following the network's channels.
        cache: Folder in which latencies are kept; ``None`` to keep none.
        progress: Told how far the work is.

    Returns:
        The network, cut and not trained since: train it with
        :func:`~edgepress.compress.training.train.distil`, or in any loop of one's own, and save it
        with :func:`~edgepress.compress.source.weights.save_weights` and its history.

    Raises:
        InputError: For anything that was handed over and cannot be used.
        BoundError: ``E_BOUND`` for a bound below what the smallest legal network reaches.
    """
    limits = PruneLimits(max_latency_ratio, max_macs_ratio, max_size_mb)
    settings = PruneRequest(
        limits, target, precision, tuple(keep), blocks, importance, seed, time_limit_s, cache
    )
    settings.check()
    backbone = torch_network(open_model(model, weights))
    images = Images.of(data)
    given = (
        Preprocessing.from_toml(preprocessing)
        if isinstance(preprocessing, (str, Path))
        else preprocessing
    )
    batches = sample(backbone.module, images, given or backbone.preprocessing, pictures, seed)
    kind: Outputs = outputs or ("logits" if images.labelled else "features")
    return prune_backbone(backbone, batches, kind, settings, progress or silent)


@dataclass(frozen=True)
class PruneRequest:
    """What :func:`prune` was asked for, less the network and the pictures.

    Attributes:
        limits: How far to go.
        target: What it shall run on.
        precision: What will ship.
        keep: Names of modules that stay whole.
        blocks: Whether whole residual blocks may leave.
        importance: How channels are scored.
        seed: Of everything random.
        time_limit_s: For following the network's channels.
        cache: Folder in which latencies are kept, or ``None``.
    """

    limits: PruneLimits
    target: str = "onnxruntime-cpu"
    precision: str = "float32"
    keep: tuple[str, ...] = ()
    blocks: bool = True
    importance: str = "fisher"
    seed: int = 0
    time_limit_s: float = TIME_LIMIT_S
    cache: str | Path | None = None

    def check(self) -> None:
        """Refuse settings that are none, before the work begins.

        Raises:
            InputError: ``E_USAGE`` for a limit, a precision or an importance that is none,
                ``E_TARGET`` for an unknown target.
        """
        self.limits.check()
        importance(self.importance)
        device = target_of(self.target)
        if self.precision not in device.precisions:
            raise InputError(
                "E_USAGE",
                f"the precision '{self.precision}' is none of {device.name}.",
                mend="It has: " + ", ".join(device.precisions),
            )


def prune_backbone(
    backbone: Backbone,
    batches: Sequence[Arrays],
    outputs: Outputs,
    settings: PruneRequest,
    progress: Progress,
) -> Pruned:
    """As :func:`prune`, for a network and pictures that are open already.

    Args:
        backbone: The network; its module is left as it is.
        batches: Pictures by input name, the first with at least two.
        outputs: What the network gives.
        settings: What is asked for.
        progress: Told how far the work is.

    Raises:
        InputError: As :func:`prune`.
        BoundError: As :func:`prune`.
    """
    settings.check()
    score, device = importance(settings.importance), target_of(settings.target)
    module = backbone.module
    example = {name: array[:2] for name, array in batches[0].items()}
    with evaluating(module):
        _check_finite(run_module(module, example))
    structure = structure_of(
        module,
        example,
        keep=settings.keep,
        time_limit_s=settings.time_limit_s,
        progress=progress,
    )
    if not structure.groups and not (settings.blocks and structure.blocks):
        raise InputError(
            "E_PRUNE",
            f"nothing in {backbone.name} can be pruned: {_reasons(structure)}.",
            mend="See edgepress inspect MODEL --prunable; keep fewer modules.",
        )
    frame = LayerWidths(structure)
    widths = [widths_of(group, device.channel_multiple) for group in structure.groups]
    limits, latency = settings.limits, None
    bounds = sum_bounds(module, frame, limits, settings.precision)
    feeds = [tensors_from(batch) for batch in batches]
    with evaluating(module):
        if limits.max_latency_ratio is not None:
            latency = latency_model(
                module,
                frame,
                example,
                widths,
                settings.target,
                settings.precision,
                None if settings.cache is None else Path(settings.cache),
                settings.seed,
                progress,
            )
        progress("scoring channels", 0, None)
        small = _in_parts(feeds, structure)
        scores = score(module, structure.groups, small, outputs, settings.seed)
        _check_scores(structure, scores)
        damage = measure_output_damage(module, structure, feeds, scores, widths, outputs, progress)
        progress("choosing widths", 0, None)
        chosen = search_widths(
            frame, widths, damage, bounds, latency, limits, blocks=settings.blocks
        )
    choice = chosen.choice
    step = cut_step_by(structure, scores, choice)
    student = copy.deepcopy(module).eval()
    apply_cut_step(student, step)
    recalibrate(student, feeds)
    run_module(student, example)
    report = {
        **_report(frame, choice, settings),
        "bounds": chosen.report,
        "pictures": sum(next(iter(batch.values())).shape[0] for batch in batches),
        "outputs": outputs,
        "damage_measured_on_pictures": damage.pictures,
        "damage_expected": _expected(structure, widths, damage.groups, damage.blocks, choice),
        "notes": [*structure.notes, *chosen.notes],
    }
    history = History(backbone.history.steps, backbone.history.factory or backbone.name)
    return Pruned(student, history.then(step), report)


def sample(
    module: nn.Module,
    images: Images,
    preprocessing: Preprocessing | None,
    count: int,
    seed: int,
) -> list[Arrays]:
    """Some pictures, drawn by seed, in batches that take no more than 64 MiB.

    Raises:
        InputError: ``E_DATA`` for too few of them.
    """
    if min(len(images), count) < _FEWEST:
        raise InputError(
            "E_DATA",
            f"{min(len(images), count)} pictures are too few to tell what a channel is worth.",
            mend=f"Give {_FEWEST} or more; labels are not needed.",
            path=images.source,
        )
    order = np.random.default_rng(seed).permutation(len(images))[:count]
    some = images.take(order)
    specs = some.specs(input_names(module))
    row = first_rows(some, specs, preprocessing, 1)
    size = sum(array.nbytes for array in row.values())
    batch = int(np.clip(_BATCH_BYTES // max(1, size), 2, _BATCH))
    found = [one.inputs for one in some.batches(specs, preprocessing, batch)]
    return [one for one in found if next(iter(one.values())).shape[0] > 1]


def _in_parts(batches: Sequence[NamedTensors], structure: Structure) -> list[NamedTensors]:
    """The batches in parts so small that what a derivative has to remember takes about 1 GiB."""
    values = sum(layer.calls * math.prod(layer.out_shape) for layer in structure.layers)
    rows = int(np.clip(_REMEMBERED_BYTES // max(1, values * _REMEMBERED), 2, _BATCH))
    parts: list[NamedTensors] = []
    for feeds in batches:
        count = next(iter(feeds.values())).shape[0]
        for start in range(0, count, rows):
            parts.append({name: one[start : start + rows] for name, one in feeds.items()})
    return parts


def _check_finite(given: Arrays) -> None:
    for name, value in given.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InputError(
                "E_NAN",
                f"the network's output '{name}' is not finite on these pictures.",
                mend="Check weights and preprocessing.",
                path=name,
            )


def _check_scores(structure: Structure, scores: Scores) -> None:
    for group, score in zip(structure.groups, scores, strict=True):
        if not np.isfinite(score).all():
            raise InputError(
                "E_NAN",
                f"the importance of the channels of '{group.name}' is not finite.",
                mend="The network's outputs or their derivatives overflow on these pictures: check "
                "weights and preprocessing.",
                path=group.name,
            )


def _report(frame: LayerWidths, choice: Widths, settings: PruneRequest) -> dict[str, object]:
    structure = frame.structure
    names = [block.name for block in structure.blocks]
    gone = [name for name, out in zip(names, choice.skipped, strict=True) if out]
    return {
        "limits": settings.limits.given,
        "target": settings.target,
        "precision": settings.precision,
        "importance": settings.importance,
        "keep": list(settings.keep),
        "macs": {
            "original": int(frame.total(macs_cost, frame.whole)),
            "result": int(frame.total(macs_cost, choice)),
        },
        "groups": [
            {"group": group.name, "width": group.width, "kept": kept}
            for group, kept in zip(structure.groups, choice.kept, strict=True)
            if not any(ResidualBlock(name).holds(group.name) for name in gone)
        ],
        "blocks_removed": gone,
        "left_whole": [vars(one) for one in structure.refused],
    }


def _expected(
    structure: Structure,
    widths: Sequence[Sequence[int]],
    by_width: Sequence[Sequence[float]],
    by_block: Sequence[float],
    choice: Widths,
) -> float:
    total = sum(cost for cost, out in zip(by_block, choice.skipped, strict=True) if out)
    gone = [b for b, out in zip(structure.blocks, choice.skipped, strict=True) if out]
    parts = zip(structure.groups, widths, by_width, choice.kept, strict=True)
    for group, each, costs, kept in parts:
        if not any(block.holds(group.name) for block in gone):
            total += costs[list(each).index(kept)]
    return total


def _reasons(structure: Structure) -> str:
    told = [f"'{one.name}': {one.reason}" for one in structure.refused[:4]]
    return "; ".join(told) or "it has no convolutions or matrix products"


def widths_in(report: Mapping[str, object]) -> dict[str, tuple[int, int]]:
    """``(kept, whole)`` by group, from a report."""
    held = cast("list[dict[str, Any]]", report["groups"])
    return {one["group"]: (one["kept"], one["width"]) for one in held}
