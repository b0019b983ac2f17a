"""What a training is made of: its pictures, its clock, its average, the ways of computing it."""

from __future__ import annotations

import copy
import itertools
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from torch import nn

from edgepress.benchmarks import Images, task
from edgepress.compress.recipe.settings import Distil
from edgepress.compress.training.augmentation import (
    Draws,
    kept_share,
    mixed_up,
    recoloured,
    shifted,
)
from edgepress.compress.training.autocast_layout import (
    ComputeMode,
    choose_compute_mode,
    compute_modes,
)
from edgepress.compress.training.epoch_scoring import EpochScorer
from edgepress.compress.training.learning_rate import TrainingClock, learning_rate
from edgepress.compress.training.processes import Processes
from edgepress.compress.training.torch_compile import compiler_at_hand
from edgepress.compress.training.training_batches import TrainingSamples
from edgepress.compress.training.weight_averaging import AveragedWeights
from edgepress.runtime import InputError, Preprocessing
from edgepress.runtime.tensors import TensorSpec
from helpers.distil_nets import QUICK, net, pictures, trained, weights

CPU = torch.device("cpu")

# ---------------------------------------------------------------- its parts


@pytest.mark.parametrize(("own_test", "sizes"), [(True, (50, 190, 760)), (False, (50, 90, 360))])
def test_training_pictures_are_no_others(own_test: bool, sizes: tuple[int, ...]) -> None:
    x = np.arange(1000, dtype=np.uint16).view(np.uint8).reshape(1000, 1, 2, 1)
    images = Images.from_arrays(x)
    split = images.split(50, 3, own_test, training=True)
    assert split.training is not None
    parts = [split.calibration, split.selection, split.training]
    assert tuple(map(len, parts)) == sizes
    parts += [] if split.test is None else [split.test]
    how = Preprocessing(channel_order="GRAY")
    seen = [tuple(one.ravel()) for part in parts for one in part.pixels(range(len(part)), how)]
    assert len(set(seen)) == len(seen) == 1000
    plain = images.split(50, 3, own_test)
    assert plain.training is None
    assert len(plain.selection) == sizes[1] + sizes[2]
    many = Images.from_arrays(np.zeros((20_000, 1, 1), np.uint8))
    assert len(many.split(50, 0, own_test=True, training=True).selection) == 2500


def test_pictures_are_shifted_and_mirrored_and_nothing_else() -> None:
    x = torch.from_numpy(pictures(400))
    settings = Distil(crop=0.25)
    draws = Draws.of(settings, 400, torch.Generator().manual_seed(0))
    found = shifted(x, settings, draws)
    assert found.dtype is torch.uint8
    padded = np.pad(x.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)))
    windows = list(itertools.product(range(5), range(5), (False, True)))
    counts = dict.fromkeys(windows, 0)
    for before, after in zip(padded, found.numpy(), strict=True):
        views = [
            (at, before[at[0] : at[0] + 8, at[1] : at[1] + 8][:, :: -1 if at[2] else 1])
            for at in windows
        ]
        (place,) = [at for at, view in views if np.array_equal(view, after)]
        counts[place] += 1
    assert min(counts.values()) > 0, "every shift occurs"
    still = Distil(flip=False, crop=0.0)
    assert shifted(x, still, Draws.of(still, 400, torch.Generator())) is x


def test_zoom_colour_and_blending_keep_what_they_should() -> None:
    x = torch.from_numpy(pictures(32)).permute(0, 3, 1, 2).float()
    calm = Distil()
    draws = Draws.of(calm, 32, torch.Generator().manual_seed(0))
    assert recoloured(x, calm, draws) is x
    assert mixed_up(x, draws) is x
    flat = torch.full((32, 3, 8, 8), 100.0)
    strong = Distil(zoom=0.6, colour=0.4, mix=1.0)
    draws = Draws.of(strong, 32, torch.Generator().manual_seed(0))
    found = recoloured(flat, strong, draws)
    assert torch.allclose(found.mean((1, 2, 3)), 100 * (1 + 0.4 * draws.colour[:, 0]), atol=1e-2)
    assert float(recoloured(x, strong, draws).min()) >= 0
    mixed, kept = mixed_up(x, draws), kept_share(draws)
    assert 0.5 <= float(kept.min()) < float(kept.max()) <= 1
    assert torch.allclose(mixed[3], kept[3] * x[3] + (1 - kept[3]) * x[2])


def test_a_pool_gives_what_the_preprocessing_gives(tmp_path: Path) -> None:
    from PIL import Image

    x = pictures(20)
    for at, one in enumerate(x):
        Image.fromarray(one).save(tmp_path / f"{at:02}.png")
    how = Preprocessing(resize_shorter=10, center_crop=6, mean=(0.5, 0.4, 0.3), std=(0.2,))
    still = Distil(flip=False, crop=0.0)
    rows = torch.tensor([3, 19, 0])
    wanted = how([x[3], x[19], x[0]])
    for images in (Images.open(tmp_path), Images.from_arrays(x)):
        for whole in (True, False):
            pool = TrainingSamples(images, images.specs(["x"]), how, still, CPU, lambda *_: None)
            if not whole:
                pool._kept = None
            draws = Draws.of(still, 3, torch.Generator())
            first = pool.batch(rows, draws, rows.flip(0))
            ahead = pool.batch(rows.flip(0), draws)
            pool.close()
            assert np.allclose(first.feeds["x"].numpy(), wanted, atol=1e-5)
            assert torch.equal(ahead.feeds["x"], first.feeds["x"].flip(0))


