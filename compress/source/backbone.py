"""Backbones: a trained torch module, where it came from, and how pictures reach it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...runtime.errors import InputError
from ...runtime.pictures.preprocessing import Preprocessing
from ..channels.cut_history import History
from .factories import call_factory
from .weights import load_weights


@dataclass(frozen=True)
class Backbone:
    """A trained torch module.

    Attributes:
        module: The network, weights loaded.
        name: The factory as the user wrote it, without the machine's folders; goes into bundles.
        preprocessing: What the place it came from says of its pictures, or ``None``.
        weights_sha256: Of the weights' file, or ``None`` where the factory brought them itself.
        history: What pruning was done to it before.
    """

    module: torch.nn.Module
    name: str
    preprocessing: Preprocessing | None = None
    weights_sha256: str | None = None
    history: History = field(default_factory=History)

    @staticmethod
    def of(module: torch.nn.Module, preprocessing: Preprocessing | None = None) -> Backbone:
        """A Backbone around a module that is in memory already.

        The module stays as it is; of one that lies on another device a copy is taken.
        """
        tensors = [*module.parameters(), *module.buffers()]
        if any(tensor.device.type != "cpu" for tensor in tensors):
            module = copy.deepcopy(module).cpu()
        return Backbone(module, type(module).__name__, preprocessing)

    @staticmethod
    def open(spec: str, weights: str | None = None) -> Backbone:
        """Build a Backbone.

        Args:
            spec: ``path/to/file.py:factory``, ``package.module:factory``, ``timm:NAME`` or
                ``torchvision:NAME``; a factory takes no arguments and returns a module.
            weights: See :func:`~edgepress.compress.source.weights.load_weights`. ``timm:`` and
                ``torchvision:`` need them, since nothing is fetched from the network.

        Returns:
            The network in evaluation mode, with its weights.

        Raises:
            InputError: ``E_FACTORY`` for a factory that is missing, raises, needs arguments or
                returns no module; what :func:`~edgepress.compress.source.weights.load_weights`
                raises.
        """
        where, _, name = spec.rpartition(":")
        if not where or not name:
            raise InputError(
                "E_FACTORY",
                f"'{spec}' names no network.",
                mend="Write path/to/file.py:factory, package.module:factory, timm:NAME, "
                "torchvision:NAME, or a file that ends in .onnx.",
                path=spec,
            )
        preprocessing: Preprocessing | None = None
        if where in ("timm", "torchvision"):
            if weights is None:
                raise InputError(
                    "E_WEIGHTS",
                    f"{spec} comes untrained: edgepress fetches nothing from the network.",
                    mend="Give its trained weights with --weights FILE.",
                    path=spec,
                )
            from .model_zoo import from_timm, from_torchvision

            module, preprocessing = from_timm(name) if where == "timm" else from_torchvision(name)
        else:
            module = call_factory(where, name)
        shown = f"{Path(where).name}:{name}" if where.endswith(".py") else spec
        digest, history = None, History()
        if weights is not None:
            digest, history = load_weights(module, weights)
        module.eval()
        return Backbone(module, shown, preprocessing, digest, History(history.steps, factory=shown))
