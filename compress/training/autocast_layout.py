"""In which precision and memory layout a step is quickest here: measured, not assumed."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ...runtime.errors import InputError
from ..recipe.settings import Distil

_TIMED = 3  # steps of each way, after one that is not counted
_WORTH = 1.05  # a narrower precision must be so much faster


@dataclass(frozen=True)
class ComputeMode:
    """How the networks are computed.

    Attributes:
        bfloat16: Whether under bfloat16 autocast; weights stay float32.
        channels_last: Whether convolutions see channels last in memory.
    """

    bfloat16: bool = False
    channels_last: bool = False

    @contextlib.contextmanager
    def computing(self, device: torch.device) -> Generator[None]:
        """Inside, networks run in this way's precision."""
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            yield

    def placed(self, module: nn.Module) -> nn.Module:
        """The module itself, its weights in this way's layout."""
        given: Any = module  # torch's annotations do not know this argument
        given.to(memory_format=self._layout)
        return module

    def fed(self, feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Inputs in this way's layout."""
        return {name: self._laid(value) for name, value in feeds.items()}

    def _laid(self, value: torch.Tensor) -> torch.Tensor:
        return value.contiguous(
            memory_format=self._layout if value.ndim == 4 else torch.contiguous_format
        )

    @property
    def _layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def to_dict(self) -> dict[str, bool]:
        """JSON form: the attributes."""
        return {"bfloat16": self.bfloat16, "channels_last": self.channels_last}

    def __str__(self) -> str:
        return ("bfloat16" if self.bfloat16 else "float32") + (
            ", channels last" if self.channels_last else ""
        )


def device_of(module: nn.Module) -> torch.device:
    """Where a network's weights lie; the CPU where it has none."""
    return next((one.device for one in module.parameters()), torch.device("cpu"))


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """What some work takes until the device has done it; a GPU is only told what to do."""
    _finish(device)
    start = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compute_modes(settings: Distil, module: nn.Module) -> list[ComputeMode]:
    """The ways that the settings leave open, the plainest first."""
    maps = any(parameter.ndim == 4 for parameter in module.parameters())
    layouts = {"contiguous": [False], "channels_last": [True]}.get(
        settings.layout, [False, True] if maps else [False]
    )
    precisions = {"float32": [False], "bfloat16": [True]}.get(settings.precision, [False, True])
    ways = [ComputeMode(bfloat16, last) for bfloat16 in precisions for last in layouts]
    open_both = settings.layout == "auto" and settings.precision == "auto" and maps
    if open_both:  # bfloat16 with channels first is a detour that converts at every convolution
        ways.remove(ComputeMode(True, False))
    return ways


def choose_compute_mode(
    ways: list[ComputeMode],
    module: nn.Module,
    settle: Callable[[ComputeMode], None],
    step: Callable[[nn.Module, ComputeMode], None],
) -> tuple[ComputeMode, dict[str, float]]:
    """Try some steps each way, in turns, and keep the fastest.

    Args:
        ways: What is tried; one alone is tried as well, so that it fails here where it must.
        module: What is trained; each way gets a copy.
        settle: Brings everything else into a way's layout, or fails where it cannot be; its time
            does not count.
        step: Makes one step on the copy, without changing its weights.

    Returns:
        The way, and seconds a step by its name.

    Raises:
        InputError: ``E_TRAINING`` where no way works, with torch's own words.
    """
    took: dict[str, float] = {}
    tried: dict[ComputeMode, nn.Module] = {}
    device = device_of(module)
    refusal: Exception | None = None
    rounds = _TIMED if len(ways) > 1 else 1
    for turn in range(rounds + 1):  # the first is not counted
        for way in ways:
            if turn and way not in tried:
                continue
            try:
                settle(way)
                copied = tried.pop(way, None) or way.placed(copy.deepcopy(module))
                passed_s = seconds(partial(step, copied, way), device)
            except (RuntimeError, TypeError, ValueError) as error:  # an operator without a kernel
                refusal = error
                took.pop(str(way), None)
                continue
            tried[way] = copied
            if turn:
                took[str(way)] = min(passed_s, took.get(str(way), passed_s))
    best: ComputeMode | None = None
    for way in tried:
        needed = took[str(best)] / (_WORTH if way.bfloat16 else 1.0) if best else None
        if needed is None or took[str(way)] < needed:
            best = way
    if best is None:
        raise InputError(
            "E_TRAINING",
            f"a training step fails: {refusal}",
            mend="See that the network can be trained: nothing in it may need gradients that torch "
            "cannot give.",
        ) from refusal
    return best, took
