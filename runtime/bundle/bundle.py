"""Opening bundles: everything is read once and checked before any of it is parsed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError, InputError
from ..pictures.preprocessing import Preprocessing
from ..tensors import Arrays, TensorSpec
from .bundle_files import read_tree
from .manifest import MANIFEST, MANIFEST_HASH, Manifest, Variant, parse_manifest
from .npz import read_npz


@dataclass(frozen=True)
class Bundle:
    """A verified bundle, in memory: the bytes that were hashed are the bytes that are used.

    Attributes:
        path: Where it was read from.
        manifest: What it says of itself.
        files: Every file, by path.
        labels: Class names in the order of the outputs, or ``None``.
    """

    path: Path
    manifest: Manifest
    files: Mapping[str, bytes]
    labels: tuple[str, ...] | None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read and verify a bundle's folder or zip. Nothing is written, and no model is parsed.

        Raises:
            InputError: ``E_FILE`` where there is nothing, or it may not be read.
            BundleError: One of the codes in ``docs/bundle-format.md``, with the file at fault.
        """
        files = read_tree(path)
        manifest = _verified(files)
        labels = (
            None if manifest.labels is None else _labels(files[manifest.labels], manifest.labels)
        )
        return cls(Path(path), manifest, files, labels)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the models take."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the models give."""
        return self.manifest.outputs

    @property
    def task(self) -> str:
        """What it is for, e.g. ``classification``."""
        return self.manifest.task

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How pictures become the input, or ``None``."""
        return self.manifest.preprocessing

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The models, the one to use by default first."""
        return self.manifest.variants

    @property
    def scores(self) -> Mapping[str, object] | None:
        """Scores of the original and of the result, or ``None``."""
        return self.manifest.scores

    @property
    def measurements(self) -> Mapping[str, object] | None:
        """Times and sizes where it was made, or ``None``."""
        return self.manifest.measurements

    @property
    def recipe(self) -> Mapping[str, object]:
        """How it was made."""
        return self.manifest.recipe

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together, unpacked."""
        return sum(map(len, self.files.values()))

    def variant(self, name: str | None = None) -> Variant:
        """The variant called ``name``, or the default one.

        Raises:
            InputError: ``E_VARIANT`` where there is none of that name.
        """
        if name is None:
            return self.variants[0]
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise InputError(
            "E_VARIANT",
            f"the bundle has no variant '{name}'.",
            mend="It has: " + ", ".join(variant.name for variant in self.variants),
            path=str(self.path),
        )

    def model(self, variant: Variant | str | None = None) -> bytes:
        """The bytes of a variant's model, the default one's unless named."""
        chosen = variant if isinstance(variant, Variant) else self.variant(variant)
        return self.files[chosen.file]

    def golden(self, variant: Variant | str | None = None) -> tuple[Arrays, Arrays]:
        """Golden inputs and the outputs that a variant gives for them, by name.

        Raises:
            BundleError: ``E_ARCHIVE`` where they cannot be read, ``E_MANIFEST`` where they are not
                what ``inputs`` and ``outputs`` declare.
        """
        chosen = variant if isinstance(variant, Variant) else self.variant(variant)
        golden, expected = self.manifest.golden, chosen.golden or self.manifest.golden
        inputs = _arrays(self.files[golden.inputs], golden.inputs, self.inputs)
        outputs = _arrays(self.files[expected.outputs], expected.outputs, self.outputs)
        return inputs, outputs


def _verified(files: Mapping[str, bytes]) -> Manifest:
    for path in (MANIFEST, MANIFEST_HASH):
        if path not in files:
            raise BundleError(
                "E_MISSING",
                f"there is no '{path}', so this is not a bundle, or not a whole one.",
                mend="Expected a bundle: a folder that edgepress wrote, or its zip.",
                path=path,
            )
    told = files[MANIFEST_HASH]
    if not re.fullmatch(rb"[0-9a-f]{64}\n?", told):
        raise _changed(MANIFEST_HASH, "it is not one SHA-256 in lower-case hexadecimal")
    _check_hash(MANIFEST, files[MANIFEST], told.decode("ascii").strip())
    manifest = parse_manifest(files[MANIFEST])
    listed = {entry.path: entry for entry in manifest.files}
    for path in listed:
        if path not in files:
            raise BundleError(
                "E_MISSING", f"'{path}' is missing.", mend="Copy the bundle again.", path=path
            )
    for path in files:
        if path not in listed and path not in (MANIFEST, MANIFEST_HASH):
            raise BundleError(
                "E_EXTRA",
                f"'{path}' is not in the manifest.",
                mend="Nothing may be added to a bundle; keep other files elsewhere.",
                path=path,
            )
    for path, entry in listed.items():
        if len(files[path]) != entry.size_bytes:
            raise _changed(path, f"it has {len(files[path])} bytes, not {entry.size_bytes}")
        _check_hash(path, files[path], entry.sha256)
    return manifest


def _check_hash(path: str, content: bytes, expected: str) -> None:
    if hashlib.sha256(content).hexdigest() != expected:
        raise _changed(path, "its SHA-256 is not the one it was made with")


def _changed(path: str, reason: str) -> BundleError:
    return BundleError(
        "E_HASH",
        f"'{path}' was changed or damaged: {reason}.",
        mend="Copy the bundle again, or make it again.",
        path=path,
    )


def _labels(content: bytes, path: str) -> tuple[str, ...]:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(
            "E_MANIFEST",
            f"'{path}' is not UTF-8: {error}.",
            mend="Make the bundle again, with class names in UTF-8.",
            path=path,
        ) from error
    lines = text.split("\n")
    if lines[-1]:
        raise BundleError(
            "E_MANIFEST",
            f"'{path}' does not end in a newline.",
            mend="Make the bundle again; each class name is one line, the last one too.",
            path=path,
        )
    return tuple(line.removesuffix("\r") for line in lines[:-1])


def _arrays(content: bytes, path: str, specs: tuple[TensorSpec, ...]) -> Arrays:
    arrays = read_npz(content, f"'{path}'")
    told = {spec.name: (spec.dtype, len(spec.shape)) for spec in specs}
    held = {name: (array.dtype.name, array.ndim) for name, array in arrays.items()}
    if told != held:
        raise BundleError(
            "E_MANIFEST",
            f"'{path}' holds {held}, where {told} was declared (name, type, dimensions).",
            mend="Make the bundle again.",
            path=path,
        )
    return arrays
