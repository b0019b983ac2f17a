"""Workers, measuring and comparing, on real graphs in real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepress.__main__ import main
from edgepress.benchmarks import Preset, compare, measure
from edgepress.benchmarks.latency.comparison import (
    Comparison,
    request_against,
    which_is_faster,
)
from edgepress.benchmarks.latency.feeds import make_feeds
from edgepress.benchmarks.latency.fingerprint import fingerprint
from edgepress.benchmarks.latency.latency import OwnOptions
from edgepress.benchmarks.latency.measurement import PRESETS, Latency, MeasurementRequest
from edgepress.benchmarks.latency.processes import Worker
from edgepress.benchmarks.latency.worker import WorkerRequest
from edgepress.runtime import BundleError, EngineError, InputError, TensorSpec

LINUX = sys.platform == "linux"
SHORT = Preset("short", 0.3, 20, 1.0, 1, 5.0)


@pytest.fixture(scope="session")
def chain() -> Callable[..., bytes]:
    """Writes a graph of ``length`` convolutions in a row: its work grows with the length."""

    def write(length: int, *, batch: int | str = "N", height: int | str = 24) -> bytes:
        from onnx import TensorProto, helper, numpy_helper

        rng = np.random.default_rng(0)
        weights = [
            numpy_helper.from_array(
                rng.normal(0, 0.05, (24, 24, 3, 3)).astype(np.float32), f"w{index}"
            )
            for index in range(length)
        ]
        nodes = [
            helper.make_node("Conv", [f"t{index}", f"w{index}"], [f"t{index + 1}"], pads=[1] * 4)
            for index in range(length)
        ]

        def value(name: str) -> Any:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 24, height, 24])

        graph = helper.make_graph(nodes, "chain", [value("t0")], [value(f"t{length}")], weights)
        opset = [helper.make_opsetid("", 18)]
        return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()

    return write


def request(path: Path, **changes: Any) -> WorkerRequest:
    settings = {"engine": "onnxruntime", "threads": 1, "batch": 1, "seed": 0, **changes}
    return WorkerRequest(str(path), **settings)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def children() -> set[int]:
    listed = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
    return set(map(int, listed.split()))


# ---------------------------------------------------------------- measuring


@pytest.mark.serial
def test_measure_tells_everything_and_leaves_nothing(
    chain: Callable[..., bytes], tmp_path: Path
) -> None:
    path = tmp_path / "chain.onnx"
    path.write_bytes(chain(2))
    told: list[float] = []
    found = measure(path, preset=SHORT, batch=2, progress=told.append)
    assert found.latency.count >= 20
    assert found.latency.p50_low_ms <= found.latency.p50_ms <= found.latency.p50_high_ms
    assert found.shapes == {"t0": [2, 24, 24, 24]}
    assert found.size_bytes == found.package_bytes == path.stat().st_size
    assert found.engine["engine"] == "onnxruntime"
    assert found.throughput_per_s == pytest.approx(2e3 / found.latency.mean_ms)
    for value in (found.import_ms, found.load_ms, found.first_ms, found.cpu_ms, found.overhead_us):
        assert value > 0
    assert found.overhead_us < 1000 * found.latency.p50_ms
    assert told[-1] == 1.0
    assert told == sorted(told)
    assert told[0] > 0
    json.dumps(found.to_dict(), allow_nan=False)
    assert list(tmp_path.iterdir()) == [path]
    if LINUX:
        assert found.peak_memory_bytes is not None
        assert 20e6 < found.peak_memory_bytes < 300e6
        assert not children()


def test_percentiles_stay_silent_below_their_floors() -> None:
    few = Latency.of(np.linspace(1, 2, 63))
    assert (few.p90_ms, few.p99_ms, few.jitter_ms) == (None, None, None)
    some = Latency.of(np.linspace(1, 2, 64))
    assert some.p90_ms == pytest.approx(1.9, abs=0.02)
    many = Latency.of(np.linspace(1, 2, 662))
    assert many.jitter_ms == pytest.approx(0.49, abs=0.01)
    assert many.p999_ms is None
    with pytest.raises(ValueError, match="at least 11"):
        Latency.of(np.ones(10))


@pytest.mark.serial
def test_bytes_are_measured_without_a_trace(
    chain: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = measure(chain(1), preset=SHORT)
    assert found.path == "bytes"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.serial
def test_a_bundle_is_measured_by_its_first_variant(small_bundle: Path, tmp_path: Path) -> None:
    found = measure(small_bundle, preset=SHORT)
    assert found.shapes == {"input": [1, 3, 8, 8]}
    assert found.size_bytes == (small_bundle / "model.onnx").stat().st_size
    assert found.package_bytes == sum(
        path.stat().st_size for path in small_bundle.rglob("*") if path.is_file()
    )
    damaged = tmp_path / "damaged"
    shutil.copytree(small_bundle, damaged)
    model = bytearray((damaged / "model.onnx").read_bytes())
    model[-1] ^= 1
    (damaged / "model.onnx").write_bytes(model)
    with pytest.raises(BundleError) as caught:
        compare(small_bundle, damaged, preset=SHORT)
    assert caught.value.code == "E_HASH"


# ---------------------------------------------------------------- comparing


def decided(found: Comparison) -> str:
    """What follows from the times; on a busy machine that may be that nobody knows."""
    times = (found.ratio, found.ratio_low, found.ratio_high, found.p_value, found.noise)
    return which_is_faster(*times)


@pytest.mark.serial
def test_a_graph_against_itself_differs_by_the_noise(chain: Callable[..., bytes]) -> None:
    graph = chain(3)
    found = compare(graph, graph, preset=SHORT)
    assert found.faster == decided(found)
    assert 0.67 < found.ratio < 1.5, "both sides are struck alike"
    assert found.a.sha256 == found.b.sha256
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert found.rounds >= 6


@pytest.mark.serial
def test_a_graph_with_a_third_of_the_work_is_faster(chain: Callable[..., bytes]) -> None:
    found = compare(chain(2), chain(6), preset=SHORT)
    assert found.faster == decided(found)
    assert found.ratio > 1.5
    turned = compare(chain(6), chain(2), preset=SHORT)
    assert turned.faster == decided(turned)
    assert turned.ratio < 1 / 1.5
    json.dumps(turned.to_dict(), allow_nan=False)


def test_a_file_on_another_engine_computes_in_what_that_has(chain: Callable[..., bytes]) -> None:
    def against(first: str, other: str | None, *asked: Any) -> tuple[str, str]:
        settings = MeasurementRequest.of(1, 1, SHORT, first, 0, None, "bf16")
        found = request_against(settings, OwnOptions(other), *asked or (None,))
        return found.engine, found.precision

    assert against("openvino", "onnxruntime") == ("onnxruntime", "f32"), "which has no bfloat16"
    assert against("openvino", None) == ("openvino", "bf16"), "two files on one engine are alike"
    assert against("onnxruntime", "onnxruntime") == ("onnxruntime", "bf16"), "refused for the first"
    assert against("openvino", "onnxruntime", "bf16") == ("onnxruntime", "bf16"), "as asked"
    settings = MeasurementRequest.of(1, 1, SHORT, "onnxruntime", 0, None)
    variant = request_against(settings, OwnOptions("openvino", "bfloat16", "bf16"), None)
    assert (variant.precision, variant.variant) == ("bf16", "bfloat16"), "as its bundle says"
    assert request_against(settings, OwnOptions("openvino"), None).precision == "f32"
    with pytest.raises(EngineError) as refused:
        compare(chain(1), chain(1), preset=SHORT, engine="onnxruntime",
                against_precision="bf16")  # fmt: skip
    assert refused.value.code == "E_PRECISION", "what was asked for is not swapped"


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.skipif(not LINUX, reason="processes are looked up in /proc")
def test_a_worker_that_is_killed_is_an_engine_error(
    chain: Callable[..., bytes], tmp_path: Path
) -> None:
    path = tmp_path / "chain.onnx"
    path.write_bytes(chain(1))
    with Worker(request(path)) as worker:
        worker.start()
        pid = worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="SIGKILL") as caught:
            worker.block(10)
    assert caught.value.code == "E_BACKEND"
    assert caught.value.path == str(path)
    assert not is_running(pid)


@pytest.mark.skipif(not LINUX, reason="processes are looked up in /proc")
def test_a_worker_that_hangs_is_ended(chain: Callable[..., bytes], tmp_path: Path) -> None:
    path = tmp_path / "chain.onnx"
    path.write_bytes(chain(4))
    with Worker(request(path), timeout_s=20) as worker:
        worker.start()
        pid = worker.pid
        assert pid is not None
        worker._timeout_s = 0.3
        with pytest.raises(EngineError, match=r"no answer .* within 0 s") as caught:
            worker.block(10_000_000)
    assert caught.value.code == "E_BACKEND"
    assert not is_running(pid)


def test_a_graph_that_crashes_its_engine_leaves_the_parent_alive(tmp_path: Path) -> None:
    """A chain of 3,000 local functions overflows ONNX Runtime's stack."""
    from onnx import TensorProto, helper

    opset = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    functions = [
        helper.make_function(
            "f",
            f"F{i}",
            ["x"],
            ["y"],
            [helper.make_node(f"F{i + 1}", ["x"], ["y"], domain="f")],
            opset,
        )
        for i in range(3000)
    ]
    last = [helper.make_node("Relu", ["x"], ["y"])]
    functions.append(helper.make_function("f", "F3000", ["x"], ["y"], last, opset))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("F0", ["x"], ["y"], domain="f")],
        "deep",
        [value("x", TensorProto.FLOAT, [1, 2])],
        [value("y", TensorProto.FLOAT, [1, 2])],
    )
    model = helper.make_model(graph, opset_imports=opset, functions=functions, ir_version=10)
    path = tmp_path / "deep.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError) as caught:
        measure(path, preset=SHORT)
    assert caught.value.code == "E_BACKEND"


