"""Capture: whatever a module takes and returns becomes a graph that is proved to be the same."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgepress.export.graph.normalize import normalize
from edgepress.export.graph.onnx_graph import Graph, opset_of
from edgepress.export.graph.torch_capture import (
    capture,
    flatten_outputs,
    input_names,
    run_module,
    with_parity,
)
from edgepress.runtime import InputError
from edgepress.runtime.engines.onnxruntime import OnnxRuntimeEngine
from edgepress.runtime.tensors import Array, Arrays

RNG = np.random.default_rng(0)
PICTURES: Arrays = {"x": RNG.normal(size=(2, 3, 16, 16)).astype(np.float32)}


class Backbone(nn.Module):
    """Conv, BatchNorm, ReLU, spatial mean, Linear; dropout, so that the mode matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(self.drop(y))


def outputs(graph: Graph, feeds: Mapping[str, Array]) -> Arrays:
    with OnnxRuntimeEngine(graph.model) as engine:
        return engine.run(feeds)


def agrees(module: nn.Module, graph: Graph, feeds: Mapping[str, Array]) -> None:
    module.eval()
    wanted, found = run_module(module, feeds), outputs(graph, feeds)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)


def test_a_backbone_becomes_a_clean_graph_with_a_free_batch() -> None:
    module = Backbone()
    graph = capture(module, PICTURES, source="the backbone")
    assert [node.op_type for node in graph.proto().graph.node] == [
        "Conv",
        "Relu",
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    ]
    assert [str(spec) for spec in graph.inputs] == ["x: float32 (N, 3, 16, 16)"]
    assert [str(spec) for spec in graph.outputs] == ["output: float32 (N, 5)"]
    assert graph.proto().ir_version == 10
    for batch in (1, 2, 5):
        agrees(module, graph, {"x": RNG.normal(size=(batch, 3, 16, 16)).astype(np.float32)})


def test_it_tells_nothing_of_the_machine() -> None:
    graph = capture(Backbone(), PICTURES)
    for secret in (Path(__file__).name, str(Path(__file__).parent), "site-packages", ".py"):
        assert secret.encode() not in graph.model


def test_every_part_of_the_module_keeps_its_mode() -> None:
    module = Backbone().train()
    module.norm.eval()
    capture(module, PICTURES)
    assert module.training
    assert module.drop.training
    assert not module.norm.training


def test_the_batch_can_be_fixed() -> None:
    graph = capture(Backbone(), PICTURES, dynamic_batch=False)
    assert graph.inputs[0].shape == (2, 3, 16, 16)
    assert graph.outputs[0].shape == (2, 5)


def test_parity_is_recorded_on_real_and_on_synthetic_pictures() -> None:
    module = Backbone()
    real = [{"x": RNG.normal(size=(3, 3, 16, 16)).astype(np.float32)} for _ in range(2)]
    parity = capture(module, PICTURES, parity_on=real).parity
    assert parity is not None
    assert (parity.pictures, parity.real) == (6, True)
    assert parity.max_abs["output"] < 1e-5
    assert parity.cosine["output"] == pytest.approx(1)
    synthetic = capture(module, PICTURES).parity
    assert synthetic is not None
    assert synthetic.to_dict()["real_pictures"] is False


class Pyramid(nn.Module):
    """Gives nested tuples and dicts; one key is also the name of the input."""

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        half = functional.avg_pool2d(x, 2)
        return {"levels": (x * 2, [half]), "x": half.sum((1, 2, 3)), "none": None, "levels_0": -x}


def test_nested_outputs_are_named_by_their_path_and_none_is_lost() -> None:
    graph = capture(Pyramid(), PICTURES)
    names = [spec.name for spec in graph.outputs]
    assert names == ["levels_0", "levels_1_0", "x_1", "levels_0_1"]
    agrees(Pyramid(), graph, PICTURES)


def test_names_of_flat_outputs() -> None:
    one = torch.zeros(1)
    assert list(flatten_outputs(one)) == ["output"]
    assert list(flatten_outputs((one, one))) == ["output_0", "output_1"]
    assert list(flatten_outputs({"a": one, 3: [one]})) == ["a", "output_3_0"]
    for nothing in ([], {"a": 1.0}, "text"):
        with pytest.raises(InputError) as caught:
            flatten_outputs(nothing)
        assert caught.value.code == "E_FORWARD"


