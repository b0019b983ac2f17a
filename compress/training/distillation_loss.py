"""What is minimized: which loss compares which output, features at taps, and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812, the name that everyone reads
from torch import nn

from ...benchmarks.tasks.task import Task
from ...export.graph.torch_capture import flatten_outputs, input_names
from ...runtime.errors import InputError
from ..recipe.settings import Distil
from .augmentation import Draws, kept_share
from .losses import (
    EmbeddingLoss,
    FeatureLoss,
    LogitLoss,
    OutputLoss,
    Taps,
    is_distribution,
    logits_of,
)

TensorsByName = dict[str, torch.Tensor]
_EMBEDDINGS = ("retrieval", "verification")


@dataclass(frozen=True)
class TappedOutputs:
    """What a network gave.

    Attributes:
        outputs: By name (see :func:`edgepress.export.graph.torch_capture.capture`).
        features: By tap.
    """

    outputs: TensorsByName
    features: TensorsByName


class TappedNetwork(nn.Module):
    """A network and the features at its taps, through adapters where it has some.

    Args:
        network: Takes its inputs by name, or in their order where it calls them otherwise.
        taps: Names of modules in it.
        shown: How the taps are called.
    """

    def __init__(self, network: nn.Module, taps: tuple[str, ...], shown: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.features: FeatureLoss | None = None
        self.taps, self.shown = taps, shown

    def forward(self, feeds: TensorsByName) -> tuple[TensorsByName, TensorsByName]:
        """Run the network: its outputs by name, and features by tap."""
        with Taps(self.network, self.taps, self.shown) as taps:
            outputs = flatten_outputs(self.network(**self._named(feeds)), feeds)
            features = taps.take()
        return outputs, features if self.features is None else self.features.adapted(features)

    def _named(self, feeds: TensorsByName) -> TensorsByName:
        names = input_names(self.network)
        return feeds if set(feeds) <= set(names) else dict(zip(names, feeds.values(), strict=False))


def tap_networks(
    settings: Distil, student: nn.Module, teacher: nn.Module
) -> tuple[TappedNetwork, TappedNetwork]:
    """Student and teacher with the taps of the settings.

    Raises:
        InputError: ``E_TAP`` for names that are not there.
    """
    pairs = [(one, one) if "=" not in one else tuple(one.split("=", 1)) for one in settings.taps]
    ours, theirs = (
        tuple(pair[0].strip() for pair in pairs),
        tuple(pair[1].strip() for pair in pairs),
    )
    Taps(student, ours)
    Taps(teacher, theirs)
    return TappedNetwork(student, ours, settings.taps), TappedNetwork(
        teacher, theirs, settings.taps
    )


class DistillationLoss(nn.Module):
    """The loss of a step, term by term.

    Where both networks give probabilities, their logarithms are what is compared as class scores.

    Args:
        settings: Weights of the terms.
        task: What the networks are for; it says how outputs are compared.
        labelled: Whether there are labels.
        student: What the student gives for an example.
        teacher: What the teacher gives for it.

    Raises:
        InputError: ``E_STUDENT`` where the student's outputs are not the teacher's by name and
            shape, or nothing is left to compare; ``E_NAN`` where the teacher's are not finite.
    """

    def __init__(
        self,
        settings: Distil,
        task: Task,
        labelled: bool,
        student: TappedOutputs,
        teacher: TappedOutputs,
    ) -> None:
        super().__init__()
        self._settings = settings
        for name, value in teacher.outputs.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise InputError(
                    "E_NAN",
                    f"the teacher's output '{name}' is not finite on the training pictures.",
                    mend="Check its weights and the preprocessing.",
                    path=name,
                )
        if settings.outputs_weight:
            _check_outputs(student.outputs, teacher.outputs)
        floats = [name for name, value in teacher.outputs.items() if value.is_floating_point()]
        vectors = [name for name in floats if _is_vector(teacher.outputs[name])]
        named = getattr(task, "output", None)
        main = named if named in vectors else vectors[0] if len(vectors) == 1 else None
        self._shares = {
            name
            for name in vectors
            if name in student.outputs
            and is_distribution(teacher.outputs[name])
            and bool((student.outputs[name] >= 0).all())
        }
        self._losses = nn.ModuleDict()
        self._names: list[str] = floats if settings.outputs_weight else []
        for at, name in enumerate(self._names):
            self._losses[str(at)] = _loss(settings, task, name in vectors, name == main)
        classes = task.name == "classification" or settings.match == "logits"
        self._classes = main if classes and labelled and settings.labels_weight else None
        if self._classes is not None and self._classes not in student.outputs:
            self._classes = None
        if not (self._names or self._classes or settings.taps):
            raise InputError(
                "E_STUDENT",
                "there is nothing that student and teacher could be compared by.",
                mend="Give the outputs a weight, or name taps.",
            )

    @property
    def asks_teacher(self) -> bool:
        """Whether anything is compared with the teacher: not where only labels teach."""
        return bool(self._names or self._settings.taps)

    def forward(
        self,
        student: TappedOutputs,
        teacher: TappedOutputs,
        features: FeatureLoss | None,
        labels: torch.Tensor | None,
        draws: Draws,
    ) -> TensorsByName:
        """The terms, weighted, by name; the loss is their sum.

        Args:
            student: What it gave; its features are adapted already.
            teacher: What it gave for the same pictures; not looked at unless :attr:`asks_teacher`.
            features: Compares features, where there are taps.
            labels: int64 ``(N,)``, or ``None``.
            draws: How pictures were blended, for the labels.
        """
        terms: TensorsByName = {}
        if self._names:
            losses: list[torch.Tensor] = []
            for at, name in enumerate(self._names):
                loss = self._losses[str(at)]
                ours, theirs = student.outputs[name], teacher.outputs[name]
                if name in self._shares and isinstance(loss, LogitLoss):
                    ours, theirs = logits_of(ours), logits_of(theirs)
                losses.append(loss(ours, theirs))
            terms["outputs"] = self._settings.outputs_weight * torch.stack(losses).mean()
        if self._classes is not None and labels is not None:
            scores = student.outputs[self._classes].float().flatten(1)
            if self._classes in self._shares:
                scores = logits_of(scores)
            kept = kept_share(draws)
            each = kept * self._entropy(scores, labels)
            if bool((kept < 1).any()):
                each = each + (1 - kept) * self._entropy(scores, labels.roll(1, 0))
            terms["labels"] = self._settings.labels_weight * each.mean()
        if features is not None:
            loss = features.compare(student.features, teacher.features)
            terms["features"] = self._settings.features_weight * loss
        return terms

    def _entropy(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        smoothing = self._settings.labels_smoothing
        return F.cross_entropy(scores, labels, reduction="none", label_smoothing=smoothing)


def _loss(settings: Distil, task: Task, vector: bool, main: bool) -> nn.Module:
    match = settings.match
    if match == "auto":
        match = "outputs"
        if main and task.name == "classification":
            match = "logits"
        elif main and task.name in _EMBEDDINGS:
            match = "embeddings"
    if vector and match == "logits":
        return LogitLoss(settings.temperature)
    return EmbeddingLoss() if vector and match == "embeddings" else OutputLoss()


def _is_vector(value: torch.Tensor) -> bool:
    return value.ndim >= 2 and value.shape[1] > 1 and all(size == 1 for size in value.shape[2:])


def _check_outputs(student: Mapping[str, torch.Tensor], teacher: TensorsByName) -> None:
    ours = {name: tuple(value.shape[1:]) for name, value in student.items()}
    theirs = {name: tuple(value.shape[1:]) for name, value in teacher.items()}
    if ours != theirs:
        raise InputError(
            "E_STUDENT",
            f"the student's outputs are {ours}, the teacher's {theirs} (without the batch).",
            mend="Give the student the same outputs by name, order and shape; it takes the "
            "teacher's place.",
        )
