"""Which channels can leave together: found, tried, cut, and rebuilt to the same outputs."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch_pruning")
import torch
from torch import nn
from torch.nn import functional

from edgepress.compress.backbone import Backbone
from edgepress.compress.cutting import Cut, zero_cuts
from edgepress.compress.groups import Structure, step_of
from edgepress.compress.history import Attribute, History, Step, apply_step
from edgepress.compress.structure import structure_of
from edgepress.compress.weights import save_weights
from edgepress.export.capture import flatten_outputs
from edgepress.runtime.errors import InputError
from edgepress.runtime.tensors import Arrays


class Plain(nn.Module):
    """Convolutions, BatchNorm, PReLU, a flatten and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.act, self.second = nn.PReLU(12), nn.Conv2d(12, 10, 3, stride=2)
        self.head = nn.Linear(40, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.second(self.act(self.norm(self.first(x)))))
        return self.head(functional.adaptive_avg_pool2d(x, 2).flatten(1))


class Squeeze(nn.Module):
    """Squeeze-and-excite on a depthwise convolution, a transposed convolution behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.grow = nn.Conv2d(16, 8, 1), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self.depthwise(functional.relu6(self.norm(self.expand(x)))))
        x = x * self.up(functional.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head(functional.relu(self.grow(self.project(x))).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution with GroupNorm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.norm, self.third = nn.GroupNorm(4, 32), nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.second(functional.relu(self.first(x)))))
        return self.head(functional.relu(self.third(x)).mean((2, 3)))


class ChannelsFirst(nn.LayerNorm):
    """Over the channels of a map ``(N, C, H, W)``, as timm's ConvNeXt does it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Next(nn.Module):
    """A block of ConvNeXt between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 4, 4)
        self.each, self.norm = nn.Conv2d(24, 24, 7, padding=3, groups=24), ChannelsFirst(24)
        self.up, self.down = nn.Conv2d(24, 96, 1), nn.Conv2d(96, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.down(functional.gelu(self.up(self.norm(self.each(x)))))
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    """Two branches put one behind the other and added to a third."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right, self.both = (
            nn.Conv2d(8, 12, 1),
            nn.Conv2d(8, 20, 1),
            nn.Conv2d(8, 32, 1),
        )
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(x))
        joined = torch.cat([self.left(x), self.right(x)], 1) + self.both(x)
        return self.head(functional.relu(joined).mean((2, 3)))


