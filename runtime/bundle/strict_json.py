"""The strict JSON of manifests: what can be read in two ways is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import NoReturn, cast

from ..errors import BundleError

_MAX_BYTES = 64 * 1024**2
_MAX_DEPTH = 32
_MAX_DIGITS = 18


def parse_json(data: bytes) -> dict[str, object]:
    """Parse one object of strict JSON.

    Refused beside broken JSON: other encodings than UTF-8, a key given twice, NaN and infinity,
    integers of more than 18 digits, numbers beyond a double, nesting over 32, more than 64 MiB.

    Raises:
        BundleError: ``E_MANIFEST``.
    """
    if len(data) > _MAX_BYTES:
        raise manifest_error(f"it has {len(data)} bytes, {_MAX_BYTES} are allowed")
    try:
        text = data.decode("utf-8")
        parsed: object = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_float,
        )
        json.dumps(parsed, ensure_ascii=False).encode("utf-8")  # lone surrogates have no UTF-8
    except (ValueError, RecursionError) as error:
        raise manifest_error(f"it is not strict JSON: {error}") from error
    deepest = _depth(parsed)
    if deepest > _MAX_DEPTH:
        raise manifest_error(f"it is nested {deepest} deep, {_MAX_DEPTH} are allowed")
    return mapping(parsed, "manifest.json")


def _depth(parsed: object) -> int:
    """Objects and lists within each other, at most."""
    deepest, within = 0, [iter([parsed])]
    while within:
        for value in within[-1]:
            if isinstance(value, (dict, list)):
                held = cast("dict[str, object] | list[object]", value)
                deepest = max(deepest, len(within))
                within.append(iter(held.values() if isinstance(held, dict) else held))
                break
        else:
            within.pop()
    return deepest


def _object(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    made: dict[str, object] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {key!r} is there twice")
        made[key] = value
    return made


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer has {len(text)} digits, {_MAX_DIGITS} are allowed")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond a double")
    return value


def mapping(value: object, where: str) -> dict[str, object]:
    """``value``, if it is a JSON object."""
    if not isinstance(value, dict):
        raise manifest_error(f"{where} is {str(value)[:60]!r}, expected an object")
    return cast("dict[str, object]", value)


class JsonObject:
    """One JSON object, its values asked for by name and type."""

    def __init__(self, values: dict[str, object], where: str) -> None:
        self.values = values
        self.where = where

    def fail(self, key: str, expected: str) -> NoReturn:
        """Refuse the value of ``key``."""
        got = repr(self.values[key])[:80] if key in self.values else "missing"
        raise manifest_error(f"{self.where}: {key} is {got}, expected {expected}")

    def text(self, key: str) -> str:
        """A text, not empty."""
        value = self.values.get(key)
        if not isinstance(value, str) or not value:
            self.fail(key, "a text")
        return value

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.values.get(key)
        if not isinstance(value, bool):
            self.fail(key, "true or false")
        return value

    def number(self, key: str) -> float:
        """A number."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail(key, "a number")
        return float(value)

    def size(self, key: str) -> int:
        """A whole number, not negative."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self.fail(key, "a whole number, not negative")
        return value

    def items(self, key: str) -> list[object]:
        """A list."""
        value = self.values.get(key)
        if not isinstance(value, list):
            self.fail(key, "a list")
        return cast("list[object]", value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty where the key is missing."""
        values = self.items(key) if key in self.values else []
        if not all(isinstance(value, str) for value in values):
            self.fail(key, "a list of texts")
        return tuple(cast("list[str]", values))

    def parts(self, key: str) -> list[JsonObject]:
        """A list of objects."""
        return [
            JsonObject(mapping(value, f"{key}[{index}]"), f"{self.where}: {key}[{index}]")
            for index, value in enumerate(self.items(key))
        ]

    def part(self, key: str) -> JsonObject:
        """An object."""
        if not isinstance(self.values.get(key), dict):
            self.fail(key, "an object")
        return JsonObject(mapping(self.values[key], key), f"{self.where}: {key}")

    def optional_mapping(self, key: str) -> dict[str, object] | None:
        """An object's values, or ``None`` where it is null or missing."""
        return None if self.values.get(key) is None else self.part(key).values


def manifest_error(message: str) -> BundleError:
    """An ``E_MANIFEST``."""
    return BundleError(
        "E_MANIFEST", f"{message}.", mend="Make the bundle again.", path="manifest.json"
    )
