"""Training back: what it learns, that it can be stopped anywhere, and what it refuses."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from torch import nn

from edgepress.benchmarks import Images, UserTask, task
from edgepress.compress.recipe import Distil
from edgepress.compress.training import Trained, distil
from edgepress.compress.training.augment import Draws, blended, changed, kept_share, moved
from edgepress.compress.training.averaging import Average
from edgepress.compress.training.checkpoint import FILE, LOG
from edgepress.compress.training.pool import Pool
from edgepress.compress.training.schedule import Clock, learning_rate
from edgepress.compress.training.ways import Way, candidates, choose
from edgepress.runtime import InputError, Preprocessing

PLAIN = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
QUICK = Distil(epochs=4, batch=32, lr=0.1, precision="float32", layout="contiguous")


class Net(nn.Module):
    """Without normalization over the batch, so that several processes compute the same."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, 2, 1)
        self.second = nn.Conv2d(width, width, 3, 2, 1)
        self.drop = nn.Dropout(dropout)
        self.last = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.last(self.drop(x.mean((2, 3))))


def net(width: int, seed: int = 0, **options: Any) -> Net:
    torch.manual_seed(seed)
    return Net(width, **options)


def pictures(count: int = 160) -> Any:
    rng = np.random.default_rng(0)
    tint = rng.uniform(0, 1, (count, 1, 1, 3))
    return (rng.uniform(0, 255, (count, 8, 8, 3)) * tint).astype(np.uint8)


def teacher() -> Net:
    """Sure of itself, and of four classes."""
    made = net(24, 1).eval()
    with torch.no_grad():
        made.last.weight *= 40
        made.last.bias -= made(torch.from_numpy(PLAIN.tensor(list(pictures())))).mean(0)
    return made


def data(labelled: bool = True, count: int = 160) -> tuple[Images, Images]:
    """Training and selection pictures, labelled by the teacher."""
    x = pictures(count)
    with torch.no_grad():
        y = teacher()(torch.from_numpy(PLAIN.tensor(list(x)))).argmax(1).numpy()
    images = Images.from_arrays(x, y if labelled else None)
    return images.take(range(count - 32)), images.take(range(count - 32, count))


def trained(settings: Distil = QUICK, labelled: bool = True, **options: Any) -> Trained:
    images, selection = data(labelled)
    given: dict[str, Any] = {
        "student": net(6),
        "teacher": teacher(),
        "images": images,
        "selection": selection,
        "task": task("classification" if labelled else "agreement"),
        "preprocessing": PLAIN,
        **options,
    }
    return distil(given.pop("student"), given.pop("teacher"), given.pop("images"),
                  settings=settings, **given)  # fmt: skip


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in module.state_dict().values()])


# ---------------------------------------------------------------- what it learns


@pytest.mark.parametrize("labelled", [True, False])
def test_a_student_comes_nearer_to_its_teacher_and_nothing_given_is_changed(labelled: bool) -> None:
    student, original = net(6), teacher().train()
    before, was = weights(student).clone(), weights(original).clone()
    state = torch.random.get_rng_state()
    found = trained(
        Distil(epochs=12, batch=32, lr=0.1, precision="float32", layout="contiguous"),
        labelled, student=student, teacher=original,
    )  # fmt: skip
    first, best = found.log["epochs"][0], found.log["best"]
    assert best["selection"] > first["selection"]
    assert found.log["epochs"][-1]["loss"]["outputs"] < 0.7 * first["loss"]["outputs"]
    assert ("labels" in best["loss"]) is labelled
    assert found.log["chosen_by"] == ("classification" if labelled else "agreement")
    assert torch.equal(weights(student), before)
    assert torch.equal(weights(original), was)
    assert original.training
    assert not found.module.training
    assert not torch.equal(weights(found.module), before)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers go on"
    assert any("128 pictures only" in note for note in found.notes)


