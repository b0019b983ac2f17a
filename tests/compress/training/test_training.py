"""Training back: what it learns, that it can be stopped anywhere, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from torch import nn

from edgepress.benchmarks import Images, UserTask, task
from edgepress.compress.distillation.user_finetune import run_finetune
from edgepress.compress.recipe.settings import Distil
from edgepress.compress.source.weights import (
    load_weights,
    pack_tensors,
    save_weights,
    unpack_tensors,
)
from edgepress.compress.training.checkpoint_file import FILE, LOG
from edgepress.compress.training.loop import Training
from edgepress.compress.training.processes import Processes
from edgepress.compress.training.train import distil
from edgepress.runtime import InputError
from helpers.distil_nets import ON_CPU, QUICK, Net, data, net, teacher, trained, weights

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


@pytest.mark.parametrize(
    ("optimizer", "chosen"),
    [
        ("sgd", (("sgd", 0.01), ("sgd", 0.05))),
        ("adamw", (("adamw", 2e-4), ("adamw", 1e-3))),
        ("muon", (("muon", 0.003), ("muon", 0.03))),
        ("auto", (("sgd", 0.01), ("muon", 0.03))),
    ],
)
def test_what_a_student_knows_already_chooses_how_it_is_trained(
    optimizer: str, chosen: tuple[tuple[str, float], ...]
) -> None:
    knowing, other = teacher(), teacher()
    with torch.no_grad():
        knowing.last.weight *= 0.3  # of another size, but of one mind
        other.last.weight *= -1
    settings = Distil(epochs=1, batch=32, optimizer=optimizer, precision="float32")
    logs = [trained(settings, student=student).log for student in (knowing, other)]
    assert [(log["optimizer"], log["lr"]) for log in logs] == list(chosen)
    assert trained(replace(settings, lr=0.3), student=other).log["lr"] == 0.3


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


def stopped(folder: Path, step: int, **options: Any) -> None:
    def report(stage: str, done: int, total: int | None) -> None:
        if (stage, done) == ("training", step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(folder=folder, report=report, **options)


def test_what_trained_is_told_also_where_it_went_on_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = Processes.join("cpu")
    assert trained(processes=cpu).log["devices"] == ["CPU"]
    stopped(tmp_path, 6, processes=cpu)
    held = json.loads(unpack_tensors(str(tmp_path / FILE))[1]["edgepress.training"])
    assert held["state"]["devices"] == ["CPU"]
    monkeypatch.setattr(Training, "device_name", "NVIDIA H200")
    resumed = trained(folder=tmp_path, resume=True)
    assert resumed.log["devices"] == ["CPU", "NVIDIA H200"]
    monkeypatch.setattr(Training, "device_name", "another")
    again = trained(folder=tmp_path, resume=True)
    assert again.log["devices"] == ["CPU", "NVIDIA H200"], "it had ended: nothing was trained"
    assert torch.equal(weights(again.module), weights(resumed.module))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("settings", [QUICK, Distil(epochs=4, batch=32, lr=0.1, zoom=0.5, mix=0.5)])
def test_a_gpu_trains_and_the_cpu_goes_on(tmp_path: Path, settings: Distil) -> None:
    gpu, cpu = Processes.join(), Processes.join("cpu")
    name = torch.cuda.get_device_name(gpu.device)
    whole = trained(settings, processes=gpu)
    assert whole.log["devices"] == [name]
    assert {one.device.type for one in whole.module.parameters()} == {"cpu"}
    stopped(tmp_path, 6, settings=settings, processes=gpu)
    resumed = trained(settings, folder=tmp_path, resume=True, processes=cpu)
    assert resumed.log["devices"] == [name, "CPU"]
    if settings == QUICK:
        alone = trained(settings, processes=cpu)
        for one in (whole, resumed):
            assert torch.allclose(weights(one.module), weights(alone.module), atol=2e-3)


def test_a_checkpoint_in_mid_epoch_is_gone_on_from_at_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepress.compress.training import checkpointing

    whole = trained()
    monkeypatch.setattr(checkpointing, "_BETWEEN_S", 0.0)
    monkeypatch.setattr(checkpointing, "_WRITING", 0)
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


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_what_is_read_back_is_laid_out_as_the_weights_are(tmp_path: Path, optimizer: str) -> None:
    """Fused steps look at no strides: a momentum laid out otherwise is that of other weights."""
    settings = Distil(epochs=4, batch=32, optimizer=optimizer, precision="float32",
                      layout="channels_last")  # fmt: skip
    whole = trained(settings, student=net(8))

    def report(stage: str, done: int, total: int | None) -> None:
        if (stage, done) == ("training", 9):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(settings, student=net(8), folder=tmp_path, report=report)
    resumed = trained(settings, student=net(8), folder=tmp_path, resume=True)
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
    tensors, texts = unpack_tensors(str(tmp_path / FILE))
    held = json.loads(texts["edgepress.training"])
    del held["identity"]["settings"]["mix"]  # as written before there was such a setting
    text = {"edgepress.training": json.dumps(held)}
    before = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(pack_tensors(tensors, text))
    with pytest.raises(InputError, match=r"mix \(None, now 0.0\)") as refused:
        trained(folder=tmp_path, resume=True)
    assert refused.value.code == "E_RESUME"
    (tmp_path / FILE).write_bytes(before)
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
from pathlib import Path
from helpers.distil_nets import Distil, trained, weights
from edgepress.compress.training import checkpointing
if {often}:
    checkpointing._BETWEEN_S, checkpointing._WRITING = 0.0, 0
settings = Distil(epochs={epochs}, batch=32, lr=0.1, precision="float32", layout="contiguous")
def report(stage, done, total):
    if (stage, done) == ("training", {stop}):
        sys.exit(9)
once = {{}} if Path({folder!r}).exists() else {{"report": report}}
found = trained(settings, folder=Path({folder!r}), resume=True, **once)
told = {{"epochs": found.log["epochs"], "processes": found.log["processes"],
         "weights": weights(found.module).tolist()}}
import os
if os.environ.get("RANK", "0") == "0":
    Path({out!r}).write_text(json.dumps(told))
"""


