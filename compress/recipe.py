"""Recipes: an ordered tuple of pass settings, as frozen data; every bundle carries its own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, cast

from ..runtime.bundle import Bundle
from ..runtime.errors import InputError
from ..runtime.toml import parse_toml


@dataclass(frozen=True)
class Int8:
    """Settings of post-training INT8 quantization.

    Attributes:
        ranges: How activations are clipped: ``mse``, ``minmax``, ``percentile`` or ``entropy``.
        weights: How weights are scaled: ``mse`` or ``minmax``.
        equalization: Whether to try cross-layer equalisation where there are depthwise layers; it
            is kept where it measures better.
        bias_correction: Whether to try bias correction; it is kept where it measures better.
        keep_float: Names of nodes to keep in float32.
        mixed: Whether to measure every node, and to leave in float32 what does not pay in INT8 on
            this machine or costs more of the score than is allowed.
        int8_nodes: Names of the nodes to run in INT8, those and no others, as a plan decided them
            before; empty for all that can. What they leave out is not measured again.
    """

    ranges: str = "mse"
    weights: str = "mse"
    equalization: bool = True
    bias_correction: bool = True
    keep_float: tuple[str, ...] = ()
    mixed: bool = True
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
        max_latency_ratio: Latency on the target, as a share of the whole network's in the precision
            that ships.
        max_macs_ratio: Multiply-adds, as a share of the whole network's.
        max_size_mb: Size of the weights in the precision that ships, in 10**6 bytes.
        keep: Names of modules that stay whole.
        blocks: Whether whole residual blocks may leave.
        importance: How channels are scored: ``fisher``, ``magnitude`` or ``activation``.
        time_limit_s: For following the network's channels.
    """

    max_latency_ratio: float = 0.0
    max_macs_ratio: float = 0.0
    max_size_mb: float = 0.0
    keep: tuple[str, ...] = ()
    blocks: bool = True
    importance: str = "fisher"
    time_limit_s: float = 180.0

    kind: ClassVar[str] = "prune"
    successors: ClassVar[frozenset[str]] = frozenset({"distil", "int8"})


