"""Images: every kind of data, every bad one, splits, and memory that stays flat."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgepress.benchmarks import Images
from edgepress.benchmarks.data.sources import open_pictures
from edgepress.runtime import InputError, Preprocessing, TensorSpec

SPEC = TensorSpec("input", "float32", ("N", 3, 8, 8))
PLAIN = Preprocessing(scale=1.0)


def save(path: Path, value: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).convert(mode).save(path)


def gather(images: Images, preprocessing: Preprocessing | None = PLAIN, size: int = 3) -> list:
    return list(images.batches([SPEC], preprocessing, size))


def refuses(action: Callable[[], object], *words: str, code: str = "E_DATA") -> InputError:
    with pytest.raises(InputError) as caught:
        action()
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value)
    return caught.value


# ---------------------------------------------------------------- what is read


def test_class_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    for value, name in enumerate(("zebra/1.png", "ant/2.PNG", "ant/1.jpg", "mole/x.bmp")):
        save(tmp_path / name, 10 * value)
    (tmp_path / "ant" / "notes.txt").write_text("not a picture")
    (tmp_path / ".cache").mkdir()
    images = Images.open(tmp_path)
    assert images.class_names == ("ant", "mole", "zebra")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1, 2]
    batches = gather(images)
    assert [len(batch) for batch in batches] == [3, 1]
    values = [float(row.mean()) for batch in batches for row in batch.inputs["input"]]
    assert values == pytest.approx([20, 10, 30, 0], abs=1)
    assert [label for batch in batches for label in batch.labels] == [0, 0, 1, 2]


@pytest.mark.parametrize("inside", ["", "images"])
def test_labels_csv_names_files_beside_it_or_in_images(tmp_path: Path, inside: str) -> None:
    save(tmp_path / inside / "b.png", 7)
    save(tmp_path / inside / "a.png", 9)
    save(tmp_path / inside / "unlisted.png")
    table = "\ufefffile,class_index\r\nb.png,5\r\na.png,2\r\n"
    (tmp_path / "labels.csv").write_text(table, encoding="utf-8")
    (batch,) = gather(Images.open(tmp_path))
    assert batch.labels.tolist() == [5, 2]
    assert batch.inputs["input"][:, 0, 0, 0].tolist() == [7, 9]


@pytest.mark.parametrize("inside", ["", "images"])
def test_a_flat_folder_is_unlabelled(tmp_path: Path, inside: str) -> None:
    save(tmp_path / inside / "b.png", 2)
    save(tmp_path / inside / "a.png", 1)
    images = Images.open(tmp_path)
    assert not images.labelled
    (batch,) = gather(images)
    assert batch.labels is None
    assert batch.inputs["input"][:, 0, 0, 0].tolist() == [1, 2]


def test_npz_holds_pictures_labels_and_names(tmp_path: Path) -> None:
    x = np.arange(5 * 8 * 8 * 3, dtype=np.uint8).reshape(5, 8, 8, 3)
    path = tmp_path / "data.npz"
    np.savez(path, x=x, y=np.array([0, 1, 1, 0, 1], np.uint8), labels=np.array(["no", "yes"]))
    images = Images.open(path)
    assert images.class_names == ("no", "yes")
    batches = gather(images, size=2)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(
        np.concatenate([batch.inputs["input"] for batch in batches]), x.transpose(0, 3, 1, 2)
    )
    assert batches[0].inputs["input"].dtype == np.float32


def test_grey_and_many_channels_pass_as_the_preprocessing_says() -> None:
    grey = np.full((2, 8, 8), 9, np.uint8)
    spec = TensorSpec("x", "float32", ("N", 1, 8, 8))
    keep = Preprocessing(scale=1.0, channel_order="GRAY")
    (batch,) = Images.from_arrays(grey).batches([spec], keep, 4)
    assert batch.inputs["x"].shape == (2, 1, 8, 8)
    (batch,) = Images.from_arrays(grey).batches([SPEC], PLAIN, 4)
    assert batch.inputs["input"].shape == (2, 3, 8, 8)
    bands = np.zeros((2, 8, 8, 6), np.uint8)
    six = TensorSpec("x", "float32", ("N", 6, "H", "W"))
    as_is = Preprocessing(channel_order=None)
    (batch,) = Images.from_arrays(bands).batches([six], as_is, 4)
    assert batch.inputs["x"].shape == (2, 6, 8, 8)


def test_a_torch_dataloader_gives_inputs_and_labels() -> None:
    torch = pytest.importorskip("torch")
    x = torch.rand(5, 3, 8, 8, requires_grad=True)
    labels = torch.tensor([0, 0, 2, 2, 4])
    dataset = torch.utils.data.TensorDataset(x.detach(), labels)
    loader = torch.utils.data.DataLoader(dataset, batch_size=2)
    images = Images.of(loader)
    assert images.labelled
    assert images.preprocessed
    assert len(images) == 5
    batches = gather(images, None, size=4)
    assert [len(batch) for batch in batches] == [4, 1]
    np.testing.assert_array_equal(batches[0].inputs["input"], x.detach().numpy()[:4])
    assert batches[0].labels.tolist() == [0, 0, 2, 2]
    assert len(gather(Images.of([x]), None)) == 2
    refuses(lambda: Images.of([x.to(torch.bfloat16)]), "numpy")


def test_a_loader_may_give_arrays_dicts_several_inputs_and_single_samples() -> None:
    x = np.zeros((2, 3, 8, 8), np.float32)
    info = np.ones((2, 2), np.float32)
    specs = [SPEC, TensorSpec("info", "float32", ("N", 2))]
    assert not Images.of([x, x]).labelled
    (batch,) = Images.of([(x, info, np.array([3, 4]))]).batches(specs, None, 8)
    assert batch.inputs["info"].shape == (2, 2)
    assert batch.labels is not None
    assert batch.labels.tolist() == [3, 4]
    (batch,) = Images.of([{"info": info, "input": x, "label": [1, 2]}]).batches(specs, None, 8)
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 2]
    (batch,) = Images.of([(x[0], 1), (x[1], 0)]).batches([SPEC], None, 8)
    assert batch.inputs["input"].shape == (2, 3, 8, 8)
    targets = [{"boxes": [1, 2, 3, 4]}, {"boxes": []}]
    images = Images.of([(x, targets)])
    assert not images.labelled
    assert len(gather(images, None)) == 1


def test_the_public_names_take_paths_and_images(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    images = Images.of(tmp_path)
    assert Images.of(images) is images
    assert len(Images.of(str(tmp_path))) == 1
    assert images.source == str(tmp_path)


# ---------------------------------------------------------------- what is refused


def broken_npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


X = np.zeros((3, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"x": X.astype(np.float32)}, "expected uint8"),
        ({"x": X[:0]}, "empty"),
        ({"x": X[0, 0]}, "(N, H, W, C)"),
        ({"pictures": X}, "no array 'x'"),
        ({"x": X, "y": np.zeros(2, np.int64)}, "3 pictures"),
        ({"x": X, "y": np.array([0, -1, 2])}, "negative"),
        ({"x": X, "y": np.array([0.0, 1.0, 2.0])}, "integers"),
        ({"x": X, "y": np.zeros((3, 10), np.int64)}, "(3, 10)"),
        ({"x": X, "y": np.array([0, 1, 2]), "labels": np.array(["a", "b"])}, "label 2"),
        ({"x": X, "labels": np.array([0, 1])}, "class names"),
        ({"x": np.array([X[0], "x", None], object)}, "no Python objects"),
        ({"x": X, "y": np.array([0, None, 1], object)}, "no Python objects"),
    ],
)
def test_bad_npz_arrays(tmp_path: Path, arrays: dict[str, object], word: str) -> None:
    path = broken_npz(tmp_path / "data.npz", **arrays)
    assert str(path) in refuses(lambda: Images.open(path), word).message


def test_bad_npz_files(tmp_path: Path) -> None:
    whole = broken_npz(tmp_path / "whole.npz", x=X).read_bytes()
    path = tmp_path / "bad.npz"
    for content in (
        b"",
        b"no zip",
        whole[: len(whole) // 2],
        whole[:200] + b"\0" * len(whole[200:]),
    ):
        path.write_bytes(content)
        refuses(lambda: Images.open(path), str(path))
    damaged = bytearray(whole)
    damaged[whole.index(b"NUMPY") + 200] ^= 1
    path.write_bytes(bytes(damaged))
    refuses(lambda: Images.open(path), str(path))
    np.save(tmp_path / "single.npy", X)
    (tmp_path / "single.npy").rename(path)
    refuses(lambda: Images.open(path), "not an .npz")


def test_no_data_at_all(tmp_path: Path) -> None:
    refuses(lambda: Images.open(tmp_path / "absent"), "no data")
    refuses(lambda: Images.open(tmp_path), "no pictures")
    (tmp_path / "x.txt").write_text("")
    refuses(lambda: Images.open(tmp_path / "x.txt"), "neither a folder")
    refuses(lambda: Images.of([]), "gave nothing")
    refuses(lambda: Images.of(7), "int")  # type: ignore[arg-type]


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    save(tmp_path / "ant" / "1.png")
    (tmp_path / "bee").mkdir()
    error = refuses(lambda: Images.open(tmp_path), "no pictures")
    assert error.path == str(tmp_path / "bee")


def test_one_level_too_high_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "train" / "ant" / "1.png")
    save(tmp_path / "val" / "ant" / "1.png")
    refuses(lambda: Images.open(tmp_path), "one level")


def test_pictures_beside_class_folders_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    save(tmp_path / "ant" / "1.png")
    refuses(lambda: Images.open(tmp_path), "of its own")


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ("", "nothing"),
        ("file,class_index\n", "lists no pictures"),
        ("name,label\na.png,1\n", "first line"),
        ("file,class_index\na.png\n", "line 2"),
        ("file,class_index\na.png,1,2\n", "3 columns"),
        ("file,class_index\na.png,cat\n", "'cat'"),
        ("file,class_index\na.png,-1\n", "'-1'"),
        ("file,class_index\na.png,1.0\n", "'1.0'"),
        ("file,class_index\na.png,1\nmissing.png,1\n", "line 3"),
        ("file,class_index\na.png,1\na.png,1\n", "twice"),
        ("file,class_index\n../a.png,1\n", ".."),
        ("file,class_index\n/etc/passwd,1\n", "below the folder"),
        ('file,class_index\n"a.png,1\n', "labels.csv"),
    ],
)
def test_bad_labels_csv(tmp_path: Path, table: str, word: str) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(table)
    refuses(lambda: Images.open(tmp_path), word)


def test_labels_csv_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"file,class_index\nb\xe4r.png,1\n")
    refuses(lambda: Images.open(tmp_path), "UTF-8")


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    (tmp_path / "c.png").write_bytes(b"")
    images = Images.open(tmp_path)
    assert refuses(lambda: gather(images)).path == str(tmp_path / "b.png")
    assert refuses(lambda: gather(images.take([0, 2]))).path == str(tmp_path / "c.png")


@pytest.mark.parametrize("batch_size", [1, 8])
def test_pictures_that_disagree_in_size_need_a_crop(tmp_path: Path, batch_size: int) -> None:
    save(tmp_path / "a.png", size=(8, 8))
    save(tmp_path / "b.png", size=(8, 9))
    images = Images.open(tmp_path)
    free = TensorSpec("input", "float32", ("N", 3, "H", "W"))
    refuses(lambda: list(images.batches([free], PLAIN, batch_size)), "b.png", "center_crop")
    cropped = Preprocessing(center_crop=8)
    assert len(list(images.batches([SPEC], cropped, batch_size))) >= 1


def test_pictures_that_do_not_fit_the_network(tmp_path: Path) -> None:
    images = Images.from_arrays(X)
    one = TensorSpec("x", "float32", ("N", 1, 8, 8))
    refuses(lambda: list(images.batches([one], PLAIN, 2)), "channel_order")
    large = TensorSpec("x", "float32", ("N", 3, 9, 9))
    refuses(lambda: list(images.batches([large], PLAIN, 2)), "(3, 8, 8)")
    refuses(lambda: images.batches([SPEC], Preprocessing(center_crop=9), 2), "9x9")
    refuses(lambda: images.batches([SPEC, one], PLAIN, 2), "2 inputs")
    words = TensorSpec("tokens", "int64", ("N", 16))
    refuses(lambda: images.batches([words], PLAIN, 2), "int64")
    refuses(lambda: images.batches([], PLAIN, 2), "no inputs")
    refuses(lambda: images.batches([SPEC], PLAIN, 0), "batch size 0")
    refuses(lambda: images.batches([SPEC], None, 2), "preprocessing", code="E_PREPROCESSING")


def test_loaders_that_do_not_fit() -> None:
    x = np.zeros((2, 3, 8, 8), np.float32)
    refuses(lambda: Images.of([{"image": x}]).batches([SPEC], None, 2), "'input'", "image")
    refuses(lambda: Images.of([x[0]]).batches([SPEC], None, 2), "input: float32")
    refuses(lambda: Images.of([x.astype(np.float64)]).batches([SPEC], None, 2), "float64")
    second = TensorSpec("info", "float32", ("N", 2))
    refuses(lambda: Images.of([x]).batches([SPEC, second], None, 2), "2 inputs")
    refuses(lambda: Images.of([x, x[:, :2]]), "item 1")
    refuses(lambda: Images.of([(x, np.zeros(2, int)), x]), "some have none")
    refuses(lambda: Images.of([(x, np.zeros(3, int))]), "item 0")
    refuses(lambda: Images.of([(x, np.array([0, -1]))]), "negative")
    refuses(lambda: Images.of([{"input": x, "label": np.zeros(2)}]), "integers")
    refuses(lambda: Images.of([{"label": np.zeros(2, int)}]), "no inputs")
    refuses(lambda: Images.of(["a picture"]), "item 0")
    refuses(lambda: Images.of([np.array([x, None], object)]), "item 0")
    refuses(lambda: Images.of([x[:0]]), "item 0")


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("own_test", [False, True])
@pytest.mark.parametrize("count", [4, 5, 101])
def test_parts_share_nothing_and_leave_nothing_out(count: int, own_test: bool) -> None:
    x = np.zeros((count, 1, 1, 1), np.uint8)
    images = Images.from_arrays(x, np.arange(count))
    split = images.split(10, seed=3, own_test=own_test)
    parts = [split.calibration, split.selection, *([split.test] if split.test else [])]
    labels = [label for part in parts for label in part.labels.tolist()]
    assert sorted(labels) == list(range(count))
    if own_test:
        assert split.test is None
        assert len(split.calibration) == min(10, count // 2)
    else:
        assert split.test is not None
        assert len(split.test) == count // 2
        assert len(split.calibration) == min(10, count // 4)


def test_the_seed_alone_decides() -> None:
    images = Images.from_arrays(np.zeros((40, 1, 1, 1), np.uint8), np.arange(40))
    one, same, other = (images.split(5, seed, own_test=False) for seed in (1, 1, 2))
    assert all((one.test, same.test, other.test))
    assert one.test.labels.tolist() == same.test.labels.tolist()
    assert one.test.labels.tolist() != other.test.labels.tolist()
    # These are the parts on every machine and with every numpy: a recipe can be replayed.
    assert one.calibration.labels.tolist() == [0, 30, 37, 11, 26]


def test_the_size_of_calibration_does_not_change_the_test() -> None:
    images = Images.from_arrays(np.zeros((40, 1, 1, 1), np.uint8), np.arange(40))
    few, many = (images.split(size, 1, own_test=False) for size in (1, 10))
    assert all((few.test, many.test))
    assert few.test.labels.tolist() == many.test.labels.tolist()


def test_candidates_are_not_scored_on_more_than_ten_thousand() -> None:
    count = 10_400
    images = Images.from_arrays(np.zeros((count, 1, 1, 1), np.uint8), np.arange(count))
    split = images.split(300, 0, own_test=True)
    assert len(split.calibration) == 300
    assert len(split.selection) == len(set(split.selection.labels.tolist())) == 10_000
    assert split.training is None


def test_too_few_pictures_to_split() -> None:
    images = Images.from_arrays(np.zeros((3, 1, 1, 1), np.uint8))
    refuses(lambda: images.split(1, 0, own_test=False), "at least 4")
    refuses(lambda: images.take([0]).split(1, 0, own_test=True), "at least 2")
    refuses(lambda: images.split(0, 0, own_test=True), "calibration 0")
    refuses(lambda: images.split(1, -1, own_test=True), "seed -1")
    for indices in ([], [3], [-1]):
        refuses(lambda indices=indices: images.take(indices), "cannot take")


# ---------------------------------------------------------------- memory


def test_a_folder_is_read_as_it_is_needed(tmp_path: Path) -> None:
    for index in range(6):
        save(tmp_path / f"{index}.png", index)
    source = open_pictures(tmp_path)
    images = Images.open(tmp_path)
    stream: Iterator[object] = images.batches([SPEC], PLAIN, 2)
    next(stream)
    for path in source.paths:  # type: ignore[union-attr]
        path.unlink()
    refuses(lambda: next(stream), "2.png")


PEAK = """
import sys
from edgepress.benchmarks import Images
from edgepress.benchmarks.latency.worker import peak_memory_bytes
from edgepress.runtime import Preprocessing, TensorSpec
images = Images.open(sys.argv[1]).take([0] * int(sys.argv[2]))
spec = TensorSpec("input", "float32", ("N", 3, 224, 224))
count = sum(len(b) for b in images.batches([spec], Preprocessing(center_crop=224), 16))
assert count == int(sys.argv[2])
print(peak_memory_bytes() or 0)
"""


@pytest.mark.serial
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from VmHWM")
def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    save(tmp_path / "a.png", size=(256, 256))

    def peak(count: int) -> int:
        command = [sys.executable, "-c", PEAK, str(tmp_path), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    few, many = peak(64), peak(640)
    assert many < 1.1 * few, f"{few:,} bytes for 64 pictures, {many:,} for 640"
