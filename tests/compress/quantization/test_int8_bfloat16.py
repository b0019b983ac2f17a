"""INT8 whose floats are computed in bfloat16: one file, two variants, where that is faster."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
if importlib.util.find_spec("openvino") is None:  # importing it here would send telemetry
    pytest.skip("the extra openvino is not installed", allow_module_level=True)
from edgepress.__main__ import main
from edgepress.benchmarks.latency.comparison import Comparison, compare
from edgepress.benchmarks.latency.latency import OwnOptions
from edgepress.compress import Backbone, Recipe, compress
from edgepress.compress.evaluation.acceptance import EvaluatedCandidate, Verdict
from edgepress.compress.evaluation.evaluator import Evaluator
from edgepress.compress.quantization.bfloat16_pass import (
    floats_beside_int8,
    half_precision_note,
    int8_candidates,
    with_bfloat16,
)
from edgepress.compress.quantization.int8_pass import finish_int8, prepare_int8
from edgepress.compress.quantization.mixed_precision import mix_precisions
from edgepress.compress.recipe.pass_context import Context, Outcome
from edgepress.compress.recipe.settings import Int8
from edgepress.compress.result import Result
from edgepress.compress.source.data_and_task import open_data_and_task
from edgepress.compress.source.source_network import SourceNetwork, make_source_network
from edgepress.export.sensitivity.node_profile import profile_graphs
from edgepress.runtime import Bundle, EngineError, Session
from edgepress.runtime.bundle.bundle_writer import write_files
from edgepress.runtime.bundle.combine import combine
from edgepress.runtime.engines.engine import computed_in
from edgepress.runtime.engines.kernel_times import kernel_times
from edgepress.runtime.engines.openvino import has_bf16
from edgepress.runtime.target import target
from edgepress.runtime.variants.fastest_variant import fastest_variant
from helpers.bfloat16_nets import BLINK, PLAIN, net, noise, worked_on
from helpers.command_line import run_cli_told

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(not has_bf16(), reason="this processor has no bfloat16"),
]
BOTH = ["int8-bfloat16", "int8"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def given(pictures: Path) -> tuple[SourceNetwork, Context, Evaluator, Any]:
    """Floats beside INT8 are bfloat16."""
    return worked_on(pictures, "bf16")


def layers(subject: SourceNetwork, op_type: str) -> list[str]:
    return [one.name for one in subject.graph.proto().graph.node if one.op_type == op_type]


def written(given: tuple[SourceNetwork, Context, Evaluator, Any], *keep_float: str) -> Outcome:
    """INT8 with some layers kept in float."""
    subject, context = given[:2]
    settings = Int8(keep_float=keep_float, mixed=False, bias_correction=False, rounding=False)
    return finish_int8(prepare_int8(subject.graph, settings, context), settings, context)


@pytest.fixture(scope="module")
def plain(given: tuple[SourceNetwork, Context, Evaluator, Any]) -> Outcome:
    """INT8 but for the second convolution, which has half of the work; floats in float32."""
    return written(given, layers(given[0], "Conv")[1])


def bfloat16_of(plain: Outcome, judge: Evaluator) -> Outcome:
    assert plain.written is not None
    found = with_bfloat16(plain, plain.written, judge.example)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def shell(given: tuple[SourceNetwork, Context, Evaluator, Any]) -> Comparison:
    """A comparison, as short as can be."""
    model = given[2].graph.model
    return compare(model, model, preset=BLINK, engine="openvino")


@pytest.fixture(scope="module")
def bundle(
    given: tuple[SourceNetwork, Context, Evaluator, Any],
    plain: Outcome,
    shell: Comparison,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What ships where INT8 is 1.5x and INT8 with bfloat16 is 2x as fast as float32."""
    subject, context, judge, material = given
    original = judge.score(judge.graph.model, material.test, "float32")
    trials: list[EvaluatedCandidate] = []
    for outcome, ratio in ((plain, 1.5), (bfloat16_of(plain, judge), 2.0)):
        how = computed_in(outcome.shipped.precision)
        score = judge.score(outcome.shipped.model, material.test, outcome.name, how)
        timed = replace(shell, faster="a", ratio=ratio, settled=True)
        trials.append(EvaluatedCandidate(outcome, timed, score, score, Verdict(True, ())))
    recipe = {"name": "int8", "pass": [], "target": "openvino-cpu", "model": "net"}
    best = trials[1]
    result = Result(
        subject,
        material,
        best.outcome,
        trials,
        original,
        context.macs,
        half_precision_note(best),
        recipe,
    )
    held = result.bundle(judge.example, subject.preprocessing, real_golden=False)
    out = tmp_path_factory.mktemp("out") / "bundle"
    write_files(held.files, out)
    return out


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor without bfloat16, as far as OpenVINO's border can be told so."""
    module = importlib.import_module("edgepress.runtime.engines.openvino")
    monkeypatch.setattr(module, "_computes_in_bf16", lambda core, device: False)


