"""One run for several targets: what is done once, what each is judged by, one bundle for all."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.command_line import run_cli

pytest.importorskip("torch")
pytest.importorskip("onnx")
from edgepress.__main__ import main
from edgepress.compress import Recipe, compress
from edgepress.compress.recipe.absent_device import missing_device
from edgepress.compress.recipe.settings import Int8, Prune
from edgepress.compress.recipe.target_availability import available_targets
from edgepress.runtime import BoundError, Bundle, InputError, Session
from edgepress.runtime.target import target
from helpers.pipeline_nets import NETS, PLAIN, TOML

FLOAT32 = Recipe("float32")
BOTH = ("onnxruntime-cpu", "openvino-cpu")
OPENVINO = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra openvino is not installed"
)
NO_GPU = pytest.mark.skipif(
    missing_device(target("tensorrt")) is None, reason="this machine has a GPU to prove it on"
)


class Stages:
    """Remembers the names of the stages that were told, each once."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        del done, total
        if stage not in self.seen:
            self.seen.append(stage)

    def told(self, word: str) -> list[str]:
        return [stage for stage in self.seen if word in stage]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a factory's file, a preprocessing and pictures without labels."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    (folder / "plain.toml").write_text(TOML, encoding="utf-8")
    x = np.random.default_rng(0).integers(0, 256, (48, 16, 16, 3)).astype(np.uint8)
    np.savez(folder / "data.npz", x=x)
    return folder


@pytest.fixture
def made(home: Path, tmp_path: Path) -> Callable[..., Bundle]:
    def run(targets: Any, recipe: Any = FLOAT32, **options: Any) -> Bundle:
        return compress(
            f"{home}/nets.py:net",
            home / "data.npz",
            out=tmp_path / "out",
            preprocessing=PLAIN,
            target=targets,
            recipe=recipe,
            **options,
        )

    return run


# ---------------------------------------------------------------- one bundle


@OPENVINO
def test_each_target_has_its_variant(made: Callable[..., Bundle]) -> None:
    stages = Stages()
    bundle = made(BOTH, progress=stages)
    assert [one.name for one in bundle.variants] == ["onnxruntime-float32", "openvino-float32"]
    assert {one.file for one in bundle.variants} == {"model.onnx"}, "they are one model"
    assert bundle.recipe["target"] == "onnxruntime-cpu"
    second: Any = bundle.variants[1].made
    assert second["recipe"]["target"] == "openvino-cpu"
    assert second["scores"]["result"]["value"] == pytest.approx(100.0, abs=1e-3)
    assert stages.seen.count("exporting") == 1
    for engine in ("onnxruntime", "openvino"):
        with Session.open(bundle, variant=f"{engine}-float32") as session:
            assert session.facts()["engine"] == engine
    with Session.open(bundle, engine="openvino") as session:
        assert session.variant.name == "openvino-float32"


@OPENVINO
def test_a_single_target_may_be_a_list(made: Callable[..., Bundle]) -> None:
    bundle = made(["openvino-cpu"])
    assert [one.name for one in bundle.variants] == ["float32"]


@NO_GPU
def test_a_device_that_is_not_here_is_unproven_beside_one_that_is(
    made: Callable[..., Bundle],
) -> None:
    bundle = made(("onnxruntime-cpu", "tensorrt"), unproven=True)
    first, second = bundle.variants
    assert first.name == "onnxruntime-float32"
    assert second.name == "tensorrt-float32-unproven"
    assert not any("without a device" in note for note in bundle.manifest.notes)
    own: Any = second.made
    assert any("without a device of the target tensorrt" in note for note in own["notes"])
    with Session.open(bundle) as session:
        assert session.variant is first


@NO_GPU
@pytest.mark.slow
def test_pruning_is_done_once_and_tried_everywhere(made: Callable[..., Bundle]) -> None:
    """No device is here, so that nothing is timed and the cut network ships for both."""
    stages = Stages()
    bundle = made(
        ("tensorrt", "tensorrt-rtx"),
        Recipe("prune", (Prune(max_macs_ratio=0.6),)),
        unproven=True,
        max_drop=100.0,
        progress=stages,
    )
    first, second = bundle.variants
    assert (first.engine, second.engine) == ("tensorrt", "tensorrt-rtx")
    assert first.file == second.file == "model.onnx", "the same network"
    assert len(stages.told("exporting the pruned network")) == 1
    measured: Any = bundle.measurements
    own: Any = second.made
    assert measured["macs"] == own["measurements"]["macs"]
    assert own["recipe"]["reports"] == bundle.recipe["reports"]
    assert measured["size_bytes"]["result"] < measured["size_bytes"]["original"]