def script(tmp_path: Path, name: str, epochs: int, stop: int = 0, often: bool = False) -> Path:
    file = tmp_path / f"{name}.py"
    file.write_text(
        SCRIPT.format(
            tests=str(Path(__file__).parents[2]), folder=str(tmp_path / f"{name}.training"),
            out=str(tmp_path / f"{name}.json"), epochs=epochs, stop=stop, often=often,
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


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(InputError, match="2 processes were started") as refused:
            Processes.join()
        assert refused.value.code == "E_PROCESS"
        assert "CUDA_VISIBLE_DEVICES=" in refused.value.mend


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo of POSIX")
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    """Stopped in mid-epoch, a checkpoint after every step, and taken up again by both."""
    file = script(tmp_path, "two", 4, stop=10, often=True)
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
             "--master-addr=127.0.0.1", "--master-port=0", "--rdzv-backend=c10d",
             "--rdzv-endpoint=127.0.0.1:0", str(file)]  # fmt: skip
    for status in (1, 0):
        child = subprocess.run(words, timeout=240, env={**os.environ, **ON_CPU}, check=False)
        assert child.returncode == status
        assert (tmp_path / "two.training" / FILE).exists()
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


def test_weights_that_a_finite_loss_spoils_are_never_kept(tmp_path: Path) -> None:
    """The gradient of a root at 0 is not finite, the root is."""

    class Rooted(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given = super().forward(x)
            calls.append(self.training)
            return given + (self.first.bias * 0).abs().sum().sqrt() if sum(calls) > limit else given

    calls: list[bool] = []
    limit = 9  # the last step of the second epoch; two more are tried beforehand
    torch.manual_seed(0)
    student = Rooted(6)
    with pytest.raises(InputError, match=r"epoch 2, step 4: the student's weight") as refused:
        trained(student=student, folder=tmp_path)
    assert refused.value.code == "E_DIVERGED"
    assert str(tmp_path) in refused.value.mend
    tensors, _ = unpack_tensors(str(tmp_path / FILE))
    assert all(bool(torch.isfinite(one).all()) for one in tensors.values())
    limit = 10**9
    assert len(trained(student=student, folder=tmp_path, resume=True).log["epochs"]) == 4
    calls.clear()
    limit = 0
    with pytest.raises(InputError, match="epoch 1, step 1"):
        trained(student=student, images=data()[0].take(range(32)))


def test_an_infinite_mask_is_no_weight_that_is_spoilt(tmp_path: Path) -> None:
    class Masked(Net):
        """Each class sees those before it, as a causal attention does."""

        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given = super().forward(x)
            seen = (given[:, :, None] * given[:, None] + self.mask).softmax(-1)
            return given + (seen @ given[:, :, None])[..., 0]

    torch.manual_seed(0)
    student, file = Masked(6), tmp_path / "w.safetensors"
    found = trained(student=student, settings=replace(QUICK, epochs=2)).module
    assert torch.equal(found.get_buffer("mask"), student.get_buffer("mask"))
    assert all(bool(torch.isfinite(one).all()) for one in found.parameters())
    assert run_finetune(lambda ours, _: ours, found, teacher()) is not found
    save_weights(found, file)
    load_weights(student, str(file))
    assert torch.equal(weights(student), weights(found))
    found.get_buffer("mask")[0, 0] = math.nan
    save_weights(found, file, force=True)
    with pytest.raises(InputError, match="'mask' in") as refused:
        load_weights(student, str(file))
    assert refused.value.code == "E_NAN"


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
