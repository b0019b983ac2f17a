"""Muon: what it turns, how far, and that a training with it is like any other."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
import torch
from torch import nn

from edgepress.compress.recipe.settings import Distil
from edgepress.compress.training.spherical_muon import Muon, hidden_weights, orthogonalized
from edgepress.runtime import InputError
from helpers.distil_nets import QUICK, Net, net, trained, weights


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_orthogonalized_singular_values_are_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    given = torch.randn(*shape) * torch.logspace(0, -1, shape[1])
    found = torch.linalg.svdvals(orthogonalized(given))
    before = torch.linalg.svdvals(given)
    assert float(before.max() / before.min()) > float(found.max() / found.min())
    assert 0.4 < float(found.median()) < 1.4
    assert torch.equal(orthogonalized(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_a_step_turns_by_its_angle_and_keeps_the_length() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 5, 3, 3))
    before = weight.detach().clone()
    groups = [{"params": [weight], "weight_decay": 0.0, "turned": True}]
    optimizer = Muon(groups, momentum=0.9)
    optimizer.param_groups[0]["lr"] = 0.1
    gradient = torch.randn_like(weight)
    flat = orthogonalized(gradient.flatten(1)).flatten()
    # what is left of a direction that has no part along the weight
    flat = flat - before.flatten() * (flat @ before.flatten()) / before.norm() ** 2
    weight.grad = flat.view_as(weight).clone()
    optimizer.step()
    cosine = torch.cosine_similarity(before.flatten(), weight.detach().flatten(), dim=0)
    assert math.acos(float(cosine)) == pytest.approx(0.1, rel=0.15)
    assert float(weight.detach().norm() / before.norm()) == pytest.approx(1, abs=0.03)
    assert float((weight.detach() - before).flatten() @ flat) < 0, "down the gradient"


def test_what_is_not_turned_is_stepped_as_sgd_does() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(7)) for _ in range(2))
    optimizer = Muon([{"params": [ours], "weight_decay": 0.01, "turned": False}], momentum=0.9)
    optimizer.param_groups[0]["lr"] = 0.1
    plain = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for _ in range(3):
        ours.grad = torch.randn(7)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        plain.step()
    assert torch.equal(ours, theirs)


class Grouped(nn.Module):
    """A convolution, one in groups, a hidden linear layer, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.grouped = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2)
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.map = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.grouped(self.plain(x).relu())
        return self.head(self.hidden(x.mean((2, 3))).relu()), self.map(x).flatten(1)


def test_outputs_and_groups_are_not_turned() -> None:
    module = Grouped()

    def run() -> dict[str, torch.Tensor]:
        first, second = module(torch.randn(2, 3, 8, 8))
        return {"first": first, "second": second}

    assert hidden_weights(module, run) == {"plain.weight", "hidden.weight"}
    assert not module.plain._forward_hooks, "nothing stays on the network"


def test_a_student_learns_by_it_and_the_rate_is_chosen() -> None:
    torch.manual_seed(0)
    found = trained(Distil(epochs=24, batch=32, precision="float32"), student=net(6))
    first, last = found.log["epochs"][0]["loss"], found.log["epochs"][-1]["loss"]
    assert (found.log["optimizer"], found.log["lr"]) == ("muon", 0.03)
    assert last["outputs"] < 0.7 * first["outputs"]


def test_labels_alone_teach_without_asking_the_teacher() -> None:
    class Counted(Net):
        asked = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counted.asked += 1
            return super().forward(x)

    original = Counted(8)
    settings = replace(QUICK, outputs_weight=0.0, labels_weight=1.0, lr=0.1, epochs=3)
    plain = trained(settings, teacher=original)
    asked = Counted.asked
    assert set(plain.log["epochs"][0]["loss"]) == {"labels"}
    longer = trained(replace(settings, epochs=6), teacher=original)
    assert Counted.asked == 2 * asked, "only while the training is made ready"
    smooth = trained(replace(settings, labels_smoothing=0.2), teacher=original)
    assert not torch.equal(weights(smooth.module), weights(plain.module))
    assert len(longer.log["epochs"]) == 6


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    settings = replace(QUICK, optimizer="muon", epochs=3)
    whole = trained(settings, student=net(6))

    class StoppedError(Exception):
        pass

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "scoring the selection pictures" and (tmp_path / "training.json").exists():
            raise StoppedError

    with pytest.raises(StoppedError):
        trained(settings, student=net(6), folder=tmp_path, report=stop)
    again = trained(settings, student=net(6), folder=tmp_path, resume=True)
    assert torch.equal(weights(again.module), weights(whole.module))


def test_smoothing_has_its_bounds() -> None:
    with pytest.raises(InputError, match="labels_smoothing") as caught:
        Distil(labels_smoothing=1.0)
    assert caught.value.code == "E_RECIPE"
