"""What leaves: scores, damage, costs, and the choice within bounds."""

from __future__ import annotations

import copy
import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch_pruning")
import torch
from torch import nn
from torch.nn import functional

from edgepress.benchmarks import Images
from edgepress.compress import History, Pruned, prune
from edgepress.compress.channels.channel_groups import Group, Member
from edgepress.compress.channels.cut_history import apply_cut_step
from edgepress.compress.pruning.batchnorm_recalibration import recalibrate
from edgepress.compress.pruning.candidate_timing import cut_step_by
from edgepress.compress.pruning.channel_gates import gates, output_divergence
from edgepress.compress.pruning.importance import IMPORTANCES, fisher
from edgepress.compress.pruning.latency_model import random_widths
from edgepress.compress.pruning.layer_costs import LayerWidths, Widths, macs_cost, parameters_cost
from edgepress.compress.pruning.output_damage import OutputDamage, measure_output_damage, widths_of
from edgepress.compress.pruning.width_milp import Bound, choose_widths
from edgepress.export import count_macs
from edgepress.export.graph.torch_capture import capture
from edgepress.runtime import BoundError, InputError, Preprocessing
from helpers.prune_nets import Net, batch, framed, net

PLAIN = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))


def pruned(module: nn.Module, images: Images, **options: Any) -> Pruned:
    return prune(module, images, preprocessing=PLAIN, **options)


def pictures(count: int = 24) -> Images:
    x = np.random.default_rng(0).integers(0, 255, (count, 12, 12, 3)).astype(np.uint8)
    return Images.from_arrays(x, np.arange(count) % 4)


