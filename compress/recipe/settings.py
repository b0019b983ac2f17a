"""The settings of each pass, as frozen data, and what they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from ...runtime.errors import InputError


@dataclass(frozen=True)
class Int8:
    """Settings of post-training INT8 quantization.

    Attributes:
        ranges: How activations are clipped: ``mse``, ``minmax``, ``percentile`` or ``entropy``.
        weights: How weights are scaled: ``mse`` or ``minmax``.
        equalization: Whether to try cross-layer equalisation where there are depthwise layers; it
            is kept where it measures better.
        rounding: Whether to try weights rounded so that errors cancel out, in networks small enough
            for it; kept where it measures better.
        bias_correction: Whether to try bias correction; it is kept where it measures better.
        keep_float: Names of nodes to keep in float32.
        mixed: Whether to measure every node, and to leave in float32 what does not pay in INT8 on
            this machine or costs more of the score than is allowed.
        blame: Whether to measure every node's noise, and what those with most of it cost the score,
            even where nothing goes wrong.
        int8_nodes: Names of the nodes to run in INT8, those and no others, as a plan decided them
            before; empty for all that can. What they leave out is not measured again.
    """

    ranges: str = "mse"
    weights: str = "mse"
    equalization: bool = True
    rounding: bool = True
    bias_correction: bool = True
    keep_float: tuple[str, ...] = ()
    mixed: bool = True
    blame: bool = False
    int8_nodes: tuple[str, ...] = ()

    kind: ClassVar[str] = "int8"
    successors: ClassVar[frozenset[str]] = frozenset({"qat"})


@dataclass(frozen=True)
class Fp16:
    """Settings of post-training FP16, for targets that compute in it.

    Attributes:
        bound_db: Signal over noise that every output keeps; nodes go back to float32 until it does.
        keep_float: Names of nodes to keep in float32.
    """

    bound_db: float = 40.0
    keep_float: tuple[str, ...] = ()

    kind: ClassVar[str] = "fp16"
    successors: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True)
class Prune:
    """Settings of structured pruning. A limit of 0 is none; at least one must be given.

    Attributes:
        max_latency_ratio: Latency on the target, as a share of the whole network's in the same
            precision.
        max_macs_ratio: Multiply-adds, as a share of the whole network's.
        max_size_mb: Size of the weights, in 10**6 bytes.
        keep: Names of modules that stay whole.
        blocks: Whether whole residual blocks may leave.
        importance: How channels are scored: ``fisher``, ``taylor``, ``magnitude``, ``activation``.
        measured_in: What latencies are measured and sizes counted in: ``float32``, ``int8``, or
            ``auto``: INT8 where a later pass of the recipe makes it that. ``int8`` is for a network
            that is trained now and quantized another time.
        time_limit_s: For following the network's channels.
    """

    max_latency_ratio: float = 0.0
    max_macs_ratio: float = 0.0
    max_size_mb: float = 0.0
    keep: tuple[str, ...] = ()
    blocks: bool = True
    importance: str = "fisher"
    measured_in: str = "auto"
    time_limit_s: float = 180.0

    kind: ClassVar[str] = "prune"
    successors: ClassVar[frozenset[str]] = frozenset({"distil", "int8"})


@dataclass(frozen=True)
class Distil:
    """Settings of training a student back to its teacher's outputs.

    Attributes:
        epochs: Times that every training picture is seen; fewer where the time allowed is short.
        batch: Pictures a step, over all processes.
        optimizer: ``sgd`` (Nesterov momentum 0.9), ``adamw``, ``muon`` (see
            :class:`~edgepress.compress.training.spherical_muon.Muon`), or ``auto``: ``sgd`` for a
            student that gives much of what its teacher gives already, as a cut network does, else
            ``muon``.
        lr: The largest learning rate, of ``muon`` an angle in radians. 0 chooses: for a student
            that knows something already 0.01 (``adamw``: 0.0002, ``muon``: 0.003), else 0.05
            (0.001, 0.03).
        warmup: Share of the training in which it rises; then it falls along a half cosine to 0.
        weight_decay: Of weights of two dimensions and more.
        average: Decay of the weights' moving average, which is what ships; 0 for none.
        match: How outputs are compared: ``logits`` (softened classes), ``embeddings`` (cosine),
            ``outputs`` (squared differences), or ``auto``, which follows the task.
        temperature: Of softened classes.
        outputs_weight: Of the loss on outputs.
        labels_weight: Of the cross-entropy with labels, where there are labels and class scores.
        labels_smoothing: Share of a label that is spread over all classes.
        features_weight: Of the loss on features at ``taps``.
        taps: Names of modules whose outputs are compared; ``student=teacher`` where names differ.
        flip: Whether half of the pictures are mirrored.
        crop: Share of the side by which pictures are shifted, at most; black comes in.
        zoom: Share of the area that is cut away by zooming in, at most.
        colour: How far brightness, contrast and saturation change, at most (0.2: by 20 %).
        mix: Share of the pictures that are blended with another.
        precision: ``auto`` measures, ``float32`` and ``bfloat16`` (autocast) are obeyed.
        layout: ``auto`` measures, ``contiguous`` and ``channels_last`` are obeyed.
        compiled: Whether torch's compiler is tried, and kept if quicker: ``yes``, ``no``, ``auto``
            in trainings of ten minutes and more. Neither with taps nor in several processes.
        max_minutes: Of training, at most; the schedule is fitted to it. 0 for no limit.
    """

    epochs: int = 20
    batch: int = 128
    optimizer: str = "auto"
    lr: float = 0.0
    warmup: float = 0.1
    weight_decay: float = 5e-4
    average: float = 0.998
    match: str = "auto"
    temperature: float = 4.0
    outputs_weight: float = 1.0
    labels_weight: float = 0.1
    labels_smoothing: float = 0.0
    features_weight: float = 1.0
    taps: tuple[str, ...] = ()
    flip: bool = True
    crop: float = 0.125
    zoom: float = 0.0
    colour: float = 0.0
    mix: float = 0.0
    precision: str = "auto"
    layout: str = "auto"
    compiled: str = "auto"
    max_minutes: float = 0.0

    kind: ClassVar[str] = "distil"
    successors: ClassVar[frozenset[str]] = frozenset({"int8"})

    def __post_init__(self) -> None:
        for key, (low, high) in _BOUNDS.items():
            value = getattr(self, key, low)
            if not (math.isfinite(value) and low <= value <= high):
                raise InputError(
                    "E_RECIPE",
                    f"the pass '{self.kind}' has {key} = {value}.",
                    mend=f"Give a number from {low:g} to {high:g}.",
                )


@dataclass(frozen=True)
class Qat(Distil):
    """Settings of quantization-aware training: those of distil, the original being the teacher.

    Attributes:
        tolerated: Points of the score that the pass before, post-training INT8, may lose on the
            selection pictures (or ``max_drop``, if less); only where it loses more is it trained.
    """

    epochs: int = 5
    optimizer: str = "adamw"
    lr: float = 1e-4
    weight_decay: float = 0.0
    precision: str = "float32"  # bfloat16 has no more digits than the codes
    compiled: str = "no"  # what rounds was never compiled
    tolerated: float = 0.1

    kind: ClassVar[str] = "qat"
    successors: ClassVar[frozenset[str]] = frozenset()


_BOUNDS: dict[str, tuple[float, float]] = {
    "epochs": (1, 1e6),
    "batch": (2, 1e6),
    "lr": (0, 1e3),
    "warmup": (0, 0.9),
    "weight_decay": (0, 1),
    "average": (0, 0.99999),
    "temperature": (0.1, 100),
    "outputs_weight": (0, 1e6),
    "labels_weight": (0, 1e6),
    "labels_smoothing": (0, 0.9),
    "features_weight": (0, 1e6),
    "crop": (0, 0.5),
    "zoom": (0, 0.95),
    "colour": (0, 0.9),
    "mix": (0, 1),
    "max_minutes": (0, 1e6),
    "tolerated": (0, 1e6),  # of qat alone
}
PassSettings: TypeAlias = "Prune | Distil | Int8 | Fp16"
KINDS: dict[str, type[PassSettings]] = {one.kind: one for one in (Prune, Distil, Qat, Int8, Fp16)}
"""By the name that recipes call them by."""

CHOICES = {
    "ranges": ("mse", "minmax", "percentile", "entropy"),
    "weights": ("mse", "minmax"),
    "importance": ("fisher", "taylor", "magnitude", "activation"),
    "optimizer": ("auto", "sgd", "adamw", "muon"),
    "match": ("auto", "logits", "embeddings", "outputs"),
    "precision": ("auto", "float32", "bfloat16"),
    "measured_in": ("auto", "float32", "int8"),
    "layout": ("auto", "contiguous", "channels_last"),
    "compiled": ("auto", "yes", "no"),
}
"""What settings that are words may be."""