class Two(nn.Module):
    """Two inputs; a dict with a tuple in it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, width, 3, padding=1)
        self.neck = nn.Conv2d(width, 8, 3, padding=1)
        self.unused = nn.Linear(2, 2)

    def forward(self, image: torch.Tensor, weight: torch.Tensor) -> dict[str, Any]:
        maps = torch.relu(self.neck(torch.relu(self.backbone(image)))) * weight[:, :, None, None]
        return {"map": maps, "rest": (maps.mean((1, 2, 3)), maps.argmax(1))}


def tensors(count: int = 40, bad: bool = False) -> Images:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(count, 3, 8, 8)).astype(np.float32)
    if bad:
        image[7, 0, 0, 0] = math.nan
    return Images.of([{"image": image, "weight": np.ones((count, 1), np.float32)}])


@pytest.mark.parametrize("taps", [(), ("backbone", "neck=neck")])
def test_several_inputs_and_outputs_and_features_alone(taps: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    student, original = Two(4), Two(9)
    settings = Distil(
        epochs=6, batch=8, lr=0.05, taps=taps, outputs_weight=0.0 if taps else 1.0,
        precision="float32", layout="contiguous",
    )  # fmt: skip
    images = tensors()
    found = distil(
        student, original, images, selection=images, task=task("agreement"), settings=settings
    )
    terms = [set(row["loss"]) for row in found.log["epochs"]]
    assert terms == [{"features"} if taps else {"outputs"}] * 6
    losses = [sum(row["loss"].values()) for row in found.log["epochs"]]
    assert losses[-1] < 0.9 * losses[0]
    assert set(found.module.state_dict()) == set(student.state_dict()), "adapters are thrown away"


def test_a_score_of_the_users_own_is_not_asked_for_the_best_epoch() -> None:
    asked: list[int] = []

    def own(run: Any) -> float:
        asked.append(1)
        return 0.0

    found = trained(task=UserTask(own))
    assert not asked
    assert found.log["chosen_by"] == "agreement"
    assert any("judges other samples" in note for note in found.notes)


def test_frozen_parameters_stay_and_are_named() -> None:
    student = net(6)
    student.first.requires_grad_(False)
    found = trained(student=student)
    assert torch.equal(found.module.get_parameter("first.weight"), student.first.weight)
    assert not found.module.get_parameter("first.weight").requires_grad
    assert found.module.get_parameter("last.weight").requires_grad
    assert any("2 of 6 parameters are frozen" in note and "first.bias" in note
               for note in found.notes)  # fmt: skip


def test_adamw_and_every_augmentation_run_in_the_fastest_way_here() -> None:
    settings = Distil(
        epochs=2, batch=32, optimizer="adamw", lr=3e-3, average=0.0, zoom=0.5, colour=0.3, mix=0.5,
    )  # fmt: skip
    found = trained(settings, student=net(6, dropout=0.3))
    assert set(found.log["seconds_a_step"]) == {
        "float32", "float32, channels last", "bfloat16, channels last",
    }  # fmt: skip
    assert found.log["way"] in found.log["seconds_a_step"]
    assert all(math.isfinite(row["loss"]["outputs"]) for row in found.log["epochs"])
    assert all(one.is_contiguous() for one in found.module.parameters())


# ---------------------------------------------------------------- the same again


def test_the_seed_decides_and_a_stop_in_mid_epoch_changes_nothing(tmp_path: Path) -> None:
    student = net(6, dropout=0.2)
    whole = trained(student=student)
    other = trained(student=student, seed=1)
    assert not torch.allclose(weights(whole.module), weights(other.module), atol=1e-4)
    folder = tmp_path / "training"

    def stop_at(step: int) -> Callable[[str, int, int | None], None]:
        def report(stage: str, done: int, total: int | None) -> None:
            if (stage, done) == ("training", step):
                raise KeyboardInterrupt

        return report

    for step in (3, 6, 13):
        with pytest.raises(KeyboardInterrupt):
            trained(student=student, folder=folder, resume=step > 3, report=stop_at(step))
        assert (folder / FILE).exists() is (step > 3), "written after an epoch of four steps"
    with pytest.raises(InputError) as refused:
        trained(student=student, folder=folder)
    assert refused.value.code == "E_EXISTS"
    resumed = trained(student=student, folder=folder, resume=True)
    assert torch.allclose(weights(resumed.module), weights(whole.module), atol=1e-6)
    for before, after in zip(whole.log["epochs"], resumed.log["epochs"], strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-4)
    assert json.loads((folder / LOG).read_text())["epochs"] == resumed.log["epochs"]


def test_a_checkpoint_in_mid_epoch_is_gone_on_from_at_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepress.compress.training import keeping

    whole = trained()
    monkeypatch.setattr(keeping, "_BETWEEN_S", 0.0)
    monkeypatch.setattr(keeping, "_WRITING", 0)
    seen: list[int] = []

    def report(stage: str, done: int, total: int | None) -> None:
        if stage == "training":
            seen.append(done)
            if done == 7 and len(seen) == 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(folder=tmp_path, report=report)
    resumed = trained(folder=tmp_path, resume=True, report=report)
    assert seen == [1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    assert torch.allclose(weights(resumed.module), weights(whole.module), atol=1e-6)


def test_a_checkpoint_of_something_else_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    trained(folder=tmp_path)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"student": net(5)}, "student"),
        ({"seed": 3}, "seed"),
        ({"settings": Distil(epochs=4, batch=16)}, r"batch \(32, now 16\)"),
    ]
    for changed_, told in cases:
        with pytest.raises(InputError, match=told) as refused:
            trained(**changed_, folder=tmp_path, resume=True)
        assert refused.value.code == "E_RESUME"
    again = trained(folder=tmp_path, resume=True)
    assert len(again.log["epochs"]) == 4, "a training that ended is only taken out"
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-9])
    with pytest.raises(InputError) as refused:
        trained(folder=tmp_path, resume=True)
    assert refused.value.code == "E_WEIGHTS"


SCRIPT = """
import json, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_distil_training import QUICK, Distil, trained, weights, Path
settings = Distil(epochs={epochs}, batch=32, lr=0.1, precision="float32", layout="contiguous")
found = trained(settings, folder=Path({folder!r}), resume=True)
told = {{"epochs": found.log["epochs"], "processes": found.log["processes"],
         "weights": weights(found.module).tolist()}}
