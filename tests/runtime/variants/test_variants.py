"""Bundles of several variants: which one runs, what is remembered, and how they are joined."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import edgepress.runtime.variants.fastest_variant as timing
from edgepress.__main__ import cli
from edgepress.benchmarks.latency.latency import OwnOptions
from edgepress.runtime import (
    BuildOptions,
    Bundle,
    BundleError,
    EngineError,
    EngineOptions,
    InputError,
    MissingExtraError,
    Session,
    open_engine,
)
from edgepress.runtime.bundle.bundle_writer import seal, write_files
from edgepress.runtime.bundle.combine import combine
from edgepress.runtime.bundle.manifest import Golden, Manifest, Tolerance, Variant
from edgepress.runtime.bundle.npz import write_npz
from edgepress.runtime.engine_registry import import_backend
from edgepress.runtime.nvidia.driver import Gpu, cuda
from edgepress.runtime.target import openvino_dialect, processor, serves, target
from edgepress.runtime.variants.fastest_variant import fastest_variant
from edgepress.runtime.variants.variant_selection import choose_variant
from helpers.processors import (
    ALDER_LAKE,
    COFFEE_LAKE,
    JETSON_ORIN,
    RASPBERRY_PI_4,
    RASPBERRY_PI_4_AGAIN,
    ROCKCHIP,
    SKYLAKE_SERVER,
    TIGER_LAKE,
    pretend,
    pretend_gpu,
)

Make = Callable[..., Bundle]
On = Callable[..., None]
HERE, ELSEWHERE = "onnxruntime-x86-vnni", "onnxruntime-arm"
OPENVINO = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")


def without_driver() -> bool:
    """Whether TensorRT-RTX is installed here and no GPU is there to run it."""
    try:
        import_backend("tensorrt-rtx")
        cuda()
    except MissingExtraError:
        return False
    except EngineError as error:
        return error.code == "E_DRIVER"
    return False


@pytest.fixture(autouse=True)
def on(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> On:
    """Tests are on a processor with VNNI, as far as the system tells, until they go to another."""

    def go(cpuinfo: str, machine: str = "x86_64", board: str = "") -> None:
        pretend(monkeypatch, tmp_path_factory.mktemp("told"), cpuinfo, machine, board)

    go(TIGER_LAKE)
    return go


@pytest.fixture
def make(tmp_path: Path, tiny_classifier: Callable[..., bytes]) -> Make:
    """A bundle of one variant of the tiny classifier, on the disk and opened."""

    def write(
        name: str,
        engine: str = "onnxruntime",
        dialect: str = "onnx",
        precision: str = "float32",
        shift: float = 0,
        model: bytes | None = None,
        **change: Any,
    ) -> Bundle:
        model = model or tiny_classifier()
        with open_engine("onnxruntime")(model) as running:
            spec = running.inputs[0]
            shape = [size if isinstance(size, int) else 1 for size in spec.shape]
            feeds = {spec.name: np.linspace(-1, 1, int(np.prod(shape))).reshape(shape)}
            feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
            golden = {name: array + shift for name, array in running.run(feeds).items()}
        tolerance = Tolerance(1e-4, 0.9999) if precision == "float32" else Tolerance(0.1, 0.99)
        manifest = Manifest(
            inputs=running.inputs,
            outputs=running.outputs,
            task="classification",
            variants=(Variant(precision, "model.onnx", engine, dialect, precision),),
            golden=Golden("golden/i.npz", "golden/o.npz", True, {"logits": tolerance}),
            recipe={"name": name},
            notes=(f"made as {name}",),
        )
        manifest = replace(
            manifest,
            golden=replace(manifest.golden, tolerance=dict.fromkeys(golden, tolerance)),
        )
        files = {
            "model.onnx": model,
            "golden/i.npz": write_npz(feeds),
            "golden/o.npz": write_npz(golden),
        }
        out = tmp_path / name
        write_files(seal(replace(manifest, **change), files), out)
        return Bundle.open(out)

    return write


@pytest.fixture
def joined(tmp_path: Path) -> Callable[..., Bundle]:
    """Bundles combined, written and opened."""

    def join(*bundles: Bundle) -> Bundle:
        out = tmp_path / "joined"
        write_files(combine(bundles), out)
        return Bundle.open(out)

    return join


def test_the_only_variant_is_taken_whatever_its_dialect(make: Make) -> None:
    bundle = make("one", dialect=ELSEWHERE)
    with Session.open(bundle) as session:
        assert session.facts()["chosen"] == "the only one"
        assert session.facts()["passed_over"] == {}


def test_combined_bundles_keep_what_each_was(make: Make, joined: Callable[..., Bundle]) -> None:
    one, two = make("one", dialect=ELSEWHERE), make("two", dialect=HERE, precision="int8")
    both = joined(one, two)
    assert [v.name for v in both.variants] == ["onnxruntime-float32", "onnxruntime-int8"]
    assert both.variants[0].file == "model.onnx"
    assert both.model("onnxruntime-int8") == two.model()
    second = both.variants[1]
    assert second.made is not None
    assert second.made["recipe"] == {"name": "two"}
    assert second.made["notes"] == ["made as two"]
    assert second.golden is not None
    assert all(one.max_abs == 0.1 for one in second.golden.tolerance.values())
    assert both.manifest.notes == ("made as one",)
    for variant in both.variants:
        Session.open(both, variant=variant.name).close()
    third = make("three", dialect="onnx", precision="bfloat16", engine="openvino")
    three = joined_again(both, third)
    assert [v.name for v in three.variants][2] == "openvino-bfloat16"
    assert three.variants[1].made == second.made
    assert three.golden("onnxruntime-int8")[1].keys() == both.golden()[1].keys()


def joined_again(*bundles: Bundle) -> Bundle:
    out = Path(bundles[0].path).with_name("again")
    write_files(combine(bundles), out)
    return Bundle.open(out)


def test_the_first_that_suits_this_processor_is_chosen(
    make: Make, joined: Callable[..., Bundle]
) -> None:
    both = joined(make("one", dialect=ELSEWHERE), make("two", dialect=HERE, precision="int8"))
    found = choose_variant(both)
    assert found.variant.name == "onnxruntime-int8"
    assert found.passed_over[0][0] == "onnxruntime-float32"
    assert ELSEWHERE in found.passed_over[0][1]
    with Session.open(both) as session:
        assert session.variant.name == "onnxruntime-int8"
        assert session.facts()["passed_over"] == dict(found.passed_over)
    with Session.open(both, variant="onnxruntime-float32") as session:
        assert session.facts()["chosen"] == "asked for"


def test_where_no_dialect_suits_the_first_engine_here_is_taken(
    make: Make, joined: Callable[..., Bundle]
) -> None:
    both = joined(make("one", dialect=ELSEWHERE), make("two", dialect=ELSEWHERE, precision="int8"))
    found = choose_variant(both)
    assert found.variant.name == "onnxruntime-float32"
    assert found.reason == "the first whose engine is here"


PROCESSORS = {
    "VNNI in AVX-512": (TIGER_LAKE, "x86_64", "onnxruntime-x86-vnni", "openvino"),
    "VNNI in AVX": (ALDER_LAKE, "x86_64", "onnxruntime-x86-vnni", "openvino"),
    "AVX2": (COFFEE_LAKE, "x86_64", "onnxruntime-x86", "openvino-half"),
    "AVX-512 without VNNI": (SKYLAKE_SERVER, "x86_64", "onnxruntime-x86", "openvino-half"),
    "nothing told": ("", "AMD64", "onnxruntime-x86", "openvino-half"),
    "Arm, Linux": (RASPBERRY_PI_4, "aarch64", "onnxruntime-arm", "openvino"),
    "Arm, 32 bits": (RASPBERRY_PI_4, "armv7l", "onnxruntime-arm", "openvino"),
    "Arm, macOS": ("", "arm64", "onnxruntime-arm", "openvino"),
}


@pytest.mark.parametrize(
    ("cpuinfo", "machine", "wanted", "with_openvino"), PROCESSORS.values(), ids=PROCESSORS.keys()
)
def test_a_processor_is_given_its_dialect(
    make: Make,
    joined: Callable[..., Bundle],
    on: On,
    cpuinfo: str,
    machine: str,
    wanted: str,
    with_openvino: str,
) -> None:
    dialects = ("onnxruntime-arm", "onnxruntime-x86-vnni", "onnxruntime-x86")
    three = joined(*(make(one, dialect=one) for one in dialects))
    on(cpuinfo, machine)
    assert target("onnxruntime-cpu").dialect == wanted
    assert target("openvino-cpu").dialect == openvino_dialect() == with_openvino
    assert serves("openvino") is (with_openvino == "openvino")
    with Session.open(three) as session:
        assert session.variant.dialect == wanted
        passed = session.facts()["passed_over"]
    before = dialects[: dialects.index(wanted)]
    assert passed == {
        f"{one}-float32": f"{one} is not the dialect of this processor" for one in before
    }


def test_a_processor_whose_flags_cannot_be_read_is_given_the_careful_dialect(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on: On
) -> None:
    monkeypatch.setattr("edgepress.runtime.target._CPUINFO", tmp_path / "none")
    monkeypatch.setattr("edgepress.runtime.target._BOARD", tmp_path / "none")
    assert target("onnxruntime-cpu").dialect == "onnxruntime-x86"
    assert processor().startswith("x86_64")
    on("", "arm64")
    assert processor().startswith("arm64")


def test_processors_are_told_apart(on: On) -> None:
    told: list[str] = []
    for words in (
        (TIGER_LAKE,),
        (TIGER_LAKE.replace("stepping\t: 1", "stepping\t: 2"),),
        (COFFEE_LAKE,),
        (RASPBERRY_PI_4, "aarch64"),
        (RASPBERRY_PI_4.replace("Rev 1.1", "Rev 1.5"), "aarch64"),
        (JETSON_ORIN, "aarch64", "NVIDIA Jetson AGX Orin Developer Kit"),
        (JETSON_ORIN, "aarch64", "NVIDIA Jetson Orin Nano Developer Kit"),
        (ROCKCHIP, "aarch64", "Radxa ROCK 5B"),
        (ROCKCHIP.replace("0xd05", "0xd0b"), "aarch64", "Radxa ROCK 5B"),
    ):
        on(*words)
        told.append(processor())
    assert len(set(told)) == len(told)
    assert "i7-1165G7" in told[0]
    assert told[-3].endswith(", NVIDIA Jetson Orin Nano Developer Kit")
    assert told[-2].count("CPU part") == 2, "each kind of core once"
    on(RASPBERRY_PI_4_AGAIN, "aarch64")
    assert processor() == told[3], "two of a kind are one"


def test_an_engine_that_is_not_here_is_passed_over_by_name(
    make: Make, joined: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = joined(make("one", engine="openvino", dialect="openvino"), make("two", dialect="onnx"))
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    found = choose_variant(both)
    assert found.variant.name == "onnxruntime-float32"
    assert found.passed_over == (("openvino-float32", "the engine openvino is not installed"),)
    with pytest.raises(EngineError) as caught:
        choose_variant(both, "null")
    assert caught.value.code == "E_DIALECT"


@pytest.mark.skipif(not without_driver(), reason="it needs tensorrt-rtx, and no GPU")
def test_an_engine_without_its_driver_is_passed_over(
    make: Make, joined: Callable[..., Bundle]
) -> None:
    three = joined(
        make("one", engine="tensorrt-rtx"),
        make("two", dialect=HERE),
        make("three", dialect="onnx", precision="int8"),
    )
    with Session.open(three) as session:
        assert session.variant.name == "onnxruntime-float32"
        ((name, why),) = session.facts()["passed_over"].items()  # type: ignore[attr-defined]
    assert name == "tensorrt-rtx-float32"
    assert "no usable NVIDIA driver" in why
    with Session.open(three, fastest=True, threads=1) as session:
        assert session.variant.engine == "onnxruntime"
    with pytest.raises(EngineError) as caught:
        Session.open(three, variant="tensorrt-rtx-float32")
    assert caught.value.code == "E_DRIVER", "what was asked for by name is not replaced"


def test_none_of_the_engines_is_here(make: Make, joined: Callable[..., Bundle]) -> None:
    both = joined(make("one", engine="abacus"), make("two", engine="slide-rule"))
    with pytest.raises(EngineError) as caught:
        Session.open(both)
    assert caught.value.code == "E_ENGINE"
    assert "abacus" in caught.value.message
    assert "slide-rule" in caught.value.message


def test_the_fastest_is_measured_once_and_remembered(
    make: Make, joined: Callable[..., Bundle], tmp_path: Path
) -> None:
    both = joined(make("one", dialect="onnx"), make("two", dialect=HERE, precision="int8"))
    cache = tmp_path / "cache"
    first = fastest_variant(both, Session.open, threads=1, cache=cache)
    assert first.reason == "the fastest, measured just now"
    assert {name for name, _ in first.passed_over} == {v.name for v in both.variants}
    again = fastest_variant(both, Session.open, threads=1, cache=cache)
    assert again.reason == "the fastest when it was measured here"
    assert again.variant == first.variant
    assert (
        fastest_variant(both, Session.open, threads=2, cache=cache).reason
        == "the fastest, measured just now"
    )
    anew = fastest_variant(
        both, Session.open, threads=1, cache=cache, build=BuildOptions((1, 2, 4))
    )
    assert anew.reason == "the fastest, measured just now"
    for file in (cache / "choices").iterdir():
        file.write_text("{")
    assert (
        fastest_variant(both, Session.open, threads=1, cache=cache).reason
        == "the fastest, measured just now"
    )
    with Session.open(both, fastest=True, threads=1, cache=cache) as session:
        assert session.facts()["chosen"] == "the fastest when it was measured here"


def heavy(model: bytes, size: int = 512) -> bytes:
    """The same function, and beside it products of ``size * size`` matrices that count for 0."""
    onnx = pytest.importorskip("onnx")
    found = onnx.load_model_from_string(model)
    node, graph = onnx.helper.make_node, found.graph
    graph.node[-1].output[0] = "light"
    graph.node.extend(
        [
            node("ReduceMean", ["input"], ["one"], keepdims=0),
            node("Expand", ["one", "square"], ["m0"]),
            *(node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(2)),
            node("Sigmoid", ["m2"], ["finite"]),
            node("ReduceMean", ["finite"], ["mean_of_all"], keepdims=0),
            node("Mul", ["mean_of_all", "nothing"], ["added"]),
            node("Add", ["light", "added"], ["logits"]),
        ]
    )
    for name, value in (("square", [size, size]), ("nothing", 0.0)):
        dtype = np.int64 if name == "square" else np.float32
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, dtype), name))
    return found.SerializeToString()


@pytest.mark.serial
@pytest.mark.parametrize("first", ["heavy", "light"])
def test_the_fastest_is_the_quicker_one_wherever_it_stands(
    make: Make, joined: Callable[..., Bundle], tiny_classifier: Callable[..., bytes], first: str
) -> None:
    light = make("light", dialect="onnx", model=tiny_classifier(), precision="int8")
    more = make("heavy", dialect="onnx", model=heavy(tiny_classifier()))
    both = joined(more, light) if first == "heavy" else joined(light, more)
    names = {"light": "onnxruntime-int8", "heavy": "onnxruntime-float32"}
    with Session.open(both, threads=1) as session:
        assert session.variant.name == names[first], "unmeasured, the first one"
    with Session.open(both, threads=1, fastest=True) as session:
        assert session.variant.name == names["light"]
        told = dict(session.facts()["passed_over"])  # type: ignore[call-overload]
    times = {name: float(told[names[name]].removesuffix(" ms")) for name in names}
    assert times["heavy"] > 2 * times["light"] > 0


def test_what_is_timed_is_what_will_run(
    make: Make, joined: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two in plain ONNX for OpenVINO, asked for in another engine: OpenVINO has no say in it."""
    both = joined(
        make("one", engine="openvino", dialect="onnx"),
        make("two", engine="openvino", dialect="onnx", precision="int8"),
    )
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    for reason in ("the fastest, measured just now", "the fastest when it was measured here"):
        with Session.open(
            both, engine="onnxruntime", fastest=True, threads=1, cache=tmp_path / "cache"
        ) as session:
            assert session.facts()["chosen"] == reason
            assert session.facts()["engine"] == "onnxruntime"


