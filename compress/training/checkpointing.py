"""What is kept of a training while it runs, and how it is taken up again."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ...runtime.errors import InputError
from .autocast_layout import ComputeMode
from .checkpoint_file import CheckpointFolder, load_optimizer, optimizer_tensors
from .distillation_loss import TensorsByName
from .learning_rate import TrainingClock
from .processes import Processes
from .setup import TrainingNetworks

_BETWEEN_S = 60.0  # between checkpoints, and twenty times as long as writing one takes
_WRITING = 20


@dataclass
class TrainingState:
    """Where a training stands, beside its tensors.

    Attributes:
        epoch: The one that runs, from 0.
        step: The next one in it.
        epochs: Figures of those that are done.
        sums: Each term of the loss, summed over the steps of this epoch.
        best: Figures of the best epoch.
        way: How the networks are computed.
        took: Seconds a step of the ways that were tried.
        compiled: Whether by torch's compiler, and why not.
        devices: What has trained it: names of GPUs, or ``CPU``.
    """

    epoch: int = 0
    step: int = 0
    epochs: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    sums: dict[str, float] = field(default_factory=dict[str, float])
    best: dict[str, Any] | None = None
    way: ComputeMode = field(default_factory=ComputeMode)
    took: dict[str, float] = field(default_factory=dict[str, float])
    compiled: str = "no"
    devices: list[str] = field(default_factory=list[str])


class Checkpointer:
    """Writes checkpoints and reads them; only the first process does, the others are told.

    Args:
        folder: Where they are kept; ``None`` keeps none.
        networks: What is trained.
        clock: How much is done.
        processes: Who trains.
    """

    def __init__(
        self,
        folder: CheckpointFolder | None,
        networks: TrainingNetworks,
        clock: TrainingClock,
        processes: Processes,
    ) -> None:
        self._folder = folder if processes.first else None
        self._networks, self._clock, self._processes = networks, clock, processes
        self._next = time.monotonic() + _BETWEEN_S
        self.best: TensorsByName = {}
        """The student's weights in its best epoch."""

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint in mid-epoch; never but in the first process."""
        return self._folder is not None and time.monotonic() > self._next

    @property
    def told(self) -> str:
        """What is left if the training fails now, in words."""
        if self._folder is None or not self._folder.file.exists():
            return "No checkpoint was written yet."
        place = self._folder.path
        return f"The last good checkpoint is in '{place}'; --resume goes on from there."

    def write(self, state: TrainingState) -> None:
        """Replace the checkpoint."""
        if self._folder is None:
            return
        start = time.monotonic()
        networks, clock = self._networks, self._clock
        features = networks.watched.features
        inside: dict[str, TensorsByName] = {
            "student": networks.student.state_dict(),
            "average": networks.average.network.state_dict(),
            "best": self.best,
            "optimizer": optimizer_tensors(networks.optimizer),
            "features": {} if features is None else features.state_dict(),
        }
        tensors = {f"{part}/{name}": one for part in inside for name, one in inside[part].items()}
        clocked = {"done": clock.done, "progress": clock.progress, "spent_s": clock.spent_s}
        self._folder.write(tensors, {**asdict(state), "clock": clocked})
        now = time.monotonic()
        self._next = now + max(_BETWEEN_S, _WRITING * (now - start))

    def take_up(self, resume: bool) -> TrainingState | None:
        """Go on from the checkpoint: its state, or ``None`` where there is none.

        Raises:
            InputError: ``E_EXISTS`` where there is one and nobody asked for it; what reading it
                raises.
        """
        tensors: TensorsByName = {}
        held: Any = None
        if self._folder is not None:
            self._folder.sweep()
            if self._folder.file.exists():
                if not resume:
                    raise InputError(
                        "E_EXISTS",
                        f"there is a training in '{self._folder.path}' that did not end.",
                        mend="Go on with --resume, or remove that folder to start anew.",
                        path=str(self._folder.path),
                    )
                tensors, held = self._folder.read()
        held = self._processes.share(held)
        if held is None:
            return None
        for name, value in held.pop("clock").items():
            setattr(self._clock, name, value)
        if self._processes.first:
            self._load(tensors)
        self._share(tensors)
        held["way"] = ComputeMode(**held["way"])
        return TrainingState(**held)

    def _load(self, tensors: TensorsByName) -> None:
        networks = self._networks
        networks.student.load_state_dict(_inside(tensors, "student"))
        networks.average.load(_inside(tensors, "average"))
        load_optimizer(networks.optimizer, _inside(tensors, "optimizer"))
        if networks.watched.features is not None:
            networks.watched.features.load_state_dict(_inside(tensors, "features"))
        self.best = _inside(tensors, "best")

    def _share(self, tensors: TensorsByName) -> None:
        """Give the other processes the optimizer's state and the average; DDP shares weights."""
        if self._processes.world == 1:
            return
        held = _inside(tensors, "optimizer")
        shapes: dict[str, list[int]] = self._processes.share(
            {name: list(one.shape) for name, one in held.items()}
        )
        held = {name: held.get(name, torch.zeros(shape)) for name, shape in shapes.items()}
        self._processes.copy_first(list(held.values()))
        self._processes.copy_first(list(self._networks.average.network.state_dict().values()))
        load_optimizer(self._networks.optimizer, held)


def _inside(tensors: TensorsByName, part: str) -> TensorsByName:
    return {
        key.removeprefix(f"{part}/"): value
        for key, value in tensors.items()
        if key.startswith(f"{part}/")
    }
