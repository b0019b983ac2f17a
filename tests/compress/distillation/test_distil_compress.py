"""The recipes that train: from a teacher, a smaller student and pictures to a bundle."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
import torch
from torch import nn

from edgepress.__main__ import main
from edgepress.benchmarks.tasks.task import Score
from edgepress.compress import Backbone, LogitLoss, Prune, Recipe
from edgepress.compress.channels.channel_surgery import ChannelCut
from edgepress.compress.channels.cut_history import CutStep, History, Pruned, apply_cut_step
from edgepress.compress.distillation.distil_pass import DistillationOptions, StudentTraining
from edgepress.compress.distillation.user_finetune import run_finetune
from edgepress.compress.evaluation.acceptance import has_seen
from edgepress.compress.training.processes import Processes
from edgepress.runtime import Bundle, InputError, Session
from helpers.compress_nets import NETS, PLAIN, QUICK, TOML, data, made, nets
from helpers.distil_nets import ON_CPU


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with factories, a preprocessing and pictures."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    (folder / "plain.toml").write_text(TOML, encoding="utf-8")
    images = data()
    x = images.pixels(range(200), PLAIN)
    np.savez(folder / "data.npz", x=x, y=images.labels)
    return folder


# ---------------------------------------------------------------- what ships


@pytest.mark.slow
def test_the_command_trains_a_student_quantizes_it_and_ships_the_faster(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    told_times: Callable[[Callable[[bytes], float]], None],
) -> None:
    from edgepress.compress.source.weights import load_weights

    told_times(lambda model: len(model) * (10 if b"QuantizeLinear" in model else 1))
    out, weights = tmp_path / "out", tmp_path / "student.safetensors"
    with pytest.raises(SystemExit) as ended:
        main([
            "compress", f"{home}/nets.py:teacher", "--data", f"{home}/data.npz",
            "--preprocessing", f"{home}/plain.toml", "--recipe", "distil-int8",
            "--student", f"{home}/nets.py:student", "--epochs", "2", "--max-drop", "100",
            "--calibration-size", "20", "--out", str(out), "--weights-out", str(weights),
            "--json",
        ])  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0, told
    bundle = Bundle.open(out)
    measured: Any = bundle.measurements
    student, int8 = measured["candidates"]
    assert [student["name"], int8["name"]] == ["the student", "INT8"]
    assert student["accepted"], student["reasons"]
    assert student["latency"]["speedup"] > 1.5
    assert bundle.recipe["student"] == "nets.py:student"
    reports: Any = bundle.recipe["reports"]
    training = reports[0]["training"]
    assert [row["epoch"] for row in training["epochs"]] == [1, 2]
    assert training["pictures"] == bundle.recipe["training_size"] == 64
    assert str(home) not in json.dumps(bundle.manifest.to_json().decode())
    assert not (tmp_path / "out.training").exists(), "the checkpoints go with the training"
    module = nets()["student"]()
    load_weights(module, str(weights))
    assert bundle.variants[0].precision == "float32", "INT8 was told to be slower"
    feeds = {"x": np.ones((2, 3, 16, 16), np.float32)}
    with Session.open(bundle) as session, torch.no_grad():
        wanted = module.eval()(torch.from_numpy(feeds["x"])).numpy()
        assert np.allclose(session.run(feeds)["output"], wanted, atol=1e-3)


@pytest.mark.slow
def test_a_training_of_the_users_own_takes_the_place_of_ours(
    tmp_path: Path, told_times: Callable[[Callable[[bytes], float]], None]
) -> None:
    """A bare loop with our loss, on pictures without labels."""
    told_times(len)
    images = data(labelled=False)
    x = torch.from_numpy(PLAIN.tensor(list(images.pixels(range(100), PLAIN))))
    seen: list[float] = []

    def finetune(student: nn.Module, teacher: nn.Module) -> nn.Module:
        assert student.training
        assert not teacher.training
        assert not any(one.requires_grad for one in teacher.parameters())
        loss, optimizer = LogitLoss(2.0), torch.optim.Adam(student.parameters(), 0.01)
        for _ in range(5):
            value = loss(student(x), teacher(x))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            seen.append(value.item())
        return student

    pupil, original = nets()["student"](), nets()["teacher"]()
    before = pupil.first.weight.clone()
    bundle = made(tmp_path, images, model=original, student=pupil, finetune=finetune)
    assert seen[-1] < seen[0]
    assert torch.equal(pupil.first.weight, before)
    assert all(one.requires_grad for one in original.parameters())
    reports: Any = bundle.recipe["reports"]
    assert reports[0]["training"] == {"trained_by": "the user's own loop"}
    assert not bundle.manifest.declined


@pytest.mark.filterwarnings("ignore")  # of Lightning itself, about workers and folders
def test_a_lightning_module_trains_a_student(tmp_path: Path) -> None:
    lightning = pytest.importorskip("pytorch_lightning")
    x = torch.from_numpy(PLAIN.tensor(list(data().pixels(range(64), PLAIN))))
    seen: list[float] = []

    class Distilling(lightning.LightningModule):
        def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
            super().__init__()
            self.student, self.teacher, self.loss = student, teacher, LogitLoss()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            with torch.no_grad():
                wanted = self.teacher(batch[0])
            loss = self.loss(self.student(batch[0]), wanted)
            seen.append(loss.item())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.student.parameters(), 0.01)

    def finetune(student: nn.Module, teacher: nn.Module) -> nn.Module:
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        dataset = torch.utils.data.TensorDataset(x)
        trainer.fit(
            Distilling(student, teacher), torch.utils.data.DataLoader(dataset, batch_size=16)
        )
        return student

    student = nets()["student"]()
    found = run_finetune(finetune, student, nets()["teacher"]())
    assert len(seen) == 8
    assert seen[-1] < seen[0]
    assert not torch.equal(found.get_parameter("last.weight"), student.last.weight)


def test_what_the_original_knows_by_heart_is_not_held_against_a_student() -> None:
    def score(value: float, count: int) -> Score:
        from edgepress.benchmarks.statistics import wilson

        low, high = wilson(int(value * count / 100), count)
        return Score("classification", value, "percent", count, 100 * low, 100 * high)

    assert has_seen(score(99.8, 2500), score(93.5, 5000))
    assert not has_seen(score(94.2, 2500), score(93.5, 5000))
    assert not has_seen(None, score(93.5, 5000))


@pytest.mark.slow
def test_a_pruned_network_is_trained_back_and_goes_on_with_the_same_cut(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told_times: Callable[[Callable[[bytes], float]], None],
) -> None:
    """Stopped in its second epoch; the cut is kept with the checkpoint."""
    told_times(len)
    recipe = Recipe("mine", (Prune(max_macs_ratio=0.4), QUICK))
    seen: list[str] = []

    def stop(stage: str, done: int, total: int | None) -> None:
        seen.append(stage)
        if (stage, done) == ("training", 3):
            raise KeyboardInterrupt

    options: dict[str, Any] = {
        "recipe": recipe,
        "student": None,
        "model": f"{home}/nets.py:teacher",
    }
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, progress=stop, **options)
    kept = tmp_path / "out.training"
    cut = (kept / "pruned.safetensors").read_bytes()
    for other, told in (
        ({"recipe": Recipe("mine", (Prune(max_macs_ratio=0.3), QUICK))}, "0.4, now 0.3"),
        ({"seed": 7}, "seed (0, now 7)"),
    ):
        with pytest.raises(InputError) as refused:
            made(tmp_path, resume=True, **{**options, **other})
        assert refused.value.code == "E_RESUME"
        assert told in refused.value.message
    (kept / "pruned.json").replace(kept / "held.json")
    (kept / "pruned.json").write_text("{}")
    with pytest.raises(InputError) as refused:
        made(tmp_path, resume=True, **options)
    assert refused.value.code == "E_WEIGHTS"
    (kept / "held.json").replace(kept / "pruned.json")
    seen.clear()
    finish = StudentTraining.finish

    def finished(pupil: StudentTraining, *, ships: bool) -> None:
        assert (tmp_path / "w.safetensors").exists(), "before the checkpoints go"
        finish(pupil, ships=ships)

    monkeypatch.setattr(StudentTraining, "finish", finished)
    bundle = made(
        tmp_path, resume=True, weights_out=tmp_path / "w.safetensors", **options,
        progress=lambda stage, done, total: seen.append(stage),
    )  # fmt: skip
    assert "scoring channels" not in seen, "the cut was kept"
    assert not bundle.manifest.declined
    assert not kept.exists()
    assert bundle.recipe["student"] == "nets.py:teacher, pruned"
    reports: Any = bundle.recipe["reports"]
    assert set(reports[0]) >= {"history"}
    assert [row["epoch"] for row in reports[1]["training"]["epochs"]] == [1, 2, 3]
    again = Backbone.open(f"{home}/nets.py:teacher", str(tmp_path / "w.safetensors"))
    assert cut != (tmp_path / "w.safetensors").read_bytes()
    feeds = {"x": np.ones((2, 3, 16, 16), np.float32)}
    with Session.open(bundle) as session, torch.no_grad():
        wanted = again.module(torch.from_numpy(feeds["x"])).numpy()
        assert np.allclose(session.run(feeds)["output"], wanted, atol=1e-3)


@dataclass(frozen=True)
class Told(Processes):
    """Keeps what is shared, or gives it to one that is not the first."""

    held: list[Any] = field(default_factory=list[Any])

    def share(self, value: object) -> Any:
        if self.first:
            self.held.append(value)
        return self.held[0]


def test_a_network_that_was_pruned_before_is_cut_again_from_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken up again, and in another process: the steps before are the teacher's own."""
    sides = (("first", "out"), ("norm", "out"), ("second", "in"))
    steps = [
        CutStep(tuple(ChannelCut(name, side, width, (2, 5)) for name, side in sides))
        for width in (8, 6)
    ]
    history = History((steps[0],), "nets.py:student")
    teacher = Backbone(history.apply(nets()["student"]()), "net", history=history)
    cut = Pruned(copy.deepcopy(teacher.module), history.then(steps[1]), {"said": 1})
    apply_cut_step(cut.module, steps[1])
    school = DistillationOptions.of(
        Recipe("mine", (Prune(), QUICK)), None, tmp_path / "out", True, 0
    )
    assert school is not None
    nothing: Any = None
    told = Told()
    first = StudentTraining(None, teacher, None, nothing, school, told)
    first.take(cut, {"seed": 0})
    again = first.cut_before({"seed": 0})
    assert again is not None
    assert (again.history, again.report) == (cut.history, cut.report)
    wanted = cut.module.state_dict()
    assert all(torch.equal(wanted[key], one) for key, one in again.module.state_dict().items())
    monkeypatch.setattr(StudentTraining, "_train", lambda *_: None)
    other = StudentTraining(None, teacher, None, nothing, school, Told(1, 2, held=told.held))
    other.go_along(lambda *_: None)
    student = other._student
    assert student is not None
    assert student.history == cut.history
    assert student.module.get_parameter("first.weight").shape[0] == 4


