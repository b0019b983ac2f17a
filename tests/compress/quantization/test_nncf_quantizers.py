"""Fake quantizers: what they round, where NNCF puts them, what they stand for in the graph."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
import torch
from torch import nn

from edgepress.compress.quantization import nncf_quantizers
from edgepress.compress.quantization.fake_quantize import (
    FakeActivations,
    FakeWeights,
    fake_quantizers,
    switch_fake_quantizers,
)
from edgepress.compress.quantization.fake_quantize_ranges import (
    initialize_steps,
    learned_ranges,
    tensors_of_quantizers,
)
from edgepress.compress.quantization.nncf_quantizers import plain_weights, with_quantizers
from edgepress.compress.training.weight_averaging import AveragedWeights
from edgepress.export.calibration.ranges import calibrate
from edgepress.export.graph.torch_capture import capture, input_names
from edgepress.export.int8.dialect import dialect
from edgepress.export.int8.quantizers import activation_quantizer, weight_quantizer
from edgepress.runtime import InputError, MissingExtraError

X86 = dialect("onnxruntime-x86-vnni")


class Net(nn.Module):
    """BatchNorm to fold, a residual sum and functions that no module marks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Linear(16, 4)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(picture)))
        x = torch.relu(x + self.second(x))
        return self.last(x.mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    made = Net()
    made.norm.running_mean.normal_()
    made.norm.running_var.uniform_(0.5, 2)
    return made.eval()


def pictures(count: int = 8) -> dict[str, torch.Tensor]:
    return {"picture": torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))}


def arrays(count: int = 8) -> dict[str, Any]:
    return {name: value.numpy() for name, value in pictures(count).items()}


# ---------------------------------------------------------------- rounding


@pytest.mark.parametrize(
    ("low", "high", "symmetric"),
    [(0.0, 3.0, False), (-1.0, 2.0, False), (-1.0, 2.0, True), (-2.0, 0.0, False), (0, 0, False)],
)
def test_an_activation_is_rounded_to_what_its_codes_will_stand_for(
    low: float, high: float, symmetric: bool
) -> None:
    one = FakeActivations(low, high, symmetric)
    x = torch.linspace(-4, 4, 1001)
    got = one(x).detach().numpy()
    reached = one.range
    codes = activation_quantizer(*reached, X86)
    step, zero = float(codes.scale), codes.zero_point
    if symmetric:
        step, zero = reached[1] / 127, 0
        assert reached[0] == pytest.approx(-reached[1])
    ends = one.ends
    wanted = (np.clip(np.rint(x.numpy() / step) + zero, *ends) - zero) * step
    assert np.abs(got - wanted).max() <= step * 1.001, "a tie may fall either way"
    assert np.mean(np.abs(got - wanted) < 1e-5) > 0.99
    assert one(torch.zeros(3)).abs().max() == 0, "0 has a code of its own"


def test_steps_learn_and_values_beyond_the_ends_do_not_pass_gradients() -> None:
    one = FakeActivations(0.0, 1.0, False)
    x = torch.tensor([-1.0, 0.3, 2.0], requires_grad=True)
    one(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 0.0]
    assert one.log_step.grad is not None
    assert one.log_step.grad.item() > 0, "a larger step clips less of 2.0"
    before = one.range[1]
    optimizer = torch.optim.SGD(one.parameters(), 1.0)
    for _ in range(5):
        loss = (one(x.detach()) - torch.tensor([0.0, 0.3, 2.0])).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert one.range[1] > before


@pytest.mark.parametrize(("axis", "limit"), [(0, 127), (1, 63), (None, 127)])
def test_weights_have_the_codes_that_are_written_of_them(axis: int | None, limit: int) -> None:
    weights = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    weights[2] = 0  # a dead channel
    got = FakeWeights(axis, limit)(weights)
    if axis is None:
        assert got.unique().numel() <= 2 * limit + 1
        return
    written = weight_quantizer(weights.numpy(), axis, limit, method="minmax")
    shape = [-1 if at == axis else 1 for at in range(4)]
    wanted = written.codes * written.scale.reshape(shape)
    assert np.allclose(got.numpy(), wanted, atol=1e-6)


def test_they_stay_finite_in_bfloat16_and_let_integers_through() -> None:
    one = FakeActivations(-1.0, 1.0, False)
    assert one(torch.randn(4).bfloat16()).dtype == torch.bfloat16
    assert one(torch.arange(4)).dtype == torch.int64
    assert FakeWeights(0, 127)(torch.randn(4, 2).bfloat16()).dtype == torch.bfloat16


# ---------------------------------------------------------------- where they are


@pytest.fixture(scope="module")
def placed() -> nn.Module:
    return with_quantizers(net(), [pictures()], X86, "Net")


def test_nncf_finds_every_place_and_the_network_stays_as_it_is(placed: nn.Module) -> None:
    network = net()
    with torch.no_grad():
        wanted, given = network(**pictures()), placed(**pictures())
    assert 0 < (wanted - given).abs().max() < 0.1 * wanted.abs().max()
    weights = [one for one in placed.modules() if isinstance(one, FakeWeights)]
    assert [one.axis for one in weights] == [0, 0, 0]
    assert len(fake_quantizers(placed)) >= 5, (
        "input, two ReLUs, the convolution's side of the sum, the mean"
    )
    assert input_names(placed) == ["picture"]
    held = plain_weights(placed, network)
    assert held.keys() == network.state_dict().keys()
    assert all(torch.equal(held[name], one) for name, one in network.state_dict().items())
    switch_fake_quantizers(placed, off=True)
    with torch.no_grad():
        assert torch.equal(placed(**pictures()), wanted)
    switch_fake_quantizers(placed, off=False)


