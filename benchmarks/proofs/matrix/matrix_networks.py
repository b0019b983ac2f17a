"""The networks of the matrix, trained where weights are at hand, else random and said to be so.

A random network gets the statistics of its BatchNorm layers from real pictures, so that its
activations have the size and spread that layers of its kind meet, and biases where its makers leave
them at 0, which no training does: an export leaves such biases out, and the network would be
another one. What it answers means nothing, and it is judged by agreement with itself in float32
alone.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgepress.benchmarks import Images
from edgepress.compress import Backbone
from edgepress.runtime import Preprocessing

from ..networks import FOREIGN, NETWORKS, Network, brought, cifar, data_root

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_STATISTICS_BATCH = 16


@dataclass(frozen=True)
class Entry:
    """A network of the matrix.

    Attributes:
        name: What the table calls it.
        where: ``pytorchcv:family.function``, ``timm:name``, ``torchvision:name``, ``here:function``;
            of a network that comes with files, its factory or its ONNX file.
        size: Height and width of its input, where nothing else says so.
        pictures: ``imagenette`` or ``cifar``, or where they lie.
        network: A network that comes with files.
    """

    name: str
    where: str
    size: tuple[int, int] = (224, 224)
    pictures: str | Path = "imagenette"
    network: Network | None = None

    @classmethod
    def of(cls, network: Network) -> Entry:
        """The entry of a network that comes with files.

        Only its calibration pictures are taken.
        """
        pictures: str | Path = "cifar" if network.pictures == "cifar" else "imagenette"
        if not isinstance(network.pictures, str):
            pictures = network.path(network.pictures[0])
        return cls(network.name, network.model, pictures=pictures, network=network)

    @property
    def trained(self) -> bool:
        """Whether its weights are trained."""
        return self.network is not None and (self.network.onnx or self.network.weights is not None)

    @property
    def onnx(self) -> Path | None:
        """The ONNX file that it is, or ``None`` for a torch module."""
        network = self.network
        return network.path(network.model) if network is not None and network.onnx else None

    def how(self) -> Preprocessing:
        """How pictures reach it."""
        if self.network is not None:
            return self.network.how()
        return Preprocessing(resize=self.size, scale=255.0, **IMAGENET)

    def sides(self) -> tuple[int, int]:
        """Height and width of what reaches it."""
        spec = next(self.tensors(self.share(0, 1))).shape
        return spec[-2], spec[-1]

    def module(self, seed: int = 0) -> nn.Module:
        """The network in evaluation mode; a random one with BatchNorm statistics set.

        Raises:
            SystemExit: Where the package that it comes from is not installed.
        """
        torch.manual_seed(seed)
        if self.network is not None:
            module = Backbone.open(*self.network.files()).module
        else:
            kind, _, what = self.where.partition(":")
            module = _MAKERS[kind](what)
        if not self.trained:
            set_biases(module)
            set_statistics(module, self.tensors(self.share(0, 32)))
        return module.eval()

    def share(self, start: int, count: int) -> Images:
        """So many of its pictures, in an order of their own; parts that do not overlap differ."""
        if self.pictures == "cifar":
            return Images.from_arrays(cifar("train", start + count)[0][start:])
        path = self.pictures
        images = Images.open(
            path if isinstance(path, Path) else data_root() / "imagenette224_train"
        )
        if len(images) < start + count:
            sys.exit(f"{self.name} needs {start + count} pictures; {path} has {len(images)}.")
        order = np.random.default_rng(0).permutation(len(images))
        return images.take(order[start : start + count])

    def tensors(self, images: Images) -> Iterator[torch.Tensor]:
        """Batches ``(N, 3, H, W)`` as the network takes them."""
        specs = images.specs(["x"])
        for batch in images.batches(specs, self.how(), _STATISTICS_BATCH):
            yield torch.from_numpy(batch.inputs["x"])


def set_biases(module: nn.Module) -> None:
    """Draw the biases of layers that have nothing but zeros there, as torch's own layers do."""
    for layer in module.modules():
        bias = getattr(layer, "bias", None)
        weighted = isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))
        if weighted and bias is not None and not bias.any():
            most = layer.weight[0].numel() ** -0.5
            nn.init.uniform_(bias, -most, most)


