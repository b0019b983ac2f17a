"""Where a training went wrong: the first place that gives values that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ...runtime.errors import InputError
from ..source.finite_checks import is_finite, not_finite
from .distillation_loss import TappedNetwork


def divergence_error(
    where: str,
    terms: Mapping[str, torch.Tensor],
    student: nn.Module,
    teacher: nn.Module,
    feeds: dict[str, torch.Tensor],
    kept: str,
) -> InputError:
    """The error for a loss that is not finite, which names what went wrong first.

    Args:
        where: Epoch and step.
        terms: The loss, term by term.
        student: What is trained, in training mode.
        teacher: What it learns from.
        feeds: What both were given.
        kept: What is left of the training, in words.
    """
    bad = [name for name, value in terms.items() if not bool(torch.isfinite(value))]
    first = _first(student, teacher, feeds) if bad else "It was so in another process."
    return InputError(
        "E_DIVERGED",
        f"training diverged in {where}: the loss on {' and '.join(bad or terms)} is not finite. "
        f"{first}",
        mend=f"Take a smaller learning rate. {kept}",
    )


def spoilt_weights_error(where: str, weight: str | None, kept: str) -> InputError:
    """The error for weights that a step left not finite, though its loss was finite.

    Args:
        where: Epoch and step.
        weight: The first of them; ``None`` where it was so in another process.
        kept: What is left of the training, in words.
    """
    what = "a weight" if weight is None else f"the student's weight '{weight}'"
    return InputError(
        "E_DIVERGED",
        f"training diverged in {where}: {what} is not finite after it, though the loss is: its "
        "gradient overflowed, or is that of a root or a logarithm at 0.",
        mend=f"Take a smaller learning rate, or keep such places away from 0. {kept}",
    )


def _first(student: nn.Module, teacher: nn.Module, feeds: dict[str, torch.Tensor]) -> str:
    for name, value in feeds.items():
        if not is_finite(value):
            rows = [at for at, row in enumerate(value) if not is_finite(row)]
            return f"The input '{name}' is not finite in the samples {rows[:5]} of the batch."
    for what, network in (("teacher", teacher), ("student", student)):
        name = not_finite(network)
        if name is not None:
            return f"The {what}'s weight '{name}' is not finite: the step before spoilt it."
        found = _first_module(network, feeds)
        if found:
            return f"The first module of the {what} to give such values is '{found}'."
    return "Every output is finite; the loss itself overflows."


def _first_module(network: nn.Module, feeds: dict[str, torch.Tensor]) -> str:
    seen: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        def look(_module: nn.Module, _arguments: object, given: object) -> None:
            leaves: list[Any] = pytree.tree_leaves(given)
            if any(isinstance(one, torch.Tensor) and not is_finite(one) for one in leaves):
                seen.append(name)

        return look

    given: Any = network  # torch leaves the type of named_modules() partly open
    modules: dict[str, nn.Module] = dict(given.named_modules())
    with ExitStack() as stack, torch.no_grad():
        for name, module in modules.items():
            handle: Any = module.register_forward_hook(hook(name))
            stack.callback(handle.remove)
        TappedNetwork(network, (), ())(feeds)
    return seen[0] if seen else ""