def test_tensors_are_taken_as_they_are_and_so_are_their_labels() -> None:
    x = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    images = Images.of([(x, np.arange(16) % 4)])
    every = Distil(mix=1.0, zoom=0.5)
    specs = [TensorSpec("x", "float32", ("N", 3, 8, 8))]
    pool = TrainingSamples(images, specs, None, every, CPU, lambda stage, done, total: None)
    rows = torch.arange(16)
    step = pool.batch(rows, Draws.of(every, 16, torch.Generator().manual_seed(0)))
    pool.close()
    assert np.array_equal(step.feeds["x"].numpy(), x)
    assert torch.equal(kept_share(step.draws), torch.ones(16)), "no label is blended either"


def test_the_rate_rises_and_falls_and_a_limit_of_time_shortens_it() -> None:
    assert learning_rate(0.05, 0.1) == pytest.approx(0.5)
    assert learning_rate(0.1, 0.1) == 1
    assert learning_rate(0.55, 0.1) == pytest.approx(0.5)
    assert learning_rate(1.0, 0.1) == pytest.approx(0)
    assert 0 < learning_rate(0.0, 0.1) < 0.01
    clock = TrainingClock(100)
    clock.start()
    for _ in range(100):
        clock.stepped(clock.left())
    assert clock.left() == 0
    assert clock.progress == pytest.approx(1)
    short = TrainingClock(1000, limit_s=10.0, done=10, spent_s=4.0, step_s=0.1, progress=0.01)
    assert short.left() == 60
    short.judging_s = 0.1
    assert short.left() == 30
    short.start()
    before = short.progress
    short.stepped(30)
    assert short.progress == pytest.approx(before + (1 - before) / 30)


def test_a_slow_moment_does_not_hurry_a_long_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock = TrainingClock(100_000, limit_s=2000.0)
    clock.start()
    for step in range(400):
        now += 5.0 if step == 0 else 0.1 if step < 380 else 0.5  # the first one compiles
        clock.stepped(clock.left())
    assert clock.left() * 0.1 == pytest.approx(2000.0 - clock.spent_s, rel=0.4)


def test_a_limit_of_time_ends_the_training_with_its_schedule() -> None:
    settings = Distil(epochs=100_000, batch=32, lr=0.1, max_minutes=0.03, precision="float32",
                      layout="contiguous")  # fmt: skip
    start = time.monotonic()
    found = trained(settings)
    assert time.monotonic() - start < 60
    assert found.log["epochs"][-1]["progress"] > 0.5
    assert any("0.03 minutes allowed" in note for note in found.notes)


def test_the_average_follows_its_network() -> None:
    network = nn.BatchNorm1d(2)
    average = AveragedWeights(network, 0.5)
    with torch.no_grad():
        network.weight.fill_(3.0)
        network.running_mean.fill_(4.0)  # pyright: ignore[reportOptionalMemberAccess]
    assert network.num_batches_tracked is not None
    network.num_batches_tracked += 7
    average.update(1000)
    assert average.network.weight.tolist() == [2.0, 2.0]
    assert average.network.running_mean.tolist() == [2.0, 2.0]
    assert average.network.num_batches_tracked.item() == 7
    for decay in (0.0, 0.999):
        early = AveragedWeights(nn.Linear(1, 1), decay)
        early._network.weight.data.fill_(10.0)
        start = early.network.weight.item()
        early.update(0)
        share = 0.0 if decay == 0 else 0.1
        assert early.network.weight.item() == pytest.approx(share * start + (1 - share) * 10)


