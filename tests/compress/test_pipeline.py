"""From a network and pictures to a bundle: what ships, what is told of it, and on which grounds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.command_line import run_cli
from helpers.pipeline_nets import NETS, PLAIN, TOML

pytest.importorskip("torch")
pytest.importorskip("onnx")
import onnx
import onnx.parser
import torch
from onnx import numpy_helper
from torch import nn

from edgepress.__main__ import main
from edgepress.benchmarks import Images
from edgepress.benchmarks.tasks.task import Score
from edgepress.compress import Recipe, compress
from edgepress.compress.source.export_network import export_graph
from edgepress.export.graph.onnx_files import parse_onnx
from edgepress.runtime import BoundError, Bundle, InputError, Preprocessing, Session

FLOAT32 = Recipe("float32")


def networks() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "nets"}
    exec(NETS, names)
    return names


def net(channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = networks()["Net"](channels)
    return made.eval()


def pictures(count: int = 64, channels: int = 3) -> tuple[Any, Any]:
    """Noise of many contrasts, labelled by what the network itself says: it scores 100 %."""
    rng = np.random.default_rng(0)
    spread = rng.uniform(0, 1, (count, 1, 1, channels))
    x = (rng.uniform(0, 255, (count, 16, 16, channels)) * spread).astype(np.uint8)
    plain = PLAIN if channels == 3 else Preprocessing(channel_order="GRAY")
    with torch.inference_mode():
        scores = net(channels)(torch.from_numpy(plain.tensor(list(x))))
    return x, scores.argmax(1).numpy()


def made(model: Any, data: Any, folder: Path, **options: Any) -> Bundle:
    """A float32 bundle, which takes no timing; the parts around INT8 are the same."""
    return compress(model, data, out=folder / "out", recipe=FLOAT32, **options)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a factory's file, a preprocessing, pictures, and ``int8``, compressed once."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    (folder / "plain.toml").write_text(TOML, encoding="utf-8")
    x, y = pictures()
    np.savez(folder / "data.npz", x=x, y=y, labels=np.array(["ant", "bee", "cat", "dog"]))
    compress(
        f"{folder}/nets.py:net",
        folder / "data.npz",
        out=folder / "int8",
        preprocessing=folder / "plain.toml",
        max_drop=100,
    )
    return folder


# ---------------------------------------------------------------- INT8, with its timing


def test_what_ships_is_what_the_report_says(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Bundle.open(home / "int8")
    measured: Any = bundle.measurements
    scores: Any = bundle.scores
    (candidate,) = measured["candidates"]
    assert candidate["latency"]["rounds"] > 0
    assert 0 < candidate["receipt"]["int8_time_share"] <= 1
    assert bundle.manifest.declined is not candidate["accepted"]
    assert len(bundle.model()) == measured["size_bytes"]["result"]
    assert scores["original"]["value"] == 100.0
    assert bundle.labels == ("ant", "bee", "cat", "dog")
    assert bundle.preprocessing == PLAIN
    assert bundle.recipe["model"] == "nets.py:net"
    assert bundle.recipe["pass"] == Recipe.open("int8").to_dict()["pass"]
    assert str(home) not in json.dumps(bundle.manifest.to_json().decode())
    if candidate["accepted"]:
        assert bundle.variants[0].precision == "int8"
        assert candidate["latency"]["faster"] == "result"
        assert measured["latency"] == candidate["latency"]
        assert scores["result"] == candidate["test_score"]
        receipt: Any = bundle.variants[0].receipt
        assert receipt["int8_macs_share"] > 0.9
        assert candidate["receipt"]["int8_time_share"] == receipt["int8_time_share"]
        with pytest.raises(SystemExit):
            main(["inspect", f"{home}/int8"])
        share = 100 * receipt["int8_time_share"]
        assert f", {share:.1f} % of the kernels' time" in capsys.readouterr().out
    else:
        assert bundle.variants[0].precision == "float32"
        assert bundle.manifest.notes
        assert scores["drop"] == 0


def test_evaluate_agrees_with_the_manifest_on_the_same_pictures(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = pictures()
    test = Images.from_arrays(x, y).split(300, 0, own_test=False).test
    assert test is not None
    assert test.labels is not None
    (batch,) = test.batches(Bundle.open(home / "int8").inputs, PLAIN, 100)
    order = [
        int(np.argmin(np.abs(PLAIN.tensor(list(x)) - one).sum((1, 2, 3))))
        for one in batch.inputs["x"]
    ]
    np.savez(tmp_path / "test.npz", x=x[order], y=y[order])
    status, told = run_cli(capsys, "evaluate", f"{home}/int8", "--data", f"{tmp_path}/test.npz")
    assert status == 0
    scores: Any = Bundle.open(home / "int8").scores
    assert told["score"]["value"] == scores["result"]["value"]
    assert told["score"]["count"] == scores["result"]["count"] == 32


def test_evaluate_takes_a_factory_an_onnx_file_and_a_reference(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    common = ("--data", "data.npz", "--preprocessing", "plain.toml")
    for model in ("nets.py:net", "nets:net"):
        status, told = run_cli(capsys, "evaluate", model, *common)
        assert (status, told["ran"], told["score"]["value"]) == (0, "torch", 100.0)
    sys.modules.pop("nets", None)
    status, told = run_cli(capsys, "evaluate", "int8/model.onnx", *common)
    assert (status, told["ran"]) == (0, "onnxruntime")
    words = ("--task", "agreement", "--reference", "int8/model.onnx")
    status, told = run_cli(capsys, "evaluate", "int8", "--data", "data.npz", *words)
    assert (status, told["score"]["value"]) == (0, pytest.approx(100.0))


def test_a_drop_over_the_bound_declines_and_strict_writes_nothing(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A score that only the very bytes of float32 reach: INT8 drops, however fast it is."""
    seen: list[bytes] = []

    def score(run: Callable[[Any], Any]) -> float:
        x = PLAIN.tensor(list(pictures(8)[0]))
        seen.append(run({"x": x})["output"].tobytes())
        return 100.0 if seen[-1] == seen[0] else 0.0

    notes: list[str] = []
    with pytest.raises(BoundError, match=r"the score drops by 100\.00") as declined:
        compress(
            net(),
            home / "data.npz",
            out=tmp_path / "out",
            preprocessing=PLAIN,
            task=score,
            max_drop=0,
            strict=True,
            progress=lambda stage, done, total: notes.append(stage),
        )
    assert declined.value.code == "E_DECLINED"
    assert declined.value.exit_status == 3
    assert not list(tmp_path.iterdir())
    assert len(seen) == len(set(seen)) > 1, "the user's own score is asked once for each network"
    stages = list(dict.fromkeys(notes))
    assert stages[:2] == ["exporting", "calibrating"]
    assert {"timing every node", "correcting biases"} <= set(stages)


