"""Preprocessing as data: how a picture becomes what a network takes.

``y = (x / scale - mean) / std`` on bytes, after resizing and cropping, then ``(N, C, H, W)``
float32. Equal to torchvision's ``Resize`` (on Pillow images), ``CenterCrop``, ``ToTensor`` and
``Normalize``, in that order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from .picture_reader import MAX_PIXELS, ChannelOrder, Picture, PictureSource, read_picture

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic"]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_ORDERS = ("RGB", "BGR", "GRAY")
_MAX_SIDE = 32_768


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a picture before the network sees it.

    Attributes:
        resize: Exact size ``(H, W)`` to resize to, or ``None``.
        resize_shorter: Length of the shorter side after resizing, the longer one following as
            ``int(length * longer / shorter)``, or ``None``. Not together with ``resize``.
        interpolation: How to resize: ``nearest``, or ``bilinear`` or ``bicubic`` with antialiasing.
        center_crop: Size ``(H, W)`` to cut from the middle, a smaller picture being padded with
            zeros, or ``None``. One number is a square.
        channel_order: ``RGB``, ``BGR`` or ``GRAY``; ``None`` (written ``none``) keeps the channels
            of arrays, of any number, as they are.
        scale: What bytes are divided by.
        mean: Subtracted after scaling: one number, or one a channel.
        std: Divided by after that: one number, or one a channel.

    Raises:
        InputError: ``E_PREPROCESSING`` for values that cannot be.
    """

    resize: tuple[int, int] | None = None
    resize_shorter: int | None = None
    interpolation: Interpolation = "bilinear"
    center_crop: tuple[int, int] | int | None = None
    channel_order: ChannelOrder | None = "RGB"
    scale: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if isinstance(self.center_crop, int):
            object.__setattr__(self, "center_crop", (self.center_crop, self.center_crop))
        if self.resize is not None and self.resize_shorter is not None:
            raise _wrong("both resize and resize_shorter are given", "Give one of them.")
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            channels = self.channels
            if count == 0 or (count > 1 and channels is not None and count != channels):
                raise _wrong(
                    f"{name} has {count} values for {self.channel_order}",
                    f"Expected 1 or {channels if channels is not None else 'one a channel'}.",
                )
        if len(self.mean) > 1 and len(self.std) > 1 and len(self.mean) != len(self.std):
            raise _wrong(
                f"mean has {len(self.mean)} values and std {len(self.std)}", "Expected as many."
            )
        if not math.isfinite(self.scale) or self.scale == 0:
            raise _wrong(f"scale is {self.scale}", "Expected a finite number that is not 0.")
        if 0.0 in self.std or not all(map(math.isfinite, (*self.mean, *self.std))):
            raise _wrong(
                f"mean is {list(self.mean)} and std is {list(self.std)}",
                "Expected finite numbers, and none of std 0.",
            )

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Preprocessing:
        """Read a flat TOML file whose keys are the attributes of this class.

        Raises:
            InputError: ``E_PREPROCESSING`` for a file that is missing, is no TOML, has unknown
                keys, or values that cannot be.
        """
        try:
            text = Path(path).read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _wrong(f"the file cannot be read: {error}", "", os.fspath(path)) from error
        return cls.from_dict(_parse_toml(text, os.fspath(path)), where=os.fspath(path))

    @classmethod
    def from_dict(
        cls, values: Mapping[str, object], where: str = "the preprocessing"
    ) -> Preprocessing:
        """Make one from plain values, as TOML and JSON give them.

        Args:
            values: Attributes by name; those left out keep their defaults.
            where: What the values came from, for the message.

        Raises:
            InputError: ``E_PREPROCESSING`` for unknown keys, wrong types, or values that cannot be.
        """
        known = [field.name for field in fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            raise _wrong(f"unknown keys {unknown}", "Known keys: " + ", ".join(known), where)
        made: dict[str, Any] = {}
        for key, value in values.items():
            if value is None and key in ("resize", "resize_shorter", "center_crop"):
                continue
            made[key] = _READERS[key](key, value, where)
        try:
            return cls(**made)
        except InputError as error:
            raise _wrong(error.message.rstrip("."), error.mend, where) from error

    def to_dict(self) -> dict[str, object]:
        """The attributes as JSON and TOML hold them; those that are ``None`` are left out."""
        found: dict[str, object] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "channel_order" and value is None:
                value = "none"
            if value is not None:
                found[field.name] = (
                    list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value
                )
        return found

    @property
    def size(self) -> tuple[int, int] | None:
        """``(H, W)`` of every picture afterwards, or ``None`` where it follows from the picture."""
        if self.center_crop is not None:
            return cast("tuple[int, int]", self.center_crop)
        return self.resize

    @property
    def channels(self) -> int | None:
        """How many channels come out, or ``None`` where they are kept as they are."""
        if self.channel_order is None:
            return None
        return 1 if self.channel_order == "GRAY" else 3

    def pixels(self, picture: Picture) -> Picture:
        """Resize and crop one picture.

        Args:
            picture: uint8 ``(H, W, C)``, as `read_picture` gives it.

        Returns:
            uint8 ``(H, W, C)``.

        Raises:
            InputError: ``E_PICTURE`` where resizing or cropping would pass the limit of 178 million
                pixels.
        """
        height, width = picture.shape[:2]
        if self.resize is not None:
            picture = _resized(picture, self.resize, self.interpolation)
        elif self.resize_shorter is not None:
            shorter, longer = min(height, width), max(height, width)
            other = int(self.resize_shorter * longer / shorter)
            size = (self.resize_shorter, other) if height <= width else (other, self.resize_shorter)
            picture = _resized(picture, size, self.interpolation)
        if self.center_crop is not None:
            picture = _cropped(picture, cast("tuple[int, int]", self.center_crop))
        return picture

    def tensor(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Scale and normalize pictures of one size.

        Args:
            pictures: uint8 ``(H, W, C)`` each, resized and cropped; or one array ``(N, H, W, C)``.

        Returns:
            float32 ``(N, C, H, W)``.

        Raises:
            InputError: ``E_INPUT`` for no picture, or sizes that disagree; ``E_PREPROCESSING``
                where ``mean`` or ``std`` has not one value a channel.
        """
        shapes = {picture.shape for picture in pictures}
        if len(shapes) != 1:
            raise InputError(
                "E_INPUT",
                f"the pictures have {len(shapes)} sizes: {sorted(shapes)[:3]}.",
                mend="Expected pictures of one size (H, W, C): set center_crop or resize.",
            )
        height, width, channels = shapes.pop()
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            if count not in (1, channels):
                raise _wrong(
                    f"{name} has {count} values and the pictures have {channels} channels",
                    f"Expected 1 or {channels}.",
                )
        made = np.empty((len(pictures), channels, height, width), np.float32)
        for row, picture in zip(made, pictures, strict=True):
            row[...] = picture.transpose(2, 0, 1)
        if self.scale != 1:
            made /= np.float32(self.scale)
        if any(self.mean):
            made -= np.asarray(self.mean, np.float32).reshape(-1, 1, 1)
        if any(value != 1 for value in self.std):
            made /= np.asarray(self.std, np.float32).reshape(-1, 1, 1)
        return made

    def __call__(self, sources: PictureSource | Sequence[PictureSource]) -> NDArray[np.float32]:
        """Read, resize, crop and normalize.

        Args:
            sources: One picture, or a list or tuple of them, as `read_picture` takes them.

        Returns:
            float32 ``(N, C, H, W)``, N being 1 for one picture.

        Raises:
            InputError: As `read_picture`, `pixels` and `tensor` do.
        """
        if isinstance(sources, (list, tuple)):
            several = cast("Sequence[PictureSource]", sources)
        else:
            several = [cast("PictureSource", sources)]
        return self.tensor([self.pixels(read_picture(one, self.channel_order)) for one in several])


def _resized(picture: Picture, size: tuple[int, int], interpolation: str) -> Picture:
    height, width = size
    _check_size(picture, size, "Crop it first, or set resize instead of resize_shorter.")
    if picture.shape[:2] == size:
        return picture
    how = _FILTERS[interpolation]
    if picture.shape[2] == 3:
        whole = Image.fromarray(np.ascontiguousarray(picture))
        return np.asarray(whole.resize((width, height), how))
    planes = [
        Image.fromarray(np.ascontiguousarray(picture[:, :, channel])).resize((width, height), how)
        for channel in range(picture.shape[2])
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def _check_size(picture: Picture, size: tuple[int, int], mend: str) -> None:
    height, width = size
    if height * width > MAX_PIXELS:
        raise InputError(
            "E_PICTURE",
            f"a picture of {picture.shape[1]} x {picture.shape[0]} would become "
            f"{width} x {height}, over the limit of {MAX_PIXELS:,} pixels.",
            mend=mend,
        )


def _cropped(picture: Picture, size: tuple[int, int]) -> Picture:
    _check_size(picture, size, "Set a smaller center_crop.")
    missing = [max(0, wanted - have) for wanted, have in zip(size, picture.shape, strict=False)]
    if any(missing):
        around = [(gap // 2, (gap + 1) // 2) for gap in missing]
        picture = np.pad(picture, [*around, (0, 0)])
    top, left = (
        round((have - wanted) / 2) for wanted, have in zip(size, picture.shape, strict=False)
    )
    return picture[top : top + size[0], left : left + size[1]]


def _parse_toml(text: str, where: str) -> dict[str, object]:
    from ..toml import parse_toml  # not needed to open a bundle, which must be quick

    try:
        return parse_toml(text)
    except ValueError as error:
        raise _wrong(f"broken TOML: {error}", "", where) from error


def _side(key: str, value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_SIDE:
        raise _wrong(
            f"{key} is {value!r}", f"Expected a whole number from 1 to {_MAX_SIDE}.", where
        )
    return value


def _sides(key: str, value: object, where: str) -> tuple[int, int]:
    if isinstance(value, (list, tuple)):
        several = cast("Sequence[object]", value)
        if len(several) == 2:
            return (_side(key, several[0], where), _side(key, several[1], where))
    raise _wrong(f"{key} is {value!r}", "Expected [height, width].", where)


def _side_or_sides(key: str, value: object, where: str) -> tuple[int, int]:
    if isinstance(value, (list, tuple)):
        return _sides(key, cast(object, value), where)
    side = _side(key, value, where)
    return (side, side)


def _number(key: str, value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(f"{key} is {value!r}", "Expected a number.", where)
    try:
        return float(value)
    except OverflowError as error:
        raise _wrong(f"{key} is too large", "Expected a finite number.", where) from error


def _numbers(key: str, value: object, where: str) -> tuple[float, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(_number(key, one, where) for one in cast("Sequence[object]", value))
    return (_number(key, value, where),)


def _interpolation(key: str, value: object, where: str) -> str:
    if not isinstance(value, str) or value not in _FILTERS:
        raise _wrong(f"{key} is {value!r}", "Expected one of: " + ", ".join(_FILTERS), where)
    return value


def _order(key: str, value: object, where: str) -> str | None:
    if value is None or value == "none":
        return None
    if not isinstance(value, str) or value not in _ORDERS:
        raise _wrong(f"{key} is {value!r}", "Expected one of: RGB, BGR, GRAY, none", where)
    return value


_READERS: dict[str, Any] = {
    "resize": _sides,
    "resize_shorter": _side,
    "interpolation": _interpolation,
    "center_crop": _side_or_sides,
    "channel_order": _order,
    "scale": _number,
    "mean": _numbers,
    "std": _numbers,
}


def _wrong(message: str, mend: str, where: str | None = None) -> InputError:
    prefix = f"{where}: " if where else ""
    return InputError("E_PREPROCESSING", f"{prefix}{message}.", mend=mend, path=where)