def plain(width: int, step: int = 1, fixed: int = 0) -> Group:
    """A group of its own, in ``step`` segments."""
    member = Member("a", "out", width, tuple((atom,) for atom in range(width)))
    segments = tuple(atom * step // width for atom in range(width))
    return Group("a", (member,), tuple(range(fixed, width)), segments)


# ---------------------------------------------------------------- widths


@pytest.mark.parametrize(
    ("group", "wanted"),
    [
        (plain(64), (64, 56, 48, 40, 32, 24, 16, 8)),
        (plain(16), (16, 12, 8, 4)),
        (plain(20), (20, 16, 12, 8, 4)),
        (plain(3), (3, 2, 1)),
        (plain(1), (1,)),
        (plain(32, step=4), (32, 24, 16, 8)),
        (plain(64, fixed=40), (64, 56, 48, 40)),
    ],
)
def test_widths_are_multiples_with_a_floor_and_never_none(
    group: Group, wanted: tuple[int, ...]
) -> None:
    assert widths_of(group, 8) == wanted


def test_wide_layers_have_few_widths() -> None:
    found = widths_of(plain(1280), 8)
    assert 1 < len(found) <= 14
    assert all(width % 8 == 0 for width in found)


# ---------------------------------------------------------------- worth


def test_a_gate_silences_what_a_cut_takes_out() -> None:
    module = net()
    structure = framed(module).structure
    group = next(one for one in structure.groups if one.name == "first.one")
    gone = (0, 5, 7)
    cut = copy.deepcopy(module)
    apply_cut_step(
        cut,
        cut_step_by(
            structure,
            [_only(g, group, gone) for g in structure.groups],
            _keep(structure, group, 21),
        ),
    )
    with torch.inference_mode(), gates(module, [group], 16) as (gate,):
        gate[:, list(gone)] = 0
        torch.testing.assert_close(module(**batch()), cut(**batch()))


def _only(group: Group, wanted: Group, gone: tuple[int, ...]) -> Any:
    return np.array([0.0 if group is wanted and a in gone else 1.0 for a in range(group.width)])


def _keep(structure: Any, group: Group, kept: int) -> Widths:
    widths = tuple(kept if one is group else one.width for one in structure.groups)
    return Widths(widths, (False,) * len(structure.blocks))


@pytest.mark.parametrize("name", IMPORTANCES)
@pytest.mark.parametrize("outputs", ["logits", "features"])
def test_a_dead_channel_is_worth_least(name: str, outputs: Any) -> None:
    module = net()
    with torch.no_grad():  # nothing makes it, and nothing reads it
        module.first.one.weight[3], module.first.one.bias[3] = 0, 0
        module.first.norm.weight[3], module.first.norm.bias[3] = 0, 0
    groups = framed(module).structure.groups
    scores = IMPORTANCES[name](module, groups, [batch()], outputs, 0)
    first = scores[[group.name for group in groups].index("first.one")]
    assert first.shape == (24,)
    assert np.isfinite(first).all()
    assert first.argmin() == 3
    assert all(not part._forward_pre_hooks for part in module.modules())


def test_fisher_foretells_the_divergence_of_silent_channels() -> None:
    module, feeds = net(), batch(64)
    groups = framed(module).structure.groups
    scores = fisher(module, groups, [feeds] * 30, "logits", 0)
    group, said = next(pair for pair in zip(groups, scores, strict=True) if pair[0].name == "last")
    seen: list[float] = []
    with torch.inference_mode():
        wanted = {"output": module(**feeds)}
        for atom in range(group.width):
            with gates(module, [group], 64) as (gate,):
                gate[:, atom] = 0
                seen.append(output_divergence(wanted, {"output": module(**feeds)}, "logits") / 64)
    assert np.corrcoef(said, seen)[0, 1] > 0.9
    alive = np.array(seen) > 1e-9
    assert 0.5 < said[alive].sum() / np.array(seen)[alive].sum() < 2, "in the same unit"


def test_a_network_that_ends_in_a_softmax_is_weighed_as_one_without() -> None:
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).softmax(1)

    module, feeds, softmaxed = net(), batch(8), Shares()
    groups = framed(module).structure.groups
    inner = [
        replace(group, members=tuple(replace(m, module=f"inner.{m.module}") for m in group.members))
        for group in groups
    ]
    wanted = fisher(module, groups, [feeds], "logits", 0)
    found = fisher(softmaxed, inner, [feeds], "logits", 0)
    for one, other in zip(wanted, found, strict=True):
        assert np.allclose(one, other, rtol=1e-3, atol=1e-9)
    with torch.inference_mode():
        one, other = module(**feeds), module(feeds["x"].flip(0))
    plain = output_divergence({"output": one}, {"output": other}, "logits")
    shares = output_divergence({"output": one.softmax(1)}, {"output": other.softmax(1)}, "logits")
    assert shares == pytest.approx(plain, rel=1e-3)


def test_damage_grows_with_the_cut() -> None:
    module = net()
    frame = framed(module)
    scores = fisher(module, frame.structure.groups, [batch()], "features", 0)
    widths = [widths_of(group, 8) for group in frame.structure.groups]
    found = measure_output_damage(
        module, frame.structure, [batch()], scores, widths, "features", lambda *_: None
    )
    assert len(found.groups) == len(widths) > 0
    for each in found.groups:
        assert each[0] == 0
        assert list(each) == sorted(each)


# ---------------------------------------------------------------- costs