@OPENVINO
@pytest.mark.slow
@pytest.mark.serial
def test_int8_is_calibrated_once_and_written_for_each(
    made: Callable[..., Bundle], tmp_path: Path
) -> None:
    stages = Stages()
    settings = Int8(mixed=False)
    bundle = made(BOTH, Recipe("int8", (settings,)), max_drop=100.0, progress=stages)
    assert stages.told("calibrating") == ["onnxruntime-cpu: calibrating"]
    assert len(stages.told("correcting biases")) == 2, "in each engine's own kernels"
    first: Any = bundle.variants[0]
    seen = {one.engine for one in bundle.variants}
    assert seen == {"onnxruntime", "openvino"}
    own: Any = next(one.made for one in bundle.variants if one.engine == "openvino")
    for measured in (bundle.measurements, own["measurements"]):
        candidate = measured["candidates"][0]
        assert candidate["latency"] is not None
        assert candidate["receipt"]["fused_int8"] > 0
    assert first.receipt["engine"]["engine"] == "onnxruntime"
    assert "rivals" in own["measurements"]["candidates"][0]
    again = Recipe.open(str(tmp_path / "out"))
    assert again == Recipe("int8", (settings,)), "each target's plan is measured again"


@OPENVINO
@pytest.mark.slow
def test_strict_names_the_target_that_declined(
    made: Callable[..., Bundle], home: Path, tmp_path: Path
) -> None:
    del home
    nothing = Recipe("int8", (Int8(keep_float=("nowhere",)),))
    with pytest.raises(InputError):
        made(BOTH, nothing, strict=True)
    bundle = made(BOTH)
    nodes = tuple(one["name"] for one in bundle.variants[0].receipt["nodes"])  # type: ignore[index, union-attr]
    whole = Recipe("int8", (Int8(keep_float=nodes),))
    with pytest.raises(BoundError, match="declined for onnxruntime-cpu") as declined:
        made(BOTH, whole, strict=True, force=True)
    assert declined.value.code == "E_DECLINED"
    assert Bundle.open(tmp_path / "out").recipe["name"] == "float32", "what was there is whole"


# ---------------------------------------------------------------- the command


@OPENVINO
def test_the_command_takes_several(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("compress", f"{home}/nets.py:net", "--data", home / "data.npz", "--recipe", "float32")
    words += ("--preprocessing", home / "plain.toml", "--out", tmp_path / "out")
    status, told = run_cli(capsys, *words, "--target", BOTH[0], "--target", BOTH[1])
    assert status == 0
    assert [one["engine"] for one in told["variants"]] == ["onnxruntime", "openvino"]
    assert told["variants"][1]["recipe"]["target"] == "openvino-cpu"
    for line in ("compress", "inspect"):
        again = (*words, "--force", "--target", BOTH[0], "--target", BOTH[1])
        with pytest.raises(SystemExit) as ended:
            main([*map(str, again)] if line == "compress" else [line, str(tmp_path / "out")])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert "onnxruntime-float32" in shown
        assert "openvino-float32" in shown


@pytest.mark.parametrize(
    ("targets", "code"),
    [
        (("onnxruntime-cpu", "onnxruntime-cpu"), "E_USAGE"),
        (("onnxruntime-cpu", "abacus"), "E_TARGET"),
        ((), "E_USAGE"),
        pytest.param(("onnxruntime-cpu", "tensorrt"), "E_UNPROVEN", marks=NO_GPU),
        pytest.param(("tensorrt", "onnxruntime-cpu"), "E_UNPROVEN", marks=NO_GPU),
    ],
)
def test_targets_that_cannot_be_end_before_any_work(
    made: Callable[..., Bundle], tmp_path: Path, targets: tuple[str, ...], code: str
) -> None:
    stages = Stages()
    with pytest.raises(InputError) as refused:
        made(targets, progress=stages)
    assert refused.value.code == code
    assert stages.seen == []
    assert list(tmp_path.iterdir()) == []


@NO_GPU
def test_nothing_is_pruned_by_the_latency_of_a_device_that_is_not_here(
    made: Callable[..., Bundle], tmp_path: Path
) -> None:
    recipe = Recipe("prune", (Prune(max_latency_ratio=0.6),))
    with pytest.raises(InputError) as refused:
        made(("tensorrt", "onnxruntime-cpu"), recipe, unproven=True)
    assert refused.value.code == "E_UNPROVEN"
    assert "latency on tensorrt" in refused.value.message
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_a_target_given_twice(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("compress", f"{home}/nets.py:net", "--data", home / "data.npz")
    words += ("--target", BOTH[0], "--target", BOTH[0], "--out", tmp_path / "out")
    status, told = run_cli(capsys, *words)
    assert (status, told["error"]["code"]) == (2, "E_USAGE")
    assert "given twice" in told["error"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_a_stand_in_judges_for_a_device_that_is_not_here() -> None:
    (place,) = available_targets("onnxruntime-cpu", allowed=False)
    assert (place.engine, place.here) == ("onnxruntime", True)
    if missing_device(target("tensorrt")) is not None:
        (gone,) = available_targets("tensorrt", allowed=True)
        assert (gone.engine, gone.here) == ("onnxruntime", False)
