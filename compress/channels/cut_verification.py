"""Trials: a dependency is believed where a cut computes what silent channels compute.

Torch-Pruning reads some networks wrongly without a word (channel shuffles, slices, numbers in a
forward). So each group is tried on the network itself before anybody builds on it: some atoms are
silenced in a copy, which is run; then they are cut out of it, and it is run again. Groups are tried
many at a time, and halved where they fail, so that a network without surprises costs two trials.
"""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812, the name that everyone reads
from torch import nn
from torch.overrides import TorchFunctionMode

from ...export.graph.torch_capture import flatten_outputs
from .channel_groups import Group, ResidualBlock, cut_step_of
from .channel_surgery import modules_of, segments_of, zero_cuts
from .cut_history import apply_cut_step

_TOLERANCE = 1e-3
_TOLD = 160

NamedTensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class TrialCut:
    """Atoms of one group that leave together in a trial."""

    group: Group
    atoms: tuple[int, ...]


class CutVerifier:
    """Tries cuts on copies of a network.

    Args:
        module: The network in evaluation mode; it is not changed.
        example: Its inputs by name.
    """

    def __init__(self, module: nn.Module, example: NamedTensors) -> None:
        self._module, self._example = module, example
        self._plain = self._run(module)

    def fault(self, tests: Sequence[TrialCut]) -> str | None:
        """What goes wrong when all these atoms leave at once, in words, or ``None``."""
        removed: dict[Group, set[int]] = defaultdict(set)
        for test in tests:  # one for each kind of atom: a group may have several
            removed[test.group].update(test.atoms)
        step = cut_step_of(removed)
        trial = copy.deepcopy(self._module)
        try:
            zero_cuts(trial, step.cuts)
            with _Scaling():
                silent = self._run(trial)
            apply_cut_step(trial, step)
            with _Scaling():
                cut = self._run(trial)
        except Exception as error:  # whatever the user's forward raises on narrower tensors
            first = str(error).strip().partition("\n")[0][:_TOLD]
            return f"its forward depends on the width ({type(error).__name__}: {first})"
        if any(cut[key].shape != value.shape for key, value in silent.items()):
            return "its channels are an output of the network"
        if not all(_close(silent[key], cut[key]) for key in silent):
            return "cut out, its channels do not give what they give when they are silent"
        return None

    def faults(self, tests: Sequence[TrialCut]) -> dict[int, str]:
        """For each test that fails by itself, its number and the reason."""
        found: dict[int, str] = {}
        self._halve(list(enumerate(tests)), found)
        return found

    def _halve(self, tests: Sequence[tuple[int, TrialCut]], found: dict[int, str]) -> None:
        if not tests:
            return
        reason = self.fault([test for _, test in tests])
        if reason is None:
            return
        if len(tests) == 1:
            found[tests[0][0]] = reason
            return
        middle = len(tests) // 2
        self._halve(tests[:middle], found)
        self._halve(tests[middle:], found)

    def _run(self, module: nn.Module) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            return flatten_outputs(module(**self._example))


def verified_groups(
    trials: CutVerifier, groups: Sequence[Group], modules: Mapping[str, nn.Module]
) -> tuple[list[Group], dict[str, str]]:
    """Groups that hold, with their free atoms and segments, and the reasons against the others.

    Args:
        trials: Of the network.
        groups: As the dependencies gave them.
        modules: The network's modules by name.

    Returns:
        The groups that can be pruned; for each other one, by its name, the reason.
    """
    reasons: dict[str, str] = {}
    ready = [_segmented(group, modules) for group in groups]
    kinds = [kind for group in ready for kind in _kinds(group)]
    faults = trials.faults(kinds)
    fixed: dict[int, set[int]] = defaultdict(set)
    for number, reason in faults.items():
        group, atoms = kinds[number].group, kinds[number].atoms
        fixed[id(group)].update(_alike(group, atoms[0]))
        reasons.setdefault(group.name, reason)
    held: list[Group] = []
    for group in ready:
        free = tuple(atom for atom in group.free if atom not in fixed[id(group)])
        if not free:
            continue
        narrowed = replace(group, free=free)
        if narrowed.least < group.width:
            held.append(narrowed)
        else:
            reasons.setdefault(group.name, f"it has {group.width} channels, and one must stay")
    tests = [TrialCut(group, _some(group)) for group in held]
    together = trials.faults(tests)
    for number, reason in together.items():
        reasons[held[number].name] = reason
    good = [group for number, group in enumerate(held) if number not in together]
    left = {group.name for group in good}
    return good, {name: reason for name, reason in reasons.items() if name not in left}


