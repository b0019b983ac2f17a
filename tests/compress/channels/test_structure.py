"""Which channels can leave together: found, tried, cut, and rebuilt to the same outputs."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch_pruning")
import torch
from torch import nn

from edgepress.compress.channels.channel_groups import Group, Member, Structure, cut_step_of
from edgepress.compress.channels.channel_surgery import ChannelCut, zero_cuts
from edgepress.compress.channels.cut_history import (
    ChangedAttribute,
    CutStep,
    History,
    apply_cut_step,
)
from edgepress.compress.channels.cut_verification import CutVerifier, residual_blocks
from edgepress.compress.channels.cut_verification import TrialCut as Attempt
from edgepress.compress.channels.structure import structure_of
from edgepress.compress.source.backbone import Backbone
from edgepress.compress.source.weights import save_weights
from edgepress.export.graph.torch_capture import flatten_outputs
from edgepress.runtime.errors import InputError
from edgepress.runtime.tensors import Arrays
from helpers.dependent_nets import (
    Concat,
    Detecting,
    Encoder,
    Grouped,
    Neighbours,
    Next,
    Normed,
    Padded,
    Plain,
    Preactivated,
    Pyramid,
    Shuffled,
    ShuffledOften,
    ShuffledTwice,
    Sized,
    Squeeze,
    Stiff,
    Transformer,
)


def built(kind: Callable[[], nn.Module]) -> nn.Module:
    """A network with random weights and statistics."""
    torch.manual_seed(0)
    module = kind().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return module


def pictures(side: int = 16) -> Arrays:
    return {"x": np.random.default_rng(0).standard_normal((2, 3, side, side), dtype=np.float32)}


def outputs(module: nn.Module) -> list[torch.Tensor]:
    with torch.inference_mode():
        return list(flatten_outputs(module(torch.from_numpy(pictures()["x"]))).values())


def half(structure: Structure, seed: int = 0) -> CutStep:
    """About half of what may leave of every group, drawn at random."""
    draw = np.random.default_rng(seed)
    removed = {
        group: group.weakest(
            list(draw.random(group.width)),
            max(group.least, group.width // 2 // group.step * group.step),
        )
        for group in structure.groups
    }
    return cut_step_of(removed)


def names(structure: Structure) -> set[str]:
    return {group.name for group in structure.groups}


def reasons(structure: Structure) -> dict[str, str]:
    return {one.name: one.reason for one in structure.refused}


def children_s() -> float:
    """Processor time that this process's children took, in seconds."""
    told = os.times()
    return told.children_user + told.children_system


