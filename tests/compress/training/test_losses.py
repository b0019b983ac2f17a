"""Distillation losses: what they are at known points, and where they lead a student."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

pytest.importorskip("torch")
import torch
from torch import nn

from edgepress.benchmarks import task
from edgepress.compress import EmbeddingLoss, FeatureLoss, LogitLoss, OutputLoss, Taps
from edgepress.compress.recipe.settings import Distil
from edgepress.compress.training.augmentation import Draws
from edgepress.compress.training.distillation_loss import DistillationLoss, TappedOutputs
from edgepress.compress.training.losses import is_distribution, logits_of
from edgepress.runtime import InputError


def test_a_logit_loss_by_hand() -> None:
    """Two classes, all of it on the first against half and half: ln 2 nats."""
    teacher, student = torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert LogitLoss(1.0)(student, teacher).item() == pytest.approx(math.log(2), rel=1e-5)
    assert LogitLoss(2.0)(student, teacher).item() == pytest.approx(4 * math.log(2), rel=1e-5)
    assert LogitLoss()(teacher[:, :, None, None], teacher[:, :, None, None]).item() == 0
    with pytest.raises(InputError) as refused:
        LogitLoss(0.0)
    assert refused.value.code == "E_USAGE"


@pytest.mark.parametrize("labelled", [False, True])
def test_probabilities_are_compared_as_the_scores_behind_them(labelled: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    ours, theirs = (8 * torch.randn(6, 5, generator=draw) for _ in range(2))
    assert is_distribution(theirs.softmax(1)[:, :, None, None])
    assert not is_distribution(theirs)
    assert not is_distribution(theirs.softmax(0))
    labels = torch.arange(6) % 5
    draws = Draws.of(Distil(), 6, draw)
    found: list[dict[str, torch.Tensor]] = []
    grads: list[torch.Tensor] = []
    for form in (lambda x: x, lambda x: x.softmax(1)):
        leaf = ours.clone().requires_grad_()
        seen = (
            TappedOutputs({"output": form(leaf)}, {}),
            TappedOutputs({"output": form(theirs)}, {}),
        )
        loss = DistillationLoss(Distil(labels_weight=0.5), task("classification"), labelled, *seen)
        found.append(loss(*seen, None, labels if labelled else None, draws))
        torch.stack(list(found[-1].values())).sum().backward()
        assert leaf.grad is not None
        grads.append(leaf.grad)
    assert torch.allclose(grads[0], grads[1], rtol=1e-3, atol=1e-5)
    plain, softmaxed = found
    assert set(plain) == set(softmaxed) == ({"outputs", "labels"} if labelled else {"outputs"})
    for name, value in plain.items():
        assert softmaxed[name].item() == pytest.approx(value.item(), rel=1e-3)
    sure = torch.eye(5)  # where a logarithm alone would be infinite
    assert bool(torch.isfinite(LogitLoss(1.0)(logits_of(sure), logits_of(sure.flip(1)))))


def test_embeddings_are_compared_by_direction_and_outputs_by_the_teachers_size() -> None:
    teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert EmbeddingLoss()(5 * teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    assert EmbeddingLoss()(-teacher, teacher).item() == pytest.approx(2)
    maps = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 100 + 7
    assert OutputLoss()(maps, maps).item() == 0
    assert OutputLoss()(torch.zeros_like(maps), maps).item() == pytest.approx(1)
    assert OutputLoss()(2e-3 * maps, 1e-3 * maps).item() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("loss", [LogitLoss(), EmbeddingLoss(), OutputLoss()])
def test_gradients_reach_the_student_only(loss: nn.Module) -> None:
    student = torch.ones(4, 3, requires_grad=True)
    teacher = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss(student, teacher).backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 0
    assert teacher.grad is None
    half = loss(student.bfloat16(), teacher.bfloat16())
    assert half.dtype is torch.float32


class Net(nn.Module):
    """A backbone and a neck, of any width; gives tokens as well as maps."""

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3, stride, 1), nn.ReLU())
        self.neck = nn.Conv2d(width, 2 * width, 1)
        self.tokens = nn.Flatten(2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.neck(self.backbone(x))
        return {"boxes": self.tokens(y).transpose(1, 2), "sum": y.sum((2, 3))}


def test_features_of_other_widths_and_sizes_are_learnt_through_adapters() -> None:
    torch.manual_seed(0)
    teacher, student = Net(16), Net(6, stride=2)
    x = torch.randn(8, 3, 8, 8)
    names = ["backbone", "neck"]
    with torch.no_grad(), Taps(teacher, names) as theirs, Taps(student, names) as ours:
        teacher(x), student(x)
        loss = FeatureLoss(ours.take(), theirs.take())
    assert [tuple(p.shape[:2]) for p in loss.parameters() if p.ndim == 4] == [(16, 6), (32, 12)]
    optimizer = torch.optim.Adam([*student.parameters(), *loss.parameters()], 0.01)
    values: list[float] = []
    with Taps(teacher, names) as theirs, Taps(student, names) as ours:
        for _ in range(60):
            with torch.no_grad():
                teacher(x)
            student(x)
            value = loss(ours.take(), theirs.take())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
    assert values[-1] < 0.3 * values[0]
    assert not [one for one in student.modules() if one._forward_hooks], "no hook is left behind"


def test_taps_may_be_called_by_the_teachers_names_and_see_tokens() -> None:
    teacher, student = Net(4), Net(4)
    student.load_state_dict(teacher.state_dict())
    x = torch.randn(2, 3, 4, 4)
    with Taps(teacher, ["tokens"]) as theirs, Taps(student, ["tokens"], ["tokens"]) as ours:
        teacher(x), student(x)
        mine, wanted = ours.take(), theirs.take()
    assert mine["tokens"].shape == (2, 8, 16)
    loss = FeatureLoss(mine, wanted)
    assert not list(loss.parameters())
    assert loss(mine, wanted).item() == 0
    shorter = {"tokens": mine["tokens"][:, :4]}
    assert FeatureLoss(shorter, wanted)(shorter, wanted).item() > 0


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Taps(Net(4), ["backbon"]), "Did you mean: backbone"),
        (lambda: Taps(Net(4), [""]), "has no module ''"),
        (lambda: FeatureLoss({}, {}), "at least one"),
        (lambda: FeatureLoss({"a": torch.ones(1, 2)}, {"b": torch.ones(1, 2)}), "the same taps"),
        (
            lambda: FeatureLoss({"a": torch.ones(1, 2)}, {"a": torch.ones(1, 2, 3, 3)}),
            "at the tap 'a'",
        ),
    ],
)
def test_taps_that_cannot_be_are_refused(make: Callable[[], object], told: str) -> None:
    with pytest.raises(InputError, match=told) as refused:
        make()
    assert refused.value.code == "E_TAP"


def test_a_module_that_gives_no_tensor_cannot_be_tapped() -> None:
    net = nn.Sequential(Net(4))
    with Taps(net, ["0"]) as taps:
        net(torch.ones(1, 3, 4, 4))
        with pytest.raises(InputError, match="gives no float tensor") as refused:
            taps.take()
    assert refused.value.code == "E_TAP"
