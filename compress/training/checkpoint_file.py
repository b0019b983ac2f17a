"""Checkpoints of a training: one safetensors file, its state as JSON inside, replaced whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...runtime.errors import InputError
from ...runtime.files import write_file
from ..source.weights import pack_tensors, unpack_tensors

FILE, LOG = "training.safetensors", "training.json"
_STATE = "edgepress.training"
_MAY_CHANGE = ("lr", "max_minutes")
"""Settings that may be others when a training is taken up again."""


@dataclass(frozen=True)
class CheckpointFolder:
    """Where a training keeps its state.

    Attributes:
        path: The folder; made when the first checkpoint is written.
        identity: What must be the same for a checkpoint to be gone on from, JSON values only.
    """

    path: Path
    identity: Mapping[str, object]

    @property
    def file(self) -> Path:
        """The checkpoint."""
        return self.path / FILE

    def write(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, object]) -> None:
        """Replace the checkpoint, and the log that people read beside it.

        Raises:
            InputError: ``E_WRITE`` where the disk is full or may not be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"identity": self.identity, "state": state}, allow_nan=False)
        write_file(pack_tensors(tensors, {_STATE: text}), self.file, force=True)
        log = json.dumps({"identity": self.identity, "epochs": state["epochs"]}, indent=1)
        write_file(log.encode(), self.path / LOG, force=True)

    def read(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The checkpoint's tensors and state.

        Raises:
            InputError: ``E_RESUME`` where it is of another network, other data or other settings;
                ``E_WEIGHTS`` where it is damaged.
        """
        tensors, texts = unpack_tensors(str(self.file))
        try:
            found: dict[str, Any] = json.loads(texts.get(_STATE, "{}"))
        except (ValueError, RecursionError):
            found = {}
        if "identity" not in found or "state" not in found:
            raise InputError(
                "E_WEIGHTS",
                f"'{self.file}' is no checkpoint of a training.",
                mend="Remove it and start anew.",
                path=str(self.file),
            )
        apart = _apart(found["identity"], json.loads(json.dumps(self.identity)))
        if apart:
            raise InputError(
                "E_RESUME",
                f"the training in '{self.path}' was begun with other {', '.join(apart)}.",
                mend=f"Go on with the same; only {' and '.join(_MAY_CHANGE)} may change. Or remove "
                "that folder and start anew.",
                path=str(self.path),
            )
        return tensors, found["state"]

    def sweep(self) -> None:
        """Remove what a process that was killed while it wrote has left."""
        for name in (FILE, LOG):
            for part in self.path.glob(f".{name}.*.part"):
                part.unlink(missing_ok=True)


def _apart(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names: list[str] = []
    for key, value in now.items():
        held: Any = before.get(key)
        if key == "settings":
            names += [
                f"{one} ({held.get(one)!r}, now {new!r})"
                for one, new in value.items()
                if one not in _MAY_CHANGE and held.get(one) != new
            ]
        elif held != value:
            names.append(key)
    return names


def digest(module: nn.Module) -> str:
    """SHA-256 over a network's tensors by name, in hexadecimal."""
    made = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        made.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        made.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """An optimizer's tensors by ``number.name``."""
    state: Any = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, held in state.items()
        for name, value in held.items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give an optimizer the tensors that :func:`optimizer_tensors` took from its like."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    groups: Any = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Bring an optimizer's tensors into the memory layout of their weights.

    Torch's fused steps walk both in the order of their memory and look at no strides: a momentum
    that was read from a file, contiguous, would be taken for that of other weights.
    """
    held: Mapping[torch.Tensor, dict[str, Any]] = optimizer.state
    for weight, state in held.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
