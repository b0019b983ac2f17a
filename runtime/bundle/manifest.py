"""The manifest of a bundle: strict JSON to frozen data and back (see docs/bundle-format.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from ..errors import BundleError, InputError
from ..pictures.preprocessing import Preprocessing
from ..tensors import Dimension, TensorSpec
from .portable_paths import check_portable
from .strict_json import JsonObject, manifest_error, parse_json

FORMAT = "edgepress-bundle"
FORMAT_VERSION = "1.0"
MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"
MODEL = "model.onnx"
KNOWN_FEATURES: frozenset[str] = frozenset()
"""What a manifest's ``requires`` may name; the first version of the format has none."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"([0-9]{1,6})\.([0-9]{1,6})")


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle: its path inside, its size, and the SHA-256 of its bytes in hex."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Tolerance:
    """How far an output may be from the golden one: largest difference, and smallest cosine."""

    max_abs: float
    cosine: float


@dataclass(frozen=True)
class Expected:
    """What one variant gives for the golden inputs, where that is not what the default one gives.

    Attributes:
        outputs: Path of an ``.npz`` with one array for each output.
        tolerance: One for each output, by its name.
    """

    outputs: str
    tolerance: Mapping[str, Tolerance]


@dataclass(frozen=True)
class Variant:
    """One model of a bundle, as one engine wants to read it.

    Attributes:
        name: How it is asked for.
        file: Its path in the bundle.
        engine: The engine that it is for, e.g. ``onnxruntime``.
        dialect: How that engine wants to read it, e.g. ``onnxruntime-x86-vnni``.
        precision: The narrowest type that carries the work, e.g. ``int8``; ``int8-bfloat16`` where
            what is float beside is to be computed in bfloat16.
        receipt: What that engine did with it when it was made.
        golden: What it gives for the golden inputs; ``None`` for what the bundle's ``golden`` says.
        made: Where it was made apart from the default one: its ``recipe``, ``scores``,
            ``measurements``, ``notes`` and ``declined``, as a bundle of its own has them.
    """

    name: str
    file: str
    engine: str
    dialect: str
    precision: str
    receipt: Mapping[str, object] = field(default_factory=dict[str, object])
    golden: Expected | None = None
    made: Mapping[str, object] | None = None

    def to_dict(self) -> dict[str, object]:
        """JSON form; what is ``None`` is left out."""
        told = {key: value for key, value in vars(self).items() if value is not None}
        if self.golden is not None:
            told["golden"] = {
                "outputs": self.golden.outputs,
                "tolerance": _tolerances(self.golden.tolerance),
            }
        return told