import os
if os.environ.get("RANK", "0") == "0":
    Path({out!r}).write_text(json.dumps(told))
"""


def script(tmp_path: Path, name: str, epochs: int) -> Path:
    file = tmp_path / f"{name}.py"
    file.write_text(
        SCRIPT.format(
            tests=str(Path(__file__).parent), folder=str(tmp_path / f"{name}.training"),
            out=str(tmp_path / f"{name}.json"), epochs=epochs,
        )
    )  # fmt: skip
    return file


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_training_that_was_killed_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    file, folder = script(tmp_path, "killed", 16), tmp_path / "killed.training"
    child = subprocess.Popen([sys.executable, str(file)], start_new_session=True)
    end = time.monotonic() + 120
    while not (folder / LOG).exists() and child.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "killed.json").exists(), "it was killed before it ended"
    subprocess.run([sys.executable, str(file)], check=True, timeout=240)
    found = json.loads((tmp_path / "killed.json").read_text())
    settings = Distil(epochs=16, batch=32, lr=0.1, precision="float32", layout="contiguous")
    whole = trained(settings)
    assert len(found["epochs"]) == 16
    assert np.allclose(found["weights"], weights(whole.module).tolist(), atol=1e-3)
    assert not list(folder.glob(".*.part"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo of POSIX")
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    file = script(tmp_path, "two", 4)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
         "--master-addr=127.0.0.1", "--master-port=0", "--rdzv-backend=c10d",
         "--rdzv-endpoint=127.0.0.1:0", str(file)],
        check=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = json.loads((tmp_path / "two.json").read_text())
    assert found["processes"] == 2
    whole = trained()
    for one, two in zip(whole.log["epochs"], found["epochs"], strict=True):
        assert two["selection"] == pytest.approx(one["selection"], abs=7)
        assert two["steps"] == one["steps"]
    assert np.allclose(found["weights"], weights(whole.module).tolist(), atol=1e-3)


# ---------------------------------------------------------------- what goes wrong


def test_a_loss_that_is_no_number_stops_it_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    class Fragile(Net):
        """Overflows once its weights have moved."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return super().forward(x) * (math.inf if self.training and len(calls) > limit else 1)

    calls: list[int] = []
    limit = 10
    torch.manual_seed(0)
    student = Fragile(6)
    with pytest.raises(InputError, match=r"epoch \d+, step \d+: the loss on outputs") as refused:
        trained(student=student, folder=tmp_path)
    assert refused.value.code == "E_DIVERGED"
    assert "first module of the student to give such values is ''" not in refused.value.message
    assert str(tmp_path) in refused.value.mend
    limit = 10**9
    assert len(trained(student=student, folder=tmp_path, resume=True).log["epochs"]) == 4


