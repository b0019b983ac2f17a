"""The training pictures as batches of tensors; they stay uint8 until they lie on the device."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...benchmarks.data.images import Images
from ...runtime.errors import InputError
from ...runtime.pictures.preprocessing import Preprocessing
from ...runtime.progress import Progress
from ...runtime.tensors import Arrays, TensorSpec
from ..recipe.settings import Distil
from .augmentation import Draws, mixed_up, recoloured, shifted

KEPT_BYTES = 2 * 2**30
"""Decoded pictures that are kept in memory, at most; more of them are decoded at each use."""

_CHUNK = 64  # pictures that one thread decodes at a time
_THREADS = 2

_torch: Any = torch  # where torch's own annotations do not say what is given


@dataclass(frozen=True)
class TrainingBatch:
    """What a step trains on.

    Attributes:
        feeds: Tensors by input name, dimension 0 the batch.
        labels: int64 ``(N,)``, or ``None``.
        draws: What was decided by chance for these pictures.
    """

    feeds: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    draws: Draws


class TrainingSamples:
    """Training samples: pictures, which are augmented, or tensors, which are taken as they are.

    Args:
        images: The training part.
        specs: The network's inputs.
        preprocessing: How a picture becomes a tensor; tensors do without.
        settings: How pictures are augmented.
        device: Where they are augmented, and trained on.
        report: Told how far decoding is.

    Raises:
        InputError: What decoding raises; ``E_PREPROCESSING`` for pictures without a preprocessing.
    """

    def __init__(
        self,
        images: Images,
        specs: Sequence[TensorSpec],
        preprocessing: Preprocessing | None,
        settings: Distil,
        device: torch.device,
        report: Progress,
    ) -> None:
        self._images, self._settings, self._preprocessing = images, settings, preprocessing
        self._names, self._device = [spec.name for spec in specs], device
        self._labels = None if images.labels is None else _torch.from_numpy(images.labels)
        self._arrays: Arrays | None = None
        self._kept: torch.Tensor | None = None
        self._ahead: tuple[tuple[int, ...], Future[Any]] | None = None
        self._threads = ThreadPoolExecutor(_THREADS, "edgepress-decoding")
        if images.preprocessed:
            self._arrays = next(iter(images.batches(specs, None, len(images)))).inputs
            return
        next(iter(images.batches(specs, preprocessing, 1)))  # refuses what does not fit
        if preprocessing is None:
            raise InputError(
                "E_PREPROCESSING",
                "pictures are given, and no preprocessing that makes tensors of them.",
                mend="Give one (--preprocessing FILE.toml), or tensors that are preprocessed.",
            )
        one = images.pixels([0], preprocessing)
        if one.nbytes * len(images) <= KEPT_BYTES:
            self._kept = _torch.from_numpy(self._decode_all(preprocessing, report))

    def __len__(self) -> int:
        return len(self._images)

    def close(self) -> None:
        """End the threads that decode."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def batch(
        self, rows: torch.Tensor, draws: Draws, following: torch.Tensor | None = None
    ) -> TrainingBatch:
        """The samples of a step.

        Args:
            rows: Which ones, int64 ``(N,)``.
            draws: How they are augmented.
            following: Those of the next step, which are decoded while this one is trained on.
        """
        labels = None if self._labels is None else self._labels[rows].to(self._device)
        draws = draws.to(self._device)
        if self._arrays is not None:
            feeds = {
                name: _torch.from_numpy(array[rows.numpy()]).to(self._device)
                for name, array in self._arrays.items()
            }
            return TrainingBatch(feeds, labels, replace(draws, blend=torch.zeros_like(draws.blend)))
        pictures = self._pixels(rows, following).to(self._device)  # a quarter of what floats take
        pictures = shifted(pictures, self._settings, draws)
        values = pictures.permute(0, 3, 1, 2).float()  # channels last in memory, without a copy
        values = self._scaled(recoloured(values, self._settings, draws))
        return TrainingBatch({self._names[0]: mixed_up(values, draws)}, labels, draws)

    def _scaled(self, values: torch.Tensor) -> torch.Tensor:
        how = self._preprocessing
        assert how is not None
        mean, std = (
            torch.tensor(one, dtype=torch.float32, device=self._device) * how.scale
            for one in (how.mean, how.std)
        )
        return (values - mean[:, None, None]) / std[:, None, None]

    def _pixels(self, rows: torch.Tensor, following: torch.Tensor | None) -> torch.Tensor:
        if self._kept is not None:
            return self._kept[rows]
        wanted = _numbers(rows)
        ahead, self._ahead = self._ahead, None
        found = ahead[1].result() if ahead and ahead[0] == wanted else self._decode(wanted)
        if following is not None:
            coming = _numbers(following)
            self._ahead = (coming, self._threads.submit(self._decode, coming))
        return _torch.from_numpy(found)

    def _decode(self, rows: Sequence[int]) -> np.ndarray[Any, Any]:
        assert self._preprocessing is not None
        return self._images.pixels(rows, self._preprocessing)

    def _decode_all(self, preprocessing: Preprocessing, report: Progress) -> np.ndarray[Any, Any]:
        count = len(self)
        chunks = [range(at, min(at + _CHUNK, count)) for at in range(0, count, _CHUNK)]
        made: np.ndarray[Any, Any] | None = None
        for chunk, found in zip(
            chunks,
            self._threads.map(self._decode, chunks),
            strict=True,
        ):
            if made is None:
                made = np.empty((count, *found.shape[1:]), np.uint8)
            if found.shape[1:] != made.shape[1:]:
                self._images.pixels([0, chunk.start], preprocessing)  # says which ones differ
            made[chunk.start : chunk.stop] = found
            report("reading the training pictures", chunk.stop, count)
        assert made is not None
        return made


def _numbers(rows: torch.Tensor) -> tuple[int, ...]:
    return tuple(map(int, rows))
