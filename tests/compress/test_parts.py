"""The parts of compress, each by itself: the decision, recipes, weights, factories, the zoo."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
import torch
from safetensors.torch import save_file
from torch import nn

from edgepress.benchmarks import Images
from edgepress.benchmarks.latency.comparison import Comparison, compare
from edgepress.benchmarks.latency.measurement import Preset
from edgepress.benchmarks.tasks.task import Score
from edgepress.compress import Backbone, Int8, Recipe
from edgepress.compress.evaluation.acceptance import (
    EvaluatedCandidate,
    Verdict,
    decide_acceptance,
    evaluate_candidate,
    is_faster,
    why_not_faster,
    why_nothing_ran,
)
from edgepress.compress.evaluation.evaluate_sources import open_scored_source
from edgepress.compress.evaluation.evaluator import Evaluator
from edgepress.compress.quantization.int8_pass import quantize_int8
from edgepress.compress.recipe.pass_context import Context, Outcome
from edgepress.compress.recipe.settings import Fp16
from edgepress.compress.source.data_and_task import open_data_and_task
from edgepress.compress.source.model_zoo import preprocessing_of_timm, preprocessing_of_torchvision
from edgepress.compress.source.source_network import (
    batch_size,
    first_rows,
    make_source_network,
    torch_run,
)
from edgepress.compress.source.weights import save_weights
from edgepress.export.bundle_contents import ShippedModel
from edgepress.export.graph.torch_capture import evaluating
from edgepress.export.receipt import Receipt, count_macs
from edgepress.runtime import InputError, Preprocessing
from edgepress.runtime.files import disk_room, write_file
from edgepress.runtime.target import Target, target

# ---------------------------------------------------------------- the decision


@pytest.fixture(scope="module")
def equal(tiny_classifier: Callable[..., bytes]) -> Comparison:
    """A network against itself, measured as briefly as can be: the shell of every case below."""
    model = tiny_classifier()
    return compare(model, model, preset=Preset("blink", 0.05, 64, 0.2, 1, 5.0))


def test_a_faster_candidate_within_the_bound_ships(equal: Comparison) -> None:
    faster = dataclasses.replace(equal, faster="a", ratio=2.0, settled=True)
    assert decide_acceptance(faster, {"selection": 0.2, "test": 1.0}, 1.0).accepted
    assert decide_acceptance(faster, {"test": -3.0}, 0.0).accepted
    assert decide_acceptance(faster, {"test": 50.0}, None).accepted


def test_an_unsettled_candidate_that_is_clearly_faster_ships(equal: Comparison) -> None:
    assert decide_acceptance(
        dataclasses.replace(equal, faster="a", settled=False), {}, 1.0
    ).accepted


def test_a_slower_candidate_is_declined_with_its_ratio(equal: Comparison) -> None:
    slower = dataclasses.replace(
        equal, faster="b", ratio=0.8, ratio_low=0.75, ratio_high=0.84, settled=True
    )
    verdict = decide_acceptance(slower, {"test": 0.0}, 1.0)
    assert not verdict.accepted
    assert verdict.reasons == (
        "INT8 is slower on this machine: 0.80x the speed of float32 (95 % interval 0.75 to 0.84)",
    )


def test_a_gain_inside_the_noise_is_declined(equal: Comparison) -> None:
    level = dataclasses.replace(equal, faster="neither", settled=False)
    (reason,) = decide_acceptance(level, {}, 1.0).reasons
    assert "not measurably faster" in reason
    assert "did not settle" in reason


def test_every_drop_over_the_bound_is_a_reason(equal: Comparison) -> None:
    faster = dataclasses.replace(equal, faster="a")
    verdict = decide_acceptance(faster, {"selection": 1.01, "test": 2.0}, 1.0)
    assert [reason.split(" on the ")[1] for reason in verdict.reasons] == [
        "selection pictures, 1 are allowed",
        "test pictures, 1 are allowed",
    ]
    assert not decide_acceptance(faster, {"test": float("nan")}, 1.0).accepted


def test_a_candidate_that_changed_nothing_is_declined() -> None:
    assert decide_acceptance(None, {"test": 0.0}, 1.0).reasons == (
        "no layer of this network can run in INT8 on this target",
    )


def test_a_later_pass_takes_the_place_of_an_earlier_one_only_where_it_is_measurably_faster(
    equal: Comparison,
) -> None:
    """Each was proved against the original; the score of the earlier one is the better."""

    def trial(name: str, ratio: float, precision: str) -> EvaluatedCandidate:
        shipped = SimpleNamespace(model=name.encode(), precision=precision)
        outcome: Any = SimpleNamespace(name=name, shipped=shipped)
        timed = dataclasses.replace(equal, faster="a", ratio=ratio)
        score = Score("classification", 90.0, "percent", 100)
        return EvaluatedCandidate(outcome, timed, score, score, Verdict(True, ()))

    asked: list[Any] = []

    def judge(faster: Any) -> Any:
        def compare(*given: Any, other: bytes) -> Comparison:
            asked.append((*given, other))
            return dataclasses.replace(
                equal, faster=faster, ratio=1.02, ratio_low=0.98, ratio_high=1.06, settled=True
            )

        return SimpleNamespace(compare=compare)

    student, int8 = trial("the student", 2.0, "float32"), trial("INT8", 2.04, "int8-bfloat16")
    assert is_faster(int8, None, judge("neither"))
    assert is_faster(int8, student, judge("a"))
    assert not is_faster(int8, student, judge("neither"))
    assert set(asked) == {(b"INT8", "bf16", "f32", b"the student")}
    assert why_not_faster(int8, student, judge("neither")) == [
        "INT8 would do, at 2.04x the speed of the original; the student ships, at 2.00x: INT8 is "
        "not measurably faster on this machine: 1.02x the speed of the student (95 % interval 0.98 "
        "to 1.06)."
    ]
    asked.clear()
    assert not is_faster(student, int8, judge("a"))
    assert why_not_faster(student, int8, judge("a"))[0].endswith("INT8 ships, at 2.04x.")
    assert not asked, "what looks no faster is not timed again"


@pytest.mark.parametrize("speech", ["tensorrt", "onnxruntime-x86-vnni"])
def test_what_the_engine_takes_nothing_of_is_not_called_int8(speech: str, tmp_path: Path) -> None:
    """ONNX Runtime fuses nothing of TensorRT's dialect: codes around 0, none at outputs."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
    module = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    x = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x=x)
    material = open_data_and_task(tmp_path / "data.npz", None, "agreement", 8, 0)
    part, how = material.split.calibration, Preprocessing(scale=255.0)
    subject = make_source_network("net", Backbone(module, "net", preprocessing=how), None, part, 18)
    graph, example = subject.graph, first_rows(part, subject.graph.inputs, how, 1)

    def batches(size: int) -> Any:
        return (one.inputs for one in part.batches(graph.inputs, how, size))

    def quiet(*_: object) -> None:
        return None

    at = Target("here", "onnxruntime", speech, ("int8", "float32"), 8)
    context = Context(at, batches, len(part), batches, count_macs(graph, example), quiet)
    made = quantize_int8(graph, Int8(mixed=False, bias_correction=False), context)
    if speech != "tensorrt":
        assert made.receipt.fused_int8 == made.receipt.asked_int8 == 3
        assert made.receipt.int8_time_share
        assert why_nothing_ran(made) == ""
        return
    assert (made.receipt.asked_int8, made.receipt.fused_int8) == (2, 0)
    assert made.receipt.int8_time_share == 0
    judge = Evaluator(graph, material.task, how, example, quiet)
    original = judge.score(graph.model, material.test, "float32")
    verdict = evaluate_candidate(made, judge, material, original, None).verdict
    assert not verdict.accepted
    assert verdict.reasons[0] == why_nothing_ran(made)
    assert "none of the 2 nodes" in verdict.reasons[0]


