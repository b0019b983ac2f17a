"""Whether torch's compiler makes a training step quicker here: tried, timed, and dropped if not."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .autocast_layout import device_of, seconds

WORTH_S = 600.0
"""Seconds of training below which compiling, a minute or two, is not tried."""

_TIMED = 3  # steps each way, after one that is not counted
_WORTH = 1.05  # compiled steps must be so much faster
_COMPILERS = ("g++", "clang++", "c++", "cl")


def compiler_at_hand(device: torch.device) -> bool:
    """Whether torch finds what it compiles with: for the CPU, a C++ compiler."""
    if device.type != "cpu":
        return True
    return any(shutil.which(one) for one in (os.environ.get("CXX") or "g++", *_COMPILERS))


def compile_networks(*networks: nn.Module) -> None:
    """Have networks compiled at their next run; their names, copies and weights stay as they are.

    Source: Ansel et al., "PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode
    Transformation and Graph Compilation", 2024.
    """
    for network in networks:
        given: Any = network
        given.compile(dynamic=False)


def undo_compile(*networks: nn.Module) -> None:
    """Have networks run as they are written again."""
    for network in networks:
        given: Any = network
        given._compiled_call_impl = None  # no public name undoes it


@dataclass(frozen=True)
class CompileTrial:
    """What came of trying the compiler.

    Attributes:
        why_not: Why the networks are not compiled; empty where they are.
        plain_s: Seconds of a step without.
        compiled_s: Seconds of a step with it; ``None`` where there was none.
    """

    why_not: str
    plain_s: float
    compiled_s: float | None = None


def compile_if_quicker(
    student: nn.Module, teacher: nn.Module, step: Callable[[], None]
) -> CompileTrial:
    """Compile both networks, and leave them so if steps are quicker for it.

    Args:
        student: What is trained; its weights, statistics and gradients are left as they were.
        teacher: What it learns from.
        step: Makes one step of both, without changing weights.
    """
    before = {name: one.detach().clone() for name, one in student.state_dict().items()}
    device = device_of(student)
    step()
    plain = min(seconds(step, device) for _ in range(_TIMED))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own, of torch's own parts
            compile_networks(student, teacher)
            step()
            compiled = min(seconds(step, device) for _ in range(_TIMED))
    except Exception as error:  # whatever a compiler may say: the plain way goes on
        undo_compile(student, teacher)
        said = str(error).strip().splitlines()
        return CompileTrial(": ".join([type(error).__name__, *said[:1]]), plain)
    finally:
        student.load_state_dict(before)
        student.zero_grad()
    if compiled * _WORTH < plain:
        return CompileTrial("", plain, compiled)
    undo_compile(student, teacher)
    return CompileTrial("it is no faster", plain, compiled)
