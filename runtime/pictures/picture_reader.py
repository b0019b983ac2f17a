"""Pictures from anywhere to bytes: one array ``(H, W, C)`` of uint8, by documented conversions.

What becomes of a picture:

- rotated or mirrored by EXIF: turned upright
- grey, palette, CMYK, YCbCr: converted by Pillow to what was asked for; grey from colour is ITU-R
  601-2
- with an alpha channel: the alpha is dropped and the colours kept, as ``convert("RGB")`` does in
  the usual training loaders, so that a network sees here what it saw there
- 16 bits a channel: grey is scaled, ``round(v * 255 / 65535)``; colour is read by Pillow, which
  keeps the high byte
- animated: the first frame
- floating point, or 32-bit integers beyond 16 bits: refused, their range being unknown
"""

from __future__ import annotations

import io
import os
import stat
from importlib import import_module
from typing import IO, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import InputError

PictureSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]"
ChannelOrder: TypeAlias = Literal["RGB", "BGR", "GRAY"]
Picture: TypeAlias = "NDArray[np.uint8]"

MAX_PIXELS = 178_956_970
_READERS = {
    "JPEG": ("JpegImagePlugin", (".jpg", ".jpeg", ".jpe", ".jfif")),
    "PNG": ("PngImagePlugin", (".png", ".apng")),
    "BMP": ("BmpImagePlugin", (".bmp", ".dib")),
    "GIF": ("GifImagePlugin", (".gif",)),
    "PPM": ("PpmImagePlugin", (".ppm", ".pgm", ".pbm", ".pnm")),
    "WEBP": ("WebPImagePlugin", (".webp",)),
    "TIFF": ("TiffImagePlugin", (".tif", ".tiff")),
    "JPEG2000": ("Jpeg2KImagePlugin", (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c")),
}
FORMATS = tuple(_READERS)
"""What is decoded. Pillow knows more, some of which start other programs (EPS: Ghostscript)."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_picture(source: PictureSource, order: ChannelOrder | None = "RGB") -> Picture:
    """Read one picture.

    Args:
        source: A path, the bytes of a picture file, a Pillow image, or an array of uint8 ``(H,
            W)``, ``(H, W, 1)``, ``(H, W, 3)`` in RGB or ``(H, W, 4)`` in RGBA.
        order: The channels wanted; ``None`` keeps the channels of an array, of any number, as they
            are, and reads a grey file as grey and any other as RGB.

    Returns:
        uint8 ``(H, W, C)``, C being 3 for ``RGB`` and ``BGR`` and 1 for ``GRAY``.

    Raises:
        InputError: ``E_PICTURE`` for what is missing, empty, no picture, cut short, over 178
            million pixels (before it is decoded), or of a kind that has no conversion.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, order)
    if isinstance(source, Image.Image):
        return _decode(source, order, f"a Pillow image of mode {source.mode}", None)
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), order, f"a picture of {len(source)} bytes", None)
    try:
        path = os.fspath(source)
    except TypeError as error:
        raise _refused(f"a {type(source).__name__}", "is not a picture", None) from error
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO or a device would wait or never end
            raise _refused(f"'{path}'", "is not a regular file", path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _refused(f"'{path}'", f"cannot be read: {reason}", path) from error
    return _decode(path, order, f"'{path}'", path)


def _decode(
    source: str | IO[bytes] | Image.Image, order: ChannelOrder | None, what: str, path: str | None
) -> Picture:
    try:
        if isinstance(source, Image.Image):
            return _from_image(source, order, what, path)
        with _open(source) as image:
            return _from_image(image, order, what, path)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(what, path) from error
    except Exception as error:  # Pillow's plugins raise whatever their parsers run into
        raise _refused(what, f"cannot be decoded: {_reason(error)}", path) from error


def _open(source: str | IO[bytes]) -> Image.Image:
    """Open with one reader after another, the likeliest first.

    Asked for several formats at once, Pillow imports all its forty readers if one of them is not
    loaded yet; that takes longer than all else that opening a bundle does.
    """
    suffix = os.path.splitext(source)[1].lower() if isinstance(source, str) else ""
    unknown = UnidentifiedImageError(f"Pillow reads none of {', '.join(FORMATS)}")
    for name in sorted(FORMATS, key=lambda name: suffix not in _READERS[name][1]):
        import_module(f"PIL.{_READERS[name][0]}")
        if name not in Image.OPEN:
            continue  # this Pillow was built without it
        try:
            return Image.open(source, formats=(name,))
        except UnidentifiedImageError as error:
            unknown = error
    raise unknown


def _from_image(
    image: Image.Image, order: ChannelOrder | None, what: str, path: str | None
) -> Picture:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(what, path)
    if image.width * image.height == 0:
        raise _refused(what, "has no pixels", path)
    turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    if image.mode.startswith("I"):
        image = _from_16_bits(image, what, path)
    elif image.mode == "F":
        raise _refused(what, "holds floating point values, whose range is unknown", path)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    mode = "L" if order == "GRAY" or (order is None and image.mode in ("1", "L", "LA")) else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if turn is not None:
        image = image.transpose(turn)
    pixels = np.asarray(image)
    if mode == "L":
        return pixels[:, :, None]
    return np.ascontiguousarray(pixels[:, :, ::-1]) if order == "BGR" else pixels


def _from_16_bits(image: Image.Image, what: str, path: str | None) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise _refused(what, "holds integers beyond 16 bits, whose range is unknown", path)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _from_array(array: NDArray[Any], order: ChannelOrder | None) -> Picture:
    what = f"an array of {array.dtype.name} {array.shape}"
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.size == 0:
        raise _refused(what, "is not a picture", None)
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise _too_large(what, None)
    pixels = array if array.ndim == 3 else array[:, :, None]
    channels = pixels.shape[2]
    if order is None:
        return pixels
    if channels not in (1, 3, 4):
        raise _refused(what, f"has {channels} channels where 1, 3 or 4 can become {order}", None)
    if channels == 4:
        pixels = pixels[:, :, :3]
    if order == "GRAY":
        if channels == 1:
            return pixels
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[:, :, None]
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    return pixels[:, :, ::-1] if order == "BGR" else pixels


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is none of " + ", ".join(FORMATS)
    return str(error).strip() or type(error).__name__


def _refused(what: str, reason: str, path: str | None) -> InputError:
    return InputError(
        "E_PICTURE",
        f"{what} {reason}.",
        mend="Expected a picture file, its bytes, a Pillow image, or uint8 (H, W) or (H, W, C).",
        path=path,
    )


def _too_large(what: str, path: str | None) -> InputError:
    return InputError(
        "E_PICTURE",
        f"{what} has more than {MAX_PIXELS:,} pixels, the limit.",
        mend="Make it smaller, or cut it into parts.",
        path=path,
    )
