"""timm and torchvision: networks and preprocessing from the user's own install of them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import torch

from ...runtime.errors import InputError
from ...runtime.pictures.preprocessing import Preprocessing


def from_timm(name: str) -> tuple[torch.nn.Module, Preprocessing | None]:
    """A network of timm, untrained, and the preprocessing of its ``pretrained_cfg``.

    Raises:
        InputError: ``E_EXTRA`` where timm cannot be imported, ``E_FACTORY`` for a name it does not
            have.
    """
    timm = _import("timm")
    try:
        module: Any = timm.create_model(name, pretrained=False)
    except Exception as error:
        raise _unknown("timm", name, error) from error
    return module, preprocessing_of_timm(dict(module.pretrained_cfg))


def preprocessing_of_timm(config: Mapping[str, Any]) -> Preprocessing | None:
    """The ``pretrained_cfg`` of timm as a Preprocessing, as timm itself reads it.

    Args:
        config: Keys ``input_size`` ``(C, H, W)``, ``crop_pct``, ``crop_mode``, ``interpolation``,
            ``mean``, ``std``.

    Returns:
        What timm's own evaluation does (``resolve_model_data_config``, training size); ``None``
        where it does something that a Preprocessing cannot say: crop mode ``border``, a crop that
        is not square, another interpolation, another number of channels than 3.
    """
    channels, height, width = (int(side) for side in config["input_size"])
    crop = float(config.get("crop_pct") or 0.875)
    mode = config.get("crop_mode") or "center"
    scaled = [math.floor(height / crop), math.floor(width / crop)]
    values: dict[str, object] = {
        "interpolation": config.get("interpolation") or "bicubic",
        "center_crop": [height, width],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }
    if mode == "squash":
        values["resize"] = scaled
    elif mode == "center" and height == width:
        values["resize_shorter"] = scaled[0]
    else:
        return None
    return _known(values) if channels == 3 else None


def from_torchvision(name: str) -> tuple[torch.nn.Module, Preprocessing | None]:
    """A network of torchvision, untrained, and the preprocessing of its default weights.

    Raises:
        InputError: ``E_EXTRA`` where torchvision cannot be imported, ``E_FACTORY`` for a name it
            does not have.
    """
    models = _import("torchvision.models")
    try:
        module: Any = models.get_model(name, weights=None)
        weights: Any = models.get_model_weights(name)
    except Exception as error:
        raise _unknown("torchvision", name, error) from error
    default = getattr(weights, "DEFAULT", None)
    return module, None if default is None else preprocessing_of_torchvision(default.transforms())


def preprocessing_of_torchvision(transforms: Any) -> Preprocessing | None:
    """Transforms of torchvision, ``ImageClassification``, as a Preprocessing.

    Args:
        transforms: Attributes ``resize_size``, ``crop_size`` (lists of one side), ``interpolation``
            (an enumeration), ``mean``, ``std``.

    Returns:
        ``None`` for transforms of another kind.
    """
    wanted = ("resize_size", "crop_size", "mean", "std", "interpolation")
    if not all(hasattr(transforms, key) for key in wanted):
        return None
    if len(transforms.resize_size) != 1 or len(transforms.crop_size) != 1:
        return None
    return _known(
        {
            "resize_shorter": transforms.resize_size[0],
            "interpolation": transforms.interpolation.value,
            "center_crop": transforms.crop_size[0],
            "mean": list(transforms.mean),
            "std": list(transforms.std),
        }
    )


def _known(values: Mapping[str, object]) -> Preprocessing | None:
    """A Preprocessing, or ``None`` for values that it does not have: the user must give one."""
    try:
        return Preprocessing.from_dict(values)
    except InputError:
        return None


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a torchvision for another torch fails with RuntimeError
        package = name.partition(".")[0]
        raise InputError(
            "E_EXTRA",
            f"'{package}' cannot be imported: {_first_line(error)}",
            mend=f"edgepress does not bring it; beside your torch: pip install {package}",
        ) from error


def _unknown(package: str, name: str, error: Exception) -> InputError:
    return InputError(
        "E_FACTORY",
        f"{package} cannot build '{name}': {_first_line(error)}",
        mend=f"See the names that {package} lists.",
        path=f"{package}:{name}",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