class Padded(nn.Module):
    """Residual blocks, and a shortcut that pads its channels with zeros by a fixed number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block, self.wide = Residual(8), nn.Conv2d(8, 16, 3, padding=1)
        self.last, self.head = Residual(16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(functional.relu(self.stem(x)))
        x = functional.relu(self.wide(x) + functional.pad(x, (0, 0, 0, 0, 4, 4)))
        return self.head(self.last(x).mean((2, 3)))


class Neighbours(nn.Module):
    """Responses normalized over neighbouring channels, as in AlexNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.local_response_norm(functional.relu(self.stem(x)), 5, alpha=0.5)
        return self.head(functional.relu(self.body(x)).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.norm1 = (
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.two, self.norm2 = (
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.norm2(self.two(functional.relu(self.norm1(self.one(x))))))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        split = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        x = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(x.reshape(batch, tokens, self.num_heads * self.head_dim))


class Transformer(nn.Module):
    """Patches, a class token, positions, one block of attention and a multilayer perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, 8)
        self.position = nn.Parameter(torch.randn(1, 5, 32) * 0.1)
        self.token = nn.Parameter(torch.randn(1, 1, 32) * 0.1)
        self.norm1, self.attention = nn.LayerNorm(32), Attention(32, 4)
        self.norm2, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return self.head(self.norm(x)[:, 0])


class Pyramid(nn.Module):
    """Nested outputs, a head that two levels share, and channels that are an output themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.side, self.top = nn.Conv2d(16, 8, 1), nn.Conv2d(24, 8, 1)
        self.shared, self.score = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        low = functional.relu(self.low(x))
        high = functional.relu(self.high(low))
        levels = [
            self.score(functional.relu(self.shared(p))) for p in (self.side(low), self.top(high))
        ]
        return {"levels": levels, "rest": (high.mean((2, 3)), levels[0].argmax(1))}


class Shuffled(nn.Module):
    """A channel shuffle, whose halves its forward takes apart by number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.piece = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = functional.relu(self.first(x)).chunk(2, 1)
        x = torch.cat([left, functional.relu(self.piece(right))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(functional.relu(self.last(x)).mean((2, 3)))


def shuffled(x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.size()
    return torch.transpose(x.view(n, 2, c // 2, h, w), 1, 2).contiguous().view(n, c, h, w)


class Doubling(nn.Module):
    """Of ShuffleNet v2: both halves see all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.each = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels)
        self.too = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return shuffled(torch.cat((self.one(self.each(x)), self.other(self.too(x))), 1))


class Unit(nn.Module):
    """Of ShuffleNet v2: one half of the channels passes, the other is worked on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.narrow, self.grow = nn.Conv2d(half, half, 1), nn.Conv2d(half, half, 1)
        self.each = nn.Conv2d(half, half, 3, padding=1, groups=half)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = torch.chunk(x, 2, dim=1)
        other = functional.relu(self.grow(self.each(functional.relu(self.narrow(other)))))
        return shuffled(torch.cat((one, other), 1))


class ShuffledTwice(nn.Module):
    """Shuffles behind each other, where Torch-Pruning 1.6 divides by zero."""

    plain = 2

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.units = nn.Sequential(Doubling(8), *(Unit(16) for _ in range(self.plain)))
        self.last, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.last(self.units(functional.relu(self.stem(x)))))
        return self.head(functional.avg_pool2d(x, x.shape[-1]).view(x.size(0), -1))


class ShuffledOften(ShuffledTwice):
    """More of them, where it looks for channels that are not there."""

    plain = 3


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


def half(structure: Structure, seed: int = 0) -> Step:
    """About half of what may leave of every group, drawn at random."""
    draw = np.random.default_rng(seed)
    removed = {
        group: group.weakest(
            list(draw.random(group.width)),
            max(group.least, group.width // 2 // group.step * group.step),
        )
        for group in structure.groups
    }
    return step_of(removed)


def names(structure: Structure) -> set[str]:
    return {group.name for group in structure.groups}


def reasons(structure: Structure) -> dict[str, str]:
    return {one.name: one.reason for one in structure.refused}


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
    apply_step(cut, step)
    for one, other in zip(outputs(silent), outputs(cut), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    fewer = sum(p.numel() for p in cut.parameters()) / sum(p.numel() for p in module.parameters())
    assert fewer < 0.9


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
    apply_step(cut, half(structure))
    assert outputs(cut)[0].shape == outputs(module)[0].shape
    assert any(not group.exact for group in structure.groups)
    refused = {one.name for one in structure.refused}
    assert refused <= {"head", "attention.qkv"}, "but for what gives the outputs, all of it is cut"


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
    step = step_of({heads: (1, 2)})
    assert step.attributes == (Attribute("attention", "num_heads", 2),)
    silent, cut = copy.deepcopy(module), copy.deepcopy(module)
    zero_cuts(silent, step.cuts)
    apply_step(cut, step)
    torch.testing.assert_close(outputs(silent), outputs(cut))
    assert cut.get_submodule("attention").num_heads == 2


def test_residual_blocks_are_found_and_leave() -> None:
    module = built(Padded)
    structure = structure_of(module, pictures())
    assert {block.name for block in structure.blocks} == {"block", "last"}
    without = copy.deepcopy(module)
    apply_step(without, step_of({g: g.free[:2] for g in structure.groups[:1]}, ["block"]))
    assert isinstance(without.get_submodule("block"), nn.Identity)
    assert outputs(without)[0].shape == (2, 5)


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
    apply_step(module, half(structure))
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
        apply_step(student, step)
        history = history.then(step)
    for parameter in student.parameters():  # as if trained
        parameter.data.add_(0.01)
    save_weights(student, saved, history=history)
    again = Backbone.open(f"{source}:net", str(saved))
    assert again.history == history
    assert len(structure.groups) == 2
    torch.testing.assert_close(outputs(again.module), outputs(student), rtol=0, atol=0)
    with pytest.raises(InputError) as caught:
        save_weights(student, tmp_path / "pruned.pt", history=history)
    assert caught.value.code == "E_USAGE"


def test_the_history_of_another_network(tmp_path: Path) -> None:
    saved = tmp_path / "pruned.safetensors"
    history = History((Step((Cut("first", "out", 12, (0, 3)),)),), "other.py:net")
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
    held = {**History((Step(),), "net").to_dict(), field: DAMAGED[field]}
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
