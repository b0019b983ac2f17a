"""What ``edgepress inspect MODEL --prunable`` shows: what pruning could take out, and what not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...runtime.console import Console
from ...runtime.pictures.preprocessing import Preprocessing
from ...runtime.progress import Progress
from ..channels.channel_groups import Structure
from ..channels.structure import structure_of
from ..source.export_network import random_example
from ..source.source_network import open_model, torch_network


def prunable(
    model: str,
    *,
    weights: str | None,
    preprocessing: Preprocessing | None,
    static_shape: tuple[int, ...] | None,
    keep: Sequence[str],
    time_limit_s: float,
    progress: Progress,
) -> Structure:
    """What can be pruned in the network that the user named.

    Args:
        model: A factory's name.
        weights: File of its weights; a factory of the user's does without.
        preprocessing: Its crop tells the input's size.
        static_shape: ``(N, C, H, W)`` of the input, where no preprocessing tells it.
        keep: Names of modules that stay whole.
        time_limit_s: How long it may take.
        progress: Told how far the work is.

    Raises:
        InputError: As :func:`~edgepress.compress.channels.structure.structure_of`; ``E_SHAPE``
            where nothing tells the input's shape; ``E_USAGE`` for an ONNX file.
    """
    backbone = torch_network(open_model(model, weights))
    used = preprocessing or backbone.preprocessing
    shape = None if static_shape is None else (2, *static_shape[1:])
    example = random_example(backbone.module, used, shape)
    return structure_of(
        backbone.module, example, keep=keep, time_limit_s=time_limit_s, progress=progress
    )


def show_prunable(console: Console, model: str, found: Structure) -> None:
    """Print it."""
    macs = sum(layer.macs(layer.in_width, layer.out_width) for layer in found.layers)
    console.say(
        f"{model}: {len(found.groups)} groups of channels and {len(found.blocks)} residual blocks "
        f"can be pruned; {macs:,} multiply-adds in {len(found.layers)} layers"
    )
    rows = [
        (
            group.name,
            group.width,
            group.least,
            group.step,
            len(group.members),
            "" if group.exact else "a norm over channels sees the cut",
        )
        for group in found.groups
    ]
    if rows:
        console.table(
            ("channels of", ">width", ">least", ">multiple of", ">modules that hold them", ""), rows
        )
    if found.blocks:
        console.say("Blocks: " + ", ".join(block.name for block in found.blocks))
    if found.refused:
        console.table(("stays whole", "because"), [(one.name, one.reason) for one in found.refused])
    for note in found.notes:
        console.say(f"Note: {note}")


def as_dict(model: str, found: Structure) -> dict[str, Any]:
    """JSON form, without the indices of every atom."""
    return {
        "model": model,
        "groups": [
            {
                "name": group.name,
                "width": group.width,
                "least": group.least,
                "multiple": group.step,
                "exact": group.exact,
                "modules": [[member.module, member.side] for member in group.members],
            }
            for group in found.groups
        ],
        "blocks": [block.name for block in found.blocks],
        "left_whole": [vars(one) for one in found.refused],
        "macs": sum(layer.macs(layer.in_width, layer.out_width) for layer in found.layers),
        "notes": list(found.notes),
    }
