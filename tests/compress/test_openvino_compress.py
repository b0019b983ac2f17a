"""From a network to a bundle for OpenVINO, and every command on that bundle."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers.command_line import run_cli

pytest.importorskip("torch")
pytest.importorskip("onnx")
if importlib.util.find_spec("openvino") is None:  # importing it here would send telemetry
    pytest.skip("the extra openvino is not installed", allow_module_level=True)

from edgepress.benchmarks.latency.comparison import Comparison, compare
from edgepress.benchmarks.latency.latency import OwnOptions
from edgepress.benchmarks.latency.measurement import Preset
from edgepress.compress import compress
from edgepress.compress.evaluation.acceptance import (
    RivalPrecision,
    Verdict,
    best_rival,
    decide_acceptance,
)
from edgepress.runtime import Bundle, EngineError, InputError, Session
from edgepress.runtime.engines.engine import computed_in
from edgepress.runtime.engines.openvino import has_bf16
from edgepress.runtime.target import openvino_dialect

BLINK = Preset("blink", 0.05, 64, 0.2, 1, 5.0)
CALIBRATION, TEST = 80, 200


@pytest.fixture(scope="module")
def data(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first pictures of the demo's calibration and test sets."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, count in (("calibration", CALIBRATION), ("test", TEST)):
        with np.load(project / "demo" / "data" / f"{name}.npz") as held:
            few = {k: v[:count] if len(v) > count else v for k, v in held.items()}
        np.savez(folder / f"{name}.npz", **few)
    return folder


@pytest.fixture(scope="module")
def bundle(project: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's network, compressed for OpenVINO."""
    demo, out = project / "demo", tmp_path_factory.mktemp("out") / "bundle"
    compress(
        f"{demo}/backbone.py:fashion_resnet",
        data / "calibration.npz",
        weights=str(demo / "weights" / "fashion_resnet.safetensors"),
        preprocessing=demo / "preprocessing.toml",
        test_data=data / "test.npz",
        target="openvino-cpu",
        max_drop=2.0,
        out=out,
    )
    return out


pytestmark = [pytest.mark.slow, pytest.mark.serial]


