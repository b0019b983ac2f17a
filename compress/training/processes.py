"""Several processes that train together: started by ``torchrun``, or by the user's own script."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed

_dist: Any = torch.distributed  # where torch's own annotations do not say what is given
_PATIENCE = datetime.timedelta(days=7)  # the first process exports and proves while others wait


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is.

    Attributes:
        rank: From 0; only the first writes.
        world: How many there are.
        device: What this one trains on.
        ours: Whether the process group was opened here, and is closed here.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    ours: bool = False

    @staticmethod
    def join(device: str = "auto") -> Processes:
        """Join the others, where ``torchrun`` started several or a process group is open already.

        Args:
            device: ``auto`` takes a GPU where torch sees one, else the CPU.
        """
        local = int(os.environ.get("LOCAL_RANK", "0"))
        cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
        place = torch.device(f"cuda:{local}" if cuda else "cpu")
        if _dist.is_available() and _dist.is_initialized():
            return Processes(_dist.get_rank(), _dist.get_world_size(), place)
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return Processes(device=place)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        _dist.init_process_group(backend, timeout=_PATIENCE)
        return Processes(_dist.get_rank(), _dist.get_world_size(), place, True)

    @property
    def first(self) -> bool:
        """Whether this process writes and tells."""
        return self.rank == 0

    def share(self, value: object) -> Any:
        """What the first process gives, in all of them; JSON values only."""
        if self.world == 1:
            return value
        text = json.dumps(value).encode() if self.first else b""
        length = torch.tensor([len(text)])
        _dist.broadcast(length, src=0)
        held: Any = torch.zeros(int(length), dtype=torch.uint8)
        if self.first:
            held = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        _dist.broadcast(held, src=0)
        return json.loads(held.numpy().tobytes())

    def copy_first(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.world > 1:
            for tensor in tensors:
                _dist.broadcast(tensor, src=0)

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrite tensors with their mean over all processes."""
        if self.world > 1:
            for tensor in tensors:
                _dist.all_reduce(tensor)
                tensor /= self.world

    def part(self, count: int) -> tuple[int, int]:
        """From where to where this process works on ``count`` items, which are shared evenly."""
        size = count // self.world
        return self.rank * size, (self.rank + 1) * size

    def leave(self) -> None:
        """Close the process group, where it was opened here."""
        if self.ours and _dist.is_initialized():
            _dist.destroy_process_group()
