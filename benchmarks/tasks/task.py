"""What a task is: it judges a run, whatever runs behind it, and gives a score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from ...runtime.errors import InputError
from ..data.batch_runner import Run
from ..data.images import Batch

Batches: TypeAlias = Callable[[], Iterable[Batch]]
"""Gives the batches to score, afresh at each call."""


@dataclass(frozen=True)
class Score:
    """What a task found.

    Attributes:
        task: The task's name.
        value: The larger the better.
        unit: ``percent``, or ``score`` for a scale of the user's own.
        count: Samples that were judged; 0 where the task does not tell.
        low: Lower end of the 95 % interval of the value, or ``None``.
        high: Upper end, or ``None``.
        details: More figures, JSON values only.
    """

    task: str
    value: float
    unit: Literal["percent", "score"]
    count: int
    low: float | None = None
    high: float | None = None
    details: dict[str, object] = field(default_factory=dict[str, object])

    def to_dict(self) -> dict[str, object]:
        """JSON form: the attributes."""
        return {
            "task": self.task,
            "value": self.value,
            "unit": self.unit,
            "count": self.count,
            "low": self.low,
            "high": self.high,
            "details": self.details,
        }


class Task(Protocol):
    """What is asked of a task."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def needs_labels(self) -> bool:
        """Whether the batches must carry class indices."""
        ...

    def score(self, run: Run, batches: Batches, reference: Run | None = None) -> Score:
        """Judge ``run``.

        Args:
            run: What is judged.
            batches: Gives the samples.
            reference: What it is compared with, where the task compares.
        """
        ...


@dataclass(frozen=True)
class UserTask:
    """A score of the user's own.

    Attributes:
        fn: Takes a run and gives a number, the larger the better. It brings its own samples.
        name: What reports call it.
    """

    fn: Callable[[Run], float]
    name: str = "user"
    needs_labels: bool = False

    def score(self, run: Run, batches: Batches, reference: Run | None = None) -> Score:
        """Call the user's function on ``run``; ``batches`` and ``reference`` are not used.

        Raises:
            InputError: ``E_TASK`` where it gives anything but a finite number. What the function
                itself raises comes through as it is.
        """
        value: Any = self.fn(run)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(
                "E_TASK",
                f"the task '{self.name}' gave {value!r}.",
                mend="Return a finite number, the larger the better",
            )
        return Score(self.name, number, "score", 0)
