"""Where bfloat16 is the best way to run a network, the bundle holds that, and float32 beside it."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.bfloat16_nets import BLINK, PLAIN, net, noise, worked_on
from helpers.command_line import run_cli_told

pytest.importorskip("torch")
pytest.importorskip("onnx")
if importlib.util.find_spec("openvino") is None:  # importing it here would send telemetry
    pytest.skip("the extra openvino is not installed", allow_module_level=True)

from edgepress.__main__ import main
from edgepress.benchmarks.latency.comparison import compare
from edgepress.benchmarks.latency.latency import OwnOptions
from edgepress.compress import Backbone, Recipe, compress
from edgepress.compress.evaluation.acceptance import EvaluatedCandidate, RivalPrecision, Verdict
from edgepress.compress.evaluation.evaluator import Evaluator
from edgepress.compress.quantization.bfloat16_pass import (
    float_candidates,
    half_precision_note,
    in_bfloat16,
    unchanged_network,
)
from edgepress.compress.recipe.pass_context import Context, Outcome, float32_outcome
from edgepress.compress.recipe.settings import Int8
from edgepress.compress.result import Result, check_strict
from edgepress.compress.source.data_and_task import open_data_and_task
from edgepress.compress.source.source_network import SourceNetwork, make_source_network
from edgepress.export.receipt import NodeReceipt
from edgepress.runtime import BoundError, Bundle, EngineError, Session
from edgepress.runtime.bundle.bundle_writer import write_files
from edgepress.runtime.bundle.combine import combine
from edgepress.runtime.engines.openvino import has_bf16
from edgepress.runtime.variants.fastest_variant import fastest_variant
from edgepress.runtime.variants.variant_selection import choose_variant

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(not has_bf16(), reason="this processor has no bfloat16"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def made(pictures: Path) -> tuple[SourceNetwork, Context, Evaluator, Result]:
    """The result of a recipe that was declined while bfloat16 was twice as fast as float32."""
    subject, context, judge, material = worked_on(pictures)
    graph = subject.graph
    original = judge.score(graph.model, material.test, "float32")
    score = judge.score(graph.model, material.test, "bfloat16", "bf16")
    timed = compare(graph.model, graph.model, preset=BLINK, engine="openvino")
    twice = replace(timed, faster="a", ratio=2.0, settled=True)
    rival = RivalPrecision("bf16", {"test": 100 - score.value}, True, None, twice, score, score)
    plain = float32_outcome(graph, context)
    none = EvaluatedCandidate(
        replace(plain, name="INT8"), None, score, original, Verdict(False, ("no",))
    )
    trial = unchanged_network(rival, plain, graph)
    assert trial is not None
    recipe = {"name": "int8", "pass": [], "target": "openvino-cpu", "model": "net"}
    notes = half_precision_note(trial)
    return (
        subject,
        context,
        judge,
        Result(
            subject, material, trial.outcome, [none, trial], original, context.macs, notes, recipe
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle(
    made: tuple[SourceNetwork, Context, Evaluator, Result], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    subject, _, judge, result = made
    held = result.bundle(judge.example, subject.preprocessing, real_golden=False)
    out = tmp_path_factory.mktemp("out") / "bundle"
    write_files(held.files, out)
    return out


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor without bfloat16, as far as OpenVINO's border can be told so."""
    module = importlib.import_module("edgepress.runtime.engines.openvino")
    monkeypatch.setattr(module, "_computes_in_bf16", lambda core, device: False)


# ---------------------------------------------------------------- what ships