@pytest.mark.parametrize("content", [b"", b"no graph at all"])
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError) as caught:
        measure(path, preset=SHORT)
    assert caught.value.code == "E_BACKEND"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"preset": "forever"}, "E_PRESET"),
        ({"threads": -1}, "E_THREADS"),
        ({"seed": -1}, "E_SEED"),
        ({"batch": 0}, "E_BATCH"),
        ({"engine": "abacus"}, "E_ENGINE"),
        ({"shapes": {"image": (1, 24, 24, 24)}}, "E_SHAPE"),
        ({"shapes": {"t0": (1, 24, 24)}}, "E_SHAPE"),
        ({"shapes": {"t0": (2, 24, 24, 24)}}, "E_SHAPE"),
    ],
)
def test_settings_that_cannot_be(
    chain: Callable[..., bytes], arguments: dict[str, Any], code: str
) -> None:
    with pytest.raises(InputError) as caught:
        measure(chain(1), **{"preset": SHORT, **arguments})
    assert caught.value.code == code


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        measure(tmp_path / "absent.onnx", preset=SHORT)
    assert caught.value.code == "E_FILE"


def test_a_fixed_batch_is_kept(chain: Callable[..., bytes]) -> None:
    with pytest.raises(InputError, match="batch 1") as caught:
        measure(chain(1, batch=4), preset=SHORT)
    assert caught.value.code == "E_BATCH"
    assert "Use batch 4" in caught.value.mend
    assert measure(chain(1, batch=4), batch=4, preset=SHORT).shapes["t0"][0] == 4


