"""Recipes: an ordered tuple of pass settings, as frozen data; every bundle carries its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from ...runtime.bundle.bundle import Bundle
from ...runtime.errors import InputError
from ...runtime.toml import parse_toml
from .settings import CHOICES, KINDS, Distil, Fp16, Int8, PassSettings, Prune, Qat


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
        """The same recipe with another length of each training; ``None`` leaves it.

        What is given goes to ``distil`` and to ``qat``, each: a recipe with both takes twice that.

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

    def check_makes_weights(self) -> None:
        """See that it has a pass after which a network has weights of its own.

        Raises:
            InputError: ``E_USAGE`` where it has none.
        """
        if not any(isinstance(one, (Prune, Distil)) for one in self.passes):
            raise InputError(
                "E_USAGE",
                f"the recipe '{self.name}' neither prunes nor trains: there are no new weights.",
                mend="Leave out --weights-out (weights_out in Python), or take a recipe with "
                "prune, distil or qat.",
            )

    def blamed(self) -> Recipe:
        """The same recipe, its pass ``int8`` measuring what each node costs the score.

        Raises:
            InputError: ``E_USAGE`` where it has no such pass.
        """
        if not any(isinstance(one, Int8) for one in self.passes):
            raise InputError(
                "E_USAGE",
                f"the recipe '{self.name}' has no INT8 to blame a loss on.",
                mend="Leave out --blame, or take the recipe int8.",
            )
        passes = (replace(one, blame=True) if isinstance(one, Int8) else one for one in self.passes)
        return Recipe(self.name, tuple(passes))

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
        elif key in CHOICES and value not in CHOICES[key]:
            raise _bad(
                where, f"'{key}' is {value!r}", "It may be: " + ", ".join(CHOICES[key]) + "."
            )
        checked[key] = value
    return made(**checked)  # pyright: ignore[reportArgumentType]


def _bad(where: str, what: str, mend: str) -> InputError:
    return InputError("E_RECIPE", f"the recipe {where}: {what}.", mend=mend, path=where)