def test_a_choice_is_remembered_for_its_processor(
    make: Make, joined: Callable[..., Bundle], on: On, tmp_path: Path
) -> None:
    both = joined(make("one", dialect="onnx"), make("two", dialect=ELSEWHERE, precision="int8"))
    devices = [
        (RASPBERRY_PI_4, "Raspberry Pi 4 Model B Rev 1.1"),
        (JETSON_ORIN, "NVIDIA Jetson AGX Orin Developer Kit"),
        (JETSON_ORIN, "NVIDIA Jetson Orin Nano Developer Kit"),
    ]
    for reason in ("the fastest, measured just now", "the fastest when it was measured here"):
        for cpuinfo, board in devices:
            on(cpuinfo, "aarch64", board)
            assert (
                fastest_variant(both, Session.open, threads=1, cache=tmp_path / "cache").reason
                == reason
            )


def test_a_choice_is_remembered_for_its_gpu_and_driver(
    make: Make, joined: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No engine of a GPU is opened: the times are made up, what they are kept under is not."""
    plain, quantized = make("one", dialect="onnx"), make("two", dialect=HERE, precision="int8")
    mixed = joined(plain, make("three", engine="tensorrt", dialect="onnx"))
    without = joined_again(plain, quantized)
    monkeypatch.setattr(timing, "_timed", lambda _, all, *__: {one.name: 1.0 for one in all})
    anew = "the fastest, measured just now"
    orin = Gpu(0, "Orin", "8.7", "CUDA 12.6")
    for gpu in (
        orin,
        replace(orin, name="Orin Nano"),
        replace(orin, compute_capability="8.9"),
        replace(orin, driver="CUDA 13.0"),
    ):
        pretend_gpu(monkeypatch, gpu)
        assert fastest_variant(mixed, Session.open, cache=tmp_path / "cache").reason == anew
        assert fastest_variant(mixed, Session.open, cache=tmp_path / "cache").reason != anew
        found = fastest_variant(without, Session.open, cache=tmp_path / "cache").reason
        assert (found == anew) is (gpu is orin), "what needs no GPU is the same with another"


def test_without_a_cache_nothing_is_written(
    make: Make, joined: Callable[..., Bundle], tmp_path: Path
) -> None:
    both = joined(make("one", dialect="onnx"), make("two", dialect=HERE, precision="int8"))
    before = sorted(tmp_path.rglob("*"))
    with Session.open(both, fastest=True) as session:
        assert session.facts()["chosen"] == "the fastest, measured just now"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_variant_and_the_fastest_exclude_each_other(make: Make) -> None:
    with pytest.raises(InputError) as caught:
        Session.open(make("one"), variant="float32", fastest=True)
    assert caught.value.code == "E_USAGE"


def test_a_cache_that_cannot_be_written_is_an_input_error(
    make: Make, joined: Callable[..., Bundle], tmp_path: Path
) -> None:
    both = joined(make("one", dialect="onnx"), make("two", dialect=HERE, precision="int8"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        fastest_variant(both, Session.open, cache=tmp_path / "file")
    assert caught.value.code == "E_WRITE"


def test_a_variant_with_other_numbers_is_refused_by_its_own_golden(
    make: Make, tmp_path: Path, joined: Callable[..., Bundle]
) -> None:
    both = joined(make("one", dialect="onnx"), make("two", dialect=HERE, precision="int8"))
    inputs, outputs = both.golden("onnxruntime-int8")
    expected = both.variants[1].golden
    assert expected is not None
    files = {path: data for path, data in both.files.items() if not path.startswith("manifest")}
    files[expected.outputs] = write_npz({name: array + 1 for name, array in outputs.items()})
    write_files(seal(both.manifest, files), tmp_path / "bad")
    Session.open(tmp_path / "bad", variant="onnxruntime-float32").close()
    with pytest.raises(BundleError) as caught:
        Session.open(tmp_path / "bad", variant="onnxruntime-int8")
    assert caught.value.code == "E_SELFTEST"
    assert inputs


@pytest.mark.parametrize("what", ["task", "labels", "one", "twice"])
def test_what_cannot_be_combined_is_named(make: Make, what: str) -> None:
    one = make("one")
    other = make("two", **({"task": "agreement"} if what == "task" else {}), precision="int8")
    if what == "labels":
        other = replace(other, labels=("a", "b"))
    given = {"one": [one], "twice": [one, one]}.get(what, [one, other])
    with pytest.raises(InputError) as caught:
        combine(given)
    assert caught.value.code == ("E_USAGE" if what == "one" else "E_COMBINE")
    assert what not in ("task", "labels") or what in caught.value.message


def test_a_manifest_whose_variant_names_a_missing_golden_is_refused(
    make: Make, joined: Callable[..., Bundle]
) -> None:
    both = joined(make("one", dialect="onnx"), make("two", dialect=HERE, precision="int8"))
    expected = both.variants[1].golden
    assert expected is not None
    files = {p: d for p, d in both.files.items() if p != expected.outputs and "manifest" not in p}
    with pytest.raises(BundleError) as caught:
        seal(both.manifest, files)
    assert caught.value.code == "E_MISSING"


def test_the_commands_join_prove_predict_and_measure(make: Make, tmp_path: Path) -> None:
    make("one", dialect="onnx")
    make("two", dialect=HERE, precision="int8")
    run = CliRunner()
    out = tmp_path / "both"
    done = run.invoke(
        cli, ["combine", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(out), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["variants"] == ["onnxruntime-float32", "onnxruntime-int8"]
    done = run.invoke(cli, ["verify", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["variants"]) == 2
    again = run.invoke(cli, ["combine", str(out), str(out), "--out", str(out), "--json"])
    assert again.exit_code == 2
    assert json.loads(again.stdout)["error"]["code"] == "E_EXISTS"


def test_nothing_is_verified_where_no_engine_is(
    make: Make, joined: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = joined(make("one", engine="tensorrt"), make("two", engine="tensorrt-rtx"))

    def gone(name: str) -> None:
        raise EngineError("E_DRIVER", "there is no usable NVIDIA driver.", mend="Get one.")

    monkeypatch.setattr("edgepress.runtime.variants.variant_selection.find_device", gone)
    monkeypatch.setattr("edgepress.runtime.nvidia.engine.cuda", lambda: gone(""))
    done = CliRunner().invoke(cli, ["verify", str(both.path), "--json"])
    assert done.exit_code != 0
    assert json.loads(done.stdout)["error"]["code"] == "E_DRIVER"


def test_verify_passes_over_what_a_session_would(
    make: Make, joined: Callable[..., Bundle], on: On
) -> None:
    """The one for VNNI gives other numbers where there is none: that is nobody's fault."""
    both = joined(
        make("one", dialect="onnxruntime-x86-vnni", shift=1.0),
        make("two", dialect="onnxruntime-x86", precision="int8"),
    )
    run, words = CliRunner(), ["verify", str(both.path), "--json"]
    on(COFFEE_LAKE)
    done = run.invoke(cli, words)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [one["name"] for one in told["variants"]] == ["onnxruntime-int8"]
    why = "onnxruntime-x86-vnni is not the dialect of this processor"
    assert told["not_proved"] == {"onnxruntime-float32": why}
    assert why in run.invoke(cli, words[:2]).stdout
    on(TIGER_LAKE)
    done = run.invoke(cli, words)
    assert done.exit_code != 0
    assert json.loads(done.stdout)["error"]["code"] == "E_SELFTEST"
    on(RASPBERRY_PI_4, "aarch64")
    done = run.invoke(cli, words)
    assert json.loads(done.stdout)["error"]["code"] == "E_SELFTEST", "a session would take it"


def test_benchmarks_take_the_variant_that_a_session_would(
    make: Make, joined: Callable[..., Bundle]
) -> None:
    both = joined(
        make("one", dialect=ELSEWHERE),
        make("two", dialect=HERE, precision="int8"),
        make("three", engine="openvino", precision="bfloat16"),
    )
    assert OwnOptions.of(both.path, None, None) == OwnOptions("onnxruntime", "onnxruntime-int8")
    named = OwnOptions.of(both.path, None, "openvino-bfloat16")
    assert named == OwnOptions("openvino", "openvino-bfloat16", "bf16")
    with pytest.raises(InputError) as caught:
        OwnOptions.of(b"", None, "int8")
    assert caught.value.code == "E_VARIANT"


@OPENVINO
def test_a_bfloat16_variant_is_computed_in_bfloat16(make: Make) -> None:
    bundle = make("bf", engine="openvino", precision="bfloat16")
    options = EngineOptions(precision="bf16")
    try:
        open_engine("openvino")(bundle.model(), options).__enter__()
    except EngineError:
        with pytest.raises(EngineError) as caught:
            Session.open(bundle)
        assert caught.value.code == "E_PRECISION"
        pytest.skip("this processor has no bfloat16")
    with Session.open(bundle) as session:
        assert session.facts()["precision"] == "bf16"


def test_golden_outputs_stay_with_their_variant_when_names_change(
    make: Make, joined: Callable[..., Bundle]
) -> None:
    """What was named by its engine is named by its dialect, and its old name is another's."""
    both = joined(make("one", dialect="onnx"), make("two", engine="openvino", dialect=ELSEWHERE))
    assert both.variants[1].name == "openvino-float32"
    third = make("three", engine="openvino", dialect="openvino", shift=1.0)
    three = joined_again(both, third)
    assert [one.name for one in three.variants[1:]] == [
        f"{ELSEWHERE}-float32",
        "openvino-float32",
    ]
    for name, came in ((f"{ELSEWHERE}-float32", both), ("openvino-float32", third)):
        held = came.golden(came.variants[-1])[1]
        for output, array in three.golden(name)[1].items():
            np.testing.assert_array_equal(array, held[output])


@OPENVINO
def test_plain_onnx_runs_in_any_engine(make: Make) -> None:
    plain = make("one", dialect="onnx")
    for words in ({}, {"variant": "float32"}):
        with Session.open(plain, engine="openvino", **words) as session:
            assert session.facts()["engine"] == "openvino"
            assert session.variant.engine == "openvino"
    for engine in ("null", "abacus"):
        with pytest.raises(EngineError) as caught:
            Session.open(plain, engine=engine, variant="float32")
        assert caught.value.code == "E_DIALECT"
    with pytest.raises(EngineError) as caught:
        Session.open(make("two", dialect=HERE), engine="openvino")
    assert caught.value.code == "E_DIALECT"
