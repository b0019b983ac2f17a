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

from ...runtime.errors import InputError

_dist: Any = torch.distributed  # where torch's own annotations do not say what is given
_PATIENCE = datetime.timedelta(days=7)  # the first process exports and proves while others wait


def several() -> bool:
    """Whether ``torchrun`` (or what sets its variables) started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


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

        Raises:
            InputError: ``E_PROCESS`` for more processes on this machine than it has GPUs.
        """
        local = int(os.environ.get("LOCAL_RANK", "0"))
        cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
        here = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
        if cuda and here > torch.cuda.device_count():
            raise InputError(
                "E_PROCESS",
                f"{here} processes were started on this machine, which has "
                f"{torch.cuda.device_count()} GPUs.",
                mend="Start one for each GPU (torchrun --nproc-per-node), or hide the GPUs to "
                "train on the processor: CUDA_VISIBLE_DEVICES= torchrun ...",
            )
        place = torch.device(f"cuda:{local}" if cuda else "cpu")
        if _dist.is_available() and _dist.is_initialized():
            return Processes(_dist.get_rank(), _dist.get_world_size(), place)
        if not several():
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

    def all_true(self, value: bool) -> bool:
        """Whether it is true in every process."""
        if self.world == 1:
            return value
        count = torch.tensor([int(value)])
        _dist.all_reduce(count)
        return int(count) == self.world

    def copy_first(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.world > 1:
            for tensor in tensors:
                _dist.broadcast(tensor, src=0)

    def part(self, count: int) -> tuple[int, int]:
        """From where to where this process works on ``count`` items, which are shared evenly."""
        size = count // self.world
        return self.rank * size, (self.rank + 1) * size

    def leave(self) -> None:
        """Close the process group, where it was opened here."""
        if self.ours and _dist.is_initialized():
            _dist.destroy_process_group()
