"""A bundle in mixed precision: what it tells, and that its recipe makes the same file again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

from edgepress.__main__ import main
from edgepress.compress import Recipe
from edgepress.compress.pipeline import compress
from edgepress.compress.recipe.settings import Int8
from edgepress.runtime import Bundle, InputError, Preprocessing
from helpers.mixed_nets import network

pytestmark = pytest.mark.slow
PLAIN = Preprocessing(scale=1.0, mean=(127.0,), std=(64.0,))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose first layer INT8 destroys, compressed with a bound on the agreement."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(3)
    np.savez(folder / "data.npz", x=rng.integers(0, 256, (48, 32, 32, 3)).astype(np.uint8))
    (folder / "net.onnx").write_bytes(network(loud=300.0).model)
    compress(
        folder / "net.onnx",
        folder / "data.npz",
        out=folder / "mixed",
        preprocessing=PLAIN,
        max_drop=0.02,
        recipe=Recipe.open("int8").blamed(),
    )
    return folder


def report_of(bundle: Bundle) -> dict[str, Any]:
    reports: Any = bundle.recipe["reports"]
    return dict(reports[0])


def test_a_bundle_carries_what_was_measured_of_every_node(made: Path) -> None:
    bundle = Bundle.open(made / "mixed")
    mixed = report_of(bundle)["mixed"]
    assert mixed["attempts"]
    assert all("drop_on_selection" in one or "not_built" in one for one in mixed["attempts"])
    told = {"name", "op_type", "int8", "float32_ms", "int8_ms", "noise", "score_drop"}
    assert told == set(mixed["nodes"][0])
    assert mixed["damage"]["graphs"] > 1
    scored = [row for row in mixed["nodes"] if row["score_drop"] is not None]
    assert len(scored) == min(8, mixed["of_nodes"])
    least = min(row["noise"] for row in scored)
    assert all(row["noise"] <= least for row in mixed["nodes"] if row not in scored)
    assert max(row["score_drop"] for row in scored) > 1, "one of them is loud"
    variant = bundle.variants[0]
    if not bundle.manifest.declined:
        assert variant.receipt["asked_int8"] == mixed["int8_nodes"] <= mixed["of_nodes"]
        scores: Any = bundle.scores
        assert scores["drop"] <= 0.02
        kept = mixed["int8_nodes"] < mixed["of_nodes"]
        assert kept is any("stay in float" in note for note in bundle.manifest.notes)
    else:
        assert variant.precision == "float32"
        assert bundle.manifest.notes


def test_inspect_shows_the_blame(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(made / "mixed")])
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert "nodes were chosen for INT8" in told
    assert "points lost" in told
    assert "Conv_a" in told


def test_blame_without_int8_is_refused() -> None:
    with pytest.raises(InputError, match="has no INT8") as caught:
        Recipe.open("float32").blamed()
    assert caught.value.code == "E_USAGE"


def test_the_recipe_of_a_bundle_follows_its_plan(made: Path) -> None:
    bundle = Bundle.open(made / "mixed")
    decided = report_of(bundle).get("int8_nodes", [])
    (again,) = Recipe.open(str(made / "mixed")).passes
    assert list(again.int8_nodes) == decided
    if bundle.manifest.declined or not decided:
        return
    replayed = compress(
        made / "net.onnx",
        made / "data.npz",
        out=made / "again",
        preprocessing=PLAIN,
        max_drop=0.02,
        recipe=str(made / "mixed"),
    )
    assert "mixed" not in report_of(replayed)
    if not replayed.manifest.declined:
        assert replayed.model() == bundle.model()


def test_a_plan_of_another_network_is_refused_and_nothing_is_written(made: Path) -> None:
    recipe = Recipe("other", (Int8(int8_nodes=("Conv_of_another",)),))
    with pytest.raises(InputError) as caught:
        compress(
            made / "net.onnx",
            made / "data.npz",
            out=made / "refused",
            preprocessing=PLAIN,
            recipe=recipe,
        )
    assert caught.value.code == "E_RECIPE"
    assert not (made / "refused").exists()
