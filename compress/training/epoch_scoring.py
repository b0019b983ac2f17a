"""How good a student is on the selection pictures: what the best epoch is chosen by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ...benchmarks.data.images import Batch, Images
from ...benchmarks.tasks.agreement_task import Agreement
from ...benchmarks.tasks.task import Task, UserTask
from ...runtime.pictures.preprocessing import Preprocessing
from ...runtime.tensors import Arrays, TensorSpec
from .autocast_layout import device_of
from .distillation_loss import TappedNetwork

_BATCH = 64
_HELD_BYTES = 256 * 2**20


class EpochScorer:
    """Scores networks on the selection pictures, in float32.

    A score of the user's own brings its own samples, which may be those of the test: the agreement
    with the teacher takes its place.

    Args:
        task: What "good" means.
        images: The selection part.
        specs: The network's inputs.
        preprocessing: How pictures reach it.
        teacher: What agreement is with.
    """

    def __init__(
        self,
        task: Task,
        images: Images,
        specs: Sequence[TensorSpec],
        preprocessing: Preprocessing | None,
        teacher: nn.Module,
    ) -> None:
        own = isinstance(task, UserTask) or (task.needs_labels and not images.labelled)
        self.task: Task = Agreement() if own else task
        self._images, self._specs, self._preprocessing = images, tuple(specs), preprocessing
        self._teacher = teacher
        self._held: list[Batch] | None = None
        self._wanted: list[Arrays] = []  # of the first batches, as many as there is room for
        self._room = _HELD_BYTES

    def score(self, network: nn.Module) -> float:
        """The task's value of a network in evaluation mode."""
        at = iter(range(len(self._images)))

        def run(feeds: Arrays) -> Arrays:
            return _run(network, feeds)

        def wanted(feeds: Arrays) -> Arrays:
            number = next(at)
            if number < len(self._wanted):
                return self._wanted[number]
            found = _run(self._teacher, feeds)
            size = sum(array.nbytes for array in found.values())
            if number == len(self._wanted) and size <= self._room:
                self._wanted.append(found)
                self._room -= size
            return found

        needs = self.task.name == "agreement"
        return self.task.score(run, self._batches, wanted if needs else None).value

    def _batches(self) -> Iterator[Batch]:
        if self._held is not None:
            yield from self._held
            return
        held: list[Batch] | None = []
        size = 0
        for batch in self._images.batches(self._specs, self._preprocessing, _BATCH):
            size += sum(array.nbytes for array in batch.inputs.values())
            held = held if size <= _HELD_BYTES else None
            if held is not None:
                held.append(batch)
            yield batch
        self._held = held


def _run(network: nn.Module, feeds: Arrays) -> Arrays:
    device = device_of(network)
    with torch.inference_mode():
        placed = {key: torch.as_tensor(value).to(device) for key, value in feeds.items()}
        outputs, _ = TappedNetwork(network, (), ())(placed)
        return {name: value.float().cpu().numpy() for name, value in outputs.items()}
