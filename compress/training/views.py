"""Views of the pictures that come again, and what the teacher gave for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .objective import Seen, Tensors

KEPT_BYTES = 2**30
"""Outputs of the teacher that are kept, at most; where they would be more, no view comes again."""

_torch: Any = torch  # where torch's own annotations do not say what is given


class Views:
    """The order and augmentation of epochs, of which there may be fewer than there are epochs.

    Every step of an epoch that comes again has the same pictures, augmented and blended in the same
    way, so that the teacher says the same; the steps come in another order.

    Source: Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", 2022:
    student and teacher see the same view of a picture. That views are few is ours.

    Args:
        count: Epochs that are drawn anew before the first comes again; 0 for all of them.
        steps: Steps an epoch.
        teacher: What it gives for some samples of a step.
        batch: Samples of a step in this process.

    Attributes:
        count: Epochs before views come again; 0 where none does.
        notes: Remarks for people.
    """

    def __init__(self, count: int, steps: int, teacher: Seen, batch: int) -> None:
        values = [*teacher.outputs.values(), *teacher.features.values()]
        size = sum(one[:1].nbytes for one in values) * batch * steps * count
        self.count = count if size <= KEPT_BYTES else 0
        self.notes: list[str] = []
        if count and not self.count:
            self.notes.append(
                f"every epoch was augmented anew: what the teacher gives for {count} views is "
                f"{size / 2**20:,.0f} MiB, and at most {KEPT_BYTES / 2**20:,.0f} are kept."
            )
        self._steps = steps
        self._kept: dict[tuple[int, int], Seen] = {}

    def of(self, epoch: int) -> int:
        """The view that an epoch has."""
        return epoch % self.count if self.count else epoch

    def places(self, epoch: int, chance: torch.Generator) -> list[int]:
        """The order in which an epoch takes the steps of its view."""
        if self.of(epoch) == epoch:
            return list(range(self._steps))
        return _torch.randperm(self._steps, generator=chance).tolist()

    def seen(self, epoch: int, place: int, ask: Callable[[], Seen]) -> Seen:
        """What the teacher gives for a step: as it was kept, or else what it says now."""
        at = self.of(epoch), place
        if at in self._kept:
            return self._kept[at]
        answer = ask()
        if self.count:
            self._kept[at] = answer = Seen(_own(answer.outputs), _own(answer.features))
        return answer


def _own(tensors: Tensors) -> Tensors:
    """Copies, which hold no larger tensor in memory."""
    return {name: value.detach().clone() for name, value in tensors.items()}
