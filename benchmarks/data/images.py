"""Images: where pictures come from, how they are split, and how they become batches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import InputError
from ...runtime.pictures.picture_reader import read_picture
from ...runtime.pictures.preprocessing import Preprocessing
from ...runtime.tensors import Array, Arrays, TensorSpec
from .loaders import TensorSamples, collect_samples
from .sources import ArrayPictures, FilePictures, Labels, data_error, from_arrays, open_pictures

Source: TypeAlias = "FilePictures | ArrayPictures | TensorSamples"

_MOST_SELECTION = 10_000  # samples that tell candidates apart to a tenth of a point
_SELECTION = 2500  # samples that selection keeps, at most, where the others are trained on


@dataclass(frozen=True)
class Batch:
    """Some samples as a network takes them.

    Attributes:
        inputs: One array for each input, by name, dimension 0 the batch.
        labels: int64 ``(N,)`` class indices, or ``None``.
    """

    inputs: Arrays
    labels: Labels | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True)
class Split:
    """Parts that share no sample.

    Attributes:
        calibration: What ranges and biases are calibrated on.
        selection: What choices are made on.
        test: What is scored in the end and never used to choose; ``None`` where the test pictures
            are another :class:`Images`.
        training: What a network is trained on; ``None`` where nothing is trained.
    """

    calibration: Images
    selection: Images
    test: Images | None
    training: Images | None = None


class Images:
    """Samples, labelled or not, read when they are needed. Immutable; parts share their source.

    Made by :meth:`open`, :meth:`from_arrays` or :meth:`of`.
    """

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        self._source = source
        self._indices = indices

    @staticmethod
    def open(path: str | os.PathLike[str]) -> Images:
        """Pictures on disk; a folder's are decoded only when a batch needs them.

        Args:
            path: A folder with one folder per class (classes in the order of their names); a folder
                with ``labels.csv`` (``file,class_index``, the files beside it or in ``images/``); a
                folder of unlabelled pictures; or an ``.npz`` with ``x`` uint8 ``(N, H, W, C)`` or
                ``(N, H, W)``, optionally ``y`` integers ``(N,)`` and ``labels`` class names.

        Raises:
            InputError: ``E_DATA`` for anything else, empty data, an empty class folder, lengths
                that differ, labels that are no class indices, or files that are missing.
        """
        return _whole(open_pictures(path))

    @staticmethod
    def from_arrays(x: object, y: object = None, names: Sequence[str] | None = None) -> Images:
        """Pictures in memory, not preprocessed: what an ``.npz`` holds.

        Args:
            x: uint8 ``(N, H, W, C)`` or ``(N, H, W)``.
            y: Class indices, integers ``(N,)``.
            names: The name of each class.

        Raises:
            InputError: ``E_DATA`` for another dtype, rank or length.
        """
        return _whole(from_arrays(x, y, names))

    @staticmethod
    def of(data: Images | str | os.PathLike[str] | Iterable[object]) -> Images:
        """Images from whatever the user has.

        Args:
            data: Images (given back as they are), a path (see :meth:`open`), or an iterable such as
                a torch DataLoader, gone through once and kept in memory. Its items are batches that
                are *preprocessed already*: an array or tensor ``(N, ...)``, a tuple of them (inputs
                first; a last element of integers ``(N,)`` is the labels), or a dict by input name
                (labels under ``label`` or ``labels``). A tuple or dict whose label is one integer
                is one sample.

        Raises:
            InputError: ``E_DATA`` where the items are nothing of that kind or do not fit each
                other.
        """
        if isinstance(data, Images):
            return data
        if isinstance(data, (str, os.PathLike)):
            return Images.open(data)
        if not isinstance(cast(object, data), Iterable):
            raise data_error(
                f"data is a {type(data).__name__}.",
                "Give a path, an iterable of batches, or Images",
            )
        return _whole(collect_samples(data, type(data).__name__))

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def labelled(self) -> bool:
        """Whether every sample has a class index."""
        return self._source.labels is not None

    @property
    def labels(self) -> Labels | None:
        """Class indices, int64 ``(N,)``, or ``None``."""
        labels = self._source.labels
        return None if labels is None else labels[self._indices]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The name of each class, where the data tells it."""
        return self._source.class_names

    @property
    def source(self) -> str:
        """What the data is called in messages and reports."""
        return self._source.where

    @property
    def preprocessed(self) -> bool:
        """Whether the samples are tensors already, so that no preprocessing applies."""
        return isinstance(self._source, TensorSamples)

    def take(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Images:
        """The samples at these positions, in that order.

        Raises:
            InputError: ``E_DATA`` for no position, or one outside ``0 .. len - 1``.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.ndim != 1 or wanted.size == 0 or wanted.min() < 0 or wanted.max() >= len(self):
            raise data_error(
                f"cannot take {wanted.size} positions of {len(self)} samples.",
                f"Positions go from 0 to {len(self) - 1}; take at least one",
                self.source,
            )
        return Images(self._source, self._indices[wanted])

    def split(
        self, calibration: int, seed: int, own_test: bool, *, training: bool = False
    ) -> Split:
        """Share the samples out at random; the same seed gives the same parts on every machine.

        Args:
            calibration: How many samples calibration may take.
            seed: Not negative.
            own_test: Whether the test pictures lie elsewhere. If so, calibration gets up to half of
                the samples and selection the rest; else the test gets half, calibration up to a
                quarter and selection the rest. Selection, which every candidate is scored on, gets
                10,000 at most.
            training: Whether something is trained: it gets what selection would, less a fifth or
                2,500 samples, whichever is fewer, which selection keeps.

        Returns:
            Parts that share no sample, each in random order.

        Raises:
            InputError: ``E_DATA`` where a part would be empty.
        """
        count = len(self)
        least = 2 if own_test else 4
        if calibration < 1 or seed < 0:
            raise data_error(
                f"cannot split with calibration {calibration} and seed {seed}.",
                "Calibration must be at least 1, the seed not negative",
            )
        if count < least:
            raise data_error(
                f"{self.source} has {count} samples, a split needs at least {least}.",
                "Give more pictures",
                self.source,
            )
        # The raw stream of PCG64 is the same in every numpy; Generator.permutation need not be.
        order = np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")
        test_count = 0 if own_test else count // 2
        calibration_count = min(calibration, count // least)
        test = order[:test_count]
        parts = order[test_count:]
        rest = parts[calibration_count:]
        chosen = min(len(rest), _MOST_SELECTION)
        if training:
            chosen = max(1, min(_SELECTION, len(rest) // 5))
        return Split(
            self.take(parts[:calibration_count]),
            self.take(rest[:chosen]),
            self.take(test) if test_count else None,
            self.take(rest[chosen:]) if training and chosen < len(rest) else None,
        )

    def specs(self, names: Sequence[str]) -> tuple[TensorSpec, ...]:
        """The inputs that a network of these input names must have to run on the samples.

        Args:
            names: Names of its inputs, in order.

        Raises:
            InputError: ``E_DATA`` where the samples do not have so many parts.
        """
        if isinstance(self._source, TensorSamples):
            return self._source.specs(names)
        return tuple(TensorSpec(name, "float32", ("N", "C", "H", "W")) for name in names)

    def batches(
        self, inputs: Sequence[TensorSpec], preprocessing: Preprocessing | None, batch_size: int
    ) -> Iterator[Batch]:
        """The samples as the network takes them, in order; memory stays that of one batch.

        Args:
            inputs: What the network takes. Dimension 0 is the batch; a fixed one does not matter
                here (see :func:`~edgepress.benchmarks.data.batch_runner.fixed_batch`).
            preprocessing: How a picture becomes a tensor. Samples that are preprocessed already do
                without, and ignore it.
            batch_size: Samples a batch; the last one may be smaller.

        Raises:
            InputError: ``E_DATA`` where the samples do not fit the inputs (at the call where that
                can be seen without decoding), a picture cannot be decoded, or pictures disagree in
                size and no crop makes them equal. ``E_PREPROCESSING`` for pictures without a
                preprocessing.
        """
        if batch_size < 1:
            raise data_error(f"batch size {batch_size}, expected at least 1.")
        if not inputs:
            raise data_error("the network has no inputs, so that no data fits it.")
        if isinstance(self._source, TensorSamples):
            return self._slices(self._source.select(inputs), batch_size)
        if preprocessing is None:
            raise InputError(
                "E_PREPROCESSING",
                f"the pictures of {self.source} need a preprocessing, and there is none.",
                mend="Give one (edgepress.runtime.Preprocessing, or --preprocessing FILE.toml)",
                path=self.source,
            )
        spec = _picture_input(inputs, preprocessing, self.source)
        return self._decoded(self._source, spec, preprocessing, batch_size)

    def pixels(self, positions: Sequence[int], preprocessing: Preprocessing) -> Array:
        """Some pictures resized and cropped, before scaling: what training starts from.

        Args:
            positions: Which of the samples.
            preprocessing: How a picture becomes a tensor; its scaling is left to the caller.

        Returns:
            uint8 ``(N, H, W, C)``.

        Raises:
            InputError: ``E_DATA`` for samples that are preprocessed already, a picture that cannot
                be decoded, or pictures that differ in size.
        """
        source = self._source
        if isinstance(source, TensorSamples):
            raise data_error(f"{self.source} holds tensors, no pictures.", "", self.source)
        indices: list[int] = self._indices[list(positions)].tolist()
        pictures = [_read(source, index, preprocessing) for index in indices]
        for index, picture in zip(indices, pictures, strict=True):
            if picture.shape != pictures[0].shape:
                raise _other_size(
                    source.name(index), picture, source.name(indices[0]), pictures[0].shape
                )
        return np.stack(pictures)

    def _parts(self, batch_size: int) -> Iterator[NDArray[np.int64]]:
        for start in range(0, len(self), batch_size):
            yield self._indices[start : start + batch_size]

    def _labels_of(self, part: NDArray[np.int64]) -> Labels | None:
        return None if self._source.labels is None else self._source.labels[part]

    def _slices(self, arrays: Arrays, batch_size: int) -> Iterator[Batch]:
        for part in self._parts(batch_size):
            inputs = {name: np.ascontiguousarray(array[part]) for name, array in arrays.items()}
            yield Batch(inputs, self._labels_of(part))

    def _decoded(
        self,
        source: FilePictures | ArrayPictures,
        spec: TensorSpec,
        preprocessing: Preprocessing,
        batch_size: int,
    ) -> Iterator[Batch]:
        first: tuple[str, tuple[int, ...]] | None = None
        for part in self._parts(batch_size):
            pictures: list[NDArray[np.uint8]] = []
            for index in part.tolist():
                picture = _read(source, index, preprocessing)
                if first is None:
                    first = (source.name(index), picture.shape)
                    _check_picture(spec, picture, source.name(index))
                elif picture.shape != first[1]:
                    raise _other_size(source.name(index), picture, *first)
                pictures.append(picture)
            yield Batch({spec.name: preprocessing.tensor(pictures)}, self._labels_of(part))


def _whole(source: Source) -> Images:
    return Images(source, np.arange(len(source), dtype=np.int64))


def _read(
    source: FilePictures | ArrayPictures, index: int, preprocessing: Preprocessing
) -> NDArray[np.uint8]:
    """One picture, resized and cropped, uint8 ``(H, W, C)``."""
    try:
        picture = read_picture(source.raw(index), preprocessing.channel_order)
        return preprocessing.pixels(picture)
    except InputError as error:
        raise data_error(
            f"'{source.name(index)}' cannot be used: {error.message}",
            error.mend,
            source.name(index),
        ) from error


def _other_size(name: str, picture: Array, first: str, shape: tuple[int, ...]) -> InputError:
    return data_error(
        f"'{name}' is {picture.shape} after preprocessing, "
        f"'{first}' is {shape} (height, width, channels).",
        "Give a preprocessing with resize or center_crop, or pictures of one size",
        name,
    )


def _picture_input(
    inputs: Sequence[TensorSpec], preprocessing: Preprocessing, where: str
) -> TensorSpec:
    """The one input that pictures feed, checked as far as the preprocessing fixes its shape."""
    if len(inputs) != 1:
        raise data_error(
            f"the network takes {len(inputs)} inputs, the pictures of {where} give one.",
            "Give an iterable of dicts with one array for each input: "
            + "; ".join(map(str, inputs)),
            where,
        )
    spec = inputs[0]
    if spec.dtype != "float32" or len(spec.shape) != 4:
        raise data_error(
            f"pictures become float32 (N, C, H, W), the network takes {spec}.",
            "Give an iterable of batches that are preprocessed already",
            where,
        )
    size = preprocessing.size
    if size is not None and not _fits(spec.shape[2:], size):
        raise data_error(
            f"the preprocessing gives pictures of {size[0]}x{size[1]} (height x width), "
            f"the network takes {spec}.",
            "Set its resize or center_crop to the network's height and width",
            where,
        )
    return spec


def _check_picture(spec: TensorSpec, picture: Array, name: str) -> None:
    height, width, channels = picture.shape
    if not _fits(spec.shape[1:], (channels, height, width)):
        raise data_error(
            f"'{name}' gives ({channels}, {height}, {width}) (channels, height, width), "
            f"the network takes {spec}.",
            "Set the preprocessing's channel_order, resize and center_crop to suit the network",
            name,
        )


def _fits(wanted: Sequence[int | str], sizes: Sequence[int]) -> bool:
    return all(isinstance(w, str) or w == size for w, size in zip(wanted, sizes, strict=True))
