"""What comes back from a training, of the user's own or ours, seen to be the student."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias, cast

from torch import nn

from ...benchmarks.data.images import Images
from ...export.graph.onnx_graph import Graph
from ...runtime.errors import InputError
from ..source.backbone import Backbone
from ..source.finite_checks import not_finite
from ..source.source_network import SourceNetwork, make_source_network

Finetune: TypeAlias = Callable[[nn.Module, nn.Module], nn.Module]
"""The user's own training: takes the student and its teacher, gives the trained student."""

_SHOWN = 5


def run_finetune(finetune: Finetune, student: nn.Module, teacher: nn.Module) -> nn.Module:
    """Call the user's own training and see that the student comes back.

    Args:
        finetune: Gets copies: the student in training mode, the teacher frozen in evaluation mode.
        student: Stays as it is.
        teacher: Stays as it is.

    Returns:
        What it gave, in evaluation mode, on the CPU, without the wrapper of DDP or of compiling.

    Raises:
        InputError: ``E_FINETUNE`` where it gives no module, or one of another architecture;
            ``E_NAN`` for weights that are not finite. What it raises itself comes through.
    """
    ours = copy.deepcopy(student).train()
    theirs = copy.deepcopy(teacher).eval().requires_grad_(False)
    given = cast("object", finetune(ours, theirs))
    if not isinstance(given, nn.Module):
        raise InputError(
            "E_FINETUNE",
            f"your finetune gave {'None' if given is None else f'a {type(given).__name__}'}.",
            mend="Return the trained student, a torch.nn.Module: def finetune(student, teacher): "
            "...; return student",
        )
    wanted = {key: tuple(value.shape) for key, value in student.state_dict().items()}
    module = given
    for name in ("_orig_mod", "module"):
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module) and set(module.state_dict()) != set(wanted):
            module = inner
    found = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    if found != wanted:
        raise InputError(
            "E_FINETUNE",
            "your finetune gave another architecture than the student's: " + _apart(wanted, found),
            mend="Train the module that it is given, and return that one. To ship another "
            "network, name it as the student.",
        )
    key = not_finite(module)
    if key is not None:
        raise InputError(
            "E_NAN",
            f"your finetune gave a student whose weight '{key}' is not finite.",
            mend="Its training diverged: take a smaller learning rate.",
            path=key,
        )
    return module.cpu().eval()


def _apart(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> str:
    odd = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    lines = [f"{key} is {found.get(key, 'absent')}, was {wanted.get(key, 'absent')}" for key in odd]
    return "; ".join(lines[:_SHOWN]) + (f"; and {len(odd) - _SHOWN} more" * (len(odd) > _SHOWN))


def student_graph(
    student: Backbone, trained: nn.Module, original: SourceNetwork, images: Images, opset: int
) -> Graph:
    """The trained student, captured, which takes the original's place.

    Raises:
        InputError: What capturing raises; ``E_STUDENT`` where its inputs or outputs are others.
    """
    named = replace(student, module=trained)
    made = make_source_network(trained, named, original.preprocessing, images, opset).graph
    for what in ("inputs", "outputs"):
        ours: Any = getattr(made, what)
        theirs: Any = getattr(original.graph, what)
        alike = [one.name for one in ours] == [one.name for one in theirs] and all(
            len(a.shape) == len(b.shape) and a.dtype == b.dtype and _fits(a.shape, b.shape)
            for a, b in zip(ours, theirs, strict=True)
        )
        if not alike:
            raise InputError(
                "E_STUDENT",
                f"the student's {what} are {'; '.join(map(str, ours))}, the original's "
                f"{'; '.join(map(str, theirs))}.",
                mend="Give its forward the same parameters and what it returns the same form: it "
                "takes the original's place.",
            )
    return made


def _fits(ours: tuple[object, ...], theirs: tuple[object, ...]) -> bool:
    return all(
        a == b or isinstance(a, str) or isinstance(b, str)
        for a, b in zip(ours[1:], theirs[1:], strict=True)
    )
