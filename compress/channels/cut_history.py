"""What pruning did to a network, as frozen data: enough to do it again to a fresh one.

A pruned network is saved as one safetensors file: its tensors, and in the file's own metadata,
under ``edgepress.history``, the history as JSON. The factory gives the whole network, the history
makes it as narrow as the tensors are, the tensors are loaded; nothing in the file is run. The file
goes wherever the weights of that factory go (``--weights pruned.safetensors``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from ...runtime.errors import InputError
from .channel_surgery import ChannelCut, apply_cuts

METADATA_KEY = "edgepress.history"
_FORMAT = 1
_ATTRIBUTES = frozenset(
    {"num_heads", "num_attention_heads", "heads", "n_heads"}
    | {"attn_dim", "inner_dim", "all_head_size"}
)
_LARGEST = 2**24


@dataclass(frozen=True)
class ChangedAttribute:
    """An integer attribute of a module that changes with the cut, such as ``num_heads``.

    Attributes:
        module: Dotted name of the module.
        name: Of the attribute; one of a short list.
        value: What it becomes.
    """

    module: str
    name: str
    value: int


@dataclass(frozen=True)
class CutStep:
    """One pruning.

    Attributes:
        cuts: Channels that left, by module.
        attributes: What else was changed.
        skipped: Modules that became :class:`torch.nn.Identity`: whole residual blocks.
    """

    cuts: tuple[ChannelCut, ...] = ()
    attributes: tuple[ChangedAttribute, ...] = ()
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class History:
    """Everything that pruning did to a network, in order.

    Attributes:
        steps: One for each time that it was pruned.
        factory: The factory as the user wrote it, without folders; empty for a module that came
            from memory. For people: nothing is built from it.
    """

    steps: tuple[CutStep, ...] = ()
    factory: str = ""

    def apply(self, module: nn.Module) -> nn.Module:
        """Prune a fresh, whole network as the one that this history tells of was; in place.

        Returns:
            The same module. Its weights are the fresh ones' remaining channels.

        Raises:
            InputError: ``E_HISTORY`` where the network is another one than that which was pruned.
        """
        for step in self.steps:
            try:
                apply_cut_step(module, step)
            except ValueError as error:
                raise InputError(
                    "E_HISTORY",
                    f"the pruning history is of another network: {error}.",
                    mend=f"Give the factory that was pruned{self._told()}.",
                ) from error
        return module

    def rebuild(
        self, factory: Callable[[], nn.Module], state: Mapping[str, torch.Tensor] | None = None
    ) -> nn.Module:
        """A network of the same architecture from its factory.

        Args:
            factory: Gives the whole network.
            state: Tensors to load into it, or ``None`` to leave those of the factory.

        Raises:
            InputError: As :meth:`apply`; ``E_WEIGHTS`` where the tensors do not fit.
        """
        module = self.apply(factory())
        if state is not None:
            try:
                module.load_state_dict(dict(state))
            except RuntimeError as error:
                raise InputError(
                    "E_WEIGHTS",
                    f"the tensors do not fit: {error}",
                    mend="Give the tensors of the network that this history was made with.",
                ) from error
        return module

    def then(self, step: CutStep) -> History:
        """This history with one more step behind it."""
        return History((*self.steps, step), self.factory)

    def since(self, before: History) -> History:
        """Only the steps that came after those of another history, with which this one begins."""
        return History(self.steps[len(before.steps) :], self.factory)

    def after(self, before: History) -> History:
        """These steps behind those of another history."""
        return History((*before.steps, *self.steps), self.factory)

    def to_json(self) -> str:
        """One line of JSON; :meth:`from_json` reads it."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    def to_dict(self) -> dict[str, object]:
        """JSON form."""
        return {
            "format": _FORMAT,
            "factory": self.factory,
            "steps": [
                {
                    "cuts": [[c.module, c.side, c.width, list(c.removed)] for c in step.cuts],
                    "attributes": [[a.module, a.name, a.value] for a in step.attributes],
                    "skipped": list(step.skipped),
                }
                for step in self.steps
            ],
        }

    @staticmethod
    def from_json(text: str, where: str = "the file") -> History:
        """The history that :meth:`to_json` wrote.

        Raises:
            InputError: ``E_HISTORY`` for text that is not one, or of a newer format.
        """
        try:
            held: Any = json.loads(text)
            if held["format"] != _FORMAT:
                raise ValueError(f"format {held['format']!r}, {_FORMAT} is known here")
            steps = tuple(_step(one) for one in held["steps"])
            return History(steps, _text(held["factory"]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(
                "E_HISTORY",
                f"the pruning history in {where} cannot be read: {error}.",
                mend="Was it written by a newer edgepress, or edited?",
                path=where,
            ) from error

    def _told(self) -> str:
        return f", '{self.factory}'" if self.factory else ""


def apply_cut_step(module: nn.Module, step: CutStep) -> None:
    """Do one step to a network, in place.

    Raises:
        ValueError: Where the network is not the one that the step was written for.
    """
    for name in step.skipped:
        owner, _, last = name.rpartition(".")
        try:
            parent = module.get_submodule(owner)
            module.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"it has no block '{name}'") from error
        setattr(parent, last, nn.Identity())
    apply_cuts(module, step.cuts)
    for one in step.attributes:
        try:
            held = module.get_submodule(one.module)
        except AttributeError as error:
            raise ValueError(f"it has no '{one.module}'") from error
        if type(getattr(held, one.name, None)) is not int:
            raise ValueError(f"'{one.module}' has no number '{one.name}'")
        setattr(held, one.name, one.value)


@dataclass(frozen=True)
class Pruned:
    """A pruned network that is still a plain module, to train with any loop.

    Attributes:
        module: The student, in evaluation mode; nothing of edgepress is in it.
        history: What was done to it. Training does not change it: the student's tensors may be
            replaced, its architecture may not.
        report: What was decided and why: bounds, widths, estimated cost; JSON values only.
    """

    module: nn.Module
    history: History
    report: Mapping[str, object] = field(default_factory=dict[str, object])

    def told(self) -> dict[str, object]:
        """The report and the history, JSON values only."""
        return {**self.report, "history": self.history.to_dict()}


def _step(held: Mapping[str, Any]) -> CutStep:
    cuts = tuple(
        ChannelCut(_text(module), _side(side), _number(width), _rising(removed, _number(width)))
        for module, side, width, removed in held["cuts"]
    )
    attributes = tuple(
        ChangedAttribute(_text(module), _attribute(name), _number(value))
        for module, name, value in held["attributes"]
    )
    return CutStep(cuts, attributes, tuple(_text(name) for name in held["skipped"]))


def _text(held: object) -> str:
    if not isinstance(held, str):
        raise ValueError(f"{held!r} where a name belongs")
    return held


def _side(held: object) -> str:
    text = _text(held)
    if text not in ("in", "out") and not (text.startswith("dim") and text[3:].isdecimal()):
        raise ValueError(f"an unknown side {text!r}")
    return text


def _attribute(held: object) -> str:
    if held not in _ATTRIBUTES:
        raise ValueError(f"an attribute {held!r} that pruning does not change")
    return cast("str", held)


def _number(held: object) -> int:
    if type(held) is not int or not 0 < held <= _LARGEST:
        raise ValueError(f"{held!r} where a count belongs")
    return held


def _rising(held: Sequence[object], width: int) -> tuple[int, ...]:
    indices: list[int] = []
    for one in held:
        if type(one) is not int or not (indices[-1] if indices else -1) < one < width:
            raise ValueError(f"{one!r} is no channel of {width}, or out of order")
        indices.append(one)
    return tuple(indices)
