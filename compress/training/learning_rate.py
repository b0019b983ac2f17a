"""The learning rate over the training, and how a limit of time shortens it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

_NOT_YET = 3  # steps before their time is believed
_SMOOTHING = 0.005  # some slow seconds must not hurry a training of hours


def learning_rate(progress: float, warmup: float) -> float:
    """Share of the largest learning rate: a line up, then a half cosine down to 0.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017,
    equation 5, without restarts.

    Args:
        progress: How much of the training is done, 0 to 1.
        warmup: Share of the training in which the rate rises.
    """
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


@dataclass
class TrainingClock:
    """How much of the training is done: by steps, and by time where time is limited.

    Attributes:
        total: Steps that were asked for.
        limit_s: Seconds of training, at most; 0 for no limit.
        done: Steps that were made.
        progress: Share of the training that is done; 1 ends it.
        spent_s: Seconds of training so far, over all processes that were killed on the way.
        step_s: What a step takes, on the average of the last hundreds; 0 before it is known.
        judging_s: What the scoring after an epoch takes, a step.
    """

    total: int
    limit_s: float = 0.0
    done: int = 0
    progress: float = 0.0
    spent_s: float = 0.0
    step_s: float = 0.0
    judging_s: float = 0.0
    _since: float = 0.0

    def start(self) -> None:
        """From now on time counts; what came before, such as an evaluation, was counted then."""
        self._since = time.monotonic()

    def prepared(self) -> None:
        """What had to be done before the first step is done; its time counts."""
        self._pause()

    def judged(self, steps: int) -> None:
        """An epoch of so many steps was scored."""
        self.judging_s = self._pause() / steps

    def _pause(self) -> float:
        """Count what has passed since the last time."""
        took = time.monotonic() - self._since
        self.spent_s += took
        self._since += took
        return took

    def left(self) -> int:
        """Steps that are left, by number and by time."""
        steps = self.total - self.done
        if self.limit_s and self.step_s and self.done >= _NOT_YET:
            steps = min(steps, int((self.limit_s - self.spent_s) / (self.step_s + self.judging_s)))
        return max(0, steps)

    def stepped(self, left: int) -> None:
        """A step was made.

        Args:
            left: Steps that were left before it, this one counted; the share of the training that
                is not done is spread evenly over them.
        """
        took = self._pause()
        self.done += 1
        share = max(1 / self.done, _SMOOTHING) if self.step_s else 1.0
        self.step_s += share * (took - self.step_s)
        self.progress += (1 - self.progress) / max(1, left)
