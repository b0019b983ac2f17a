"""What a network costs at every width: measured, kept, and held against whole networks."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch_pruning")
from edgepress.compress.pruning.candidate_timing import CandidateTimer
from edgepress.compress.pruning.latency_model import LatencyModel, random_widths
from edgepress.compress.pruning.latency_table import LatencyTable, timed_ms
from edgepress.export.int8.layer_probes import ProbedLayer, layer_probe
from edgepress.runtime.engine_registry import open_engine
from edgepress.runtime.engines.engine import EngineOptions
from edgepress.runtime.nvidia.driver import Gpu
from edgepress.runtime.target import target
from edgepress.runtime.tensors import Arrays
from helpers.processors import JETSON_ORIN, pretend, pretend_gpu
from helpers.prune_nets import batch, framed, net

CPU = target("onnxruntime-cpu")


@pytest.mark.parametrize(
    "layer",
    [
        ProbedLayer("Conv", (1, 8, 10, 10), 16, 1, (3, 3), (2, 2), (1, 1), (1, 1)),
        ProbedLayer("Conv", (1, 8, 10, 10), 8, 8, (3, 3), (1, 1), (1, 1), (1, 1)),
        ProbedLayer("ConvTranspose", (1, 8, 5, 5), 6, 1, (2, 2), (2, 2), (0, 0), (1, 1)),
        ProbedLayer("MatMul", (1, 32), 16),
        ProbedLayer("MatMul", (1, 9, 32), 16),
    ],
)
@pytest.mark.parametrize("int8", [False, True])
def test_probes_run(layer: ProbedLayer, int8: bool) -> None:
    feeds = {"x": np.ones(layer.in_shape, np.float32)}
    for copies in (1, 3):
        model = layer_probe(layer, copies, int8_dialect=CPU.dialect if int8 else None)
        with open_engine("onnxruntime")(model, EngineOptions(threads=1)) as engine:
            (found,) = engine.run(feeds).values()
        assert np.isfinite(found).all()


def test_the_table_is_kept_and_read_again(tmp_path: Path) -> None:
    frame = framed(net())
    widths = [(group.width, group.width // 2) for group in frame.structure.groups]
    stages: list[str] = []
    table = LatencyTable(CPU, "float32", tmp_path / "cache")
    table.measure(frame, widths, lambda stage, *_: stages.append(stage))
    assert stages
    assert all(value > 0 for value in table.entries.values())
    again = LatencyTable(CPU, "float32", tmp_path / "cache")
    assert again.entries == table.entries
    again.measure(frame, widths, lambda *_: pytest.fail("measured twice"))
    layer = frame.structure.layers[1]
    low, high = (again.cost(layer, 16, width) for width in (12, 24))
    assert min(low, high) <= again.cost(layer, 16, 18) <= max(low, high)
    assert table.path is not None
    table.path.write_text("{ damaged")
    assert not LatencyTable(CPU, "float32", tmp_path / "cache").entries, "measured anew"
    other = LatencyTable(CPU, "int8", tmp_path / "cache")
    assert other.path != again.path
    assert not other.entries


def test_a_table_is_kept_for_its_gpu_and_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orin = Gpu(0, "Orin", "8.7", "CUDA 12.6")
    paths: list[Path | None] = []
    others: set[Path | None] = set()
    for gpu in (
        orin,
        replace(orin, name="Orin Nano"),
        replace(orin, compute_capability="8.9"),
        replace(orin, driver="CUDA 13.0"),
    ):
        pretend_gpu(monkeypatch, gpu)
        table = LatencyTable(target("tensorrt"), "int8", tmp_path)
        assert not table.entries, "measured on another"
        table.entries["a layer"] = 1.0
        table.save()
        assert LatencyTable(target("tensorrt"), "int8", tmp_path).entries == {"a layer": 1.0}
        paths.append(table.path)
        others.add(LatencyTable(CPU, "int8", tmp_path).path)
    assert len(set(paths)) == len(paths)
    assert len(others) == 1, "what needs no GPU is the same with another"


def test_a_table_is_kept_for_its_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: set[Path | None] = set()
    for board in ("NVIDIA Jetson AGX Orin Developer Kit", "NVIDIA Jetson Orin Nano Developer Kit"):
        (tmp_path / board).mkdir()
        pretend(monkeypatch, tmp_path / board, JETSON_ORIN, "aarch64", board)
        paths.add(LatencyTable(CPU, "float32", tmp_path).path)
    assert len(paths) == 2


def test_a_model_learns_from_whole_networks(tmp_path: Path) -> None:
    module = net()
    frame = framed(module)
    widths = [(group.width, group.width // 2) for group in frame.structure.groups]
    table = LatencyTable(CPU, "float32", tmp_path)
    table.measure(frame, widths, lambda *_: None)
    model = LatencyModel(frame, table)
    truth = 0.2 + 0.8 * np.array(
        [frame.total(table.cost, c) for c in random_widths(frame, widths, 6, 0)]
    ) / frame.total(table.cost, frame.whole)
    model.learn(random_widths(frame, widths, 6, 0), lambda _: [float(one) for one in truth])
    assert max(map(abs, model.errors())) < 0.05
    assert abs(model.predict(frame.whole) - 1) < 0.05
    assert LatencyModel(frame, table).seen == model.seen
    bound = model.bound(0.7)
    choice = model.seen[0][0]
    assert bound.of(frame, choice) == pytest.approx(model.predict(choice))


def test_runs_that_find_the_caches_cold_are_not_what_is_told() -> None:
    last: list[Any] = []

    class Cold:
        def run(self, feeds: Arrays) -> Arrays:
            time.sleep(0.002 if last == [self] else 0.01)
            last[:] = [self]
            return feeds

    engines: Any = [(Cold(), {}), (Cold(), {})]
    assert max(timed_ms(engines, 0.1)) < 6


def test_whole_networks_are_timed_against_the_uncut_one() -> None:
    module = net()
    frame = framed(module)
    feeds = {"x": batch(2)["x"].numpy()}
    watch = CandidateTimer(module, frame.structure, feeds, CPU, "int8", lambda *_: None)
    (same,) = watch([frame.whole])
    assert 0.1 < same < 10, "the same network, on however busy a machine"
