"""Distillation losses: plain modules that compare a student with its teacher, for any loop.

``LogitLoss``, ``EmbeddingLoss`` and ``OutputLoss`` take two tensors, ``FeatureLoss`` two dicts of
them, such as `Taps` collects from named modules. All give a scalar in float32, 0 where student and
teacher agree; the teacher's side gets no gradient.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812, the name that everyone reads
from torch import nn

from ...benchmarks.tasks.agreement import are_shares
from ...runtime.errors import InputError

_EPSILON = 1e-6
_LEAST = 1e-30  # a probability whose logarithm still has a finite derivative


def is_distribution(given: torch.Tensor) -> bool:
    """Whether class scores ``(N, C)`` or ``(N, C, 1, 1)`` are probabilities already."""
    rows = given.detach().float().flatten(1)
    return given.ndim > 1 and rows.shape[1] > 1 and are_shares(rows.cpu().numpy())


def logits_of(probabilities: torch.Tensor) -> torch.Tensor:
    """The logits, up to a constant a row, that a softmax makes probabilities of."""
    return probabilities.float().clamp_min(_LEAST).log()


class LogitLoss(nn.Module):
    """Kullback-Leibler divergence of softened class probabilities, times the squared temperature.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2;
    the square keeps the gradient's size where the temperature changes.

    Args:
        temperature: What logits are divided by; larger ones tell more of the unlikely classes.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise InputError("E_USAGE", f"temperature is {temperature}.", mend="Give one above 0.")
        self.temperature = temperature

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Compare class scores.

        Args:
            student: Logits ``(N, C)`` or ``(N, C, 1, 1)``.
            teacher: Of the same shape.

        Returns:
            A scalar, nats a sample times the squared temperature.
        """
        ours = F.log_softmax(student.float().flatten(1) / self.temperature, 1)
        theirs = F.log_softmax(teacher.detach().float().flatten(1) / self.temperature, 1)
        loss = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return loss * self.temperature**2


class EmbeddingLoss(nn.Module):
    """One minus the mean cosine of embeddings: what nearest neighbours are found by."""

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Compare embeddings ``(N, ...)`` of one shape, each flattened."""
        ours, theirs = student.float().flatten(1), teacher.detach().float().flatten(1)
        return 1 - F.cosine_similarity(ours, theirs, dim=1, eps=_EPSILON).mean()