@dataclass(frozen=True)
class Golden:
    """Inputs and the outputs that every variant must give for them.

    Attributes:
        inputs: Path of an ``.npz`` with one array for each input.
        outputs: Path of an ``.npz`` with one array for each output.
        synthetic: Whether the inputs are made up, rather than somebody's pictures.
        tolerance: One for each output, by its name.
    """

    inputs: str
    outputs: str
    synthetic: bool
    tolerance: Mapping[str, Tolerance]


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself; `docs/bundle-format.md` explains each field.

    Attributes:
        inputs: What the models take.
        outputs: What they give.
        task: What "as good as before" meant, e.g. ``classification``.
        variants: The models, the one to use by default first.
        golden: Inputs and outputs to prove a variant by.
        preprocessing: How pictures become the input, or ``None``.
        labels: Path of the class names, or ``None``.
        recipe: How it was made.
        scores: Scores of the original and of the result, or ``None``.
        measurements: Times and sizes where it was made, or ``None``.
        notes: Remarks for people, such as why a step was declined.
        declined: Whether the recipe was declined and the model is as it came.
        created_by: The program that wrote it.
        files: Every file beside the manifest and its digest; filled in by `seal`.
        format_version: Version of the format.
        requires: Features that a reader must know.
        extra: Fields that this version does not know, kept as they were.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    task: str
    variants: tuple[Variant, ...]
    golden: Golden
    preprocessing: Preprocessing | None = None
    labels: str | None = None
    recipe: Mapping[str, object] = field(default_factory=dict[str, object])
    scores: Mapping[str, object] | None = None
    measurements: Mapping[str, object] | None = None
    notes: tuple[str, ...] = ()
    declined: bool = False
    created_by: str = "edgepress"
    files: tuple[FileEntry, ...] = ()
    format_version: str = FORMAT_VERSION
    requires: tuple[str, ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict[str, object])

    def to_json(self) -> bytes:
        """Canonical bytes: UTF-8, keys sorted, indented by one space, one newline at the end.

        Raises:
            BundleError: ``E_MANIFEST`` for values that JSON does not have, such as NaN.
        """
        golden = self.golden
        values: dict[str, object] = {
            **self.extra,
            "format": FORMAT,
            "format_version": self.format_version,
            "requires": list(self.requires),
            "created_by": self.created_by,
            "files": [vars(entry) for entry in self.files],
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
            "task": self.task,
            "preprocessing": self.preprocessing.to_dict() if self.preprocessing else None,
            "labels": self.labels,
            "variants": [variant.to_dict() for variant in self.variants],
            "golden": {
                "inputs": golden.inputs,
                "outputs": golden.outputs,
                "synthetic": golden.synthetic,
                "tolerance": _tolerances(golden.tolerance),
            },
            "recipe": self.recipe,
            "scores": self.scores,
            "measurements": self.measurements,
            "notes": list(self.notes),
            "declined": self.declined,
        }
        try:
            text = json.dumps(
                values,
                sort_keys=True,
                indent=1,
                ensure_ascii=False,
                allow_nan=False,
                default=_plain,
            )
            return (text + "\n").encode("utf-8")
        except (ValueError, TypeError, RecursionError) as error:
            raise manifest_error(f"cannot be written: {error}") from error


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest, refusing whatever the format does not allow.

    Raises:
        BundleError: ``E_VERSION`` for a newer major version or a feature that is not known here,
            ``E_MANIFEST`` for anything else, ``E_PATH`` and ``E_DUPLICATE`` for its file names.
    """
    read = JsonObject(parse_json(data), "manifest.json")
    if read.text("format") != FORMAT:
        raise manifest_error(f"format is not '{FORMAT}'")
    version = _check_version(read)
    golden = read.part("golden")
    try:
        given = read.optional_mapping("preprocessing")
        preprocessing = None if given is None else Preprocessing.from_dict(given, "preprocessing")
    except InputError as error:
        raise manifest_error(f"{error.message} {error.mend}") from error
    manifest = Manifest(
        inputs=tuple(_spec(item) for item in read.parts("inputs")),
        outputs=tuple(_spec(item) for item in read.parts("outputs")),
        task=read.text("task"),
        variants=tuple(_variant(item) for item in read.parts("variants")),
        golden=Golden(
            golden.text("inputs"),
            golden.text("outputs"),
            golden.flag("synthetic"),
            _read_tolerances(golden),
        ),
        preprocessing=preprocessing,
        labels=None if read.values.get("labels") is None else read.text("labels"),
        recipe=read.optional_mapping("recipe") or {},
        scores=read.optional_mapping("scores"),
        measurements=read.optional_mapping("measurements"),
        notes=read.texts("notes"),
        declined=read.flag("declined") if "declined" in read.values else False,
        created_by=read.text("created_by"),
        files=tuple(_entry(item) for item in read.parts("files")),
        format_version=version,
        requires=read.texts("requires"),
        extra={key: value for key, value in read.values.items() if key not in _KNOWN},
    )
    _check(manifest)
    return manifest


_KNOWN = frozenset(Manifest.__dataclass_fields__) - {"extra"} | {"format"}


def _check_version(read: JsonObject) -> str:
    version = read.text("format_version")
    match = _VERSION.fullmatch(version)
    if not match:
        read.fail("format_version", "a version such as 1.0")
    if match[1] != FORMAT_VERSION.partition(".")[0]:
        raise BundleError(
            "E_VERSION",
            f"the bundle is of format version {version}; this edgepress reads 1.x.",
            mend="Update edgepress.",
            path=MANIFEST,
        )
    unknown = [name for name in read.texts("requires") if name not in KNOWN_FEATURES]
    if unknown:
        raise BundleError(
            "E_VERSION",
            f"the bundle requires {unknown}, which this edgepress does not know.",
            mend="Update edgepress.",
            path=MANIFEST,
        )
    return version


def _check(manifest: Manifest) -> None:
    """What holds between the fields."""
    paths = [entry.path for entry in manifest.files]
    if len(set(paths)) < len(paths):
        raise BundleError(
            "E_DUPLICATE",
            "manifest.json lists a file twice.",
            mend="Make the bundle again: each file stands in it once.",
            path=MANIFEST,
        )
    check_portable([*paths, MANIFEST, MANIFEST_HASH])
    golden = manifest.golden
    needed = [MODEL, golden.inputs, golden.outputs, *(one.file for one in manifest.variants)]
    needed += [one.golden.outputs for one in manifest.variants if one.golden is not None]
    needed += [manifest.labels] if manifest.labels is not None else []
    for path in needed:
        if path not in paths:
            raise BundleError(
                "E_MISSING",
                f"manifest.json speaks of '{path}', which is not among its files.",
                mend="Make the bundle again.",
                path=path,
            )
    for what, names in (
        ("inputs", [spec.name for spec in manifest.inputs]),
        ("outputs", [spec.name for spec in manifest.outputs]),
        ("variants", [variant.name for variant in manifest.variants]),
    ):
        if not names or len(set(names)) < len(names):
            raise manifest_error(f"{what} has no entry, or one name twice: {names}")
    outputs = {spec.name for spec in manifest.outputs}
    for expected in (golden, *(one.golden for one in manifest.variants)):
        if expected is not None and set(expected.tolerance) != outputs:
            told = sorted(expected.tolerance)
            raise manifest_error(f"golden.tolerance is for {told}, not {sorted(outputs)}")


def _spec(read: JsonObject) -> TensorSpec:
    shape: list[Dimension] = []
    for size in read.items("shape"):
        if isinstance(size, bool) or not isinstance(size, (int, str)) or size == "":
            read.fail("shape", "sizes and symbols")
        if isinstance(size, int) and size < 1:
            read.fail("shape", "sizes of 1 and more")
        shape.append(size)
    dtype = read.text("dtype")
    if dtype != "bool" and not re.fullmatch(r"float(16|32|64)|u?int(8|16|32|64)", dtype):
        read.fail("dtype", "a type of numbers, or bool")
    return TensorSpec(read.text("name"), dtype, tuple(shape))


def _variant(read: JsonObject) -> Variant:
    texts = [read.text(key) for key in ("name", "file", "engine", "dialect", "precision")]
    golden = None
    if read.values.get("golden") is not None:
        part = read.part("golden")
        golden = Expected(part.text("outputs"), _read_tolerances(part))
    receipt = read.optional_mapping("receipt") or {}
    return Variant(*texts, receipt=receipt, golden=golden, made=read.optional_mapping("made"))


def _entry(read: JsonObject) -> FileEntry:
    digest = read.text("sha256")
    if not _DIGEST.fullmatch(digest):
        read.fail("sha256", "64 lower-case hexadecimal digits")
    return FileEntry(read.text("path"), read.size("size_bytes"), digest)


def _read_tolerances(read: JsonObject) -> dict[str, Tolerance]:
    part = read.part("tolerance")
    return {name: _tolerance(part.part(name)) for name in part.values}


def _tolerances(by_name: Mapping[str, Tolerance]) -> dict[str, object]:
    return {name: vars(one) for name, one in by_name.items()}


def _tolerance(read: JsonObject) -> Tolerance:
    tolerance = Tolerance(read.number("max_abs"), read.number("cosine"))
    if tolerance.max_abs < 0 or not -1 <= tolerance.cosine <= 1:
        read.fail("max_abs", "max_abs of 0 or more, and cosine from -1 to 1")
    return tolerance


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return cast("Any", value).item()
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, object]", value))
    raise TypeError(f"{type(value).__name__} has no JSON form")
