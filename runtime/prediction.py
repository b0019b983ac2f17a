"""What a network said of one picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .tensors import Array


@dataclass(frozen=True)
class Candidate:
    """One class: its index in the output, its label (without labels the index), its probability."""

    index: int
    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """The outputs for one picture.

    Attributes:
        outputs: One array for each output, by name; dimension 0 is the batch, of size 1.
        task: What the bundle is for.
        labels: Class names, or ``None``.
    """

    outputs: Mapping[str, Array]
    task: str
    labels: tuple[str, ...] | None = None

    @property
    def is_classification(self) -> bool:
        """Whether `top` has something to rank."""
        return self.task == "classification" and self._scores() is not None

    def top(self, count: int = 5) -> list[Candidate]:
        """The likeliest classes, the best first, with their probabilities.

        The softmax of the output; where it is a distribution already (none negative, the sum 1 to
        within a thousandth), as it is.

        Args:
            count: How many at most.

        Raises:
            InputError: ``E_TASK`` where the bundle is not for classification, or no output is ``(1,
                classes)``; ``E_INPUT`` for a count under 1.
        """
        scores = self._scores() if self.task == "classification" else None
        if scores is None:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in self.outputs.items())
            raise InputError(
                "E_TASK",
                f"the task is '{self.task}' and the outputs are {shapes}: no classes to rank.",
                mend="Use its outputs.",
            )
        if count < 1:
            raise InputError(
                "E_INPUT", f"{count} classes were asked for.", mend="Ask for 1 or more."
            )
        shares = _probabilities(scores.astype(np.float64))
        best = np.argsort(-shares, kind="stable")[:count]
        return [Candidate(int(i), self._label(int(i)), float(shares[i])) for i in best]

    def _label(self, index: int) -> str:
        return self.labels[index] if self.labels and index < len(self.labels) else str(index)

    def _scores(self) -> Array | None:
        """The one output of shape ``(1, classes)``, without its batch."""
        flat = [array for array in self.outputs.values() if array.ndim == 2 and array.shape[0] == 1]
        return flat[0][0] if len(flat) == 1 else None


def _probabilities(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    if scores.min() >= 0 and abs(scores.sum() - 1) <= 1e-3:
        return scores
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