# ---------------------------------------------------------------- the candidate


def test_the_receipt_tells_int8_and_bfloat16_apart(
    given: tuple[SourceNetwork, Context, Evaluator, Any], plain: Outcome
) -> None:
    other = bfloat16_of(plain, given[2])
    kept = layers(given[0], "Conv")[1]
    assert other.shipped.precision == "int8-bfloat16"
    assert other.shipped.model == plain.shipped.model
    assert other.shipped.beside == (plain.shipped,)
    assert other.name == "INT8 and bfloat16"
    nodes = {one.name: one for one in other.receipt.nodes}
    assert nodes[kept].precision == "bfloat16"
    assert "bf16" in nodes[kept].reason
    assert other.receipt.int8_share == plain.receipt.int8_share > 0.4
    assert other.receipt.share("bfloat16") == pytest.approx(1 - other.receipt.int8_share)
    assert other.receipt.int8_time_share is not None
    assert 0 < other.receipt.int8_time_share < 1
    told = other.receipt.to_dict()
    assert told["engine"]["precision"] == "bf16"  # type: ignore[index]
    assert told["bfloat16_nodes"] == other.receipt.count("bfloat16") >= 1
    assert any(kernel.endswith(" bf16") for kernel in other.receipt.kernels)
    assert "bfloat16_nodes" not in plain.receipt.to_dict()
    assert {one.precision for one in plain.receipt.nodes} == {"int8", "float32"}


def test_where_no_kernel_is_left_for_bfloat16_nothing_is_tried(
    given: tuple[SourceNetwork, Context, Evaluator, Any],
) -> None:
    whole = written(given)
    assert whole.written is not None
    assert whole.receipt.int8_share == 1.0
    assert with_bfloat16(whole, whole.written, given[2].example) is None
    assert int8_candidates(whole, given[2], given[1]) == [whole]


