"""From limits to a choice: bounds on sums, and on the latency as a model predicts it.

The latency of the chosen network is measured before it is believed: where it misses the limit, the
model has learned one network more, the aim is corrected by what it missed, and it is chosen again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ...runtime.errors import BoundError, InputError
from ...runtime.progress import Progress
from ...runtime.target import target as target_of
from ...runtime.tensors import Arrays
from ..channels.layer_shapes import LayerShape
from .candidate_timing import CandidateTimer
from .latency_model import RANDOM_NETWORKS, LatencyModel, random_widths
from .latency_table import LatencyTable
from .layer_costs import LayerWidths, Widths, macs_cost, parameters_cost
from .output_damage import OutputDamage
from .width_milp import Bound, choose_widths, smallest_of

_BYTES = {"float32": 4, "int8": 1}
_ROUNDS = 4
_CLOSE = 0.01  # of the limit: nearer than this is met, timing is no more exact


@dataclass(frozen=True)
class PruneLimits:
    """How far to prune; at least one of them is given.

    Attributes:
        max_latency_ratio: Latency on the target, as a share of the whole network's in the same
            precision.
        max_macs_ratio: Multiply-adds, as a share of the whole network's.
        max_size_mb: Size of the weights in the precision that ships, in 10**6 bytes.
    """

    max_latency_ratio: float | None = None
    max_macs_ratio: float | None = None
    max_size_mb: float | None = None

    @property
    def given(self) -> dict[str, float]:
        """Those that are given, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def check(self) -> None:
        """Refuse limits that are none.

        Raises:
            InputError: ``E_USAGE`` where none is given, or one is not above 0 (ratios: at most 1).
        """
        if not self.given:
            raise InputError(
                "E_USAGE",
                "pruning was not told how far to go.",
                mend="Give --max-latency-ratio, --max-macs-ratio or --max-size-mb.",
            )
        for name, value in self.given.items():
            most = math.inf if name == "max_size_mb" else 1.0
            if not (math.isfinite(value) and 0 < value <= most):
                raise InputError(
                    "E_USAGE",
                    f"{name} is {value}.",
                    mend="Give a number above 0" + (", at most 1." if most == 1 else "."),
                )


@dataclass(frozen=True)
class FoundWidths:
    """A choice and what is known of it.

    Attributes:
        choice: How narrow the network shall be.
        report: For each limit what the whole network and the chosen one have; for the latency also
            what was predicted, what was measured, and how well the model predicts others.
        notes: Remarks for people.
    """

    choice: Widths
    report: dict[str, object]
    notes: tuple[str, ...] = ()


def sum_bounds(
    module: nn.Module, frame: LayerWidths, limits: PruneLimits, precision: str
) -> list[Bound]:
    """The limits on multiply-adds and size as bounds over the layers."""
    bounds: list[Bound] = []
    if limits.max_macs_ratio is not None:
        total = frame.total(macs_cost, frame.whole)
        limit = limits.max_macs_ratio * total
        bounds.append(Bound("multiply-adds", macs_cost, limit, "max_macs_ratio", total))
    if limits.max_size_mb is not None:
        each = _BYTES[precision]
        held = sum(parameter.numel() for parameter in module.parameters())
        rest = (held - frame.total(parameters_cost, frame.whole)) * each

        def size(layer: LayerShape, in_width: int, out_width: int) -> float:
            return parameters_cost(layer, in_width, out_width) * each

        limit = limits.max_size_mb * 1e6
        bounds.append(Bound("size in bytes", size, limit, "max_size_mb", 1e6, rest))
    return bounds


def latency_model(
    module: nn.Module,
    frame: LayerWidths,
    example: Arrays,
    widths: Sequence[Sequence[int]],
    target: str,
    precision: str,
    cache: Path | None,
    seed: int,
    progress: Progress,
) -> tuple[LatencyModel, CandidateTimer]:
    """The model of a network's latency, measured as far as the cache does not hold it already.

    Args:
        module: The network in evaluation mode.
        frame: Its layers.
        example: Its inputs, batch 2 or more.
        widths: Of each group, the whole one first.
        target: Name of the target.
        precision: What will ship.
        cache: The cache folder, or ``None`` to keep nothing.
        seed: Of the random networks.
        progress: Told how far the work is.
    """
    device = target_of(target)
    table = LatencyTable(device, precision, cache)
    table.measure(frame, widths, progress)
    model = LatencyModel(frame, table)
    watch = CandidateTimer(module, frame.structure, example, device, precision, progress)
    lacking = RANDOM_NETWORKS - len(model.seen)
    if lacking > 0:
        model.learn(random_widths(frame, widths, RANDOM_NETWORKS, seed)[-lacking:], watch)
    return model, watch


def search_widths(
    frame: LayerWidths,
    widths: Sequence[Sequence[int]],
    damage: OutputDamage,
    bounds: Sequence[Bound],
    latency: tuple[LatencyModel, CandidateTimer] | None,
    limits: PruneLimits,
    *,
    blocks: bool,
) -> FoundWidths:
    """The choice within the limits that costs the outputs least.

    Args:
        frame: The network's layers.
        widths: Of each group, the whole one first.
        damage: What they cost the outputs.
        bounds: On multiply-adds and size.
        latency: The model and what checks it, where there is a limit on the latency.
        limits: What was asked for.
        blocks: Whether whole blocks may leave.

    Raises:
        BoundError: ``E_BOUND`` where no legal network is within a bound.
    """
    report: dict[str, object] = {}
    notes: list[str] = []
    limit = limits.max_latency_ratio
    if latency is None or limit is None:
        choice = choose_widths(frame, widths, damage, bounds, blocks=blocks)
    else:
        model, watch = latency
        aim, tried, errors = limit, list[tuple[float, Widths, float]](), model.errors()
        for _ in range(_ROUNDS):
            try:
                found = choose_widths(
                    frame, widths, damage, [*bounds, model.bound(aim)], blocks=blocks
                )
            except BoundError:
                if not tried:
                    raise
                break
            predicted = model.predict(found)
            (measured,) = model.learn([found], watch)
            tried.append((measured, found, predicted))
            if limit * (1 - 3 * _CLOSE) <= measured <= limit * (1 + _CLOSE):
                break
            aim = min(1.0, aim * limit / measured)
        met = [one for one in tried if one[0] <= limit * (1 + _CLOSE)]
        best = max(met, key=_ratio) if met else min(tried, key=_ratio)
        measured, choice, predicted = best
        if not met:
            notes.append(
                f"the nearest to {limit:.2f} of the latency that was found measures "
                f"{measured:.2f} of it."
            )
        report["latency"] = {
            "limit": limit,
            "predicted_ratio": predicted,
            "measured_ratio": measured,
            "prediction_error": predicted / measured - 1,
            "model_errors": errors,
            "networks_timed": len(model.seen),
            "layers_in_table": len(model.table.entries),
        }
    if choice == smallest_of(frame, widths, blocks=blocks):
        notes.append(
            "it is cut as far as can be: no network between that and the bound was found in time."
        )
    for bound in bounds:
        report[bound.name] = {
            "limit": bound.limit,
            "original": bound.of(frame, frame.whole),
            "result": bound.of(frame, choice),
        }
    return FoundWidths(choice, report, tuple(notes))


def _ratio(one: tuple[float, Widths, float]) -> float:
    return one[0]