@pytest.mark.slow
def test_the_command_cuts_trains_back_and_quantizes(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([
            "compress", f"{home}/nets.py:teacher", "--data", f"{home}/data.npz",
            "--preprocessing", f"{home}/plain.toml", "--recipe", "prune-distil-int8",
            "--max-macs-ratio", "0.5", "--epochs", "2", "--max-drop", "100",
            "--calibration-size", "20", "--out", str(tmp_path / "out"), "--json",
        ])  # fmt: skip
    assert ended.value.code == 0
    made_: Any = json.loads(capsys.readouterr().out)
    tried = made_["measurements"]["candidates"]
    assert [one["name"] for one in tried] == ["the student", "INT8"]
    cut, trained, int8 = made_["recipe"]["reports"]
    assert cut["macs"]["result"] <= 0.5 * cut["macs"]["original"]
    assert [row["epoch"] for row in trained["training"]["epochs"]] == [1, 2]
    assert int8
    assert made_["recipe"]["student"] == "nets.py:teacher, pruned"


@pytest.mark.slow
def test_an_embedding_is_trained_back_by_its_neighbours(tmp_path: Path) -> None:
    """The best epoch is chosen by mAP, and the bundle says both scores."""
    images = data()
    where = {"task": "retrieval", "recipe": Recipe("mine", (Prune(max_macs_ratio=0.5), QUICK))}
    bundle = made(tmp_path, images, student=None, **where)
    reports: Any = bundle.recipe["reports"]
    assert reports[1]["training"]["chosen_by"] == "retrieval"
    scores: Any = bundle.scores
    for whose in ("original", "result"):
        assert scores[whose]["task"] == "retrieval"
        assert 0 < scores[whose]["value"] <= 100
        assert 0 < scores[whose]["details"]["rank1_percent"] <= 100


# ---------------------------------------------------------------- stopped, and on two processes


def words(home: Path, out: Path, *more: str) -> list[str]:
    recipe = out.parent / "recipe.toml"
    recipe.write_text(
        '[[pass]]\nkind = "distil"\nepochs = 4\nbatch = 32\nprecision = "float32"\n'
        'layout = "contiguous"\n'
    )
    return [
        "compress", f"{home}/nets.py:teacher", "--data", f"{home}/data.npz", "--preprocessing",
        f"{home}/plain.toml", "--recipe", str(recipe), "--student", f"{home}/nets.py:student",
        "--max-drop", "100", "--calibration-size", "20", "--out", str(out), *more,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_in_training_is_told_how_to_go_on(home: Path, tmp_path: Path) -> None:
    """The child sends itself the signal in the second epoch, as a terminal would."""
    code = (
        "import os, signal\n"
        "from edgepress.compress.training import loop\n"
        "judge, seen = loop.Training._judge, []\n"
        "def judged(self):\n"
        "    judge(self)\n"
        "    seen.append(1)\n"
        "    if len(seen) == 2:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "loop.Training._judge = judged\n"
        "from edgepress.__main__ import main\n"
        "main()\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, *words(home, tmp_path / "out")],
        capture_output=True, text=True, cwd=tmp_path, timeout=240, check=False,
    )  # fmt: skip
    assert child.returncode == 130, child.stderr
    assert "Traceback" not in child.stderr
    assert "--resume" in child.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as ended:
        main(words(home, tmp_path / "out"))
    assert ended.value.code == 2, "without --resume it is an error to begin anew"
    with pytest.raises(SystemExit) as ended:
        main(words(home, tmp_path / "out", "--resume"))
    assert ended.value.code == 0
    reports: Any = Bundle.open(tmp_path / "out").recipe["reports"]
    assert len(reports[0]["training"]["epochs"]) == 4


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo of POSIX")
@pytest.mark.parametrize("cuts", [False, True])
def test_under_torchrun_the_first_process_writes_the_bundle(
    home: Path, tmp_path: Path, cuts: bool
) -> None:
    given = words(home, tmp_path / "out")
    if cuts:  # out of the original, by the first process, and told to the other
        at = given.index("--student")
        given[at : at + 2] = ["--max-macs-ratio", "0.5"]
        given[given.index("--recipe") + 1] = "prune-distil"
        given += ["--epochs", "2"]
    child = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
         "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m", "edgepress", *given],
        capture_output=True, text=True, cwd=tmp_path, timeout=280, check=False,
        env={**os.environ, **ON_CPU},
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    bundle = Bundle.open(tmp_path / "out")
    reports: Any = bundle.recipe["reports"]
    assert reports[-1]["training"]["processes"] == 2
    measured: Any = bundle.measurements
    accepted = [one["accepted"] for one in measured["candidates"]]
    assert bundle.manifest.declined is not any(accepted), "which hangs on the time"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "recipe.toml"]