def test_weights_alone_are_asked_of_no_kernel() -> None:
    receipt = Receipt({}, (), 3, 0, {})
    for speech, declined in (("tensorrt-rtx", False), ("tensorrt", True)):
        shipped = ShippedModel(b"", "int8", speech, "tensorrt-rtx", {})
        assert bool(why_nothing_ran(Outcome(shipped, True, receipt))) is declined


# ---------------------------------------------------------------- recipes


def test_a_recipe_survives_its_json_form_and_both_file_forms(tmp_path: Path) -> None:
    recipe = Recipe("mine", (Int8(ranges="minmax", bias_correction=False, keep_float=("a", "b")),))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())), "here") == recipe
    (tmp_path / "r.json").write_text(json.dumps(recipe.to_dict()), encoding="utf-8")
    (tmp_path / "r.toml").write_text(
        'name = "mine"\n[[pass]]\nkind = "int8"\nranges = "minmax"\nbias_correction = false\n'
        'keep_float = ["a", "b"]\n',
        encoding="utf-8",
    )
    assert Recipe.open(str(tmp_path / "r.json")) == Recipe.open(str(tmp_path / "r.toml")) == recipe


def test_the_built_in_recipes() -> None:
    assert Recipe.open("float32").passes == ()
    assert Recipe.open("int8").passes == (Int8(),)


