"""Which networks can be pruned: to 70 % of their multiply-adds, rebuilt, to equal outputs.

    python benchmarks/proofs/pruning_matrix.py [NAME ...] [--export] [--out FILE]

Networks come from pytorchcv and timm (`pip install pytorchcv timm`), with random weights: what is
asked is which channels depend on which, not what they are worth. A row holds how long following the
channels took, groups, blocks, what was refused, the multiply-adds left, and whether a network
rebuilt from history and tensors gives the same outputs.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgepress.compress.candidates import cut_by
from edgepress.compress.costs import Frame, macs_cost
from edgepress.compress.damage import Damage, widths_of
from edgepress.compress.history import History, apply_step
from edgepress.compress.importance import magnitude
from edgepress.compress.selection import Bound, choose
from edgepress.compress.structure import structure_of
from edgepress.export.capture import capture, input_names, run_module
from edgepress.runtime import EdgepressError

CV = "pytorchcv.models."
NETWORKS = {
    "AlexNet": (CV + "alexnet", "alexnet", 224),
    "ZFNet": (CV + "zfnet", "zfnet", 224),
    "VGG-16": (CV + "vgg", "vgg16", 224),
    "BN-Inception": (CV + "bninception", "bninception", 224),
    "Inception v3": (CV + "inceptionv3", "inceptionv3", 299),
    "Inception v4": (CV + "inceptionv4", "inceptionv4", 299),
    "Inception-ResNet v2": (CV + "inceptionresnetv2", "inceptionresnetv2", 299),
    "ResNet-18": (CV + "resnet", "resnet18", 224),
    "ResNet-50": (CV + "resnet", "resnet50", 224),
    "ResNeXt-50": (CV + "resnext", "resnext50_32x4d", 224),
    "Xception": (CV + "xception", "xception", 299),
    "DenseNet-121": (CV + "densenet", "densenet121", 224),
    "SE-ResNet-50": (CV + "seresnet", "seresnet50", 224),
    "SqueezeNet": (CV + "squeezenet", "squeezenet_v1_1", 224),
    "MobileNet": (CV + "mobilenet", "mobilenet_w1", 224),
    "MobileNetV2": (CV + "mobilenetv2", "mobilenetv2_w1", 224),
    "MobileNetV3": (CV + "mobilenetv3", "mobilenetv3_large_w1", 224),
    "ShuffleNet": (CV + "shufflenet", "shufflenet_g1_w1", 224),
    "ShuffleNetV2": (CV + "shufflenetv2", "shufflenetv2_w1", 224),
    "EfficientNet-B0": (CV + "efficientnet", "efficientnet_b0", 224),
    "MnasNet": (CV + "mnasnet", "mnasnet_b1", 224),
    "ProxylessNAS": (CV + "proxylessnas", "proxylessnas_cpu", 224),
    "NASNet-A": (CV + "nasnet", "nasnet_4a1056", 224),
    "ViT-Tiny": ("timm", "vit_tiny_patch16_224", 224),
    "Swin-Tiny": ("timm", "swin_tiny_patch4_window7_224", 224),
    "ConvNeXt-Atto": ("timm", "convnext_atto", 224),
}
SHARE = 0.7


def main() -> None:
    """Print the table, and write it where ``--out`` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--export", action="store_true", help="Export to ONNX as well.")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = [
        f"# Networks pruned to {SHARE:.0%} of their multiply-adds, random weights",
        "",
        "Made by `python benchmarks/proofs/pruning_matrix.py`.",
        "",
        "| network | groups | blocks | stays whole | multiply-adds left | rebuilt | exported | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for name in given.names or NETWORKS:
        line = row(name, export=given.export)
        lines.append(line)
        print(line, flush=True)
    if given.out is not None:
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def made(name: str) -> nn.Module:
    """A network with random weights, the same at every call."""
    where, what, _ = NETWORKS[name]
    torch.manual_seed(0)
    package: Any = importlib.import_module(where)
    return (package.create_model(what) if where == "timm" else getattr(package, what)()).eval()


def row(name: str, *, export: bool) -> str:
    """A line of the table."""
    start = time.monotonic()
    side = NETWORKS[name][2]
    module = made(name)
    draw = np.random.default_rng(0)
    feeds = {input_names(module)[0]: draw.standard_normal((2, 3, side, side), dtype=np.float32)}
    try:
        structure = structure_of(module, feeds)
        frame = Frame(structure)
        scores = magnitude(module, structure.groups, [], "features", 0)
        widths = [widths_of(group, 8) for group in structure.groups]
        costs = tuple(
            tuple(float(sum(score[a] for a in group.weakest(list(score), w))) for w in each)
            for group, score, each in zip(structure.groups, scores, widths, strict=True)
        )
        damage = Damage(costs, (1e9,) * len(structure.blocks), 0, 0)
        bound = Bound("multiply-adds", macs_cost, SHARE * frame.total(macs_cost, frame.whole))
        choice = choose(frame, widths, damage, [bound], blocks=False)
        history = History().then(cut_by(structure, scores, choice))
        student = copy.deepcopy(module)
        apply_step(student, history.steps[0])
        rebuilt = History.from_json(history.to_json()).rebuild(
            lambda: made(name), student.state_dict()
        )
        one, two = (run_module(net.eval(), feeds) for net in (student, rebuilt))
        equal = all(np.array_equal(one[key], two[key]) for key in one)
        exported = "-"
        if export:
            graph = capture(student, feeds)
            assert graph.parity is not None
            exported = f"cosine {min(graph.parity.cosine.values()):.6f}"
    except EdgepressError as error:
        spent = time.monotonic() - start
        return f"| {name} | - | - | {error.message} | - | - | - | {spent:.0f} |"
    left = frame.total(macs_cost, choice) / frame.total(macs_cost, frame.whole)
    counts = f"{len(structure.groups)} | {len(structure.blocks)} | {len(structure.refused)} layers"
    outcome = "equal" if equal else "NOT equal"
    spent = time.monotonic() - start
    return f"| {name} | {counts} | {left:.3f} | {outcome} | {exported} | {spent:.0f} |"


if __name__ == "__main__":
    sys.exit(main())
