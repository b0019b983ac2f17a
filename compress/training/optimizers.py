"""Which optimizer trains a student, and at which rate: what it knows already decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..recipe.settings import Distil
from .distillation_loss import TensorsByName
from .spherical_muon import RATE_OF_REST, Muon, hidden_weights

_MOMENTUM = 0.9
RATES = {"sgd": (0.05, 0.01), "adamw": (1e-3, 2e-4), "muon": (0.03, 0.003)}
"""The largest, for a student that knows nothing yet and for one that knows something."""

_AUTO = ("muon", "sgd")  # likewise: from nothing muon learns more in few epochs
_KNOWS = 0.5  # correlation with the teacher's outputs


@dataclass(frozen=True)
class OptimizerSteps:
    """How steps are made.

    Attributes:
        optimizer: Its name, no ``auto`` any more.
        lr: The largest learning rate.
    """

    optimizer: str
    lr: float

    @classmethod
    def of(cls, settings: Distil, student: TensorsByName, teacher: TensorsByName) -> OptimizerSteps:
        """What the settings leave open is chosen by what the student knows.

        What a network has learnt goes lost at the rate that one at random needs.

        Args:
            settings: Of the training.
            student: Its outputs on a batch of training samples, in evaluation mode.
            teacher: Its teacher's.
        """
        knows = _alike(student, teacher) > _KNOWS
        name = _AUTO[knows] if settings.optimizer == "auto" else settings.optimizer
        return cls(name, settings.lr or RATES[name][knows])

    def made(
        self, network: nn.Module, weight_decay: float, run: Callable[[], TensorsByName]
    ) -> torch.optim.Optimizer:
        """The optimizer of a network's trainable parameters.

        Its groups say by ``rate`` what multiple of the learning rate they take.

        Args:
            network: What is trained.
            weight_decay: Of weights of two dimensions and more.
            run: Runs the network once, for its outputs.
        """
        muon = self.optimizer == "muon"
        turned = hidden_weights(network, run) if muon else set[str]()
        parts: dict[str, list[nn.Parameter]] = {"turned": [], "decayed": [], "others": []}
        for name, one in network.named_parameters():
            if one.requires_grad:
                kind = "turned" if name in turned else "decayed" if one.ndim > 1 else "others"
                parts[kind].append(one)
        groups: list[dict[str, Any]] = [
            {
                "params": parameters,
                "weight_decay": weight_decay if kind == "decayed" else 0.0,
                "turned": kind == "turned",
                "rate": RATE_OF_REST if muon and kind != "turned" else 1.0,
            }
            for kind, parameters in parts.items()
            if parameters
        ]
        if muon:
            return Muon(groups, _MOMENTUM)
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr, fused=True)
        return torch.optim.SGD(groups, lr=self.lr, momentum=_MOMENTUM, nesterov=True, fused=True)


def _alike(student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]) -> float:
    """The largest correlation of an output's deviations from its mean over the batch."""
    floats = [
        name for name, value in teacher.items() if value.is_floating_point() and name in student
    ]
    return max((_correlation(student[name], teacher[name]) for name in floats), default=0.0)


def _correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape != other.shape:
        return 0.0
    left, right = ((value.double() - value.double().mean(0)).flatten() for value in (one, other))
    return float(functional.cosine_similarity(left, right, dim=0))
