"""Engines that were built are kept: found again by what made them, never believed."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepress.runtime import EngineError, EngineOptions, InputError, open_engine
from edgepress.runtime.build_shapes import build_options_for
from edgepress.runtime.cache import cache_folder, make_folder
from edgepress.runtime.engine_registry import import_backend
from edgepress.runtime.engines.build_options import BuildOptions
from edgepress.runtime.nvidia.driver import Gpu
from edgepress.runtime.nvidia.engine import NvidiaEngine
from edgepress.runtime.nvidia.engine_cache import EngineCache, cache_key
from helpers.tensorrt_here import Tiny, every_engine, needs_rtx, without_gpu

MADE_OF: dict[str, object] = {"engine": "tensorrt", "gpu": "Orin", "options": {"batch": [1, 1, 16]}}


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def test_an_engine_is_found_by_all_that_made_it(cache: EngineCache) -> None:
    assert cache.find(MADE_OF) is None
    cache.put(MADE_OF, b"native code")
    assert cache.find(MADE_OF) == b"native code"
    for change in ({"gpu": "RTX 4090"}, {"driver": "570"}, {"options": {"batch": [1, 8, 16]}}):
        assert cache.find({**MADE_OF, **change}) is None
    assert cache_key(MADE_OF) != cache_key({**MADE_OF, "version": "10.3"})
    again = EngineCache(cache.folder)
    assert again.find(MADE_OF) == b"native code"
    if sys.platform != "win32":
        modes = {path.stat().st_mode & 0o777 for path in cache.folder.rglob("*.plan")}
        assert modes == {0o600}


@pytest.mark.parametrize("what", ["edited", "cut", "told", "other key", "writable", "link", "gone"])
@pytest.mark.skipif(sys.platform == "win32", reason="modes and links of a POSIX system")
def test_what_was_tampered_with_is_built_again(cache: EngineCache, what: str) -> None:
    cache.put(MADE_OF, b"native code")
    (plan,) = cache.folder.rglob("*.plan")
    told = plan.with_suffix(".json")
    if what == "edited":
        plan.write_bytes(b"native c0de")
    elif what == "cut":
        plan.write_bytes(b"")
    elif what == "told":
        told.write_text("{")
    elif what == "other key":
        other = {**MADE_OF, "gpu": "RTX 4090"}
        for path in (plan, told):
            path.rename(path.with_stem(cache_key(other)))
        assert cache.find(other) is None
    elif what == "writable":
        plan.chmod(0o666)
    elif what == "link":
        plan.rename(plan.with_suffix(".real"))
        plan.symlink_to(plan.with_suffix(".real"))
    else:
        told.unlink()
    assert cache.find(MADE_OF) is None
    cache.put(MADE_OF, b"built again")
    assert cache.find(MADE_OF) == b"built again"


@pytest.mark.skipif(sys.platform == "win32", reason="modes of a POSIX system")
def test_a_folder_where_others_may_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(InputError) as caught:
        EngineCache(folder)
    assert caught.value.code == "E_CACHE"
    assert "chmod 700" in caught.value.mend
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError) as caught:
        EngineCache(file)
    assert caught.value.code == "E_WRITE"


def test_what_the_builder_measured_is_kept_by_device(cache: EngineCache) -> None:
    assert cache.timing({"gpu": "Orin"}) == b""
    cache.put_timing({"gpu": "Orin"}, b"measured")
    assert cache.timing({"gpu": "Orin"}) == b"measured"
    assert cache.timing({"gpu": "Thor"}) == b""


ASKED: dict[str, object] = {"engine": "tensorrt", "provider": "", "model_sha256": "0" * 64}


def test_how_it_was_asked_to_be_built_is_remembered_by_model(cache: EngineCache) -> None:
    options = BuildOptions((1, 8, 32), {"H": (32, 64, 96)}, level=2, cuda_graph=True)
    assert cache.build(ASKED) is None
    cache.put_build(ASKED, options)
    assert EngineCache(cache.folder).build(ASKED) == options
    for change in ({"engine": "tensorrt-rtx"}, {"provider": "GPU"}, {"model_sha256": "1" * 64}):
        assert cache.build({**ASKED, **change}) is None


@pytest.mark.parametrize(
    "told",
    [
        "{",
        "[]",
        json.dumps({"model": ASKED}),
        json.dumps({"model": ASKED, "options": {"batch": [1, 1, 16]}}),
        json.dumps({"model": ASKED, "options": {"batch": [9, 1, 16], "sizes": {}}}),
        json.dumps({"model": ASKED, "options": {"batch": [1, 1, 16], "sizes": [1]}}),
        json.dumps({"model": ASKED, "options": {**BuildOptions().to_dict(), "odd": 1}}),
        json.dumps({"model": {}, "options": BuildOptions().to_dict()}),
    ],
)
def test_a_damaged_memory_of_how_it_was_built_is_none(cache: EngineCache, told: str) -> None:
    cache.put_build(ASKED, BuildOptions((1, 2, 3)))
    (file,) = (cache.folder / "builds").iterdir()
    file.write_text(told, encoding="utf-8")
    assert cache.build(ASKED) is None


@needs_rtx
def test_what_is_built_to_be_measured_is_not_remembered(
    tiny_classifier: Tiny, tmp_path: Path
) -> None:
    """`bench` builds for one picture; a session that comes after it is not to be held to that."""
    model, folder, gpu = tiny_classifier(), str(tmp_path / "cache"), Gpu(0, "a GPU", "8.7", "12.6")
    asked = BuildOptions((1, 8, 32))
    made = open_engine("tensorrt-rtx")
    for how, remember, left in (
        (build_options_for(model, 1, {}), False, BuildOptions()),
        (asked, True, asked),
        (build_options_for(model, 1, {}), False, asked),
    ):
        engine: Any = made(model, EngineOptions(cache=folder, build=how, remember=remember))
        plan, facts = engine._plan(import_backend("tensorrt-rtx"), gpu, engine.build_options())
        assert plan
        assert facts["from_cache"] is (left == asked and not remember)
        assert made(model, EngineOptions(cache=folder)).build_options() == left  # pyright: ignore


@every_engine
def test_how_it_is_built_is_asked_for_or_remembered_or_the_default(
    name: str, tiny_classifier: Tiny, tmp_path: Path
) -> None:
    folder, model = tmp_path / "cache", tiny_classifier()
    asked, remembered = BuildOptions((1, 4, 8)), BuildOptions((1, 8, 32))

    def found(**options: Any) -> BuildOptions:
        made = open_engine(name)(model, EngineOptions(**options))
        assert isinstance(made, NvidiaEngine)
        return made.build_options()

    assert found() == found(cache=str(folder)) == BuildOptions()
    digest = hashlib.sha256(model).hexdigest()
    key = {"engine": name, "provider": "", "model_sha256": digest}
    EngineCache(folder).put_build(key, remembered)
    assert found(cache=str(folder)) == remembered
    assert found(cache=str(folder), build=asked) == found(build=asked) == asked
    assert found() == found(cache=str(tmp_path / "other")) == BuildOptions()
    assert found(cache=str(folder), provider="GPU:1") == BuildOptions()


@without_gpu
@every_engine
def test_what_could_not_be_built_is_not_remembered(
    name: str, tiny_classifier: Tiny, tmp_path: Path
) -> None:
    options = EngineOptions(cache=str(tmp_path / "cache"), build=BuildOptions((1, 8, 32)))
    with pytest.raises(EngineError) as caught:
        open_engine(name)(tiny_classifier(), options).__enter__()
    assert caught.value.code == "E_DRIVER"
    assert not (tmp_path / "cache").exists()


def test_engines_that_build_nothing_have_no_use_for_how(tiny_classifier: Tiny) -> None:
    how = EngineOptions(build=BuildOptions(batch=(1, 1, 1)))
    with open_engine("onnxruntime")(tiny_classifier(), how) as engine:
        feeds = {"input": np.zeros((3, 3, 8, 8), np.float32)}
        assert engine.run(feeds)["logits"].shape == (3, 4)
        assert engine.largest_batch is None


def test_two_builders_of_one_engine_take_turns(cache: EngineCache) -> None:
    order: list[str] = []

    def second() -> None:
        with EngineCache(cache.folder).lock(MADE_OF):
            order.append("second")

    with cache.lock(MADE_OF):
        other = threading.Thread(target=second)
        other.start()
        time.sleep(0.2)
        order.append("first")
    other.join(timeout=10)
    assert order == ["first", "second"]


def test_the_cache_lies_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRESS_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("EDGEPRESS_CACHE")
    assert cache_folder().is_relative_to(Path.home())


def test_the_cache_is_for_this_user_whatever_new_folders_are(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        for number, name in enumerate(("", "choices")):
            folder = make_folder(tmp_path / f"new-{number}" / "cache", name)
            EngineCache(folder.parent if name else folder)  # which refuses what others may write
            assert folder.stat().st_mode & 0o022 == 0
    finally:
        os.umask(before)


def test_a_folder_that_cannot_be_locked_still_gives_what_it_has(
    cache: EngineCache, tmp_path: Path
) -> None:
    cache.put(MADE_OF, b"plan")
    (cache.folder / "engines" / f"{cache_key(MADE_OF)}.lock").mkdir()
    with pytest.raises(InputError) as caught, cache.lock(MADE_OF):
        pass
    assert caught.value.code == "E_WRITE"
    assert cache.find(MADE_OF) == b"plan"