def test_costs_are_those_of_the_cut_network() -> None:
    module = net()
    frame = framed(module)
    for choice in [frame.whole, *random_widths(frame, _widths(frame), 2, seed=1)[1:]]:
        cut = copy.deepcopy(module)
        apply_cut_step(cut, cut_step_by(frame.structure, None, choice))
        feeds = {"x": batch(2)["x"].numpy()}
        graph = capture(cut, feeds)
        assert sum(count_macs(graph, feeds).values()) == frame.total(macs_cost, choice)
        layers = [m for m in cut.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        held = sum(p.numel() for layer in layers for p in layer.parameters())
        assert held == frame.total(parameters_cost, choice)


def _widths(frame: LayerWidths) -> list[tuple[int, ...]]:
    return [widths_of(group, 8) for group in frame.structure.groups]


# ---------------------------------------------------------------- choosing


def test_the_choice_is_the_best_there_is() -> None:
    frame = framed(net())
    draw = np.random.default_rng(3)
    widths = [(group.width, group.width // 2) for group in frame.structure.groups]
    damage = OutputDamage(
        tuple((0.0, float(draw.uniform())) for _ in widths),
        tuple(float(draw.uniform()) for _ in frame.structure.blocks),
        1,
        1,
    )
    whole = frame.total(macs_cost, frame.whole)
    for share in (0.35, 0.6, 0.85):
        bound = Bound("multiply-adds", macs_cost, share * whole, "max_macs_ratio")
        found = choose_widths(frame, widths, damage, [bound])
        assert bound.of(frame, found) <= bound.limit
        kept = itertools.product(*widths)
        skips = list(itertools.product((False, True), repeat=2))
        least = min(
            _pain(frame, widths, damage, Widths(tuple(one), skip))
            for one in kept
            for skip in skips
            if bound.of(frame, Widths(tuple(one), skip)) <= bound.limit
        )
        assert _pain(frame, widths, damage, found) <= least * 1.006 + 1e-9


def _pain(frame: LayerWidths, widths: Any, damage: OutputDamage, choice: Widths) -> float:
    gone = [b for b, out in zip(frame.structure.blocks, choice.skipped, strict=True) if out]
    total = sum(d for d, out in zip(damage.blocks, choice.skipped, strict=True) if out)
    for group, each, costs, kept in zip(
        frame.structure.groups, widths, damage.groups, choice.kept, strict=True
    ):
        if not any(block.holds(group.name) for block in gone):
            total += costs[each.index(kept)]
    return total


def test_blocks_leave_only_where_they_may() -> None:
    frame = framed(net())
    widths = _widths(frame)
    damage = OutputDamage(
        tuple(tuple(float(i) for i in range(len(w))) for w in widths), (0.0, 0.0), 1, 1
    )
    most = 0.6 * frame.total(macs_cost, frame.whole)
    bound = Bound("multiply-adds", macs_cost, most, "max_macs_ratio")
    assert choose_widths(frame, widths, damage, [bound]).skipped == (True, True)
    assert choose_widths(frame, widths, damage, [bound], blocks=False).skipped == (False, False)


def test_two_bounds_hold_at_once() -> None:
    frame = framed(net())
    widths = _widths(frame)
    damage = OutputDamage(
        tuple(tuple(float(i) for i in range(len(w))) for w in widths), (9.0, 9.0), 1, 1
    )
    whole = frame.whole
    costs = ((macs_cost, 0.7, "max_macs_ratio"), (parameters_cost, 0.4, "max_size_mb"))
    bounds = [
        Bound("what is summed", cost, share * frame.total(cost, whole), option)
        for cost, share, option in costs
    ]
    found = choose_widths(frame, widths, damage, bounds)
    assert all(bound.of(frame, found) <= bound.limit for bound in bounds)


# ---------------------------------------------------------------- prune()


def test_a_plain_module_comes_back(tmp_path: Path) -> None:
    module = net()
    before = copy.deepcopy(module.state_dict())
    found = pruned(module, pictures(), max_macs_ratio=0.5, keep=["head"], cache=tmp_path / "cache")
    assert isinstance(found, Pruned)
    assert type(found.module) is Net
    report: Any = found.report
    assert report["macs"]["result"] <= 0.5 * report["macs"]["original"]
    assert report["left_whole"][-1]["name"] == "head"
    rebuilt = found.history.rebuild(Net, found.module.state_dict()).eval()
    torch.testing.assert_close(rebuilt(**batch()), found.module(**batch()), rtol=0, atol=0)
    assert History.from_json(found.history.to_json()) == found.history
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), "the user's module is as it was"
    assert not (tmp_path / "cache").exists(), "written for latencies alone"
    found.module.train()
    found.module(**batch()).sum().backward()
    assert all(p.grad is not None for p in found.module.parameters())
    with pytest.raises(InputError) as caught:  # what is pruned can be pruned again
        pruned(found.module, pictures(4), max_macs_ratio=0.5)
    assert caught.value.code == "E_DATA"
    again = pruned(found.module, pictures(), max_macs_ratio=0.8)
    assert isinstance(again.module, Net)


def test_the_same_seed_gives_the_same_network() -> None:
    one, two = (pruned(net(), pictures(), max_size_mb=0.02, seed=5) for _ in range(2))
    assert one.history == two.history
    report: Any = one.report
    assert report["bounds"]["size in bytes"]["result"] <= 20_000


@pytest.mark.serial
@pytest.mark.slow
def test_pruning_to_a_latency(tmp_path: Path) -> None:
    found = pruned(net(), pictures(), max_latency_ratio=0.8, cache=tmp_path)
    latency: Any = found.report["bounds"]
    assert latency["latency"]["limit"] == 0.8
    assert latency["latency"]["measured_ratio"] > 0
    assert len(latency["latency"]["model_errors"]) >= 6
    assert {path.suffix for path in tmp_path.iterdir()} == {".json"}


def test_statistics_are_taken_anew() -> None:
    module = net()
    module.first.norm.running_mean.fill_(7.0)
    assert recalibrate(module, [batch()]) == 2
    assert not module.training
    assert not module.first.norm.training
    given = module.first.one(functional.relu(module.stem(batch()["x"])))
    torch.testing.assert_close(module.first.norm.running_mean, given.mean((0, 2, 3)))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, "E_USAGE"),
        ({"max_macs_ratio": 0.0}, "E_USAGE"),
        ({"max_macs_ratio": 1.5}, "E_USAGE"),
        ({"max_size_mb": float("nan")}, "E_USAGE"),
        ({"max_macs_ratio": 0.5, "importance": "luck"}, "E_USAGE"),
        ({"max_macs_ratio": 0.5, "precision": "int4"}, "E_USAGE"),
        ({"max_macs_ratio": 0.5, "target": "toaster"}, "E_TARGET"),
        ({"max_macs_ratio": 0.5, "keep": ["lsat"]}, "E_KEEP"),
        ({"max_macs_ratio": 0.5, "pictures": 3}, "E_DATA"),
    ],
)
def test_bad_options(options: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError) as caught:
        pruned(net(), pictures(), **options)
    assert caught.value.code == code


@pytest.mark.parametrize("option", ["max_macs_ratio", "max_size_mb"])
def test_a_bound_below_the_smallest_network_and_what_is_told_to_ask_for(option: str) -> None:
    with pytest.raises(BoundError, match="the smallest legal network has") as caught:
        pruned(net(), pictures(), **{option: 0.001})
    assert caught.value.code == "E_BOUND"
    told = re.search(r"Give --([a-z-]+) ([0-9.]+) or more", caught.value.mend)
    assert told is not None
    assert told[1] == option.replace("_", "-")
    found = pruned(net(), pictures(), **{option: float(told[2])})
    assert found.module is not None


def test_nothing_to_prune() -> None:
    names = [name for name, _ in net().named_children()]
    with pytest.raises(InputError, match="nothing in Net can be pruned") as caught:
        pruned(net(), pictures(), max_macs_ratio=0.5, keep=names)
    assert caught.value.code == "E_PRUNE"


def test_a_network_that_overflows() -> None:
    module = net()
    with torch.no_grad():
        module.head.weight.fill_(float("inf"))
    with pytest.raises(InputError) as caught:
        pruned(module, pictures(), max_macs_ratio=0.5)
    assert caught.value.code == "E_NAN"
