"""Recipes with quantization-aware training: from a network that INT8 leaves short to a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
import torch
from torch import nn

from edgepress.__main__ import main
from edgepress.benchmarks import Images
from edgepress.benchmarks.tasks.task import Score
from edgepress.compress import Backbone, Prune, Recipe, compress
from edgepress.compress.evaluation.acceptance import EvaluatedCandidate, Verdict
from edgepress.compress.evaluation.score_drop import ScoreDrops
from edgepress.compress.quantization.fake_quantize import fake_quantizers
from edgepress.compress.quantization.qat_pass import QatTraining, held_against_ptq, replaces_ptq
from edgepress.compress.recipe.settings import Distil, Int8, Qat
from edgepress.compress.recipe_runner import _in_vain
from edgepress.compress.training.checkpoint_file import FILE
from edgepress.runtime import Bundle, InputError, Preprocessing
from helpers.compress_nets import NET

NETS = (
    NET
    + """
def uneven():
    \"\"\"One channel in eight is a hundred times as large as the others.\"\"\"
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.last.weight *= 40
        for at in range(0, 64, 8):
            net.norm.weight[at] *= 100
            net.norm.bias[at] *= 100
            net.second.weight[:, at] /= 100
    return net
"""
)
PLAIN = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
TOML = "mean = [0.5, 0.4, 0.3]\nstd = [0.2, 0.2, 0.2]\n"
QUICK = Qat(epochs=6, batch=32, lr=1e-4, layout="contiguous", tolerated=0.0)
PTQ = Int8(ranges="minmax", rounding=False, bias_correction=False, mixed=False)
RECIPE = Recipe("quick", (PTQ, QUICK))


def nets() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "nets"}
    exec(NETS, names)
    return names


def data(count: int = 800) -> Images:
    rng = np.random.default_rng(0)
    tint = rng.uniform(0, 1, (count, 1, 1, 3))
    x = (rng.uniform(0, 255, (count, 16, 16, 3)) * tint).astype(np.uint8)
    net = nets()["uneven"]()
    with torch.no_grad():
        scores = net(torch.from_numpy(PLAIN.tensor(list(x))))
        y = (scores - scores.mean(0)).argmax(1).numpy()
    return Images.from_arrays(x, y)


def model() -> nn.Module:
    """The uneven network, its classes of the same size."""
    net = nets()["uneven"]()
    images = data(400)
    with torch.no_grad():
        x = torch.from_numpy(PLAIN.tensor(list(images.pixels(range(400), PLAIN))))
        net.last.bias -= net(x).mean(0)
    return net


def made(folder: Path, **options: Any) -> Bundle:
    given: dict[str, Any] = {
        "recipe": RECIPE, "preprocessing": PLAIN, "max_drop": 100, "calibration_size": 20,
        "model": None, "data": None, **options,
    }  # fmt: skip
    return compress(
        given.pop("model") or model(), given.pop("data") or data(), out=folder / "out", **given
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with factories, a preprocessing, pictures and a quick recipe."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    (folder / "plain.toml").write_text(TOML, encoding="utf-8")
    images = data()
    np.savez(folder / "data.npz", x=images.pixels(range(len(images)), PLAIN), y=images.labels)
    (folder / "recipe.json").write_text(json.dumps(RECIPE.to_dict()), encoding="utf-8")
    torch.save(model().state_dict(), folder / "net.pt")
    return folder


# ---------------------------------------------------------------- what ships


@pytest.mark.slow
def test_what_int8_loses_is_trained_back_and_ships_after_a_stop(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in its third epoch; the command goes on and ships what scores better."""

    def stop(stage: str, done: int, total: int | None) -> None:
        if (stage, done) == ("training", 25):
            raise KeyboardInterrupt

    out, weights = tmp_path / "out", tmp_path / "trained.safetensors"
    options: dict[str, Any] = {
        "model": f"{home}/nets.py:uneven", "weights": f"{home}/net.pt", "data": f"{home}/data.npz",
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, progress=stop, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["out.training"]
    assert (tmp_path / "out.training" / "qat" / FILE).is_file()
    with pytest.raises(InputError) as refused:
        made(tmp_path, **options)
    assert refused.value.code == "E_EXISTS"
    with pytest.raises(SystemExit) as ended:
        main([
            "compress", options["model"], "--weights", options["weights"], "--data",
            options["data"], "--preprocessing", f"{home}/plain.toml", "--recipe",
            f"{home}/recipe.json", "--max-drop", "100", "--calibration-size", "20", "--out",
            str(out), "--weights-out", str(weights), "--resume", "--json",
        ])  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0, told
    bundle = Bundle.open(out)
    report: Any = bundle.recipe["reports"]
    assert [row["epoch"] for row in report[1]["training"]["epochs"]] == [1, 2, 3, 4, 5, 6]
    assert report[1]["quantizers"] == {"known_ranges": 4, "of": 4}
    assert set(report[1]["drop_on_selection"]) == {"as trained", "calibrated anew"}
    measured: Any = bundle.measurements
    plain, trained = measured["candidates"]
    assert [plain["name"], trained["name"]] == ["INT8", "INT8 with training"]
    assert trained["selection_score"]["value"] > plain["selection_score"]["value"] + 5
    assert trained["test_score"]["value"] > plain["test_score"]["value"] + 5
    assert trained["receipt"]["fused_int8"] == plain["receipt"]["fused_int8"] > 0
    assert not (tmp_path / "out.training").exists(), "the checkpoints go with the training"
    scores: Any = bundle.manifest.scores
    shipped = scores["result"]["value"] == trained["test_score"]["value"]  # hangs on the time, too
    assert weights.exists() is shipped
    if shipped:
        again = Backbone.open(options["model"], str(weights))
        assert set(again.module.state_dict()) == set(model().state_dict())


@pytest.mark.slow
@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_it_is_trained_in_the_dialect_of_another_engine(tmp_path: Path) -> None:
    bundle = made(tmp_path, target="openvino-cpu")
    measured: Any = bundle.measurements
    tried = {one["name"]: one for one in measured["candidates"]}
    plain, trained = tried["INT8"], tried["INT8 with training"]
    assert trained["selection_score"]["value"] > plain["selection_score"]["value"] + 5
    assert trained["test_score"]["value"] > plain["test_score"]["value"] + 5
    assert trained["receipt"]["fused_int8"] == plain["receipt"]["fused_int8"] > 0
    assert {one.engine for one in bundle.variants} == {"openvino"}


@pytest.mark.slow
def test_where_int8_is_good_enough_nothing_is_trained(tmp_path: Path) -> None:
    seen: list[str] = []
    recipe = Recipe("mine", (PTQ, replace(QUICK, tolerated=100.0)))
    bundle = made(
        tmp_path, recipe=recipe, target="tensorrt", unproven=True,
        progress=lambda stage, *_: seen.append(stage), weights_out=tmp_path / "w.safetensors",
    )  # fmt: skip
    reports: Any = bundle.recipe["reports"]
    assert set(reports[1]) == {"left_out"}
    assert any(note.startswith("qat was left out: ") for note in bundle.manifest.notes)
    assert any("no weights were written" in note for note in bundle.manifest.notes)
    assert "training" not in seen
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_a_training_of_the_users_own_gets_the_rounding_network(tmp_path: Path) -> None:
    images = data()
    x = torch.from_numpy(PLAIN.tensor(list(images.pixels(range(100), PLAIN))))
    seen: list[float] = []

    def finetune(student: nn.Module, teacher: nn.Module) -> nn.Module:
        assert student.training
        assert fake_quantizers(student)
        assert not fake_quantizers(teacher)
        optimizer = torch.optim.Adam(student.parameters(), 1e-5)
        for _ in range(5):
            value = (student(x) - teacher(x)).square().mean()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            seen.append(value.item())
        return student

    bundle = made(tmp_path, finetune=finetune, target="tensorrt", unproven=True)
    assert len(seen) == 5
    assert np.isfinite(seen).all()
    reports: Any = bundle.recipe["reports"]
    assert reports[1]["training"] == {"trained_by": "the user's own loop"}


# ---------------------------------------------------------------- decisions


def trial(
    selection: float | None, test: float, ratios: tuple[float, float] | None = None
) -> EvaluatedCandidate:
    """A trial with such scores and such an interval of its speed."""

    def score(value: float) -> Score:
        return Score("classification", value, "percent", 100)

    class Timed:
        ratio_low, ratio_high = ratios or (0.0, 0.0)
        faster = "a"

    class Made:
        changed, name = True, "INT8"

        class shipped:  # noqa: N801, an attribute
            model, emulated = b"", None

    outcome: Any = Made()
    comparison: Any = Timed() if ratios else None
    chosen = None if selection is None else score(selection)
    return EvaluatedCandidate(outcome, comparison, chosen, score(test), Verdict(True, ()))


def test_training_never_ships_where_int8_without_it_is_as_good() -> None:
    plain = trial(90.0, 91.0)
    assert held_against_ptq(trial(90.1, 80.0), plain).verdict.accepted
    for value in (90.0, 89.9):
        declined = held_against_ptq(trial(value, 99.0), plain).verdict
        assert not declined.accepted
        assert "training for INT8 brought nothing: on the selection" in declined.reasons[0]
    assert held_against_ptq(trial(None, 91.1), trial(None, 91.0)).verdict.accepted
    assert not held_against_ptq(trial(None, 91.0), trial(None, 91.0)).verdict.accepted


def test_what_scores_better_need_not_be_faster_but_not_slower() -> None:
    plain = trial(90, 90, (1.8, 1.9))
    assert replaces_ptq(trial(91, 91, (1.7, 1.85)), plain, plain)
    assert replaces_ptq(trial(91, 91, (1.7, 1.75)), plain, plain), "the noise between two timings"
    assert not replaces_ptq(trial(91, 91, (1.5, 1.6)), plain, plain)
    assert not replaces_ptq(trial(91, 91, (1.7, 1.85)), plain, trial(90, 90, (1.0, 1.1)))


def test_the_bound_is_the_narrower_of_what_is_tolerated_and_allowed(tmp_path: Path) -> None:
    recipe = Recipe("mine", (Int8(), Qat(tolerated=0.5)))
    tuner = QatTraining.of(recipe, None, tmp_path / "out", False, 0)
    assert tuner is not None
    plain = trial(90, 90, (1.8, 1.9))
    assert tuner.not_needed(plain, lambda _: 0.6, None) is None
    assert tuner.not_needed(plain, lambda _: 0.3, 0.2) is None
    told = tuner.not_needed(plain, lambda _: 0.3, 1.0)
    assert told is not None
    assert "loses 0.30 points" in told
    assert tuner.not_needed(plain, lambda _: 2.3, 1.0, 2.0) == told, "the student lost 2 before"
    assert tuner.not_needed(plain, lambda _: 1.1, 1.0, 0.9) is None, "together more than allowed"
    assert QatTraining.of(Recipe.open("int8"), None, tmp_path / "out", False, 0) is None


def test_what_a_student_lost_is_not_the_loss_of_int8() -> None:
    """Nor is it held against INT8 on pictures that the original knows by heart."""
    lost = {("f32", b"student"): 3.0, ("bf16", b"student"): 3.1, ("bf16", b"int8"): 3.4}
    graph: Any = SimpleNamespace(model=b"student")

    def dropping(floats: str) -> Callable[[bytes], float]:
        return lambda model: lost[floats, model]

    best = trial(90, 90, (1.8, 1.9))
    for seen in (None, replace(best, seen=Score("classification", 100, "percent", 100))):
        found = ScoreDrops.of(dropping, graph, seen, "bf16")
        assert found.judged(b"int8") - found.before == pytest.approx(0.4)
        assert found.before == (0.0 if seen else 3.0)


def test_what_is_not_faster_than_the_student_is_not_trained_for_int8() -> None:
    student, plain = trial(90, 90, (1.8, 1.9)), trial(89, 89, (1.8, 1.95))
    assert _in_vain(plain, plain) is None
    assert _in_vain(plain, None) is None
    assert _in_vain(replace(plain, verdict=Verdict(False, ("the score",))), student) is None
    assert "which no training changes" in str(_in_vain(plain, student))


# ---------------------------------------------------------------- refused


class Odd(nn.Module):
    """Nothing that NNCF could put a quantizer at."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs()[:, :, 0, 0]


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ({"data": 60}, "E_DATA", "pictures are left to train on"),
        ({"student": nn.Identity()}, "E_USAGE", "trains the original itself"),
        ({"model": Odd()}, "E_QUANTIZERS", "Odd"),
        ({"recipe": "int8-qat", "max_macs_ratio": 0.5}, "E_USAGE", "does not prune"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_nothing_is_written(
    tmp_path: Path, options: dict[str, Any], code: str, told: str
) -> None:
    given = dict(options)
    if "data" in given:
        given["data"] = data(given["data"])
    with pytest.raises(InputError, match=told) as refused:
        made(tmp_path, **given)
    assert refused.value.code == code
    assert not list(tmp_path.iterdir())


def test_an_onnx_file_cannot_be_trained(tmp_path: Path, tiny_classifier: Any) -> None:
    (tmp_path / "net.onnx").write_bytes(tiny_classifier())
    with pytest.raises(InputError, match="is an ONNX file") as refused:
        made(tmp_path, model=str(tmp_path / "net.onnx"))
    assert refused.value.code == "E_USAGE"
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="torchrun started several") as refused:
        made(tmp_path)
    assert refused.value.code == "E_USAGE"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    def spoilt(student: nn.Module, teacher: nn.Module) -> nn.Module:
        del teacher
        with torch.no_grad():
            student.get_parameter("last.bias")[0] = float("nan")
        return student

    with pytest.raises(InputError, match=r"'last\.bias' is not finite") as refused:
        made(tmp_path, finetune=spoilt, target="tensorrt", unproven=True)
    assert refused.value.code == "E_NAN"
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- recipes


def test_the_order_of_passes_and_the_length_of_the_training() -> None:
    recipe = Recipe("mine", (Prune(), Distil(), Int8(), Qat(lr=1e-3, tolerated=0.3)))
    assert Recipe.from_dict(recipe.to_dict(), "here") == recipe
    for wrong in ((Qat(),), (Distil(), Qat()), (Qat(), Int8()), (Int8(), Qat(), Qat())):
        with pytest.raises(InputError) as refused:
            Recipe("mine", wrong)
        assert refused.value.code == "E_RECIPE"
    for name in ("int8-qat", "distil-int8-qat", "prune-distil-int8-qat"):
        opened = Recipe.open(name)
        assert opened.name == name
        last = opened.trained_for(7, 2.0).passes[-1]
        assert isinstance(last, Qat)
        assert (last.epochs, last.max_minutes) == (7, 2.0)
    with pytest.raises(InputError, match=r"the pass 'qat' has tolerated = -1") as refused:
        Qat(tolerated=-1)
    assert refused.value.code == "E_RECIPE"
    with pytest.raises(InputError, match="the pass 'qat' has lr = -1") as refused:
        Recipe.from_dict({"pass": [{"kind": "int8"}, {"kind": "qat", "lr": -1.0}]}, "here")
    assert refused.value.code == "E_RECIPE"