def test_the_bundle_is_for_openvino_and_tells_what_was_measured_on_it(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    variant = opened.variants[0]
    measured: Any = opened.measurements
    candidate = measured["candidates"][0]
    assert candidate["precision"] == "int8"
    assert variant.engine == "openvino"
    assert variant.receipt["engine"]["engine"] == "openvino"  # type: ignore[index]
    assert opened.recipe["target"] == "openvino-cpu"
    assert opened.manifest.declined is not candidate["accepted"]
    rivals = [one["precision"] for one in candidate["rivals"]]
    assert rivals == (["bf16"] if has_bf16() else [])
    for rival in candidate["rivals"]:
        assert rival["keeps_score"] is all(drop <= 2 for drop in rival["drops"].values())
        assert (rival["candidate_latency"] is not None) is rival["keeps_score"]
    if candidate["accepted"]:
        assert variant.precision.partition("-")[0] == "int8"
        assert variant.dialect == openvino_dialect()
        assert variant.receipt["int8_macs_share"] == 1.0
        assert variant.receipt["fused_int8"] == variant.receipt["asked_int8"]
        assert all(one["candidate_latency"]["faster"] == "result"
                   for one in candidate["rivals"] if one["keeps_score"])  # fmt: skip
    else:
        pays = any(one["keeps_score"] and (one["over_float32"] or {}).get("faster") == "result"
                   for one in candidate["rivals"])  # fmt: skip
        assert variant.precision == ("bfloat16" if pays else "float32")
        assert opened.manifest.notes


def test_a_session_runs_it(bundle: Path, project: Path) -> None:
    with Session.open(bundle, threads=1) as session:
        facts = session.facts()
        labels = [
            one.top(1)[0].label
            for one in session.predict_many(sorted((project / "demo" / "pictures").glob("*.png")))
        ]
        one = session.run({session.inputs[0].name: np.zeros((1, 1, 28, 28), np.float32)})
        three = session.run({session.inputs[0].name: np.zeros((3, 1, 28, 28), np.float32)})
    held = computed_in(Bundle.open(bundle).variants[0].precision)
    assert (facts["engine"], facts["providers"], facts["precision"]) == ("openvino", ["CPU"], held)
    assert labels == ["Ankle boot", "Bag", "Sneaker", "Trouser"]
    name = next(iter(one))
    assert (one[name].shape, three[name].shape) == ((1, 10), (3, 10))
    if {one.dialect for one in Bundle.open(bundle).variants} == {"onnx"}:  # floats shipped
        with Session.open(bundle, engine="onnxruntime") as session:
            assert session.variant.precision == "float32", "any engine reads it, in what it has"
    else:
        with pytest.raises(EngineError) as refused:
            Session.open(bundle, engine="onnxruntime")
        assert refused.value.code == "E_DIALECT"


def test_every_command_takes_it(
    bundle: Path, data: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = run_cli(capsys, "verify", bundle)
    assert (status, told["ok"]) == (0, True)
    status, told = run_cli(capsys, "evaluate", bundle, "--data", data / "test.npz")
    scores: Any = Bundle.open(bundle).scores
    assert status == 0
    assert told["score"]["value"] == pytest.approx(scores["result"]["value"], abs=1.0)
    status, told = run_cli(capsys, "predict", bundle, project / "demo" / "pictures" / "bag.png")
    assert (status, told["engine"]["engine"]) == (0, "openvino")
    status, told = run_cli(capsys, "inspect", bundle)
    assert (status, told["variants"][0]["engine"]) == (0, "openvino")
    status, told = run_cli(capsys, "bench", bundle)
    assert status == 0
    assert told["measurement"]["engine"]["engine"] == "openvino"


def test_another_command_line_names_both_sides(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = bundle / "model.onnx"
    words = ("bench", bundle, "--against", model, "--against-engine", "onnxruntime")
    status, told = run_cli(capsys, *words)
    assert status in (0, 4)
    found = told["comparison"]
    assert (found["a"]["engine"]["engine"], found["b"]["engine"]["engine"]) == (
        "openvino", "onnxruntime",
    )  # fmt: skip
    assert found["a"]["engine"]["precision"] == OwnOptions.of(bundle, None, None).precision
    assert "precision" not in found["b"]["engine"], "it knows but float32, and was asked for that"
    status, told = run_cli(capsys, "bench", model, "--against-engine", "openvino")
    assert (status, told["error"]["code"]) == (2, "E_USAGE")
    status, told = run_cli(capsys, "bench", model, "--precision", "bf16")
    assert (status, told["error"]["code"]) == (2, "E_PRECISION")


def test_a_file_against_a_bundle_runs_on_its_engine(bundle: Path) -> None:
    found = compare(bundle / "model.onnx", bundle, preset=BLINK)
    assert found.a.engine["engine"] == found.b.engine["engine"] == "openvino"


def test_a_target_whose_engine_is_not_installed_ends_before_any_work(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((8, 8, 8, 3), np.uint8))
    code = "import sys; sys.modules['openvino'] = None\nfrom edgepress.__main__ import main\nmain()"
    words = ("compress", "net.onnx", "--data", "data.npz", "--target", "openvino-cpu")
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--out", "out", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "E_EXTRA"
    assert "edgepress[openvino]" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data.npz"]


# ---------------------------------------------------------------- the decision


@pytest.fixture(scope="module")
def equal(tiny_classifier: Callable[..., bytes]) -> Comparison:
    """A network against itself, measured as briefly as can be: the shell of every case below."""
    model = tiny_classifier()
    return compare(model, model, preset=BLINK, engine="openvino")


def faster(shell: Comparison, which: Any) -> Comparison:
    ratio = {"a": 2.0, "b": 0.5, "neither": 1.0}[which]
    return dataclasses.replace(shell, faster=which, ratio=ratio, settled=True)


def rival(comparison: Comparison | None, over_float32: Comparison | None = None) -> RivalPrecision:
    keeps = comparison is not None or over_float32 is not None
    return RivalPrecision("bf16", {"test": 0.1}, keeps, comparison, over_float32)


def best(verdict: Verdict, *rivals: RivalPrecision) -> RivalPrecision | None:
    trial: Any = SimpleNamespace(rivals=rivals, verdict=verdict)
    return best_rival([trial])


def test_a_candidate_must_beat_bfloat16_too(equal: Comparison) -> None:
    over_both = rival(faster(equal, "a"))
    assert decide_acceptance(faster(equal, "a"), {"test": 0.0}, 1.0, [over_both]).accepted
    behind = rival(faster(equal, "b"))
    verdict = decide_acceptance(faster(equal, "a"), {"test": 0.0}, 1.0, [behind])
    assert not verdict.accepted
    (reason,) = verdict.reasons
    assert "INT8 is slower on this machine: 0.50x the speed of bfloat16" in reason
    pays = rival(faster(equal, "b"), faster(equal, "a"))
    assert best(verdict, pays) is pays
    assert best(verdict, behind) is None, "nobody timed it against float32"
    level = decide_acceptance(faster(equal, "a"), {}, 1.0, [rival(faster(equal, "neither"))])
    assert "not measurably faster" in level.reasons[0]


def test_bfloat16_that_is_no_faster_than_float32_holds_nothing_back(equal: Comparison) -> None:
    level = faster(equal, "neither")
    assert decide_acceptance(faster(equal, "a"), {}, 1.0, [rival(level, level)]).accepted
    assert not decide_acceptance(
        faster(equal, "a"), {}, 1.0, [rival(level, faster(equal, "a"))]
    ).accepted
    assert not decide_acceptance(
        faster(equal, "a"), {}, 1.0, [rival(faster(equal, "b"), level)]
    ).accepted


def test_bfloat16_that_does_not_keep_the_score_is_no_rival(equal: Comparison) -> None:
    lost = rival(None)
    verdict = decide_acceptance(faster(equal, "a"), {"test": 0.0}, 1.0, [lost])
    assert verdict.accepted
    assert best(verdict, lost) is None


def test_where_int8_loses_to_float32_bfloat16_is_best_only_if_it_beats_that(
    equal: Comparison,
) -> None:
    verdict = decide_acceptance(faster(equal, "b"), {}, 1.0, [])
    pays = rival(faster(equal, "b"), faster(equal, "a"))
    assert best(verdict, pays) is pays
    assert best(verdict, rival(faster(equal, "b"), faster(equal, "neither"))) is None


def test_where_int8_is_fastest_and_loses_the_score_bfloat16_may_be_best(equal: Comparison) -> None:
    found = rival(faster(equal, "a"), faster(equal, "a"))
    verdict = decide_acceptance(faster(equal, "a"), {"test": 5.0}, 1.0, [found])
    assert not verdict.accepted
    assert best(verdict, found) is found
    assert best(verdict, rival(faster(equal, "a"))) is None, "nobody timed it against float32"


def test_an_unknown_precision_is_named(equal: Comparison, tmp_path: Path) -> None:
    del equal
    with pytest.raises(InputError) as refused:
        compare(b"", b"", precision="f16")  # type: ignore[arg-type]
    assert refused.value.code == "E_PRECISION"