def test_the_same_seed_gives_the_same_bytes(home: Path, tmp_path: Path) -> None:
    """Of both networks; INT8 is compared where the first run shipped it."""
    from edgepress.compress.quantization.int8_pass import quantize_int8
    from edgepress.compress.recipe.pass_context import Context
    from edgepress.compress.recipe.settings import Int8
    from edgepress.compress.source.source_network import fixed_batches
    from edgepress.runtime.target import target

    x, _ = pictures()
    found: set[tuple[bytes, bytes]] = set()
    for _ in range(2):
        graph = export_graph(net(), preprocessing=PLAIN, data=Images.from_arrays(x))
        split = Images.from_arrays(x).split(300, 3, own_test=False)
        calibration = fixed_batches(graph, split.calibration, PLAIN)
        selection = fixed_batches(graph, split.selection, PLAIN)
        context = Context(
            target("onnxruntime-cpu"), calibration, 16, selection, {}, lambda *_: None
        )
        found.add((graph.model, quantize_int8(graph, Int8(), context).shipped.model))
    assert len(found) == 1


def test_the_bundle_is_rebuilt_and_runs_in_a_fresh_process_without_torch(
    home: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, numpy as np\n"
        "from edgepress.runtime import Session\n"
        f"with Session.open({str(home / 'int8')!r}) as session:\n"
        "    found = session.predict(np.zeros((16, 16, 3), np.uint8)).top(1)[0]\n"
        "print(found.label, 'torch' in sys.modules, 'onnx' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    label, *loaded = done.stdout.split()
    assert label in ("ant", "bee", "cat", "dog")
    assert loaded == ["False", "False"]


# ---------------------------------------------------------------- networks of every form


class Two(nn.Module):
    """Two inputs, two outputs of ranks 4 and 1, in a dict with a tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, image: torch.Tensor, weight: torch.Tensor) -> dict[str, Any]:
        map_ = torch.relu(self.conv(image)) * weight[:, :, None, None]
        return {"map": map_, "rest": (map_.mean((1, 2, 3)), map_.flatten(2))}


def batches(names: tuple[str, ...] | None, count: int = 6) -> list[Any]:
    rng = np.random.default_rng(0)
    items: list[Any] = []
    for _ in range(count):
        image = torch.from_numpy(rng.normal(size=(4, 3, 8, 8)).astype(np.float32))
        weight = torch.from_numpy(rng.normal(size=(4, 1)).astype(np.float32))
        items.append(
            (image, weight) if names is None else dict(zip(names, (image, weight), strict=True))
        )
    return items


@pytest.mark.parametrize("names", [None, ("image", "weight")])
def test_several_inputs_and_outputs_of_any_rank(
    tmp_path: Path, names: tuple[str, ...] | None
) -> None:
    bundle = made(Two(), batches(names), tmp_path)
    assert [spec.name for spec in bundle.inputs] == ["image", "weight"]
    assert {spec.name: len(spec.shape) for spec in bundle.outputs} == {
        "map": 4,
        "rest_0": 1,
        "rest_1": 3,
    }
    assert bundle.task == "agreement"
    assert bundle.preprocessing is None
    feeds = {"image": np.ones((3, 3, 8, 8), np.float32), "weight": np.ones((3, 1), np.float32)}
    with Session.open(bundle) as session:
        outputs = session.run(feeds)
    assert outputs["rest_0"].shape == (3,)


def test_inputs_that_the_data_does_not_have_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weight") as refused:
        made(Two(), batches(("image", "mask")), tmp_path)
    assert refused.value.code == "E_DATA"
    assert not list(tmp_path.iterdir())


def test_a_loader_of_the_user_and_a_training_network_left_as_it_was(tmp_path: Path) -> None:
    x, y = pictures()
    tensors = torch.utils.data.TensorDataset(
        torch.from_numpy(PLAIN.tensor(list(x))), torch.from_numpy(y)
    )
    network = net().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    bundle = made(network, torch.utils.data.DataLoader(tensors, batch_size=10), tmp_path)
    scores: Any = bundle.scores
    assert scores["original"]["value"] == 100.0
    assert bundle.task == "classification"
    assert all(part.training for part in network.modules())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_a_preprocessing_beside_a_loader_goes_into_the_bundle_if_it_fits(tmp_path: Path) -> None:
    x, _ = pictures()
    loader = [PLAIN.tensor(list(x))]
    assert made(net(), loader, tmp_path, preprocessing=PLAIN).preprocessing == PLAIN
    with pytest.raises(InputError, match="takes x: float32") as refused:
        made(net(), loader, tmp_path, preprocessing=Preprocessing(center_crop=9), force=True)
    assert refused.value.code == "E_PREPROCESSING"


def test_grey_pictures_for_a_network_of_one_channel(tmp_path: Path) -> None:
    x, y = pictures(channels=1)
    grey = Preprocessing(channel_order="GRAY")
    bundle = made(net(1), Images.from_arrays(x[..., 0], y), tmp_path, preprocessing=grey)
    assert bundle.inputs[0].shape == ("N", 1, 16, 16)
    with Session.open(bundle) as session:
        assert len(session.predict(x[0]).top(2)) == 2


@pytest.mark.parametrize("batch", [1, 3])
def test_an_onnx_network_of_a_fixed_batch(
    tmp_path: Path, tiny_classifier: Callable[..., bytes], batch: int
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (17, 8, 8, 3), dtype=np.uint8)
    model = parse_onnx(tiny_classifier(batch=batch), "net.onnx")
    bundle = made(model, Images.from_arrays(x), tmp_path, preprocessing=Preprocessing())
    assert bundle.inputs[0].shape == (batch, 3, 8, 8)
    assert bundle.golden()[0]["input"].shape == (batch, 3, 8, 8)


def test_an_onnx_network_whose_output_has_no_declared_shape(
    tmp_path: Path, tiny_classifier: Callable[..., bytes]
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (17, 8, 8, 3), dtype=np.uint8)
    model = parse_onnx(tiny_classifier(), "net.onnx")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    bundle = made(model, Images.from_arrays(x), tmp_path, preprocessing=Preprocessing())
    assert bundle.outputs[0].shape == ("N", 4)


def frozen(shape: list[int], kind: str) -> onnx.ModelProto:
    """A network of free sizes with one of them frozen in a Reshape."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 18]> net (float[{kind}] x) => (float[n,4] y)'
        "{ c = Conv <kernel_shape=[4,4], strides=[4,4]> (x, w) r = Relu (c)"
        " f = Reshape (r, shape) y = MatMul (f, v) }"
    )
    sizes = {"w": (2, 3, 4, 4), "v": (shape[1], 4)}
    for name, size in sizes.items():
        value = rng.normal(0, 0.2, size).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.initializer.append(numpy_helper.from_array(np.array(shape), "shape"))
    return model