class Named(nn.Module):
    """Inputs and outputs have names that the exporter gives to values inside, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, relu: torch.Tensor) -> dict[str, torch.Tensor]:
        f = self.conv(relu.relu()).mean((2, 3))
        return {"mean": self.head(f), "linear": f.sigmoid(), "module.head.weight": f.exp()}


def test_names_that_the_exporter_gives_inside_are_free_for_inputs_and_outputs() -> None:
    feeds = {"relu": PICTURES["x"]}
    graph = capture(Named(), feeds)
    assert [spec.name for spec in graph.inputs] == ["relu"]
    assert [spec.name for spec in graph.outputs] == ["mean", "linear", "module.head.weight"]


class Masked(nn.Module):
    """Two inputs and an optional one; gives an input back, integers and booleans."""

    def forward(
        self, image: torch.Tensor, mask: torch.Tensor, scale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        shown = image * mask.unsqueeze(1)
        return shown, shown.argmax(1), shown > 0, image


def test_several_inputs_and_outputs_of_any_type() -> None:
    feeds = {"image": PICTURES["x"], "mask": np.ones((2, 16, 16), np.float32)}
    assert input_names(Masked()) == ["image", "mask"]
    graph = capture(Masked(), feeds)
    assert [spec.name for spec in graph.inputs] == ["image", "mask"]
    assert [spec.dtype for spec in graph.outputs] == ["float32", "int64", "bool", "float32"]
    agrees(Masked(), graph, feeds)


def test_arrays_that_cannot_be_written_to_are_taken() -> None:
    fixed = PICTURES["x"].copy()
    fixed.flags.writeable = False
    strided = np.asfortranarray(fixed)
    expected = run_module(Backbone().eval(), PICTURES)["output"]
    for array in (fixed, strided):
        np.testing.assert_array_equal(
            run_module(Backbone().eval(), {"x": array})["output"], expected
        )


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_the_opset_asked_for_is_the_one_that_comes(opset: int) -> None:
    module = Backbone()
    graph = capture(module, PICTURES, opset=opset)
    assert opset_of(graph.proto()) == opset
    agrees(module, graph, PICTURES)


# ---------------------------------------------------------------- what is refused


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


def refused(module: nn.Module, feeds: Mapping[str, Array] = PICTURES, **options: int) -> InputError:
    with pytest.raises(InputError) as caught:
        capture(module, feeds, **options)  # type: ignore[arg-type]
    return caught.value


def test_control_flow_on_values_is_refused_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    error = refused(Branching())
    assert error.code == "E_EXPORT"
    assert "branches on values" in error.message
    assert "torch.where" in error.mend
    assert capfd.readouterr() == ("", "")


def test_a_fixed_batch_in_forward_is_refused_with_what_to_do() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 768)

    error = refused(Fixed())
    assert error.code == "E_EXPORT"
    assert "--static-shape" in error.mend


def test_opsets_out_of_range_are_refused() -> None:
    assert refused(Backbone(), opset=12).code == "E_OPSET"
    assert refused(Backbone(), opset=99).code == "E_OPSET"


def test_inputs_that_the_network_refuses() -> None:
    error = refused(Backbone(), {"x": np.zeros((2, 4, 16, 16), np.float32)})
    assert error.code == "E_FORWARD"
    assert "(2, 4, 16, 16)" in error.message
    assert refused(Backbone(), {"pixels": PICTURES["x"]}).code == "E_FORWARD"


@pytest.mark.parametrize("where", ["conv.weight", "norm.running_var"])
def test_weights_that_are_nan_are_named(where: str) -> None:
    module = Backbone()
    module.state_dict()[where].view(-1)[0] = torch.nan
    error = refused(module)
    assert (error.code, error.path) == ("E_NAN", where)


def test_an_infinite_buffer_is_a_mask() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((16, 16), -torch.inf).triu(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + self.mask).softmax(-1)

    agrees(Causal(), capture(Causal(), PICTURES), PICTURES)


def test_outputs_that_are_nan_are_refused() -> None:
    class Root(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sqrt()

    assert refused(Root()).code == "E_NAN"


def test_a_graph_of_another_network_fails_the_proof() -> None:
    other = Backbone()
    graph = capture(other, PICTURES)
    with torch.no_grad():
        other.head.weight += 0.5
    with pytest.raises(InputError) as caught:
        with_parity(other, graph, [PICTURES], real=False)
    assert caught.value.code == "E_PARITY"


def test_a_graph_that_gives_nan_fails_the_proof() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[N,3,16,16] input) => '
        "(float[N,3,16,16] output) { a = Abs(input) n = Neg(a) output = Sqrt(n) }"
    )
    graph = normalize(model, source="nan")
    with pytest.raises(InputError) as caught:
        with_parity(nn.Identity(), graph, [{"input": PICTURES["x"]}], real=False)
    assert caught.value.code == "E_PARITY"


def test_forward_without_names_is_refused() -> None:
    class Nameless(nn.Module):
        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return tensors[0]

    with pytest.raises(InputError) as caught:
        input_names(Nameless())
    assert caught.value.code == "E_FORWARD"
    assert input_names(nn.Sequential()) == ["input"]


SCRIPT = """
import hashlib, sys
sys.path.insert(0, {folder!r})
from test_torch_capture import PICTURES, Backbone
from edgepress.export.graph.torch_capture import capture
print(hashlib.sha256(capture(Backbone(), PICTURES).model).hexdigest())
"""


@pytest.mark.slow
def test_a_fresh_process_exports_the_same_bytes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(folder=str(Path(__file__).parent))],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    here = capture(Backbone(), PICTURES).model
    assert done.stdout.strip() == hashlib.sha256(here).hexdigest()