def test_it_is_tried_where_the_same_file_is_measurably_faster_so(
    given: tuple[SourceNetwork, Context, Evaluator, Any],
    plain: Outcome,
    shell: Comparison,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, context, judge, _ = given
    took = {"f32": 1.0, "bf16": 0.6}
    module = sys.modules[int8_candidates.__module__]
    monkeypatch.setattr(module, "kernels_ms", lambda *_, precision: [took[precision]])
    digest = hashlib.sha256(plain.shipped.model).digest()
    for which in ("a", "neither", "b"):
        timed = replace(shell, faster=which, ratio=1.0)
        decided = replace(judge, timed={(digest, "bf16", digest, "f32"): timed})
        found = int8_candidates(plain, decided, context)
        names = [one.shipped.precision for one in found]
        assert names == (["int8", "int8-bfloat16"] if which == "a" else ["int8"])
        told: Any = found[0].report["floats_in_bfloat16"]
        assert told["kernels_ms"] == {"float32": 1.0, "bfloat16": 0.6}
        assert told["faster"] is (which == "a")
        assert decided.scored == judge.scored, "nothing is scored before it is known to be faster"
    assert int8_candidates(plain, judge, replace(context, floats="f32")) == [plain]
    took["bf16"] = 1.0  # as where the processor has no instructions for it
    (alone,) = int8_candidates(plain, judge, context)
    assert alone.report["floats_in_bfloat16"] == {
        "kernels_ms": {"float32": 1.0, "bfloat16": 1.0}, "faster": False,
    }, "the kernels say enough: nothing is timed in turn"  # fmt: skip


def test_floats_are_bfloat16_where_the_network_bears_it(
    given: tuple[SourceNetwork, Context, Evaluator, Any],
) -> None:
    graph, judge = given[0].graph, given[2]
    lost = {"f32": 1.0, "bf16": 1.5}

    def drop_in(floats: str) -> Callable[[bytes], float]:
        return lambda model: lost[floats]

    assert floats_beside_int8(graph, judge, drop_in, 1.1) == "bf16"
    assert floats_beside_int8(graph, judge, drop_in, 0.9) == "f32"
    assert floats_beside_int8(graph, judge, drop_in, None) == "bf16"
    elsewhere = replace(judge, engine="onnxruntime")
    assert floats_beside_int8(graph, elsewhere, drop_in, None) == "f32"


def test_the_search_times_floats_in_what_they_will_be_computed_in(
    given: tuple[SourceNetwork, Context, Evaluator, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, context, judge, material = given
    settings = Int8(bias_correction=False, rounding=False)
    timed_in: list[str] = []

    def noted(*asked: Any, precision: Any = "f32", **options: Any) -> Any:
        timed_in.append(precision)
        return kernel_times(*asked, precision=precision, **options)

    monkeypatch.setattr(sys.modules[profile_graphs.__module__], "kernel_times", noted)
    whole = prepare_int8(subject.graph, settings, context)
    scored: list[bytes] = []

    def drop(model: bytes) -> float:
        scored.append(model)
        return 100 - judge.score(model, material.test, "a plan", context.floats).value

    found = mix_precisions(whole, settings, context, drop, None)
    mixed: Any = found.report["mixed"]
    assert (mixed["floats"], set(mixed["kernels_ms"])) == ("bfloat16", {"bfloat16", "int8"})
    assert set(timed_in) == {"bf16"}
    rows = {one["name"]: one for one in mixed["nodes"]}
    heavy = layers(subject, "Conv")[1]
    assert rows[heavy]["bfloat16_ms"] > 0
    assert found.written is not None
    assert found.written.quantized.model == found.shipped.model == scored[-1]


def test_an_engine_without_bfloat16_does_not_time_in_it() -> None:
    with pytest.raises(EngineError) as refused:
        kernel_times("onnxruntime", b"", {}, precision="bf16")
    assert refused.value.code == "E_PRECISION"


# ---------------------------------------------------------------- the bundle


def test_one_file_ships_as_two_variants(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    first, second = opened.variants
    assert [first.name, second.name] == [first.precision, second.precision] == BOTH
    assert first.file == second.file == "model.onnx"
    assert first.dialect == second.dialect == target("openvino-cpu").dialect
    assert not opened.manifest.declined
    (told,) = opened.manifest.notes
    assert "in INT8, and in bfloat16 what stays float: 2.00x the speed of the original" in told
    assert "without bfloat16 its variant int8 runs" in told
    measured: Any = opened.measurements
    beside: Any = second.made
    assert measured["latency"]["speedup"] == 2.0
    assert beside["measurements"]["latency"]["speedup"] == 1.5
    share = beside["measurements"]["int8_macs_share"]
    assert measured["int8_macs_share"] == pytest.approx(share, abs=1e-6)
    assert share > 0.4
    assert measured["bfloat16_macs_share"] > 0.4
    assert [one["precision"] for one in measured["candidates"]] == ["int8", "int8-bfloat16"]


def test_golden_outputs_hold_in_each_precision(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    for name, precision in zip(BOTH, ("bf16", "f32"), strict=True):
        with Session.open(opened, variant=name) as session:
            assert session.facts()["precision"] == precision
            assert session.selftest[0].max_abs <= 1e-5
    (output,) = opened.golden("int8")[1]
    rough, exact = (opened.golden(name)[1][output] for name in BOTH)
    apart = float(np.abs(rough - exact).max())
    assert apart > 0, "bfloat16 rounds"
    tolerance = opened.manifest.golden.tolerance[output].max_abs
    assert tolerance >= 0.02 * float(np.abs(rough).max())
    assert tolerance >= apart


def test_sessions_and_benchmarks_take_it(bundle: Path) -> None:
    with Session.open(bundle) as session:
        assert (session.variant.name, session.notes) == ("int8-bfloat16", ())
    assert OwnOptions.of(bundle, None, None) == OwnOptions("openvino", "int8-bfloat16", "bf16")
    assert OwnOptions.of(bundle, None, "int8") == OwnOptions("openvino", "int8", "f32")
    timed = fastest_variant(Bundle.open(bundle), Session.open, threads=1).passed_over
    assert {name for name, _ in timed} == set(BOTH)


@pytest.mark.usefixtures("elsewhere")
def test_elsewhere_int8_runs_and_says_so(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Session.open(bundle) as session:
        assert session.variant.name == "int8"
        assert session.facts()["precision"] == "f32"
        (told,) = session.notes
    assert "'int8-bfloat16': openvino has no bfloat16 on this processor" in told
    with pytest.raises(EngineError) as refused:
        Session.open(bundle, variant="int8-bfloat16")
    assert refused.value.code == "E_PRECISION"
    assert OwnOptions.of(bundle, None, None).precision == "f32"
    status, found, error = run_cli_told(capsys, "evaluate", bundle, "--data", pictures,
                                   "--task", "agreement", "--reference", bundle)  # fmt: skip
    assert (status, found["ran"]) == (0, "the runtime (int8)")
    assert "has no bfloat16 on this processor" in error
    status, found, _ = run_cli_told(capsys, "verify", bundle)
    assert (status, list(found["not_proved"])) == (0, ["int8-bfloat16"])


def test_every_command_takes_it(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told, _ = run_cli_told(capsys, "verify", bundle)
    assert (status, [one["name"] for one in told["variants"]]) == (0, BOTH)
    status, told, _ = run_cli_told(capsys, "inspect", bundle)
    assert (status, [one["precision"] for one in told["variants"]]) == (0, BOTH)
    with pytest.raises(SystemExit):
        main(["inspect", str(bundle)])
    shown = capsys.readouterr().out
    assert "nodes became INT8 kernels" in shown
    assert "multiply-adds in bfloat16, " in shown


def test_combined_it_stays_one_file(bundle: Path, tmp_path: Path) -> None:
    ours = Bundle.open(bundle)
    float32 = replace(ours.variants[1], name="float32", engine="onnxruntime", precision="float32")
    other = replace(ours, manifest=replace(ours.manifest, variants=(float32,)))
    write_files(combine([ours, other]), tmp_path / "both")
    both = Bundle.open(tmp_path / "both")
    assert [one.name for one in both.variants] == [
        "openvino-int8-bfloat16", "openvino-int8", "onnxruntime-float32",
    ]  # fmt: skip
    assert {one.file for one in both.variants} == {"model.onnx"}
    for variant in both.variants[:2]:
        Session.open(both, variant=variant.name).close()


# ---------------------------------------------------------------- the whole way


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino-cpu", "onnxruntime-cpu"])
def test_compress_ships_what_measured_fastest(pictures: Path, tmp_path: Path, name: str) -> None:
    subject = Backbone(net(), "net", preprocessing=PLAIN)
    graph = make_source_network("net", subject, None, open_data_and_task(
        pictures, None, "agreement", 8, 0, training=False).split.calibration, 18).graph  # fmt: skip
    kept = [one.name for one in graph.proto().graph.node if one.op_type == "Conv"][1:2]
    bundle = compress(
        subject,
        pictures,
        out=tmp_path / "out",
        target=name,
        recipe=Recipe("int8", (Int8(keep_float=tuple(kept), mixed=False),)),
        max_drop=20.0,
    )
    measured: Any = bundle.measurements
    (report,) = bundle.recipe["reports"]  # type: ignore[misc]
    tried: Any = report.get("floats_in_bfloat16")
    names = [one["precision"] for one in measured["candidates"]]
    held = [one.precision for one in bundle.variants]
    if name == "onnxruntime-cpu":
        assert tried is None
        assert names == ["int8"]
        assert held in (["int8"], ["float32"])
        return
    took = tried["kernels_ms"]
    assert took["bfloat16"] < took["float32"] or not tried["faster"]
    assert names[:2] == (["int8", "int8-bfloat16"] if tried["faster"] else names[:1])
    passed = [one for one in measured["candidates"] if one["accepted"]]
    if bundle.manifest.declined:
        assert not [one for one in passed if one["precision"] in BOTH]
    else:
        best = max(passed, key=lambda one: one["latency"]["speedup"])
        assert held == (BOTH if best["precision"] == "int8-bfloat16" else ["int8"])