NETWORKS = {
    Plain: {"first", "second"},
    Squeeze: {"expand", "down", "project", "grow"},
    Concat: {"stem", "left"},
    Padded: {"stem", "block.one", "last.one"},
    Pyramid: {"low", "side", "shared"},
    Shuffled: {"last"},
    ShuffledTwice: {"last", "stem"},
    ShuffledOften: {"last", "units.2.narrow"},
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_cut_gives_what_silent_channels_give(kind: Callable[[], nn.Module]) -> None:
    module = built(kind)
    structure = structure_of(module, pictures())
    assert names(structure) >= NETWORKS[kind]
    step = half(structure)
    silent, cut = copy.deepcopy(module), copy.deepcopy(module)
    zero_cuts(silent, step.cuts)
    apply_cut_step(cut, step)
    for one, other in zip(outputs(silent), outputs(cut), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    fewer = sum(p.numel() for p in cut.parameters()) / sum(p.numel() for p in module.parameters())
    assert fewer < 0.9


def test_attention_by_reshapes_is_named_at_once_and_what_is_around_it_is_cut() -> None:
    """Followed without a bound, the channels of its heads double with each round of the graph."""
    module = built(Detecting)
    begun = children_s()
    structure = structure_of(module, pictures(64))
    assert children_s() - begun < 30, "the child had minutes to do"
    assert names(structure) >= {"stem", "after"}, "maps that are flattened keep their channels"
    refused = reasons(structure)
    assert "reshapes mix them with each other" in refused["attention.qkv"]
    cut = copy.deepcopy(module)
    step = half(structure)
    apply_cut_step(cut, step)
    zero_cuts(module, step.cuts)
    for one, other in zip(outputs(module), outputs(cut), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_layer_that_cannot_be_followed_is_named_and_the_others_are_cut() -> None:
    structure = structure_of(built(ShuffledOften), pictures())
    lost = {n for n, why in reasons(structure).items() if "cannot be followed (IndexError" in why}
    assert lost
    assert not lost & names(structure)


@pytest.mark.parametrize("kind", [Grouped, Transformer, Next])
def test_norms_over_channels_are_cut_and_said_to_change(kind: Callable[[], nn.Module]) -> None:
    module = built(kind)
    structure = structure_of(module, pictures())
    cut = copy.deepcopy(module)
    apply_cut_step(cut, half(structure))
    assert outputs(cut)[0].shape == outputs(module)[0].shape
    assert any(not group.exact for group in structure.groups)
    refused = {one.name for one in structure.refused}
    assert refused == {"head"}, "all of it is cut but what gives the outputs"


def test_grouped_convolutions_lose_as_much_in_each_group() -> None:
    structure = structure_of(built(Grouped), pictures())
    groups = {group.name: group for group in structure.groups}
    assert {groups["first"].step, groups["second"].step} == {4}
    gone = groups["second"].weakest([float(i) for i in range(32)], 24)
    assert [sum(1 for atom in gone if atom // 8 == segment) for segment in range(4)] == [2] * 4


def test_whole_heads_leave_an_attention() -> None:
    module = built(Transformer)
    structure = structure_of(module, pictures())
    heads = next(group for group in structure.groups if group.counts)
    assert (heads.name, heads.width) == ("attention.qkv", 4)
    step = cut_step_of({heads: (1, 2)})
    assert step.attributes == (ChangedAttribute("attention", "num_heads", 2),)
    silent, cut = copy.deepcopy(module), copy.deepcopy(module)
    zero_cuts(silent, step.cuts)
    apply_cut_step(cut, step)
    torch.testing.assert_close(outputs(silent), outputs(cut))
    assert cut.get_submodule("attention").num_heads == 2


def test_heads_leave_with_the_number_of_their_channels() -> None:
    module = built(lambda: Transformer(Sized))
    structure = structure_of(module, pictures())
    heads = next(group for group in structure.groups if group.counts)
    step = cut_step_of({heads: (0, 3)})
    assert set(step.attributes) == {
        ChangedAttribute("attention", "num_heads", 2),
        ChangedAttribute("attention", "attn_dim", 16),
    }
    silent, cut = copy.deepcopy(module), copy.deepcopy(module)
    zero_cuts(silent, step.cuts)
    apply_cut_step(cut, step)
    torch.testing.assert_close(outputs(silent), outputs(cut))
    again = History.from_json(History((step,)).to_json())
    torch.testing.assert_close(outputs(again.apply(copy.deepcopy(module))), outputs(cut))


def test_heads_that_cannot_leave_are_named() -> None:
    told = reasons(structure_of(built(lambda: Transformer(Stiff)), pictures()))
    assert told["attention.qkv"].startswith("its heads cannot leave: ")


def test_attention_of_torch_stays_whole_and_is_counted() -> None:
    module = built(Encoder)
    structure = structure_of(module, pictures())
    told = reasons(structure)
    for name in ("own", "own.out_proj", "cross", "cross.out_proj"):
        assert told[name], name
    width, patches, tokens = 32, 16, 3
    wanted = {
        "patch": patches * width * 3 * 16,
        "own": 3 * patches * width**2,
        "own.out_proj": patches * width**2,
        "cross": (tokens + 2 * patches) * width**2,
        "cross.out_proj": tokens * width**2,
        "head": 5 * width,
    }
    found: dict[str, int] = {}
    parameters = 0
    for layer in structure.layers:
        macs = layer.macs(layer.in_width, layer.out_width)
        found[layer.module] = found.get(layer.module, 0) + macs
        parameters += layer.parameters(layer.in_width, layer.out_width)
    assert found == wanted
    assert parameters <= sum(one.numel() for one in module.parameters()) - 3 * width


def test_a_head_that_levels_share_costs_what_each_of_them_costs() -> None:
    layers = structure_of(built(Pyramid), pictures()).layers
    shared = [one for one in layers if one.module == "shared"]
    assert [one.owns for one in shared] == [True, False]
    sides = [one.out_shape[2] for one in shared]
    assert sides[0] == 2 * sides[1]
    assert [one.parameters(8, 12) for one in shared] == [8 * 12 * 9 + 12, 0]
    assert shared[0].macs(8, 12) == 4 * shared[1].macs(8, 12)


@pytest.mark.parametrize("named", [{}, {"scale": 1.0}])
def test_a_block_that_is_called_with_names_stays(named: dict[str, float]) -> None:
    """What would take its place has no such parameters."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return x + scale * self.inner(x)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Scaled()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(x, **named)

    found = residual_blocks(built(Whole), {"x": torch.from_numpy(pictures()["x"])})
    assert [one.name for one in found] == ([] if named else ["block"])


def test_kinds_of_atoms_of_one_group_are_tried_together() -> None:
    """One of them is wrong, whichever comes last."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).eval()
    right, wrong = ((0,), (1,), (2,), (3,)), ((1,), (0,), (2,), (3,))
    group = Group("0", (Member("0", "out", 4, right), Member("1", "in", 4, wrong)), (0, 1, 2, 3),
                  (0, 0, 0, 0))  # fmt: skip
    trials = CutVerifier(module, {"input": torch.from_numpy(pictures()["x"])})
    tests = [Attempt(group, (0,)), Attempt(group, (2,))]
    assert trials.fault(tests[1:]) is None
    assert trials.fault(tests) is not None
    assert set(trials.faults(tests)) == {0}


def test_residual_blocks_are_found_and_leave() -> None:
    module = built(Padded)
    structure = structure_of(module, pictures())
    assert {block.name for block in structure.blocks} == {"block", "last"}
    without = copy.deepcopy(module)
    apply_cut_step(without, cut_step_of({g: g.free[:2] for g in structure.groups[:1]}, ["block"]))
    assert isinstance(without.get_submodule("block"), nn.Identity)
    assert outputs(without)[0].shape == (2, 5)


def test_a_block_that_changes_its_input_in_place_passes_nothing_on() -> None:
    assert structure_of(built(Preactivated), pictures()).blocks == ()


def test_a_norm_with_a_width_of_its_own_holds_its_channels() -> None:
    structure = structure_of(built(Normed), pictures())
    cut = built(Normed)
    apply_cut_step(cut, half(structure))
    assert outputs(cut)[0].shape == (2, 5)
    assert "stem" in reasons(structure)
    assert "last" not in reasons(structure)


def test_padding_of_channels_keeps_its_number() -> None:
    structure = structure_of(built(Padded), pictures())
    stream = next(group for group in structure.groups if group.name == "stem")
    assert (stream.width, len(stream.free), stream.least) == (16, 8, 9)


def test_channels_that_their_neighbours_normalize_stay() -> None:
    structure = structure_of(built(Neighbours), pictures(), time_limit_s=60)
    assert names(structure) == {"body"}
    assert "stem" in reasons(structure)


def test_what_stays_is_named_with_the_reason() -> None:
    told = reasons(structure_of(built(Shuffled), pictures()))
    assert "depends on the width" in told["first"]
    assert "depends on the width" in told["piece"]
    assert "output of the network" in told["head"]
    assert "output of the network" in reasons(structure_of(built(Pyramid), pictures()))["high"]


def test_shared_weights_stay_whole() -> None:
    module = built(Plain)
    module.add_module("twin", nn.Conv2d(3, 12, 3, bias=False))
    module.get_submodule("twin").weight = module.get_submodule("first").weight
    told = reasons(structure_of(module, pictures()))
    assert told["first"] == "its weights are shared with 'twin'"


def test_computed_weights_stay_whole() -> None:
    module = built(Plain)
    torch.nn.utils.parametrizations.weight_norm(module.get_submodule("second"))
    told = reasons(structure_of(module, pictures()))
    assert "computed from others" in told["second"]


def test_frozen_parameters_are_cut_like_others_and_told() -> None:
    module = built(Plain)
    module.get_submodule("first").requires_grad_(False)
    structure = structure_of(module, pictures())
    assert "first" in names(structure)
    assert "1 parameters do not require gradients (first.weight)" in structure.notes[0]
    assert not module.get_submodule("first").weight.requires_grad, "the user's module is as it was"
    apply_cut_step(module, half(structure))
    assert not module.get_submodule("first").weight.requires_grad


def test_kept_modules_stay_whole() -> None:
    structure = structure_of(built(Padded), pictures(), keep=["last", "stem"])
    assert names(structure) == {"block.one"}
    assert reasons(structure)["last.one"] == "'last' is kept"
    assert {block.name for block in structure.blocks} == {"block"}


def test_an_unknown_name_to_keep() -> None:
    with pytest.raises(InputError, match="no module 'haed'") as caught:
        structure_of(built(Plain), pictures(), keep=["haed"])
    assert caught.value.code == "E_KEEP"
    assert "head" in caught.value.mend


def test_a_network_that_takes_too_long() -> None:
    class Slow(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.4)
            return super().forward(x)

    start = time.monotonic()
    with pytest.raises(InputError, match="not found within") as caught:
        structure_of(built(Slow), pictures(), time_limit_s=1.0)
    assert caught.value.code == "E_TIME"
    assert "--time-limit" in caught.value.mend
    assert "time_limit_s" in caught.value.mend
    assert time.monotonic() - start < 20


def test_a_network_without_gradients() -> None:
    class Hard(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).argmax(1)

    with pytest.raises(InputError, match="cannot be followed") as caught:
        structure_of(built(Hard), pictures())
    assert caught.value.code == "E_TRACE"


def test_a_child_that_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    class Deadly(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
                os._exit(7)
            return super().forward(x)

    with pytest.raises(InputError, match="exit status 7") as caught:
        structure_of(built(Deadly), pictures())
    assert caught.value.code == "E_TRACE"


@pytest.mark.skipif(sys.platform != "linux", reason="reads processor times of Linux")
def test_a_child_that_is_stuck_is_ended_and_another_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As one that was forked while a thread held a lock."""
    from edgepress.compress.channels import structure

    once, works = tmp_path / "stuck", structure._child

    def stuck(there: Any, *work: Any) -> None:
        if not once.exists():
            once.touch()
            threading.Event().wait()
        works(there, *work)

    monkeypatch.setattr(structure, "_IDLE_S", 1.0)
    monkeypatch.setattr(structure, "_child", stuck)
    start = time.monotonic()
    found = structure_of(built(Plain), pictures())
    assert once.exists()
    assert found.groups
    assert time.monotonic() - start < 30
    once.unlink()
    monkeypatch.setattr(structure, "_IDLE_S", 60.0)
    with pytest.raises(InputError) as caught:
        structure_of(built(Plain), pictures(), time_limit_s=1.0)
    assert caught.value.code == "E_TIME", "the limit holds for all of them"


FACTORY = """
import torch
from torch import nn
from torch.nn import functional

def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(),
                         nn.Linear(6 * 144, 4))
"""


def test_a_pruned_network_is_rebuilt_from_factory_and_file(tmp_path: Path) -> None:
    source, saved = tmp_path / "net.py", tmp_path / "pruned.safetensors"
    source.write_text(FACTORY)
    whole = Backbone.open(f"{source}:net")
    structure = structure_of(whole.module, {"input": pictures()["x"]})
    history, student = History((), "net.py:net"), copy.deepcopy(whole.module)
    for seed in (0, 1):  # pruned twice
        found = structure_of(student, {"input": pictures()["x"]})
        step = half(found, seed)
        apply_cut_step(student, step)
        history = history.then(step)
    for parameter in student.parameters():  # as if trained
        parameter.data.add_(0.01)
    save_weights(student, saved, history=history)
    again = Backbone.open(f"{source}:net", str(saved))
    assert again.history == history
    assert len(structure.groups) == 2
    torch.testing.assert_close(outputs(again.module), outputs(student), rtol=0, atol=0)
    np.savez(tmp_path / "fed.npz", **pictures())
    code = (
        "import sys, numpy as np, torch\n"
        "from edgepress.compress import Backbone\n"
        "net, saved, fed, out = sys.argv[1:]\n"
        "torch.set_num_threads(1)\n"
        "module = Backbone.open(net, saved).module\n"
        "with torch.no_grad():\n"
        "    np.save(out, module(torch.from_numpy(np.load(fed)['x'])).numpy())\n"
    )
    words = (f"{source}:net", str(saved), str(tmp_path / "fed.npz"), str(tmp_path / "out.npy"))
    subprocess.run([sys.executable, "-c", code, *words], check=True, timeout=120)
    wanted = outputs(student)[0].numpy()
    assert np.allclose(np.load(tmp_path / "out.npy"), wanted, atol=1e-6), "in a fresh process"
    with pytest.raises(InputError) as caught:
        save_weights(student, tmp_path / "pruned.pt", history=history)
    assert caught.value.code == "E_USAGE"


def test_the_history_of_another_network(tmp_path: Path) -> None:
    saved = tmp_path / "pruned.safetensors"
    history = History((CutStep((ChannelCut("first", "out", 12, (0, 3)),)),), "other.py:net")
    save_weights(built(Plain), saved, history=history)
    (tmp_path / "net.py").write_text(FACTORY)
    with pytest.raises(InputError, match="no 'first'") as caught:
        Backbone.open(f"{tmp_path / 'net.py'}:net", str(saved))
    assert caught.value.code == "E_HISTORY"
    assert "other.py:net" in caught.value.mend


DAMAGED: dict[str, object] = {
    "format": 2,
    "factory": None,
    "steps": [{"cuts": [["a", "out", 4, [2, 1]]], "attributes": [], "skipped": []}],
}


@pytest.mark.parametrize("field", DAMAGED)
def test_a_damaged_history(field: str) -> None:
    held = {**History((CutStep(),), "net").to_dict(), field: DAMAGED[field]}
    with pytest.raises(InputError) as caught:
        History.from_json(json.dumps(held))
    assert caught.value.code == "E_HISTORY"


@pytest.mark.parametrize(
    "attribute", [["a", "__class__", 3], ["a", "forward", 3], ["a", "num_heads", "x"]]
)
def test_a_history_sets_nothing_but_counts(attribute: list[object]) -> None:
    step: dict[str, object] = {"cuts": [], "attributes": [attribute], "skipped": []}
    with pytest.raises(InputError) as caught:
        History.from_json(json.dumps({"format": 1, "factory": "", "steps": [step]}))
    assert caught.value.code == "E_HISTORY"