def set_statistics(module: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Give every BatchNorm of ``module`` the mean and variance that it sees over ``batches``."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    module.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over the batches
    with torch.no_grad():
        for batch in batches:
            module(batch)
    module.eval()


def _pytorchcv(name: str) -> nn.Module:
    family, _, function = name.partition(".")
    return getattr(_package(f"pytorchcv.models.{family}"), function)()


def _timm(name: str) -> nn.Module:
    _torchvision_package()
    return _package("timm").create_model(name)


def _torchvision(name: str) -> nn.Module:
    models: Any = _torchvision_package().models
    return getattr(models, name)(init_weights=True, aux_logits=False)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        sys.exit(f"{error}: this network needs `pip install {name.partition('.')[0]}`.")


_LIBRARY: list[Any] = []


def _torchvision_package() -> Any:
    """torchvision beside a torch for the CPU alone, which lacks the operators of its CUDA build.

    They are declared, without code: networks that classify call none of them.
    """
    declared: set[str] = set()
    while True:
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None or missing[1] in declared:
                raise
            declared.add(missing[1])
            if not _LIBRARY:
                _LIBRARY.append(torch.library.Library("torchvision", "DEF"))
            _LIBRARY[0].define(f"{missing[1]}(Tensor x) -> Tensor")
            for name in [name for name in sys.modules if name.startswith("torchvision")]:
                del sys.modules[name]


def _here(name: str) -> nn.Module:
    return {"lenet5": lenet5, "overfeat": overfeat}[name]()


def lenet5() -> nn.Module:
    """LeNet-5 for 32x32 pictures, with ReLU and maxima (after LeCun et al. 1998, figure 2)."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 120, 5), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def overfeat() -> nn.Module:
    """OverFeat's fast model for 231x231 pictures (Sermanet et al. 2014, table 1)."""
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 11, 4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(96, 256, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(256, 512, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(512, 1024, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(1024, 1024, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1024 * 6 * 6, 3072), nn.ReLU()),
        *(nn.Linear(3072, 4096), nn.ReLU(), nn.Linear(4096, 1000)),
    )


def entries(file: Path | None) -> dict[str, Entry]:
    """The networks of the matrix, or of a file of somebody's own."""
    if file is None:
        return ENTRIES
    return {name: Entry.of(network) for name, network in brought(file).items()}


_MAKERS: dict[str, Callable[[str], nn.Module]] = {
    "pytorchcv": _pytorchcv,
    "timm": _timm,
    "torchvision": _torchvision,
    "here": _here,
}


def _cv(name: str, family: str = "", side: int = 224) -> Entry:
    return Entry(name, f"pytorchcv:{family or name}.{name}", (side, side))


ENTRIES = {
    entry.name: entry
    for entry in (
        *map(Entry.of, (*NETWORKS.values(), *FOREIGN.values())),
        Entry("lenet5", "here:lenet5", (32, 32), "cifar"),
        _cv("alexnet"),
        _cv("zfnet"),
        Entry("overfeat", "here:overfeat", (231, 231)),
        _cv("vgg19", "vgg"),
        Entry("googlenet", "torchvision:googlenet"),
        _cv("bninception"),
        _cv("inceptionv3", side=299),
        _cv("inceptionv4", side=299),
        _cv("inceptionresnetv1", side=299),
        _cv("inceptionresnetv2", side=299),
        _cv("resnet50", "resnet"),
        _cv("resnet152", "resnet"),
        _cv("resnext50_32x4d", "resnext"),
        _cv("xception", side=299),
        _cv("densenet121", "densenet"),
        _cv("densenet201", "densenet"),
        _cv("seresnet50", "seresnet"),
        _cv("senet154", "senet"),
        _cv("squeezenet_v1_1", "squeezenet"),
        _cv("mobilenet_w1", "mobilenet"),
        _cv("mobilenetv2_w1", "mobilenetv2"),
        _cv("mobilenetv3_large_w1", "mobilenetv3"),
        _cv("shufflenet_g3_w1", "shufflenet"),
        _cv("shufflenetv2_w1", "shufflenetv2"),
        _cv("efficientnet_b0", "efficientnet"),
        _cv("mnasnet_b1", "mnasnet"),
        _cv("nasnet_4a1056", "nasnet"),
        Entry("vit_tiny_patch16_224", "timm:vit_tiny_patch16_224"),
        Entry("convnext_atto", "timm:convnext_atto"),
        Entry("mobilenetv4_conv_small", "timm:mobilenetv4_conv_small"),
    )
}