def test_where_it_diverged_is_told(tmp_path: Path) -> None:
    wild = Distil(epochs=4, batch=32, lr=1000.0, warmup=0.0, precision="float32",
                  layout="contiguous")  # fmt: skip
    student = net(6)
    with torch.no_grad():
        student.second.weight *= 1e18
        student.first.weight *= 1e18
        student.last.weight *= 1e3
    with pytest.raises(InputError, match="module of the student to give such values is") as refused:
        trained(wild, student=student)
    assert refused.value.code == "E_DIVERGED"
    assert "No checkpoint" in refused.value.mend
    torch.manual_seed(0)
    images = tensors(bad=True)
    with pytest.raises(InputError, match="input 'image' is not finite") as refused:
        distil(Two(4), Two(6), images, selection=tensors(), task=task("agreement"),
               settings=Distil(batch=40, precision="float32"))  # fmt: skip
    assert refused.value.code == "E_DIVERGED"


def broken_teacher() -> Net:
    made = teacher()
    with torch.no_grad():
        made.last.bias[1] = math.nan
    return made


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ({"images": data()[0].take(range(15))}, "E_DATA", "15 pictures are left"),
        ({"student": net(6).requires_grad_(False)}, "E_FROZEN", "none of the student's 6"),
        ({"teacher": broken_teacher()}, "E_NAN", "output 'output' is not finite"),
        ({"student": nn.Sequential(nn.Conv2d(3, 4, 1))}, "E_STUDENT", "the student's outputs are"),
        ({"student": nn.Sequential(nn.Conv2d(1, 4, 1))}, "E_FORWARD", "the student refuses"),
        ({"settings": Distil(taps=("secnd",))}, "E_TAP", "no module 'secnd'"),
        ({"settings": Distil(outputs_weight=0.0, labels_weight=0.0)}, "E_STUDENT", "nothing"),
        ({"preprocessing": None}, "E_PREPROCESSING", "preprocessing"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], code: str, told: str
) -> None:
    with pytest.raises(InputError, match=told) as refused:
        trained(**options, folder=tmp_path / "training")
    assert refused.value.code == code
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "values", [{"epochs": 0}, {"lr": math.nan}, {"crop": 0.7}, {"average": 1.0}, {"batch": 1}]
)
def test_settings_that_cannot_be_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(values))) as refused:
        Distil(**values)
    assert refused.value.code == "E_RECIPE"


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
    found = moved(x, settings, draws)
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
    assert moved(x, still, Draws.of(still, 400, torch.Generator())) is x


