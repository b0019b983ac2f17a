"""Preprocessing against independent computations with Pillow and numpy, and its refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgepress.runtime import InputError, Preprocessing

RNG = np.random.default_rng(1)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(height: int, width: int, channels: int = 3) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def torchvision_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """`torchvision.transforms.functional._compute_resized_output_size`, as its source has it."""
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = shorter, int(shorter * long / short)
    new_w, new_h = (new_short, new_long) if width <= height else (new_long, new_short)
    return new_h, new_w


def torchvision_center_crop(image: Any, crop_h: int, crop_w: int) -> Any:
    """`torchvision.transforms.functional.center_crop`, as its source has it, on an array."""
    height, width = image.shape[:2]
    if crop_w > width or crop_h > height:
        left = (crop_w - width) // 2 if crop_w > width else 0
        top = (crop_h - height) // 2 if crop_h > height else 0
        right = (crop_w - width + 1) // 2 if crop_w > width else 0
        bottom = (crop_h - height + 1) // 2 if crop_h > height else 0
        padded = np.zeros((height + top + bottom, width + left + right, image.shape[2]), np.uint8)
        padded[top : top + height, left : left + width] = image
        image = padded
        height, width = image.shape[:2]
        if crop_w == width and crop_h == height:
            return image
    top = round((height - crop_h) / 2.0)
    left = round((width - crop_w) / 2.0)
    return image[top : top + crop_h, left : left + crop_w]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(50, 80), (80, 50), (64, 64), (37, 211), (224, 224)])
def test_equals_resize_crop_normalize(shape: tuple[int, int], interpolation: Any) -> None:
    source = picture(*shape)
    made = Preprocessing(
        resize_shorter=64, interpolation=interpolation, center_crop=56, mean=MEAN, std=STD
    )(source)
    height, width = torchvision_size(*shape, 64)
    how = getattr(Image.Resampling, interpolation.upper())
    resized = np.asarray(Image.fromarray(source).resize((width, height), how))
    cropped = torchvision_center_crop(resized, 56, 56)
    expected = (cropped.astype(np.float64) / 255 - np.array(MEAN)) / np.array(STD)
    assert made.dtype == np.float32
    assert made.shape == (1, 3, 56, 56)
    np.testing.assert_allclose(made[0], expected.transpose(2, 0, 1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("crop", [(5, 5), (6, 9), (11, 4), (20, 20), (13, 30), (9, 8)])
@pytest.mark.parametrize("shape", [(9, 8), (8, 9), (10, 13)])
def test_crop_rounds_and_pads_as_torchvision(shape: tuple[int, int], crop: tuple[int, int]) -> None:
    source = picture(*shape)
    np.testing.assert_array_equal(
        Preprocessing(center_crop=crop).pixels(source), torchvision_center_crop(source, *crop)
    )


def test_exact_resize_is_height_then_width() -> None:
    source = picture(30, 20)
    made = Preprocessing(resize=(10, 40)).pixels(source)
    expected = Image.fromarray(source).resize((40, 10), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(made, np.asarray(expected))
    assert Preprocessing(resize=(10, 40)).size == (10, 40)


def test_channel_orders() -> None:
    source = picture(4, 5)
    plain = Preprocessing(scale=1.0)
    np.testing.assert_array_equal(plain(source)[0], source.transpose(2, 0, 1))
    bgr = Preprocessing(scale=1.0, channel_order="BGR", mean=(1.0, 2.0, 3.0))
    expected = source[:, :, ::-1].transpose(2, 0, 1) - np.array([1, 2, 3]).reshape(3, 1, 1)
    np.testing.assert_array_equal(bgr(source)[0], expected)
    grey = Preprocessing(scale=1.0, channel_order="GRAY")
    np.testing.assert_array_equal(
        grey(source)[0, 0], np.asarray(Image.fromarray(source).convert("L"))
    )
    assert (plain.channels, grey.channels, Preprocessing(channel_order=None).channels) == (
        3,
        1,
        None,
    )


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_any_number_of_channels_stays_as_it_is(channels: int) -> None:
    source = picture(6, 6, channels)
    mean, std = tuple(range(channels)), tuple(range(1, channels + 1))
    made = Preprocessing(channel_order=None, scale=2.0, mean=mean, std=std)([source, source])
    expected = (source / 2.0 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(made[1], expected.transpose(2, 0, 1), rtol=1e-6, atol=1e-6)
    resized = Preprocessing(channel_order=None, resize=(3, 3)).pixels(source)
    for channel in range(channels):
        one = Image.fromarray(source[:, :, channel]).resize((3, 3), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(resized[:, :, channel], np.asarray(one))


def test_batches_are_rows_and_sizes_must_agree() -> None:
    several = [picture(4, 4), picture(4, 4)]
    made = Preprocessing()(several)
    np.testing.assert_array_equal(made[1:], Preprocessing()(several[1]))
    np.testing.assert_array_equal(made, Preprocessing().tensor(np.stack(several)))
    for wrong in ([], [picture(4, 4), picture(4, 5)]):
        with pytest.raises(InputError) as caught:
            Preprocessing()(wrong)
        assert caught.value.code == "E_INPUT"


def test_one_pixel_and_extreme_shapes() -> None:
    assert Preprocessing(resize_shorter=8, center_crop=8)(picture(1, 1)).shape == (1, 3, 8, 8)
    assert Preprocessing(resize_shorter=8, center_crop=8)(picture(1, 300)).shape == (1, 3, 8, 8)
    with pytest.raises(InputError) as caught:
        Preprocessing(resize_shorter=256)(np.zeros((1, 30_000, 3), np.uint8))
    assert caught.value.code == "E_PICTURE"


def test_files_of_the_data_folder(shared_data: Path) -> None:
    lite0 = Preprocessing.from_toml(shared_data / "lite0.toml")
    assert lite0 == Preprocessing(
        resize_shorter=256, interpolation="bicubic", center_crop=(224, 224), scale=1.0,
        mean=(127.0,) * 3, std=(128.0,) * 3,
    )  # fmt: skip
    assert lite0.size == (224, 224)
    assert Preprocessing.from_toml(shared_data / "cifar.toml").size is None


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(),
        Preprocessing(resize=(3, 4), center_crop=2, channel_order=None, mean=(1, 2, 3, 4)),
        Preprocessing(resize_shorter=5, interpolation="nearest", channel_order="GRAY", scale=1),
    ],
)
def test_dictionary_round_trip(preprocessing: Preprocessing) -> None:
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing


def test_toml_of_every_key(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(
        'resize_shorter = 9\ninterpolation = "nearest"\ncenter_crop = [4, 6]\n'
        'channel_order = "none"\nscale = 2\nmean = 1\nstd = [3.5]\n'
    )
    assert Preprocessing.from_toml(path) == Preprocessing(
        None, 9, "nearest", (4, 6), None, 2.0, (1.0,), (3.5,)
    )


@pytest.mark.parametrize(
    "text",
    [
        "colour = 1", "Scale = 1", "scale = ", "= 3", "[table]\nscale = 1", "scale = '255'",
        "scale = true", "scale = 0", "scale = nan", "scale = inf", "mean = [nan, 0, 0]", "std = 0",
        "std = [1, 0, 1]", "std = []", "mean = [1, 2]", "mean = ['a']", "mean = [[1]]", "mean = {}",
        "interpolation = 'lanczos'", "interpolation = 1", "interpolation = []",
        "channel_order = 'rgb'", "channel_order = 3", "center_crop = 0", "center_crop = 2.0",
        "center_crop = true", "center_crop = [1, 2, 3]", "center_crop = -4", "center_crop = 100000",
        "resize = 3", "resize = ['a', 1]", "resize_shorter = [1, 2]", "resize_shorter = 0",
        "resize = [2, 2]\nresize_shorter = 3", "scale = 1\nscale = 1",
        "scale = 1" + "0" * 400, "scale = 1" + "0" * 5000, "mean = " + "[" * 3000,
        "mean = [1, 2]\nstd = [1, 2, 3]\nchannel_order = 'none'",
        "channel_order = 'GRAY'\nmean = [1, 2, 3]",
    ],
)  # fmt: skip
def test_wrong_files_are_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        Preprocessing.from_toml(path)
    assert caught.value.code == "E_PREPROCESSING"
    assert caught.value.path == str(path)
    assert str(path) in caught.value.message


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"# caf\xe9")
    for path in (tmp_path / "none", tmp_path, tmp_path / "latin"):
        with pytest.raises(InputError) as caught:
            Preprocessing.from_toml(path)
        assert caught.value.code == "E_PREPROCESSING"


def test_mean_must_fit_the_pictures() -> None:
    with pytest.raises(InputError) as caught:
        Preprocessing(channel_order=None, mean=(1.0, 2.0))(picture(4, 4, 6))
    assert caught.value.code == "E_PREPROCESSING"


def test_a_crop_as_large_as_memory_is_refused() -> None:
    how = Preprocessing(center_crop=(32768, 32768))
    with pytest.raises(InputError) as caught:
        how.pixels(np.zeros((8, 8, 3), np.uint8))
    assert caught.value.code == "E_PICTURE"