@pytest.mark.parametrize(
    ("shape", "kind"), [([0, 84], "n,3,h,w"), ([1, 84], "n,3,24,28")], ids=["size", "batch"]
)
def test_an_onnx_network_with_a_size_that_was_frozen_at_export(
    shape: list[int], kind: str, tmp_path: Path
) -> None:
    """The preprocessing tells which pictures fit; a batch is then one."""
    x = np.random.default_rng(0).integers(0, 256, (17, 30, 30, 3), dtype=np.uint8)
    sized = Preprocessing(center_crop=(24, 28))
    model = frozen(shape, kind)
    bundle = made(model, Images.from_arrays(x), tmp_path, preprocessing=sized)
    assert bundle.inputs[0].shape[0] == ("n" if shape[0] == 0 else 1)
    assert bundle.golden()[0]["x"].shape[1:] == (3, 24, 28)


def test_an_onnx_file_is_told_by_its_hash(
    tmp_path: Path, tiny_classifier: Callable[..., bytes]
) -> None:
    import hashlib

    (tmp_path / "net.onnx").write_bytes(tiny_classifier())
    x = np.zeros((8, 8, 8, 3), np.uint8)
    x[:, :4] = np.arange(8)[:, None, None, None] * 30
    images = Images.from_arrays(x)
    bundle = made(tmp_path / "net.onnx", images, tmp_path, preprocessing=Preprocessing())
    assert bundle.recipe["weights_sha256"] == hashlib.sha256(tiny_classifier()).hexdigest()
    assert bundle.recipe["model"] == "net.onnx"