def _segmented(group: Group, modules: Mapping[str, nn.Module]) -> Group:
    """The group with the segments that grouped convolutions and GroupNorm ask for."""
    keys: list[tuple[int, ...]] = [() for _ in group.segments]
    exact = True
    for member in group.members:
        module = modules.get(member.module)
        exact = exact and not isinstance(module, (nn.LayerNorm, nn.GroupNorm))
        parts = 1 if module is None else segments_of(module)
        if parts == 1:
            continue
        each = member.width // parts
        for atom, indices in enumerate(member.indices):
            keys[atom] += tuple(sorted({index // each for index in indices}))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return replace(group, segments=tuple(numbers[key] for key in keys), exact=exact)


def _kinds(group: Group) -> list[TrialCut]:
    """One test for each kind of atom: one of it from every segment."""
    if group.width <= group.step:
        return [TrialCut(group, tuple(range(group.width)))]
    chosen: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)
    for atom in group.free:
        chosen[_kind(group, atom)].setdefault(group.segments[atom], atom)
    return [TrialCut(group, tuple(sorted(atoms.values()))) for atoms in chosen.values()]


def _kind(group: Group, atom: int) -> tuple[int, ...]:
    return tuple(len(member.indices[atom]) for member in group.members)


def _alike(group: Group, atom: int) -> list[int]:
    kind = _kind(group, atom)
    return [other for other in group.free if _kind(group, other) == kind]


def _some(group: Group) -> tuple[int, ...]:
    """About half of what may leave, drawn by a fixed seed."""
    draw = random.Random(0)
    scores = [draw.random() for _ in group.segments]
    middle = (group.width - group.least) // group.step // 2 * group.step
    return group.weakest(scores, group.width - max(middle, group.step))


def residual_blocks(module: nn.Module, example: NamedTensors) -> list[ResidualBlock]:
    """Residual blocks: modules that give what they take once all their parameters are zero.

    The innermost of them: a stage of blocks is none itself. Blocks that a forward runs more than
    once, or with anything but one tensor, are left out.

    Args:
        module: The network in evaluation mode; it is not changed.
        example: Its inputs by name.
    """
    seen: dict[str, list[torch.Tensor | None]] = defaultdict(list)
    hooks: list[Any] = []
    for name, part in modules_of(module):
        if name and len(modules_of(part)) > 1 and len(list(part.parameters())) > 0:
            held: Any = part
            hooks.append(held.register_forward_pre_hook(_recorder(seen[name]), with_kwargs=True))
    try:
        with torch.inference_mode():
            module(**example)
    finally:
        for hook in hooks:
            hook.remove()
    found = [
        name
        for name, given in seen.items()
        if len(given) == 1 and _passes_on(module.get_submodule(name), given[0])
    ]
    return [
        ResidualBlock(name)
        for name in found
        if not any(other != name and ResidualBlock(name).holds(other) for other in found)
    ]


def _recorder(into: list[torch.Tensor | None]) -> Callable[..., None]:
    """Keeps what a module reads, as it is before anything is computed in place."""

    def record(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        one = given[0] if len(given) == 1 and not named else None
        into.append(one.clone() if isinstance(one, torch.Tensor) else None)

    return record


def _passes_on(block: nn.Module, given: torch.Tensor | None) -> bool:
    if given is None:
        return False
    empty = copy.deepcopy(block)
    with torch.inference_mode():
        for tensor in empty.parameters():
            tensor.zero_()
        for name, buffer in empty.named_buffers():
            if name.endswith("running_mean"):
                buffer.zero_()
        try:
            made = empty(given.clone())
        except Exception:  # the user's own forward, alone: then it is no block for us
            return False
    return bool(given.any()) and isinstance(made, torch.Tensor) and torch.equal(made, given)


class _Scaling(TorchFunctionMode):
    """Inside, normalizations over channels scale and shift alone.

    Their statistics see silent channels, too. Calls are taken where torch is called, since a layer
    may bring the channels into another place first, as ConvNeXt's do.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given: dict[str, Any] = dict(kwargs or {})
        if func not in _NORMALIZATIONS:
            return func(*args, **given)
        func(*args, **given)  # what torch refuses is refused here
        given |= dict(zip(_NORMALIZATIONS[func], args, strict=False))
        values, weight, bias = (given.get(name) for name in ("input", "weight", "bias"))
        assert isinstance(values, torch.Tensor)
        shape = (-1, *(1 for _ in values.shape[2:])) if "num_groups" in given else (-1,)
        if weight is not None:
            values = values * weight.reshape(shape)
        return values if bias is None else values + bias.reshape(shape)


_NORMALIZATIONS: dict[Any, tuple[str, ...]] = {
    F.layer_norm: ("input", "normalized_shape", "weight", "bias"),
    F.group_norm: ("input", "num_groups", "weight", "bias"),
}
"""By their names, the arguments that come before ``eps``."""


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    if not bool(torch.isfinite(one).all()):
        return False
    largest = float(one.abs().max()) if one.numel() else 0.0
    return (
        float((one - other).abs().max()) <= _TOLERANCE * max(largest, 1e-3) if one.numel() else True
    )
