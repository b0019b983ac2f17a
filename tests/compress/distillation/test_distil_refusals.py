"""The recipes that train: what they refuse, before the work and after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
import torch
from torch import nn

from edgepress.benchmarks import Verification
from edgepress.compress import Prune, Recipe
from edgepress.compress.distillation.distil_pass import DistillationOptions
from edgepress.compress.distillation.user_finetune import run_finetune
from edgepress.compress.recipe.settings import Distil, Int8
from edgepress.runtime import BoundError, InputError
from helpers.compress_nets import QUICK, data, made, nets

# ---------------------------------------------------------------- refused


def no_module(student: nn.Module, teacher: nn.Module) -> Any:
    del student, teacher


def another(student: nn.Module, teacher: nn.Module) -> Any:
    del student
    return teacher


def spoilt(student: nn.Module, teacher: nn.Module) -> Any:
    del teacher
    with torch.no_grad():
        student.get_parameter("last.bias")[0] = float("nan")
    return student


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ({"student": None}, "E_USAGE", "there is none"),
        ({"recipe": "prune-distil", "max_macs_ratio": 0.5}, "E_USAGE", "cuts its student out of"),
        (
            {"recipe": "prune-distil", "max_macs_ratio": 0.5, "student": None,
             "student_weights": "w.pt"},
            "E_USAGE", "and weights for another one were given",
        ),
        ({"recipe": "int8"}, "E_USAGE", "trains nothing, and student was given"),
        (
            {"recipe": "int8", "student": None, "weights_out": "w.safetensors"},
            "E_USAGE", "neither prunes nor trains",
        ),
        ({"recipe": "float32", "student": None, "resume": True}, "E_USAGE", "resume"),
        ({"finetune": no_module}, "E_FINETUNE", "gave None"),
        ({"student": "other"}, "E_STUDENT", "the student's outputs"),
        ({"student": "renamed"}, "E_STUDENT", "the student's inputs are picture"),
        ({"images": data().take(range(40))}, "E_DATA", "pictures are left to train on"),
        ({"images": data(False), "task": "classification"}, "E_DATA", "needs labels"),
        ({"weights_out": "weights.pt"}, "E_USAGE", "does not end in .safetensors"),
        ({"recipe": Recipe("r", (Distil(taps=("nothing",)),))}, "E_TAP", "no module 'nothing'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_nothing_is_written(
    tmp_path: Path, options: dict[str, Any], code: str, told: str
) -> None:
    given = dict(options)
    if isinstance(given.get("student"), str):
        given["student"] = nets()[given["student"]]()
    with pytest.raises(InputError, match=told) as refused:
        made(tmp_path, given.pop("images", None), **given)
    assert refused.value.code == code
    assert not list(tmp_path.iterdir())


def test_too_few_pictures_to_choose_by_are_told_before_the_training(tmp_path: Path) -> None:
    """Those of the test are enough; the selection's share is not."""
    seen: list[str] = []
    with pytest.raises(InputError, match="36 pictures give") as refused:
        made(
            tmp_path, task=Verification(far=0.01), test_data=data(),
            progress=lambda stage, *_: seen.append(stage),
        )  # fmt: skip
    assert refused.value.code == "E_DATA"
    assert "training" not in seen
    assert not list(tmp_path.iterdir())


def test_what_a_training_of_the_users_own_may_not_give() -> None:
    cases: list[tuple[Any, str, str]] = [
        (another, "E_FINETUNE", r"first.bias is \(96,\), was \(8,\)"),
        (spoilt, "E_NAN", "'last.bias' is not finite"),
        (lambda student, teacher: 3, "E_FINETUNE", "gave a int"),
    ]
    student, teacher = nets()["student"](), nets()["teacher"]()
    for finetune, code, told in cases:
        with pytest.raises(InputError, match=told) as refused:
            run_finetune(finetune, student, teacher)
        assert refused.value.code == code
    wrapped = run_finetune(lambda ours, _: nn.DataParallel(ours), student, teacher)
    assert type(wrapped).__name__ == "Net"
    assert not wrapped.training
    with pytest.raises(ZeroDivisionError):
        run_finetune(lambda ours, theirs: 1 / 0, student, teacher)


@pytest.mark.parametrize("name", ["pruned.safetensors", "training.safetensors"])
def test_a_training_that_did_not_end_is_never_begun_over(tmp_path: Path, name: str) -> None:
    """A new cut would leave the checkpoint without its network."""
    recipe = Recipe("mine", (Prune(max_macs_ratio=0.4), QUICK))
    folder = tmp_path / "out.training"
    folder.mkdir()
    (folder / name).write_bytes(b"kept")
    seen: list[str] = []
    with pytest.raises(InputError, match="did not end") as refused:
        made(tmp_path, recipe=recipe, student=None, progress=lambda stage, *_: seen.append(stage))
    assert refused.value.code == "E_EXISTS"
    assert not seen, "no work was done"
    assert (folder / name).read_bytes() == b"kept"
    for finetune, resume in ((another, False), (None, True)):
        assert DistillationOptions.of(recipe, finetune, tmp_path / "out", resume, 0) is not None


def test_an_onnx_file_is_no_teacher_and_no_student(tmp_path: Path, tiny_classifier: Any) -> None:
    (tmp_path / "net.onnx").write_bytes(tiny_classifier())
    for what in ("model", "student"):
        with pytest.raises(InputError, match="is an ONNX file") as refused:
            made(tmp_path, **{what: str(tmp_path / "net.onnx")})
        assert refused.value.code == "E_USAGE"
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_several_processes_and_a_training_of_the_users_own_do_not_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="torchrun started several") as refused:
        made(tmp_path, finetune=another)
    assert refused.value.code == "E_USAGE"


@pytest.mark.slow
def test_a_student_that_loses_too_much_is_declined_and_its_training_stays(tmp_path: Path) -> None:
    """With --strict nothing ships; the checkpoints stay, to go on from with another bound."""
    asked = iter(range(100))
    with pytest.raises(BoundError, match=r"the score drops by 1\.00 on the test") as declined:
        made(tmp_path, task=lambda run: -float(next(asked)), max_drop=0, strict=True)
    assert declined.value.code == "E_DECLINED"
    assert [path.name for path in tmp_path.iterdir()] == ["out.training"]


@pytest.mark.parametrize(
    ("passes", "fine"),
    [
        ((Prune(), Distil(), Int8()), True),
        ((Distil(), Int8()), True),
        ((Distil(), Prune()), False),
        ((Int8(), Distil()), False),
        ((Distil(), Distil()), False),
    ],
)
def test_the_order_of_passes(passes: tuple[Any, ...], fine: bool) -> None:
    if fine:
        recipe = Recipe("mine", passes)
        assert Recipe.from_dict(recipe.to_dict(), "here") == recipe
        assert Recipe.from_dict({"pass": [{"kind": "distil", "lr": 1}]}, "here").passes == (
            Distil(lr=1.0),
        )
        return
    with pytest.raises(InputError) as refused:
        Recipe("mine", passes)
    assert refused.value.code == "E_RECIPE"


def test_a_length_of_training_for_a_recipe_without_one_is_refused() -> None:
    assert Recipe.open("distil").trained_for(3, 1.5).passes == (Distil(epochs=3, max_minutes=1.5),)
    with pytest.raises(InputError) as refused:
        Recipe.open("int8").trained_for(3, None)
    assert refused.value.code == "E_USAGE"
