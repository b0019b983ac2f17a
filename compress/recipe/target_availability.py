"""Where a network shall run: targets, and whether their devices are here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...runtime.errors import InputError
from ...runtime.progress import Progress
from ...runtime.target import TARGET_NAMES, Target
from ...runtime.target import target as target_of
from .absent_device import STAND_IN, check_device
from .recipe import Recipe
from .settings import Prune


@dataclass(frozen=True)
class TargetAvailability:
    """A target, and whether its device is here.

    Attributes:
        target: What is made for.
        here: Whether its device is here; where it is not, ONNX Runtime scores, and nothing is
            timed.
    """

    target: Target
    here: bool

    @property
    def engine(self) -> str:
        """The engine that judges."""
        return self.target.engine if self.here else STAND_IN

    def telling(self, progress: Progress, *, of: int) -> Progress:
        """The same progress; among several targets it names this one."""
        if of == 1:
            return progress
        return lambda stage, done, total: progress(f"{self.target.name}: {stage}", done, total)


def available_targets(names: str | Sequence[str], *, allowed: bool) -> list[TargetAvailability]:
    """The targets that were asked for, before any work is done for them.

    Args:
        names: Of one target, or of several, the default one first.
        allowed: Whether a bundle may be made for a device that is not here.

    Raises:
        InputError: ``E_USAGE`` for none, or one that is named twice; ``E_TARGET`` for a name that
            is no target; ``E_UNPROVEN`` where the device of any is not here and that is not
            allowed.
        MissingExtraError: Where the engine of one that is here is not installed.
        EngineError: ``E_BACKEND`` where that cannot be imported.
    """
    asked = [names] if isinstance(names, str) else list(names)
    twice = sorted({name for name in asked if asked.count(name) > 1})
    if twice or not asked:
        raise InputError(
            "E_USAGE",
            f"the target {', '.join(twice)} was given twice." if twice else "no target was given.",
            mend="Name each once: " + ", ".join(TARGET_NAMES),
        )
    targets = [target_of(name) for name in asked]
    return [TargetAvailability(one, check_device(one, allowed=allowed)) for one in targets]


def check_latency(recipe: Recipe, places: Sequence[TargetAvailability]) -> None:
    """Refuse to prune by the latency of a device that is not here.

    Args:
        recipe: What shall be done, with its limits.
        places: The targets; pruning goes by the first one's latency.

    Raises:
        InputError: ``E_UNPROVEN``.
    """
    asked = any(isinstance(one, Prune) and one.max_latency_ratio for one in recipe.passes)
    if asked and not places[0].here:
        raise InputError(
            "E_UNPROVEN",
            f"pruning goes by the latency on {places[0].target.name}, whose device is not here.",
            mend="Name a target first whose device is here, or prune to a limit on multiply-adds "
            "or size.",
        )