def test_zoom_colour_and_blending_keep_what_they_should() -> None:
    x = torch.from_numpy(pictures(32)).permute(0, 3, 1, 2).float()
    calm = Distil()
    draws = Draws.of(calm, 32, torch.Generator().manual_seed(0))
    assert changed(x, calm, draws) is x
    assert blended(x, draws) is x
    flat = torch.full((32, 3, 8, 8), 100.0)
    strong = Distil(zoom=0.6, colour=0.4, mix=1.0)
    draws = Draws.of(strong, 32, torch.Generator().manual_seed(0))
    found = changed(flat, strong, draws)
    assert torch.allclose(found.mean((1, 2, 3)), 100 * (1 + 0.4 * draws.colour[:, 0]), atol=1e-2)
    assert float(changed(x, strong, draws).min()) >= 0
    mixed, kept = blended(x, draws), kept_share(draws)
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
        for kept in (True, False):
            pool = Pool(images, images.specs(["x"]), how, still, lambda *_: None)
            if not kept:
                pool._kept = None
            draws = Draws.of(still, 3, torch.Generator())
            first = pool.batch(rows, draws, rows.flip(0))
            ahead = pool.batch(rows.flip(0), draws)
            pool.close()
            assert np.allclose(first.feeds["x"].numpy(), wanted, atol=1e-5)
            assert torch.equal(ahead.feeds["x"], first.feeds["x"].flip(0))


def test_the_rate_rises_and_falls_and_a_limit_of_time_shortens_it() -> None:
    assert learning_rate(0.05, 0.1) == pytest.approx(0.5)
    assert learning_rate(0.1, 0.1) == 1
    assert learning_rate(0.55, 0.1) == pytest.approx(0.5)
    assert learning_rate(1.0, 0.1) == pytest.approx(0)
    assert 0 < learning_rate(0.0, 0.1) < 0.01
    clock = Clock(100)
    clock.start()
    for _ in range(100):
        clock.stepped(clock.left())
    assert clock.left() == 0
    assert clock.progress == pytest.approx(1)
    short = Clock(1000, limit_s=10.0, done=10, spent_s=4.0, step_s=0.1, progress=0.01)
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
    clock = Clock(100_000, limit_s=2000.0)
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
    average = Average(network, 0.5)
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
        early = Average(nn.Linear(1, 1), decay)
        early._network.weight.data.fill_(10.0)
        start = early.network.weight.item()
        early.update(0)
        share = 0.0 if decay == 0 else 0.1
        assert early.network.weight.item() == pytest.approx(share * start + (1 - share) * 10)


def test_ways_that_fail_or_do_not_pay_are_left() -> None:
    module = nn.Conv2d(3, 4, 3)
    assert [str(one) for one in candidates(Distil(), module)] == [
        "float32", "float32, channels last", "bfloat16, channels last",
    ]  # fmt: skip
    assert [str(one) for one in candidates(Distil(), nn.Linear(2, 2))] == ["float32", "bfloat16"]
    fixed = Distil(precision="bfloat16", layout="contiguous")
    assert candidates(fixed, module) == [Way(True, False)]

    def step(tried: nn.Module, way: Way) -> None:
        assert tried is not module
        if way.bfloat16:
            raise RuntimeError("no such kernel")
        time.sleep(0.001 if way.channels_last else 0.05)

    settled: list[Way] = []
    way, took = choose(candidates(Distil(), module), module, settled.append, step)
    assert way == Way(False, True)
    assert list(took) == ["float32", "float32, channels last"]
    assert settled[3:] == [Way(), way] * 3, "in turns"
    with pytest.raises(InputError, match="no such kernel") as refused:
        choose([Way(True, True)], module, settled.append, step)
    assert refused.value.code == "E_TRAINING"


def test_copies_are_what_is_trained() -> None:
    student = net(6)
    held = copy.deepcopy(student)
    trained(student=student)
    assert torch.equal(weights(student), weights(held))