class OutputLoss(nn.Module):
    """Mean squared difference over the teacher's mean square, for outputs of any form.

    1 stands for a student that gives 0 everywhere, whatever unit outputs have. For logits see Kim
    et al., "Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge
    Distillation", 2021.
    """

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Compare tensors of one shape."""
        theirs = teacher.detach().float()
        return F.mse_loss(student.float(), theirs) / (theirs.square().mean() + _EPSILON)


class FeatureLoss(nn.Module):
    """`OutputLoss` of features at named taps, the mean over the taps.

    Where student and teacher have another number of channels at a tap, a 1x1 convolution (a linear
    layer for ``(N, T, C)`` and ``(N, C)``) leads from the student's to the teacher's; it is trained
    with the student and thrown away. Where maps differ in size, the larger is averaged down.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, section 2.2.

    Args:
        student: Features of the student by tap, of any batch size; they tell the widths.
        teacher: The teacher's, by the same names.

    Raises:
        InputError: ``E_TAP`` where taps differ in name or rank, or a feature is no float map.
    """

    def __init__(
        self, student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]
    ) -> None:
        super().__init__()
        if list(student) != list(teacher) or not student:
            raise InputError(
                "E_TAP",
                f"the student has features {list(student)}, the teacher {list(teacher)}.",
                mend="Give both the same taps, in the same order, at least one.",
            )
        self.names = tuple(student)
        self.adapters = nn.ModuleList(
            _adapter(name, student[name], teacher[name]) for name in self.names
        )
        self.loss = OutputLoss()

    def adapted(self, student: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The student's features with the teacher's number of channels."""
        return {
            name: adapter(student[name])
            for name, adapter in zip(self.names, self.adapters, strict=True)
        }

    def compare(
        self, adapted: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of features that went through `adapted`."""
        pairs = [_same_size(adapted[name], teacher[name]) for name in self.names]
        losses: list[torch.Tensor] = [self.loss(ours, theirs) for ours, theirs in pairs]
        return torch.stack(losses).mean()

    def forward(
        self, student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Compare features by tap, each ``(N, C, H, W)``, ``(N, T, C)`` or ``(N, C)``."""
        return self.compare(self.adapted(student), teacher)


class Taps:
    """Collects what named modules give while a network runs.

    ::

        with Taps(student, ["layer2"]) as ours, Taps(teacher, ["layer2"]) as theirs:
            student(x), teacher(x)
            loss = feature_loss(ours.take(), theirs.take())

    Args:
        module: A network.
        names: Names of modules in it, as ``named_modules()`` gives them.
        shown: How the taps are called, one for each name; the names themselves by default.

    Raises:
        InputError: ``E_TAP`` for a name that is not there; the nearest ones are told.
    """

    def __init__(
        self, module: nn.Module, names: Sequence[str], shown: Sequence[str] | None = None
    ) -> None:
        self._names = tuple(shown or names)
        self._modules = [_find(module, name) for name in names]
        self._held: dict[str, torch.Tensor] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Taps:
        for name, module in zip(self._names, self._modules, strict=True):
            handle: Any = module.register_forward_hook(self._keep(name))
            self._stack.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._held = {}

    def take(self) -> dict[str, torch.Tensor]:
        """What the last run gave, by tap, in the order of the names.

        Raises:
            InputError: ``E_TAP`` where a module was not called, or gave no float tensor.
        """
        held, self._held = self._held, {}
        for name in self._names:
            if name not in held:
                raise InputError(
                    "E_TAP",
                    f"the module at the tap '{name}' was not called, or gives no float tensor.",
                    mend="Tap a module whose forward gives one tensor, such as a convolution.",
                    path=name,
                )
        return {name: held[name] for name in self._names}

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _arguments: object, given: object) -> None:
            if isinstance(given, torch.Tensor) and given.is_floating_point():
                self._held[name] = given

        return hook


def _find(module: nn.Module, name: str) -> nn.Module:
    given: Any = module  # torch leaves the type of named_modules() partly open
    modules: dict[str, nn.Module] = dict(given.named_modules())
    if name in modules and name:
        return modules[name]
    known = [key for key in modules if key]
    near = difflib.get_close_matches(name, known, n=3) or known[:5]
    raise InputError(
        "E_TAP",
        f"{type(module).__name__} has no module '{name}' to tap.",
        mend="Did you mean: " + ", ".join(near) + "?",
        path=name,
    )


def _adapter(name: str, student: torch.Tensor, teacher: torch.Tensor) -> nn.Module:
    if student.ndim != teacher.ndim or student.ndim not in (2, 3, 4):
        raise InputError(
            "E_TAP",
            f"at the tap '{name}' the student gives {tuple(student.shape)}, the teacher "
            f"{tuple(teacher.shape)}.",
            mend="Tap where both give (N, C, H, W), (N, T, C) or (N, C).",
            path=name,
        )
    axis = 1 if student.ndim == 4 else -1
    ours, theirs = student.shape[axis], teacher.shape[axis]
    if ours == theirs:
        return nn.Identity()
    made: nn.Module = nn.Conv2d(ours, theirs, 1) if axis == 1 else nn.Linear(ours, theirs)
    return made


def _same_size(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both with the smaller height and width of the two; tokens ``(N, T, C)`` along T."""
    if student.shape == teacher.shape:
        return student, teacher
    if student.ndim == 4:
        height, width = map(min, student.shape[2:], teacher.shape[2:])
        pool = nn.AdaptiveAvgPool2d((height, width))
        return pool(student), pool(teacher)
    tokens = nn.AdaptiveAvgPool1d(min(student.shape[1], teacher.shape[1]))
    return (
        tokens(student.transpose(1, 2)).transpose(1, 2),
        tokens(teacher.transpose(1, 2)).transpose(1, 2),
    )
