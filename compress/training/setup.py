"""What a training is made of, checked before its first step."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...benchmarks.tasks.task import Task
from ...runtime.errors import InputError
from ..recipe.settings import Distil
from .distillation_loss import DistillationLoss, TappedNetwork, TappedOutputs, tap_networks
from .losses import FeatureLoss
from .optimizers import OptimizerSteps
from .processes import Processes
from .weight_averaging import AveragedWeights

if TYPE_CHECKING:
    from collections.abc import Generator

LEAST_PICTURES = 16
"""Training pictures below which nothing is learnt."""

_EXAMPLES = 2
_FEW_PICTURES = 1000
_random: Any = torch.random  # where torch's own annotations do not say what is given


@dataclass
class TrainingNetworks:
    """The networks of a training and what changes them.

    Attributes:
        student: A copy of the user's, in training mode.
        teacher: A copy of the user's, in evaluation mode.
        watched: The student with its taps and adapters: what an optimizer sees.
        model: The teacher with its taps.
        objective: The loss.
        average: The student's averaged weights.
        steps: How they are made.
        optimizer: Of the student's weights and the adapters.
    """

    student: nn.Module
    teacher: nn.Module
    watched: TappedNetwork
    model: TappedNetwork
    objective: DistillationLoss
    average: AveragedWeights
    steps: OptimizerSteps
    optimizer: torch.optim.Optimizer


def prepare_training(
    student: nn.Module,
    teacher: nn.Module,
    feeds: dict[str, torch.Tensor],
    labelled: bool,
    task: Task,
    settings: Distil,
    processes: Processes,
) -> TrainingNetworks:
    """Copy the networks, run both on a batch, and see what there is to compare and to learn.

    Args:
        student: The user's.
        teacher: The user's.
        feeds: A batch of training samples by input name, on the device.
        labelled: Whether there are labels.
        task: What the networks are for.
        settings: Of the training.
        processes: Who trains, and on what device; the first one chooses for all.

    Raises:
        InputError: As :func:`~edgepress.compress.training.train.distil`; ``E_FORWARD`` where a
            network refuses the pictures.
    """
    device = processes.device
    learner = copy.deepcopy(student).to(device).eval()
    original = copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
    watched, model = tap_networks(settings, learner, original)
    few = {name: value[:_EXAMPLES] for name, value in feeds.items()}
    with torch.no_grad():
        ours, theirs = _see("student", watched, few), _see("teacher", model, few)
    if settings.taps:
        watched.features = FeatureLoss(ours.features, theirs.features).to(device)
    objective = DistillationLoss(settings, task, labelled, ours, theirs)
    average = AveragedWeights(learner, settings.average)
    with torch.no_grad():
        found = OptimizerSteps.of(settings, watched(feeds)[0], model(feeds)[0])
        steps = OptimizerSteps(*processes.share((found.optimizer, found.lr)))
        optimizer = steps.made(watched, settings.weight_decay, lambda: watched(few)[0])
    learner.train()
    return TrainingNetworks(learner, original, watched, model, objective, average, steps, optimizer)


def picture_count_remarks(count: int) -> list[str]:
    """Remarks on how many training pictures there are.

    Raises:
        InputError: ``E_DATA`` for too few.
    """
    if count < LEAST_PICTURES:
        raise InputError(
            "E_DATA",
            f"{count} pictures are left to train on, at least {LEAST_PICTURES} are needed.",
            mend="Give more pictures: a part of them is kept for calibration and selection.",
        )
    if count >= _FEW_PICTURES:
        return []
    return [
        f"the student was trained on {count} pictures only: more of them, labelled or not, bring "
        "it nearer to the original."
    ]


def frozen_remarks(student: nn.Module) -> list[str]:
    """Remarks on frozen parameters.

    Raises:
        InputError: ``E_FROZEN`` where nothing may be trained.
    """
    frozen = [name for name, one in student.named_parameters() if not one.requires_grad]
    count = sum(1 for _ in student.parameters())
    if len(frozen) == count:
        raise InputError(
            "E_FROZEN",
            f"none of the student's {count} parameters may be trained.",
            mend="Set requires_grad on those that shall be: student.requires_grad_().",
        )
    if not frozen:
        return []
    more = ", ..." if len(frozen) > 5 else ""
    return [
        f"{len(frozen)} of {count} parameters are frozen and were not trained: "
        f"{', '.join(frozen[:5])}{more}."
    ]


@contextmanager
def own_randomness(device: torch.device, seed: int) -> Generator[None]:
    """Inside, torch's random numbers are the training's; afterwards the caller's go on."""
    with _random.fork_rng([device] if device.type == "cuda" else []):
        _random.manual_seed(seed)
        yield


def mixed_seed(*parts: int) -> int:
    """One seed of several numbers."""
    seed = 0
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % (2**63 - 1)
    return seed


def _see(what: str, network: TappedNetwork, feeds: dict[str, torch.Tensor]) -> TappedOutputs:
    try:
        return TappedOutputs(*network(feeds))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            "E_FORWARD",
            f"the {what} refuses the training pictures ({_shapes(feeds)}): {error}",
            mend="Both networks must take what the preprocessing makes of a picture.",
        ) from error


def _shapes(feeds: Mapping[str, torch.Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in feeds.items())