def test_free_dimensions_must_be_told(chain: Callable[..., bytes]) -> None:
    with pytest.raises(InputError, match="leaves H open") as caught:
        measure(chain(1, height="H"), preset=SHORT)
    assert caught.value.code == "E_SHAPE"
    assert "--shape t0=1,24,224,24" in caught.value.mend
    found = measure(chain(1, height="H"), preset=SHORT, shapes={"t0": (1, 24, 8, 24)})
    assert found.shapes == {"t0": [1, 24, 8, 24]}


def test_feeds_are_seeded_and_golden_inputs_fill_what_is_free() -> None:
    specs = [
        TensorSpec("x", "float32", ("N", 3, "H", "W")),
        TensorSpec("ids", "int64", ("N", "L")),
        TensorSpec("mask", "bool", ("N", "L")),
        TensorSpec("bytes", "uint8", (1, 2)),
    ]
    golden = {
        "x": np.zeros((2, 3, 5, 7), np.float32),
        "ids": np.array([[1, 2, 3], [4, 5, 6]]),
        "mask": np.zeros((2, 3), bool),
    }
    feeds = make_feeds(specs, 3, seed=1, golden=golden)
    assert {name: array.shape for name, array in feeds.items()} == {
        "x": (3, 3, 5, 7),
        "ids": (3, 3),
        "mask": (3, 3),
        "bytes": (1, 2),
    }
    assert feeds["ids"].tolist() == [[1, 2, 3], [4, 5, 6], [1, 2, 3]]
    assert abs(float(feeds["x"].std()) - 1) < 0.2
    again = make_feeds(specs, 3, seed=1, golden=golden)
    other = make_feeds(specs, 3, seed=2, golden=golden)
    assert np.array_equal(feeds["x"], again["x"])
    assert not np.array_equal(feeds["x"], other["x"])
    for spec in specs:
        assert feeds[spec.name].dtype == spec.dtype


def test_fingerprint_names_machine_and_software_but_nobody() -> None:
    found = fingerprint({"engine": "null"})
    text = json.dumps(found, allow_nan=False)
    assert found["software"]["numpy"] == np.__version__  # type: ignore[index]
    assert found["engine"] == {"engine": "null"}
    for private in (os.uname().nodename, str(Path.home())):
        assert private not in text.replace("\\", "")


