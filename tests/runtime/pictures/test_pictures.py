"""Pictures: each documented conversion, and a typed refusal for everything else."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgepress.runtime import InputError, read_picture

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def refused(source: Any, order: Any = "RGB") -> InputError:
    with pytest.raises(InputError) as caught:
        read_picture(source, order)
    assert caught.value.code == "E_PICTURE"
    assert caught.value.exit_status == 2
    return caught.value


@pytest.mark.parametrize("form", ["path", "str", "bytes", "image", "array"])
def test_every_source_gives_the_same_bytes(form: str, tmp_path: Path) -> None:
    image = Image.fromarray(COLOUR)
    path = tmp_path / "a.png"
    image.save(path)
    source: Any = {
        "path": path, "str": str(path), "bytes": path.read_bytes(), "image": image, "array": COLOUR,
    }[form]  # fmt: skip
    np.testing.assert_array_equal(read_picture(source), COLOUR)
    np.testing.assert_array_equal(read_picture(source, "BGR"), COLOUR[:, :, ::-1])
    grey = np.asarray(image.convert("L"))[:, :, None]
    np.testing.assert_array_equal(read_picture(source, "GRAY"), grey)
    np.testing.assert_array_equal(read_picture(source, None), COLOUR)


@pytest.mark.parametrize("form", ["JPEG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "JPEG2000"])
def test_the_usual_formats_are_read(form: str) -> None:
    data = encoded(Image.fromarray(COLOUR), form)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_picture(data), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(COLOUR), exif=exif)
    turned = {
        1: COLOUR, 2: COLOUR[:, ::-1], 3: COLOUR[::-1, ::-1], 4: COLOUR[::-1],
        5: COLOUR.transpose(1, 0, 2), 6: np.rot90(COLOUR, -1),
        7: np.rot90(COLOUR, 2).transpose(1, 0, 2), 8: np.rot90(COLOUR, 1),
    }[orientation]  # fmt: skip
    np.testing.assert_array_equal(read_picture(data), turned)


def test_grey_becomes_colour_and_stays_grey() -> None:
    grey = COLOUR[:, :, 0]
    data = encoded(Image.fromarray(grey))
    for source in (data, grey, grey[:, :, None]):
        np.testing.assert_array_equal(read_picture(source), np.stack([grey] * 3, axis=2))
        np.testing.assert_array_equal(read_picture(source, "GRAY")[:, :, 0], grey)
    assert read_picture(data, None).shape == (5, 7, 1)


def test_alpha_is_dropped_and_the_colours_kept() -> None:
    alpha = RNG.integers(0, 256, (5, 7, 1), dtype=np.uint8)
    rgba = np.concatenate([COLOUR, alpha], axis=2)
    for source in (encoded(Image.fromarray(rgba)), rgba):
        np.testing.assert_array_equal(read_picture(source), COLOUR)
        np.testing.assert_array_equal(read_picture(source, "BGR"), COLOUR[:, :, ::-1])
    grey_alpha = np.concatenate([COLOUR[:, :, :1], alpha], axis=2)
    image = Image.fromarray(grey_alpha)
    assert image.mode == "LA"
    np.testing.assert_array_equal(read_picture(image, "GRAY")[:, :, 0], COLOUR[:, :, 0])


def test_cmyk_palette_and_bilevel_are_converted() -> None:
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    data = encoded(cmyk, "TIFF")
    np.testing.assert_array_equal(read_picture(data), np.asarray(cmyk.convert("RGB")))
    palette = Image.fromarray(COLOUR).convert("P")
    np.testing.assert_array_equal(
        read_picture(encoded(palette, transparency=b"\x00\x80")), np.asarray(palette.convert("RGB"))
    )
    bilevel = Image.fromarray(COLOUR).convert("1")
    np.testing.assert_array_equal(
        read_picture(encoded(bilevel), "GRAY")[:, :, 0], np.asarray(bilevel.convert("L"))
    )


def test_16_bit_grey_is_scaled() -> None:
    values = np.array([[0, 128, 129, 257], [32767, 32896, 65407, 65535]], np.uint16)
    expected = np.round(values.astype(np.float64) * 255 / 65535).astype(np.uint8)
    for source in (encoded(Image.fromarray(values)), Image.fromarray(values.astype(np.int32))):
        np.testing.assert_array_equal(read_picture(source, "GRAY")[:, :, 0], expected)
        np.testing.assert_array_equal(read_picture(source)[:, :, 2], expected)


def test_of_an_animation_the_first_frame_is_read() -> None:
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert set(read_picture(data, "GRAY").ravel().tolist()) == {10}


def test_one_pixel_is_a_picture() -> None:
    assert read_picture(encoded(Image.new("RGB", (1, 1), "red"))).tolist() == [[[255, 0, 0]]]


def test_six_bands_are_kept_where_no_order_is_asked() -> None:
    bands = RNG.integers(0, 256, (4, 4, 6), dtype=np.uint8)
    np.testing.assert_array_equal(read_picture(bands, None), bands)
    refused(bands, "RGB")


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">L", len(content)) + body + struct.pack(">L", zlib.crc32(body))

    header = struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [13_378, 50_000, 2**31 - 1])
def test_absurd_sizes_are_refused_before_decoding(side: int) -> None:
    assert "pixels" in refused(png_header(side, side)).message


def test_the_limit_holds_where_pillow_was_told_to_have_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert "pixels" in refused(png_header(50_000, 50_000)).message


@pytest.mark.parametrize("cut", [0, 1, 20, 60, -10])
def test_cut_files_are_refused_by_path(cut: int, tmp_path: Path) -> None:
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.fromarray(noise), "JPEG")[:cut])
    error = refused(path)
    assert error.path == str(path)
    assert str(path) in error.message


def test_random_damage_never_escapes_as_another_error() -> None:
    codes: set[str] = set()
    noise = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        sound = encoded(Image.fromarray(noise), form)
        for _ in range(60):
            damaged = bytearray(sound)
            for at in RNG.integers(0, len(damaged), 4):
                damaged[at] = RNG.integers(0, 256)
            try:
                picture = read_picture(bytes(damaged))
            except InputError as error:
                codes.add(error.code)
            else:
                assert picture.dtype == np.uint8
                assert picture.shape[2] == 3
    assert codes == {"E_PICTURE"}


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "text", "nul", "postscript"])
def test_what_is_no_picture_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "text":
        path.write_text("hello")
    elif kind == "nul":
        path = Path("a\0b")
    elif kind == "postscript":  # Pillow would start Ghostscript on it
        path = tmp_path / "a.eps"
        Image.new("RGB", (4, 4)).save(path)
    refused(path)


@pytest.mark.parametrize(
    "source",
    [
        None, 3, 1.5, ["a.png"], b"",
        np.zeros((4, 4, 3), np.float32), np.zeros((4,), np.uint8), np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8), np.zeros((4, 4, 2), np.uint8),
        Image.new("F", (2, 2)), Image.fromarray(np.full((2, 2), 70_000, np.int32)),
    ],
    ids=lambda source: f"{type(source).__name__}{getattr(source, 'shape', '')}",
)  # fmt: skip
def test_other_values_are_refused(source: Any) -> None:
    refused(source)


def test_only_the_reader_that_is_needed_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2)).save(path)
    code = (
        "import sys; from edgepress.runtime import read_picture; "
        "read_picture(sys.argv[1]); "
        "print(*(m for m in sys.modules if m.endswith('ImagePlugin')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "PIL.PngImagePlugin" in loaded
    assert not {"PIL.WebPImagePlugin", "PIL.TiffImagePlugin", "PIL.EpsImagePlugin"} & set(loaded)