def test_golden_inputs_are_made_up_unless_real_ones_are_asked_for(tmp_path: Path) -> None:
    x, y = pictures()
    tensors = PLAIN.tensor(list(x))
    for real in (False, True):
        bundle = made(
            net(), Images.from_arrays(x, y), tmp_path, preprocessing=PLAIN, golden_pictures=real,
            force=True,
        )  # fmt: skip
        shown = bundle.golden()[0]["x"][0]
        assert any(np.array_equal(shown, one) for one in tensors) is real
        assert bundle.manifest.golden.synthetic is not real


# ---------------------------------------------------------------- judged by what


def test_a_loader_that_sees_the_same_pictures_passes_and_another_stops(tmp_path: Path) -> None:
    x, y = pictures()
    images = Images.from_arrays(x, y)
    same = [(PLAIN.tensor(list(x)), y)]
    other = [(Preprocessing(channel_order="BGR", mean=(0.9,)).tensor(list(255 - x)), y)]
    given = {"test_data": images, "preprocessing": PLAIN}
    made(net(), images, tmp_path, loader=same, **given)
    cases: list[tuple[Any, str]] = [
        (other, "E_PREPROCESSING_DIFFERS"),
        ([(same[0][0][:5], y[:5])], "E_USAGE"),
        ([(same[0][0], y[::-1].copy())], "E_USAGE"),
    ]
    for loader, code in cases:
        with pytest.raises(InputError) as refused:
            compress(net(), images, out=tmp_path / "no", loader=loader, **given)
        assert refused.value.code == code
    unlabelled = Images.from_arrays(x)
    with pytest.raises(InputError, match="tensors of the first pictures differ") as refused:
        compress(
            net(), unlabelled, out=tmp_path / "no", test_data=unlabelled, loader=[other[0][0]],
            preprocessing=PLAIN,
        )  # fmt: skip
    assert refused.value.code == "E_PREPROCESSING_DIFFERS"
    assert not (tmp_path / "no").exists()


