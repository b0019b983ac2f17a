"""Damage: how far the outputs move at each width of each group, and without each block.

Scores tell it for small cuts. For large ones they are held against the network itself: at some
widths the weakest atoms are silenced and the divergence of the outputs is measured, on as many
pictures as a limit on the work allows; scores are corrected by what was seen, in between by
interpolation. So cuts in different layers, and whole blocks, are weighed in one unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ...export.graph.torch_capture import flatten_outputs
from ...runtime.progress import Progress
from ..channels.channel_groups import Group, Structure
from ..channels.cut_verification import NamedTensors
from .channel_gates import Outputs, gates, output_divergence
from .importance import Scores

_WORK_MACS = 1e12
_SAMPLED = (0.75, 0.5, 0.25)
_FEWEST, _MOST = 4, 256
_ENOUGH = 8  # pictures below which fewer cuts are measured
_TINY = 1e-9


@dataclass(frozen=True)
class OutputDamage:
    """What it costs the outputs, per picture.

    Attributes:
        groups: For each group, the damage at each of its widths, in their order.
        blocks: For each block, the damage without it.
        pictures: On how many pictures it was measured.
        measured: How many cuts were measured.
    """

    groups: tuple[tuple[float, ...], ...]
    blocks: tuple[float, ...]
    pictures: int
    measured: int


def widths_of(group: Group, multiple: int, most: int = 12) -> tuple[int, ...]:
    """The widths that are worth a thought, the whole one first.

    Multiples of what the target likes, finer where a layer is so narrow that it would be left with
    fewer than four of them, and coarser where there would be more than ``most``; never below what
    has to stay.

    Args:
        group: Whose atoms are counted.
        multiple: Channels that the target computes at once.
        most: How many widths, at most.
    """
    unit = int(np.lcm(multiple, group.step))
    while unit % 2 == 0 and unit // 2 % group.step == 0 and unit > group.width / 4:
        unit //= 2
    while (group.width - group.least) // unit > most:
        unit *= 2
    least = max(group.least, min(unit, group.width))
    narrower = range((group.width - 1) // unit * unit, least - 1, -unit)
    return (group.width, *(width for width in narrower if width % group.step == 0))


def measure_output_damage(
    module: nn.Module,
    structure: Structure,
    batches: Sequence[NamedTensors],
    scores: Scores,
    widths: Sequence[Sequence[int]],
    outputs: Outputs,
    progress: Progress,
) -> OutputDamage:
    """Measure the damage of cuts.

    Args:
        module: The network in evaluation mode; it is left as it is.
        structure: Its groups and blocks.
        batches: Pictures by input name.
        scores: Of the groups' atoms.
        widths: Of each group, the whole one first.
        outputs: What the network gives.
        progress: Told how far the work is.
    """
    macs = sum(layer.macs(layer.in_width, layer.out_width) for layer in structure.layers)
    sampled = [_sampled(each, 3) for each in widths]
    evaluations = sum(map(len, sampled)) + len(structure.blocks) + 1
    if _WORK_MACS / (macs * evaluations) < _ENOUGH:
        sampled = [_sampled(each, 1) for each in widths]
        evaluations = sum(map(len, sampled)) + len(structure.blocks) + 1
    count = int(np.clip(_WORK_MACS / max(1, macs * evaluations), _FEWEST, _MOST))
    few = _first(batches, count)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress("measuring the damage of cuts", done, evaluations)

    with torch.inference_mode():
        wanted = [flatten_outputs(module(**feeds)) for feeds in few]
        pictures = sum(_rows(feeds) for feeds in few)
        step()
        found: list[tuple[float, ...]] = []
        for group, score, each, some in zip(structure.groups, scores, widths, sampled, strict=True):
            seen: dict[int, float] = {}
            for kept in some:
                seen[kept] = (
                    _silent(module, group, group.weakest(list(score), kept), few, wanted, outputs)
                    / pictures
                )
                step()
            found.append(_corrected(group, list(score), each, seen))
        blocks: list[float] = []
        for block in structure.blocks:
            held: Any = module.get_submodule(block.name)
            hook = held.register_forward_hook(_pass_on)
            try:
                moved = _moved(module, few, wanted, outputs)
            finally:
                hook.remove()
            blocks.append(moved / pictures)
            step()
    return OutputDamage(tuple(found), tuple(blocks), pictures, evaluations - 1)


def _sampled(widths: Sequence[int], count: int) -> list[int]:
    """Some of a group's widths, the nearest to three quarters, half and a quarter of the whole."""
    if len(widths) == 1:
        return []
    shares = _SAMPLED if count > 1 else (0.5,)
    nearest = [min((abs(w - share * widths[0]), w) for w in widths[1:]) for share in shares]
    return sorted({width for _, width in nearest}, reverse=True)


def _corrected(
    group: Group, scores: list[float], widths: Sequence[int], seen: dict[int, float]
) -> tuple[float, ...]:
    """Summed scores at each width, scaled by what was measured; more is never better."""
    summed = [sum(scores[atom] for atom in group.weakest(scores, w)) for w in widths]
    by_width = dict(zip(widths, summed, strict=True))
    places = sorted(seen)
    ratios = [np.log(max(seen[w], _TINY) / max(by_width[w], _TINY)) for w in places]
    factors = np.exp(np.interp(widths, places, ratios)) if places else np.ones(len(widths))
    scaled = np.maximum.accumulate(np.asarray(summed) * factors)
    return tuple(float(value) for value in scaled)


def _silent(
    module: nn.Module,
    group: Group,
    atoms: Sequence[int],
    batches: Sequence[NamedTensors],
    wanted: Sequence[NamedTensors],
    outputs: Outputs,
) -> float:
    total = 0.0
    for feeds, before in zip(batches, wanted, strict=True):
        with gates(module, [group], _rows(feeds)) as (gate,):
            gate[:, list(atoms)] = 0.0
            total += output_divergence(before, flatten_outputs(module(**feeds)), outputs)
    return total


def _moved(
    module: nn.Module,
    batches: Sequence[NamedTensors],
    wanted: Sequence[NamedTensors],
    outputs: Outputs,
) -> float:
    pairs = zip(batches, wanted, strict=True)
    return sum(output_divergence(w, flatten_outputs(module(**f)), outputs) for f, w in pairs)


def _pass_on(part: nn.Module, given: tuple[Any, ...], made: object) -> Any:
    del part, made
    return given[0]


def _rows(feeds: NamedTensors) -> int:
    return next(iter(feeds.values())).shape[0]


def _first(batches: Sequence[NamedTensors], count: int) -> list[NamedTensors]:
    """The first ``count`` pictures, in their batches."""
    few: list[NamedTensors] = []
    for feeds in batches:
        if count <= 0:
            break
        few.append({name: tensor[:count] for name, tensor in feeds.items()})
        count -= _rows(feeds)
    return few