def test_one_file_ships_as_two_variants(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    first, second = opened.variants
    assert (first.precision, second.precision) == ("bfloat16", "float32")
    assert first.file == second.file == "model.onnx"
    assert opened.manifest.declined, "the recipe asked for something else"
    (told,) = opened.manifest.notes
    assert "runs the network as it came in bfloat16: 2.00x the speed of the original" in told
    assert "without bfloat16 its variant float32 runs" in told
    assert sorted(path.name for path in bundle.rglob("*.onnx")) == ["model.onnx"]


def test_the_figures_are_those_of_what_runs(
    bundle: Path, made: tuple[SourceNetwork, Context, Evaluator, Result]
) -> None:
    opened, result = Bundle.open(bundle), made[3]
    measured: Any = opened.measurements
    scores: Any = opened.scores
    assert measured["latency"]["speedup"] == 2.0
    assert measured["bfloat16_macs_share"] == 1.0
    assert measured["int8_macs_share"] == 0
    assert scores["result"]["value"] == result.trials[1].test.value < 100
    beside: Any = opened.variants[1].made
    assert beside["measurements"]["latency"] is None, "nobody timed float32 against itself"
    assert beside["scores"]["result"]["value"] == scores["original"]["value"]
    assert [one["precision"] for one in measured["candidates"]] == ["float32", "bfloat16"]


def test_the_receipt_tells_what_openvino_executes(bundle: Path) -> None:
    first, second = Bundle.open(bundle).variants
    receipt: Any = first.receipt
    assert receipt["engine"]["precision"] == "bf16"
    assert receipt["bfloat16_macs_share"] == 1.0
    layers = {one["op_type"]: one for one in receipt["nodes"] if one["macs"]}
    assert set(layers) == {"Conv", "Gemm"}
    assert all("bf16" in one["reason"] for one in layers.values())
    plain: Any = second.receipt
    assert plain["engine"]["precision"] == "f32"
    assert "bfloat16_macs_share" not in plain


def test_golden_outputs_hold_in_each_precision(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    for name, precision in (("bfloat16", "bf16"), ("float32", "f32")):
        with Session.open(opened, variant=name) as session:
            assert session.facts()["precision"] == precision
            assert session.selftest[0].max_abs <= 1e-5
    (output,) = opened.golden("bfloat16")[1]
    rough, exact = (opened.golden(name)[1][output] for name in ("bfloat16", "float32"))
    apart = float(np.abs(rough - exact).max())
    assert apart > 0, "bfloat16 rounds"
    assert opened.manifest.golden.tolerance[output].max_abs >= 3 * apart
    own = opened.variants[1].golden
    assert own is not None
    assert own.tolerance[output].max_abs < opened.manifest.golden.tolerance[output].max_abs


# ---------------------------------------------------------------- what runs it


def test_sessions_and_benchmarks_take_bfloat16(bundle: Path) -> None:
    with Session.open(bundle) as session:
        assert session.variant.name == "bfloat16"
        assert session.notes == ()
    assert OwnOptions.of(bundle, None, None) == OwnOptions("openvino", "bfloat16", "bf16")
    assert OwnOptions.of(bundle, None, "float32") == OwnOptions("openvino", "float32", "f32")
    assert {name for name, _ in fastest_variant(Bundle.open(bundle), Session.open,
    threads=1).passed_over} == {
        "bfloat16", "float32",
    }  # fmt: skip


@pytest.mark.usefixtures("elsewhere")
def test_elsewhere_float32_runs_and_says_so(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Session.open(bundle) as session:
        assert session.variant.name == "float32"
        assert session.facts()["precision"] == "f32"
        (told,) = session.notes
    assert "'bfloat16': openvino has no bfloat16 on this processor" in told
    assert choose_variant(Bundle.open(bundle)).passed_over[0][0] == "bfloat16"
    assert fastest_variant(Bundle.open(bundle), Session.open).variant.name == "float32"
    with pytest.raises(EngineError) as refused:
        Session.open(bundle, variant="bfloat16")
    assert refused.value.code == "E_PRECISION"
    assert OwnOptions.of(bundle, None, None).precision == "f32"
    status, found, error = run_cli_told(capsys, "evaluate", bundle, "--data", pictures,
                                   "--task", "agreement", "--reference", bundle)  # fmt: skip
    assert (status, found["ran"]) == (0, "the runtime (float32)")
    assert "has no bfloat16 on this processor" in error
    status, found, _ = run_cli_told(capsys, "verify", bundle)
    assert (status, list(found["not_proved"])) == (0, ["bfloat16"])


def test_every_command_takes_it(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told, _ = run_cli_told(capsys, "verify", bundle)
    assert (status, [one["name"] for one in told["variants"]]) == (0, ["bfloat16", "float32"])
    words = ("evaluate", bundle, "--data", pictures, "--reference", bundle / "model.onnx")
    status, told, _ = run_cli_told(capsys, *words, "--task", "agreement")
    assert (status, told["ran"]) == (0, "the runtime (bfloat16)")
    assert 90 < told["score"]["value"] < 100, "it is not float32"
    status, told, _ = run_cli_told(capsys, "inspect", bundle)
    assert (status, [one["precision"] for one in told["variants"]]) == (0, ["bfloat16", "float32"])
    with pytest.raises(SystemExit):
        main(["inspect", str(bundle)])
    shown = capsys.readouterr().out
    assert "computes 100.0 % of" in shown
    assert "the model is as it came" in shown


def test_doctor_tells_who_computes_in_bfloat16() -> None:
    from edgepress.runtime.doctor import prove_engine

    assert prove_engine("openvino").precisions == ("float32", "bfloat16")
    assert prove_engine("onnxruntime").precisions == ("float32",)


def test_combined_it_stays_one_file(bundle: Path, tmp_path: Path) -> None:
    ours = Bundle.open(bundle)
    other = replace(
        ours, manifest=replace(ours.manifest, variants=(replace(ours.variants[1], name="float32",
                                                               engine="onnxruntime"),))
    )  # fmt: skip
    for number, pair in enumerate(([other, ours], [ours, other])):
        out = tmp_path / str(number)
        write_files(combine(pair), out)
        both = Bundle.open(out)
        assert {one.name for one in both.variants} == {
            "onnxruntime-float32", "openvino-bfloat16", "openvino-float32",
        }  # fmt: skip
        assert {one.file for one in both.variants} == {"model.onnx"}
        for variant in both.variants:
            Session.open(both, variant=variant.name).close()
        told: Any = {one.name: one.made for one in both.variants}
        if number == 0:
            assert told["openvino-bfloat16"]["declined"]
            assert told["openvino-float32"]["measurements"]["latency"] is None
            assert told["openvino-float32"]["recipe"]["name"] == "int8"


# ---------------------------------------------------------------- the decision


def test_strict_refuses_it(made: tuple[SourceNetwork, Context, Evaluator, Result]) -> None:
    with pytest.raises(BoundError, match="was declined: no") as refused:
        check_strict(made[3], several=False)
    assert refused.value.code == "E_DECLINED"
    assert "in bfloat16" in refused.value.mend
    with pytest.raises(BoundError, match="declined for openvino-cpu"):
        check_strict(made[3], several=True)


def test_strict_refuses_what_the_engine_takes_in_part(
    made: tuple[SourceNetwork, Context, Evaluator, Result],
) -> None:
    result = made[3]
    fell = NodeReceipt("pool", "AveragePool", 0, "float32", "asked for INT8, the engine made it f")
    part = replace(result.outcome.receipt, nodes=(fell,), asked_int8=3, fused_int8=2)
    outcome = replace(result.outcome, changed=True, receipt=part)
    with pytest.raises(BoundError, match="took 2 of 3 nodes in INT8; not pool") as refused:
        check_strict(replace(result, outcome=outcome), several=False)
    assert refused.value.code == "E_FALLBACK"
    all_of_it = replace(outcome, receipt=replace(part, fused_int8=3))
    check_strict(replace(result, outcome=all_of_it), several=False)


def test_a_smaller_network_is_tried_in_both_precisions(
    made: tuple[SourceNetwork, Context, Evaluator, Result],
) -> None:
    subject, context, judge, _ = made
    plain = replace(float32_outcome(subject.graph, context), name="the student", changed=True)
    first, second = float_candidates(plain, subject.graph, judge)
    assert first is plain
    assert (second.name, second.shipped.precision) == ("the student in bfloat16", "bfloat16")
    assert second.changed
    assert second.shipped.beside == (plain.shipped,)
    assert float_candidates(plain, subject.graph, replace(judge, engine="onnxruntime")) == [plain]


def test_what_multiplies_nothing_in_bfloat16_is_no_candidate(
    made: tuple[SourceNetwork, Context, Evaluator, Result],
) -> None:
    subject, context, _, _ = made
    nothing: Outcome = float32_outcome(subject.graph, replace(context, macs={}))
    assert in_bfloat16(nothing, subject.graph) is None


@pytest.mark.slow
def test_compress_ships_bfloat16_where_it_measured_that_it_pays(
    pictures: Path, tmp_path: Path
) -> None:
    subject = Backbone(net(), "net", preprocessing=PLAIN)
    graph = make_source_network("net", subject, None, open_data_and_task(
        pictures, None, "agreement", 8, 0, training=False).split.calibration, 18).graph  # fmt: skip
    nodes = tuple(one.name for one in graph.proto().graph.node)
    bundle = compress(
        subject,
        pictures,
        out=tmp_path / "out",
        target="openvino-cpu",
        recipe=Recipe("int8", (Int8(keep_float=nodes, mixed=False),)),
        max_drop=5.0,
    )
    measured: Any = bundle.measurements
    (rival,) = measured["candidates"][0]["rivals"]
    pays = rival["keeps_score"] and rival["over_float32"]["faster"] == "result"
    held = [one.precision for one in bundle.variants]
    assert held == (["bfloat16", "float32"] if pays else ["float32"])
    assert bundle.manifest.declined
    assert measured["latency"] == (rival["over_float32"] if pays else None)