def test_a_task_of_the_users_own_sees_samples_and_the_reference(tmp_path: Path) -> None:
    class Largest:
        name = "largest"
        needs_labels = False

        def score(self, run: Any, batches: Any, reference: Any = None) -> Score:
            count = sum(len(batch) for batch in batches())
            return Score(self.name, 1.0, "score", count, details={"alone": reference is None})

    x, _ = pictures()
    bundle = made(net(), Images.from_arrays(x), tmp_path, preprocessing=PLAIN, task=Largest())
    scores: Any = bundle.scores
    assert scores["original"]["count"] == 32
    assert scores["original"]["details"] == {"alone": True}
    assert bundle.labels is None


def test_what_looks_wrong_is_noted(tmp_path: Path) -> None:
    x, y = pictures()
    shifted = Images.from_arrays(x, (y + 1) % 4, ["ant", "bee", "cat", "dog", "elk"])
    bundle = made(net(), shifted, tmp_path, preprocessing=PLAIN)
    chance, names = bundle.manifest.notes
    assert "cannot be told from chance" in chance
    assert "names 5 classes, the network has 4 outputs" in names
    assert bundle.labels == ("0", "1", "2", "3")
    good = made(net(), Images.from_arrays(x, y), tmp_path, preprocessing=PLAIN, force=True)
    assert good.manifest.notes == ()


# ---------------------------------------------------------------- export


def test_export_follows_the_shape_it_is_given(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = run_cli(
        capsys, "export", f"{home}/nets.py:net", "--data", f"{home}/data.npz", "--preprocessing",
        f"{home}/plain.toml", "--out", f"{tmp_path}/net.onnx",
    )  # fmt: skip
    assert (status, told["opset"], told["inputs"][0]["shape"]) == (0, 18, ["N", 3, 16, 16])
    assert told["parity"]["real_pictures"] is True
    status, told = run_cli(
        capsys, "export", f"{home}/nets.py:net", "--static-shape", "3,3,20,24", "--opset", "17",
        "--out", f"{tmp_path}/net.onnx", "--force",
    )  # fmt: skip
    assert (status, told["opset"], told["inputs"][0]["shape"]) == (0, 17, [3, 3, 20, 24])
    assert told["outputs"][0]["shape"] == [3, 4]
    assert (tmp_path / "net.onnx").stat().st_size == told["size_bytes"]


# ---------------------------------------------------------------- stopped in the middle


def start(home: Path, folder: Path, *words: str, code: str = "") -> subprocess.Popen[str]:
    """``edgepress compress`` as a child with a temporary folder of its own, like a shell's job."""
    (folder / "tmp").mkdir()
    script = f"{code}\nfrom edgepress.__main__ import main\nmain()"
    common = ("--data", str(home / "data.npz"), "--preprocessing", str(home / "plain.toml"))
    return subprocess.Popen(
        [sys.executable, "-c", script, "compress", f"{home}/nets.py:net", *common,
         "--out", str(folder / "out"), *words],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )  # fmt: skip


def left(folder: Path) -> list[str]:
    ours = [path.name for path in (folder / "tmp").iterdir() if path.name.startswith("edgepress")]
    return ours + [path.name for path in folder.iterdir() if path.name != "tmp"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_ends_it_at_once_and_leaves_nothing(home: Path, tmp_path: Path) -> None:
    child = start(home, tmp_path)
    assert child.stderr is not None
    first = child.stderr.readline()  # the first line of progress, two seconds into the work
    os.killpg(child.pid, signal.SIGINT)
    _, rest = child.communicate(timeout=60)
    assert ": " in first
    assert child.returncode == 130
    assert "E_INTERRUPTED" in rest
    assert "Traceback" not in rest
    assert left(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_is_told_and_leaves_nothing(home: Path, tmp_path: Path) -> None:
    """As a limit on the size of files, which temporary files meet first."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))"
    child = start(home, tmp_path, "--recipe", "float32", "--json", code=code)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 2, err
    assert json.loads(out)["error"]["code"] == "E_WRITE"
    assert "Traceback" not in err
    assert left(tmp_path) == []