@pytest.mark.parametrize("text", ["[1]", "{", '{"name": 3}', '{"pass": [1]}', '{"pass": [{}]}'])
def test_a_json_recipe_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        Recipe.open(str(tmp_path / "r.json"))
    assert refused.value.code == "E_RECIPE"


def test_passes_in_an_order_that_cannot_be_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="'int8' after 'int8'") as refused:
        Recipe("twice", (Int8(), Int8()))
    assert "may come: qat." in refused.value.mend
    with pytest.raises(InputError, match="'int8' after 'fp16'") as refused:
        Recipe("both", (Fp16(), Int8()))
    assert "nothing" in refused.value.mend


# ---------------------------------------------------------------- weights and factories


def _net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a factory's file and a neighbour that it imports."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside_nets.py").write_text("WIDTH = 4\n", encoding="utf-8")
    (tmp_path / "some_nets.py").write_text(
        "from torch import nn\nimport beside_nets\n\n"
        "def net():\n    import beside_nets\n"
        "    return nn.Sequential(nn.Conv2d(3, beside_nets.WIDTH, 3), nn.BatchNorm2d(4))\n",
        encoding="utf-8",
    )
    return tmp_path


@pytest.mark.parametrize("inside", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_weights_inside_a_checkpoint_and_behind_a_prefix_are_understood(
    files: Path, inside: str | None, prefix: str
) -> None:
    held: dict[str, Any] = {prefix + key: value for key, value in _net().state_dict().items()}
    torch.save({inside: held, "epoch": 3} if inside else held, "w.pt")
    backbone = Backbone.open("some_nets.py:net", "w.pt")
    assert backbone.name == "some_nets.py:net"
    assert backbone.weights_sha256 is not None
    assert not any(part.training for part in backbone.module.modules())
    found = backbone.module.state_dict()
    assert all(torch.equal(found[key.removeprefix(prefix)], held[key]) for key in held)


def test_a_network_whose_own_keys_have_the_prefix_keeps_it(files: Path) -> None:
    (files / "wrapped.py").write_text(
        "from torch import nn\nfrom some_nets import net\n\n"
        "class Wrapped(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.module = net()\n",
        encoding="utf-8",
    )
    held = {f"module.{key}": value for key, value in _net().state_dict().items()}
    save_file(held, "w.safetensors")
    try:
        opened = Backbone.open("wrapped.py:Wrapped", "w.safetensors").module
        assert {k: v.tolist() for k, v in opened.state_dict().items()} == {
            k: v.tolist() for k, v in held.items()
        }
    finally:
        for name in ("some_nets", "beside_nets"):
            sys.modules.pop(name, None)


def test_weights_may_lack_the_count_of_batches(files: Path) -> None:
    held = {k: v for k, v in _net().state_dict().items() if "num_batches" not in k}
    save_file(held, "w.safetensors")
    opened = Backbone.open("some_nets.py:net", "w.safetensors").module
    assert all(opened.state_dict()[key].equal(value) for key, value in held.items())


def test_a_factory_is_found_by_a_module_name_in_the_working_folder(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = list(sys.path)
    try:
        assert Backbone.open("some_nets:net").name == "some_nets:net"
    finally:
        for name in ("some_nets", "beside_nets"):
            sys.modules.pop(name, None)
    assert sys.path == path


def test_nothing_is_written_beside_the_users_file(files: Path) -> None:
    before = sorted(files.rglob("*"))
    Backbone.open(f"{files}/some_nets.py:net")
    assert sorted(files.rglob("*")) == before


def test_a_module_of_the_user_keeps_its_mode() -> None:
    net = _net().train()
    net[1].eval()
    with evaluating(Backbone.of(net).module):
        assert not any(part.training for part in net.modules())
    assert [part.training for part in net.modules()] == [True, True, False]


def test_a_module_runs_by_names_and_by_position() -> None:
    class Minus(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left - right

    run = torch_run(Minus())
    two, one = np.full((1, 2), 2, np.float32), np.ones((1, 2), np.float32)
    assert run({"right": one, "left": two})["output"].tolist() == [[1.0, 1.0]]
    assert run({"a": two, "b": one})["output"].tolist() == [[1.0, 1.0]]


def test_a_factory_is_scored_on_as_many_threads_as_are_asked_for(files: Path) -> None:
    images, before = Images.from_arrays(np.zeros((4, 8, 8, 3), np.uint8)), torch.get_num_threads()
    for threads in (0, before + 1):
        with ExitStack() as stack:
            open_scored_source(stack, "some_nets.py:net", None, threads, images)
            assert torch.get_num_threads() == (threads or before)
        assert torch.get_num_threads() == before


def test_channels_may_lie_last_in_what_is_saved(files: Path) -> None:
    net = _net()
    save_weights(net.to(memory_format=torch.channels_last), "w.safetensors")  # type: ignore[call-overload]
    found = Backbone.open("some_nets.py:net", "w.safetensors").module.state_dict()
    assert all(torch.equal(found[key], value) for key, value in net.state_dict().items())


def test_a_batch_takes_no_more_than_32_mib() -> None:
    assert batch_size({"x": np.zeros((1, 3, 224, 224), np.float32)}) == 32
    assert batch_size({"x": np.zeros((1, 3, 1024, 1024), np.float32)}) == 2
    assert batch_size({"x": np.zeros((1, 3, 4096, 4096), np.float32)}) == 1


# ---------------------------------------------------------------- data and tasks


def test_a_score_of_the_users_own_leaves_every_picture_to_calibration_and_selection() -> None:
    x = np.zeros((20, 4, 4, 3), np.uint8)
    own = open_data_and_task(Images.from_arrays(x), None, lambda run: 1.0, 300, 0)
    assert (len(own.split.calibration), len(own.split.selection), own.split.test) == (10, 10, None)
    usual = open_data_and_task(Images.from_arrays(x), None, None, 300, 0)
    assert usual.task.name == "agreement"
    assert len(usual.test) == 10


# ---------------------------------------------------------------- timm and torchvision


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_a_zoo_that_is_not_installed_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    save_file(_net().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=f"'{package}' cannot be imported") as refused:
        Backbone.open(f"{package}:resnet18", str(tmp_path / "w.safetensors"))
    assert refused.value.code == "E_EXTRA"
    assert f"pip install {package}" in refused.value.mend


CONFIG: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
}


def test_preprocessing_of_timm() -> None:
    assert preprocessing_of_timm(CONFIG) == Preprocessing(
        resize_shorter=256,
        interpolation="bicubic",
        center_crop=(224, 224),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    tested_larger = {**CONFIG, "test_input_size": (3, 288, 288), "test_crop_pct": 1.0}
    assert preprocessing_of_timm(tested_larger) == preprocessing_of_timm(CONFIG)
    squashed = preprocessing_of_timm({**CONFIG, "crop_mode": "squash", "crop_pct": 1.0})
    assert squashed is not None
    assert (squashed.resize, squashed.resize_shorter) == ((224, 224), None)


@pytest.mark.parametrize(
    "changed",
    [
        {"crop_mode": "border"},
        {"input_size": (3, 256, 128)},
        {"interpolation": "lanczos"},
        {"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,)},
    ],
)
def test_what_a_preprocessing_cannot_say_is_left_to_the_user(changed: dict[str, Any]) -> None:
    assert preprocessing_of_timm({**CONFIG, **changed}) is None


def test_preprocessing_of_torchvision() -> None:
    transforms = SimpleNamespace(
        resize_size=[232],
        crop_size=[224],
        interpolation=SimpleNamespace(value="bilinear"),
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
    )
    made = preprocessing_of_torchvision(transforms)
    assert made is not None
    assert (made.resize_shorter, made.center_crop, made.scale) == (232, (224, 224), 255.0)
    assert made.mean == (0.485, 0.456, 0.406)
    assert preprocessing_of_torchvision(SimpleNamespace(mean=[0.0])) is None


# ---------------------------------------------------------------- without torch and onnx


@pytest.mark.parametrize("words", [["compress"], ["evaluate"], ["export"]])
def test_the_commands_explain_themselves_without_torch(words: list[str], tmp_path: Path) -> None:
    done = _without_torch(tmp_path, *words, "--help")
    assert done.returncode == 0, done.stderr
    assert "--weights" in done.stdout


def test_a_bundle_is_evaluated_without_torch_and_compress_names_the_extra(
    small_bundle: Path, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(6) % 4)
    done = _without_torch(tmp_path, "evaluate", str(small_bundle), "--data", "data.npz", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["score"]["count"] == 6
    words = ("--data", "data.npz", "--out", "out", "--json")
    done = _without_torch(tmp_path, "compress", "nets.py:net", *words)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "E_EXTRA"
    assert "edgepress[compress]" in done.stderr


def _without_torch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A fresh process in which torch and onnx cannot be imported."""
    absent = "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'safetensors')))"
    code = f"{absent}\nfrom edgepress.__main__ import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


# ---------------------------------------------------------------- single files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    write_file(b"one", out)
    with pytest.raises(InputError, match="there already") as refused:
        write_file(b"two", out)
    assert refused.value.code == "E_EXISTS"
    assert out.read_bytes() == b"one"
    write_file(b"two", out, force=True)
    assert out.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [out]


def test_a_full_disk_has_a_name_and_other_errors_keep_theirs() -> None:
    with pytest.raises(InputError, match="No space left") as refused, disk_room():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model")
    assert (refused.value.code, refused.value.path) == ("E_WRITE", "model")
    with pytest.raises(PermissionError), disk_room():
        raise PermissionError(errno.EACCES, "no")


@pytest.mark.parametrize(
    ("macs", "pictures"), [(0, 256), (5e8, 256), (1e9, 128), (4.1e9, 32), (1e12, 32)]
)
def test_large_networks_are_compared_on_fewer_pictures(macs: float, pictures: int) -> None:
    from edgepress.compress.quantization.candidate_quality import comparison_pictures

    def none(size: int) -> list[Any]:
        return []

    context = Context(
        target("onnxruntime-cpu"), none, 300, none, {"conv": int(macs)}, lambda *_: None
    )
    assert comparison_pictures(context) == pictures