@dataclass(frozen=True)
class Distil:
    """Settings of training a student back to its teacher's outputs.

    Attributes:
        epochs: Times that every training picture is seen; fewer where the time allowed is short.
        batch: Pictures a step, over all processes.
        optimizer: ``sgd`` (Nesterov momentum 0.9) or ``adamw``.
        lr: The largest learning rate.
        warmup: Share of the training in which it rises; then it falls along a half cosine to 0.
        weight_decay: Of weights of two dimensions and more.
        average: Decay of the weights' moving average, which is what ships; 0 for none.
        match: How outputs are compared: ``logits`` (softened classes), ``embeddings`` (cosine),
            ``outputs`` (squared differences), or ``auto``, which follows the task.
        temperature: Of softened classes.
        outputs_weight: Of the loss on outputs.
        labels_weight: Of the cross-entropy with labels, where there are labels and class scores.
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
    optimizer: str = "sgd"
    lr: float = 0.05
    warmup: float = 0.1
    weight_decay: float = 5e-4
    average: float = 0.998
    match: str = "auto"
    temperature: float = 4.0
    outputs_weight: float = 1.0
    labels_weight: float = 0.1
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
    tolerated: float = 0.1

    kind: ClassVar[str] = "qat"
    successors: ClassVar[frozenset[str]] = frozenset()


_BOUNDS: dict[str, tuple[float, float]] = {
    "epochs": (1, 1e6),
    "batch": (2, 1e6),
    "lr": (1e-9, 1e3),
    "warmup": (0, 0.9),
    "weight_decay": (0, 1),
    "average": (0, 0.99999),
    "temperature": (0.1, 100),
    "outputs_weight": (0, 1e6),
    "labels_weight": (0, 1e6),
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
_CHOICES = {
    "ranges": ("mse", "minmax", "percentile", "entropy"),
    "weights": ("mse", "minmax"),
    "importance": ("fisher", "magnitude", "activation"),
    "optimizer": ("sgd", "adamw"),
    "match": ("auto", "logits", "embeddings", "outputs"),
    "precision": ("auto", "float32", "bfloat16"),
    "layout": ("auto", "contiguous", "channels_last"),
    "compiled": ("auto", "yes", "no"),
}


@dataclass(frozen=True)
class Recipe:
    """What shall be done, in order.

    Attributes:
        name: What reports call it.
        passes: Settings of each pass; none leaves the network in float32.
    """

    name: str
    passes: tuple[PassSettings, ...] = ()

    def __post_init__(self) -> None:
        for before, after in zip(self.passes, self.passes[1:], strict=False):
            if after.kind not in before.successors:
                raise InputError(
                    "E_RECIPE",
                    f"the recipe '{self.name}' has '{after.kind}' after '{before.kind}', "
                    "which cannot be.",
                    mend=f"After '{before.kind}' may come: "
                    f"{', '.join(sorted(before.successors)) or 'nothing'}.",
                )
        if self.passes and self.passes[0].kind == Qat.kind:
            raise InputError(
                "E_RECIPE",
                f"the recipe '{self.name}' begins with 'qat', which trains what 'int8' has lost.",
                mend="Write the pass 'int8' before it.",
            )

    def trained_for(self, epochs: int | None, max_minutes: float | None) -> Recipe:
        """The same recipe with another length of its training; ``None`` leaves it.

        Raises:
            InputError: ``E_USAGE`` where it has no training; ``E_RECIPE`` for values that cannot
                be.
        """
        given = {"epochs": epochs, "max_minutes": max_minutes}
        values: dict[str, Any] = {key: one for key, one in given.items() if one is not None}
        if not values:
            return self
        if not any(isinstance(one, Distil) for one in self.passes):
            raise InputError(
                "E_USAGE",
                f"the recipe '{self.name}' trains nothing.",
                mend="Leave out the length of the training, or take the recipe distil.",
            )
        return Recipe(
            self.name,
            tuple(
                replace(one, **values) if isinstance(one, Distil) else one for one in self.passes
            ),
        )

    def to_dict(self) -> dict[str, object]:
        """JSON form; :meth:`from_dict` reads it."""
        passes: list[dict[str, object]] = []
        for one in self.passes:
            plain: dict[str, object] = json.loads(json.dumps(asdict(one)))  # tuples become lists
            passes.append({"kind": one.kind, **plain})
        return {"name": self.name, "pass": passes}

    @staticmethod
    def from_dict(values: Mapping[str, object], where: str) -> Recipe:
        """A recipe from its JSON form.

        Raises:
            InputError: ``E_RECIPE`` for unknown keys or passes, wrong types, a wrong order.
        """
        unknown = set(values) - {"name", "pass"}
        if unknown:
            raise _bad(
                where, f"unknown keys {sorted(unknown)}", "A recipe has 'name' and a list 'pass'."
            )
        name = values.get("name", "custom")
        given = values.get("pass", [])
        if not isinstance(name, str) or not isinstance(given, Sequence) or isinstance(given, str):
            raise _bad(
                where, "'name' must be text and 'pass' a list", "Write [[pass]] before each pass."
            )
        return Recipe(
            name, tuple(_settings(item, where) for item in cast("Sequence[object]", given))
        )

    @staticmethod
    def open(name_or_path: str) -> Recipe:
        """A built-in recipe by its name (:data:`BUILT_IN`), or one from a TOML or JSON file.

        The folder of a bundle gives the recipe that made it, with the precision plan that was
        decided then: nothing is measured again.

        Raises:
            InputError: ``E_RECIPE`` for anything else, or a file that is no recipe.
        """
        if name_or_path in BUILT_IN:
            return BUILT_IN[name_or_path]
        path = Path(name_or_path)
        if path.is_dir():
            return _of_bundle(name_or_path)
        if not path.is_file():
            raise InputError(
                "E_RECIPE",
                f"'{name_or_path}' is neither a built-in recipe nor a file.",
                mend="Built in: "
                + ", ".join(BUILT_IN)
                + "; or give a .toml or .json file, or a bundle.",
                path=name_or_path,
            )
        try:
            text = path.read_text(encoding="utf-8")
            is_json = path.suffix.lower() == ".json"
            values: object = json.loads(text) if is_json else parse_toml(text)
        except (ValueError, OSError, RecursionError) as error:
            raise _bad(
                name_or_path, f"it cannot be read: {error}", "Write it as TOML or JSON."
            ) from error
        if not isinstance(values, Mapping):
            raise _bad(name_or_path, "it holds no table", "A recipe has 'name' and a list 'pass'.")
        return Recipe.from_dict(cast("Mapping[str, object]", values), name_or_path)


BUILT_IN = {
    "int8": Recipe("int8", (Int8(),)),
    "fp16": Recipe("fp16", (Fp16(),)),
    "float32": Recipe("float32"),
    "prune": Recipe("prune", (Prune(),)),
    "prune-int8": Recipe("prune-int8", (Prune(), Int8())),
    "distil": Recipe("distil", (Distil(),)),
    "distil-int8": Recipe("distil-int8", (Distil(), Int8())),
    "prune-distil": Recipe("prune-distil", (Prune(), Distil())),
    "prune-distil-int8": Recipe("prune-distil-int8", (Prune(), Distil(), Int8())),
    "int8-qat": Recipe("int8-qat", (Int8(), Qat())),
    "distil-int8-qat": Recipe("distil-int8-qat", (Distil(), Int8(), Qat())),
    "prune-distil-int8-qat": Recipe("prune-distil-int8-qat", (Prune(), Distil(), Int8(), Qat())),
}


def _of_bundle(path: str) -> Recipe:
    """The recipe that a bundle carries, each pass with the plan that came out of it.

    A bundle for several targets has as many plans: then each is measured again.
    """
    bundle = Bundle.open(path)
    carried = bundle.recipe
    several = any(one.made is not None and "recipe" in one.made for one in bundle.variants)
    reports = cast("Sequence[Mapping[str, object]]", carried.get("reports", ()))
    passes: list[object] = []
    given = cast("Sequence[Mapping[str, object]]", carried.get("pass", ()))
    for index, one in enumerate(given):
        known = index < len(reports) and not several
        decided = reports[index].get("int8_nodes") if known else None
        passes.append({**one, "int8_nodes": decided} if decided else one)
    return Recipe.from_dict({"name": carried.get("name", "custom"), "pass": passes}, path)


def _settings(item: object, where: str) -> PassSettings:
    if not isinstance(item, Mapping):
        raise _bad(where, "a pass is not a table", "Write [[pass]] before each pass.")
    values = dict(cast("Mapping[str, object]", item))
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise _bad(where, f"unknown pass {kind!r}", "Passes: " + ", ".join(KINDS) + ".")
    made = KINDS[kind]
    known = {field.name: field for field in fields(made)}
    unknown = set(values) - set(known)
    if unknown:
        raise _bad(
            where,
            f"the pass '{kind}' has no setting {sorted(unknown)}",
            "It has: " + ", ".join(known) + ".",
        )
    checked: dict[str, object] = {}
    for key, value in values.items():
        default = known[key].default
        if isinstance(default, tuple):
            items = cast("Sequence[object]", value) if isinstance(value, (list, tuple)) else None
            if items is None or not all(isinstance(one, str) for one in items):
                raise _bad(where, f"'{key}' must be a list of names", f"It is {value!r}.")
            value = tuple(items)
        elif isinstance(default, float) and type(value) is int:
            value = float(value)
        elif type(value) is not type(default):
            raise _bad(where, f"'{key}' must be a {type(default).__name__}", f"It is {value!r}.")
        elif key in _CHOICES and value not in _CHOICES[key]:
            raise _bad(
                where, f"'{key}' is {value!r}", "It may be: " + ", ".join(_CHOICES[key]) + "."
            )
        checked[key] = value
    return made(**checked)  # pyright: ignore[reportArgumentType]


def _bad(where: str, what: str, mend: str) -> InputError:
    return InputError("E_RECIPE", f"the recipe {where}: {what}.", mend=mend, path=where)