def test_what_the_teacher_gives_is_held_as_far_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    class Teacher(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            asked.append(len(x))
            return super().forward(x)

    x = np.random.default_rng(0).standard_normal((150, 4)).astype(np.float32)
    images, original = Images.of([{"input": x}]), Teacher(4, 3)
    specs = [TensorSpec("input", "float32", ("N", 4))]
    student, scores = nn.Linear(4, 3), set[float]()
    for room, again in ((64 * 3 * 4, [64, 22]), (2**20, [])):
        monkeypatch.setattr("edgepress.compress.training.epoch_scoring._HELD_BYTES", room)
        referee = EpochScorer(task("agreement"), images, specs, None, original)
        scores.add(referee.score(student))
        asked.clear()
        scores.add(referee.score(student))
        assert asked == again
    assert len(scores) == 1


def test_ways_that_fail_or_do_not_pay_are_left() -> None:
    module = nn.Conv2d(3, 4, 3)
    assert [str(one) for one in compute_modes(Distil(), module)] == [
        "float32", "float32, channels last", "bfloat16, channels last",
    ]  # fmt: skip
    assert [str(one) for one in compute_modes(Distil(), nn.Linear(2, 2))] == ["float32", "bfloat16"]
    fixed = Distil(precision="bfloat16", layout="contiguous")
    assert compute_modes(fixed, module) == [ComputeMode(True, False)]

    def step(tried: nn.Module, way: ComputeMode) -> None:
        assert tried is not module
        if way.bfloat16:
            raise RuntimeError("no such kernel")
        time.sleep(0.001 if way.channels_last else 0.05)

    settled: list[ComputeMode] = []
    way, took = choose_compute_mode(compute_modes(Distil(), module), module, settled.append, step)
    assert way == ComputeMode(False, True)
    assert list(took) == ["float32", "float32, channels last"]
    assert settled[3:] == [ComputeMode(), way] * 3, "in turns"
    with pytest.raises(InputError, match="no such kernel") as refused:
        choose_compute_mode([ComputeMode(True, True)], module, settled.append, step)
    assert refused.value.code == "E_TRAINING"


def test_a_network_that_cannot_have_channels_last_is_trained_without() -> None:
    """Where a tensor of five dimensions lies beside two-dimensional convolutions."""
    module = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3)])
    given: list[ComputeMode] = []

    def settle(way: ComputeMode) -> None:
        way.placed(module)

    fixed = Distil(precision="float32")
    way, took = choose_compute_mode(
        compute_modes(fixed, module), module, settle, lambda _, one: given.append(one)
    )
    assert (way, list(took)) == (ComputeMode(), ["float32"])
    assert set(given) == {ComputeMode()}
    with pytest.raises(InputError, match="rank 4") as refused:
        choose_compute_mode([ComputeMode(channels_last=True)], module, settle, lambda *_: None)
    assert refused.value.code == "E_TRAINING"


@pytest.mark.skipif(not compiler_at_hand(torch.device("cpu")), reason="there is no C++ compiler")
def test_compiled_networks_are_the_same_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    compiles = replace(QUICK, epochs=2, compiled="yes")
    monkeypatch.setattr(
        "edgepress.compress.training.torch_compile._WORTH", 0.0
    )  # keep it in any case
    found = trained(compiles)
    assert found.log["compiled"] == "yes"
    assert set(found.log["seconds_a_step"]) == {"float32", "float32, compiled"}
    plain = trained(replace(compiles, compiled="no"))
    assert plain.log["compiled"] == "no"
    assert list(found.module.state_dict()) == list(plain.module.state_dict())
    assert torch.allclose(weights(found.module), weights(plain.module), atol=1e-4)
    monkeypatch.setattr("edgepress.compress.training.torch_compile._WORTH", math.inf)
    slower = trained(compiles)
    assert slower.log["compiled"] == "no: it is no faster"
    assert torch.equal(weights(slower.module), weights(plain.module)), "trying leaves no trace"


def test_a_compiler_that_is_missing_or_fails_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compiles = replace(QUICK, epochs=1, compiled="yes")
    monkeypatch.setattr("edgepress.compress.training.torch_compile.shutil.which", lambda name: None)
    cpu = Processes.join("cpu")
    missing = trained(compiles, processes=cpu)
    assert missing.log["compiled"] == "no: there is no C++ compiler"
    monkeypatch.undo()

    def fails(*networks: nn.Module) -> None:
        raise RuntimeError("CppCompileError: no header\nand more")

    monkeypatch.setattr(
        "edgepress.compress.training.torch_compile.compiler_at_hand", lambda device: True
    )
    monkeypatch.setattr("edgepress.compress.training.torch_compile.compile_networks", fails)
    failed = trained(compiles, processes=cpu)
    assert failed.log["compiled"] == "no: RuntimeError: CppCompileError: no header"
    assert torch.equal(weights(failed.module), weights(missing.module))
    short = trained(replace(compiles, compiled="auto"), processes=cpu)
    assert short.log["compiled"] == "no", "not worth a minute of compiling"


@pytest.mark.skipif(sys.platform != "linux", reason="a matter of glibc")
def test_freed_memory_is_used_again() -> None:
    """In a process of its own: what other tests left free in the heap is taken before anything."""
    code = (
        "import resource, torch\n"
        "from edgepress.export.calibration.malloc_retention import malloc_retained\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(20):\n"
        "        torch.ones(2**20).sum()\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "with malloc_retained():\n"
        "    faults()\n"
        "    inside = faults()\n"
        "print(inside, faults())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    inside, after = map(int, done.stdout.split())
    assert inside < 1000, "4 MiB are a thousand pages"
    assert after > 10 * 1000, "and afterwards all is as before"


def test_copies_are_what_is_trained() -> None:
    student = net(6)
    held = copy.deepcopy(student)
    trained(student=student)
    assert torch.equal(weights(student), weights(held))