def test_copies_averages_and_state_dicts_hold_the_quantizers(placed: nn.Module) -> None:
    twin = copy.deepcopy(placed)
    with torch.no_grad():
        wanted = placed(**pictures())
        for one in fake_quantizers(twin).values():
            one.log_step.add_(1.0)
        assert not torch.equal(twin(**pictures()), wanted)
        assert torch.equal(placed(**pictures()), wanted), "the copy has hooks of its own"
        average = AveragedWeights(placed, 0.0)
        twin_average = AveragedWeights(twin, 0.0)
        assert torch.equal(average.network(**pictures()), wanted)
        twin_average.network.load_state_dict(placed.state_dict())
        assert torch.equal(twin_average.network(**pictures()), wanted)
        twin_average.update(0)
        assert torch.equal(twin_average.network(**pictures()), twin.eval()(**pictures()))


@pytest.mark.parametrize(
    ("name", "symmetric", "weights", "activations"),
    [
        ("onnxruntime-x86", False, 3, True),
        ("tensorrt", True, 3, True),
        ("tensorrt-rtx", True, 1, False),
    ],
)
def test_a_dialect_says_what_is_rounded(
    name: str, symmetric: bool, weights: int, activations: bool
) -> None:
    made = with_quantizers(net(), [pictures()], dialect(name), "Net")
    found = [one for one in made.modules() if isinstance(one, FakeWeights)]
    assert len(found) == weights
    assert {one.limit for one in found} == {dialect(name).weight_limit}
    assert bool(fake_quantizers(made)) is activations
    assert all(one.symmetric is symmetric for one in fake_quantizers(made).values())


def test_quantizers_are_matched_with_tensors_and_take_their_ranges(placed: nn.Module) -> None:
    made = copy.deepcopy(placed)
    graph = capture(net(), arrays(2))
    known = tensors_of_quantizers(made, graph, arrays(2))
    assert all(known.values()), f"each sees a tensor of the folded graph: {known}"
    ranges = calibrate(graph, lambda _: [arrays()])
    assert initialize_steps(made, known, ranges) == len(known)
    (place,) = [name for name, tensors in known.items() if "picture" in tensors]
    low, high = fake_quantizers(made)[place].range
    step = (high - low) / 255
    assert low == pytest.approx(ranges.tensors["picture"].low, abs=step)
    assert high == pytest.approx(ranges.tensors["picture"].high, abs=step)
    fake_quantizers(made)[place].span(-0.5, 0.25)
    now = learned_ranges(made, known, ranges)
    assert now.tensors["picture"].low == pytest.approx(-0.5, abs=0.01)
    assert now.tensors["picture"].high == pytest.approx(0.25, abs=0.01)
    assert now.tensors["picture"].magnitude == pytest.approx(0.5, abs=0.01)
    assert now.tensors.keys() == ranges.tensors.keys()
    assert made.training is placed.training


def test_a_sequential_network_is_trained_too() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 2)).eval()
    made = with_quantizers(network, [{"input": pictures()["picture"]}], X86, "it")
    assert input_names(made) == ["input"]
    assert fake_quantizers(made)
    assert plain_weights(made, network).keys() == network.state_dict().keys()


# ---------------------------------------------------------------- refused, and left alone


class Odd(nn.Module):
    """Runs on numbers that it takes out of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such kernel\nand more")


class Empty(nn.Module):
    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return picture.abs()


def test_networks_that_cannot_be_followed_are_refused() -> None:
    with pytest.raises(InputError, match="into Odd: RuntimeError: no such kernel") as refused:
        with_quantizers(Odd(), [pictures()], X86, "Odd")
    assert refused.value.code == "E_QUANTIZERS"
    with pytest.raises(InputError, match=r"Empty") as refused:
        with_quantizers(Empty(), [pictures()], X86, "Empty")
    assert refused.value.code == "E_QUANTIZERS"


def test_without_nncf_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nncf_quantizers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="edgepress\\[compress\\]"):
        with_quantizers(net(), [pictures()], X86, "Net")


def test_nncf_says_nothing_writes_nothing_and_leaves_loggers_alone(tmp_path: Path) -> None:
    """In a fresh process that nothing tells to be a CI, beside the package of telemetry."""
    code = (
        "import logging, sys, torch\n"
        "from torch import nn\n"
        "from edgepress.compress.quantization.nncf_quantizers import with_quantizers\n"
        "from edgepress.export.int8.dialect import dialect\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 8, 3)\n"
        "    def forward(self, x):\n"
        "        return torch.relu(self.conv(x))\n"
        "x = torch.randn(2, 3, 8, 8)\n"
        "made = with_quantizers(Net().eval(), [{'x': x}], dialect('openvino'), 'Net')\n"
        "made.train()(x).sum().backward()\n"
        "assert logging.getLoggerClass() is logging.Logger\n"
        "assert 'openvino_telemetry' not in sys.modules\n"
    )

    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert not child.stdout
    assert not child.stderr
    assert not list(tmp_path.iterdir()), "nothing is compiled, nothing is kept"


def test_the_logger_class_is_the_callers() -> None:
    """Whatever it was: another test may have imported NNCF itself, which sets its own."""

    class Own(logging.Logger):
        pass

    before = logging.getLoggerClass()
    logging.setLoggerClass(Own)
    try:
        with_quantizers(net(), [pictures()], X86, "Net")
        assert logging.getLoggerClass() is Own
    finally:
        logging.setLoggerClass(before)