def test_the_worker_imports_nothing_but_the_runtime() -> None:
    listed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, edgepress.benchmarks.latency.worker; "
            "print([n for n in sys.modules if n in ('numpy', 'PIL', 'onnxruntime')"
            " or n.startswith('edgepress.')])",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    ours = ["edgepress.benchmarks", "edgepress.benchmarks.latency"]
    assert listed.strip() == str([*ours, "edgepress.benchmarks.latency.worker"])


# ---------------------------------------------------------------- the command


@pytest.fixture
def bench(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command here, its quick preset made short; gives status, stdout and stderr."""
    monkeypatch.setitem(PRESETS, "quick", SHORT)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["bench", *map(str, arguments)])
        status = ended.value.code
        assert isinstance(status, int)
        output, errors = capfd.readouterr()
        return status, output, errors

    return run


@pytest.mark.serial
def test_bench_prints_exactly_one_json_object(
    bench: Callable[..., tuple[int, str, str]], chain: Callable[..., bytes], tmp_path: Path
) -> None:
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    a.write_bytes(chain(2))
    b.write_bytes(chain(8))
    status, output, errors = bench(a, "--json")
    assert status == 0, errors
    found = json.loads(output)
    assert found["format"] == "edgepress-bench"
    assert found["measurement"]["latency"]["p50_ms"] > 0
    status, output, errors = bench(a, "--against", b, "--json")
    found = json.loads(output)
    assert found["comparison"]["ratio"] > 1.5
    assert status == (4 if "error" in found else 0), errors
    assert sorted(tmp_path.iterdir()) == [a, b]


@pytest.mark.serial
def test_bench_tells_people_who_is_faster(
    bench: Callable[..., tuple[int, str, str]], chain: Callable[..., bytes], tmp_path: Path
) -> None:
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    a.write_bytes(chain(2))
    b.write_bytes(chain(8))
    status, output, errors = bench(b, "--against", a)
    assert status in (0, 4), errors
    for word in ("latency p50", "throughput", "load", "first inference", "peak memory", "size"):
        assert word in output
    assert "harness overhead" in output
    assert "a.onnx is " in output
    assert "times as fast as b.onnx (95 % interval " in output


@pytest.mark.serial
def test_a_comparison_that_does_not_settle_is_reported_and_ends_with_four(
    bench: Callable[..., tuple[int, str, str]],
    chain: Callable[..., bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one_round = Preset("quick", 0.0, 1, 0.0, 1, 1.0)
    monkeypatch.setitem(PRESETS, "quick", one_round)
    monkeypatch.setattr("edgepress.benchmarks.latency.comparison.UNSETTLED", -1.0)
    monkeypatch.setattr("edgepress.benchmarks.latency.comparison.SIGNIFICANCE", 0.0)
    path = tmp_path / "a.onnx"
    path.write_bytes(chain(40))
    status, output, errors = bench(path, "--against", path, "--json")
    assert status == 4
    found = json.loads(output)
    assert found["error"]["code"] == "E_UNSETTLED"
    assert found["comparison"]["settled"] is False
    assert found["comparison"]["faster"] == "neither"
    assert "E_UNSETTLED" in errors


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["absent.onnx"], "E_FILE"),
        (["bad.onnx"], "E_BACKEND"),
        (["bad.onnx", "--shape", "1,2,3"], "E_SHAPE"),
        (["empty"], "E_MISSING"),
    ],
)
def test_bench_refuses_with_one_error(
    bench: Callable[..., tuple[int, str, str]], tmp_path: Path, arguments: list[str], code: str
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    (tmp_path / "empty").mkdir()
    status, output, errors = bench(tmp_path / arguments[0], *arguments[1:], "--json")
    assert json.loads(output)["error"]["code"] == code
    assert status == (5 if code == "E_MISSING" else 2)
    assert "Traceback" not in errors


@pytest.mark.skipif(not LINUX, reason="children are listed in /proc")
def test_ctrl_c_ends_the_command_and_its_workers(
    chain: Callable[..., bytes], tmp_path: Path
) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(chain(8))
    command = [sys.executable, "-m", "edgepress", "bench", str(path), "--against", str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        workers = wait_for_children(process.pid, 2)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors
    assert output == b""
    assert not [pid for pid in workers if is_running(pid)]


@pytest.mark.skipif(not LINUX, reason="children are listed in /proc")
def test_workers_do_not_outlive_a_parent_that_is_killed(
    chain: Callable[..., bytes], tmp_path: Path
) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(chain(2))
    command = [sys.executable, "-m", "edgepress", "bench", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        workers = wait_for_children(process.pid, 1)
        process.kill()
        process.communicate(timeout=20)
    until = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in workers if is_running(pid)]


def wait_for_children(pid: int, count: int) -> list[int]:
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    for _ in range(200):
        found = [int(word) for word in listing.read_text().split()]
        if len(found) >= count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"process {pid} never had {count} children")
