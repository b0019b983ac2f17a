"""Tasks of embeddings, whose labels say who or what is shown: retrieval and verification."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import InputError
from ...runtime.tensors import Arrays
from ..data.batch_runner import Run
from ..data.sources import Labels, data_error
from ..statistics import wilson
from .agreement import Agreements
from .task import Batches, Score

UnitVectors: TypeAlias = NDArray[np.float32]

_ROWS = 512  # embeddings whose similarities with all others are held at once
_LEAST_IMPOSTORS = 10
_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Retrieval:
    """Mean average precision: does the embedding find the other pictures of the same label?

    Each picture whose label occurs again is a query; all other pictures are searched, by cosine.
    Average precision is the mean, over the query's matches, of the share of matches among what is
    ranked no lower (Manning, Raghavan, Schuetze, "Introduction to Information Retrieval", 2008,
    section 8.4). Rank-1 is the share of queries whose nearest picture is a match. There are no
    cameras: for a protocol that leaves out the query's own, use a score of your own.

    The interval of the value is 1.96 standard errors over the queries; they share pictures, so that
    it is somewhat narrow. A picture whose embedding is not finite finds nothing, is found last and
    is reported under ``non_finite``.

    Attributes:
        output: The output with the embedding, ``(N, D)``; ``None`` takes the only one of that shape
            (``(N, D, 1, 1)`` counts as that shape).
    """

    output: str | None = None
    name: str = "retrieval"
    needs_labels: bool = True

    def score(self, run: Run, batches: Batches, reference: Run | None = None) -> Score:
        """Judge ``run``.

        Returns:
            mAP in percent; ``details`` has ``rank1_percent`` with its interval, ``queries``,
            ``identities``, ``non_finite``, ``output``; with a reference its agreement, and
            ``same_nearest_percent``, how often both find the same nearest picture.

        Raises:
            InputError: ``E_DATA`` for no samples, samples without labels, or no label that occurs
                twice; ``E_TASK`` where no output, or more than one, is an embedding.
        """
        found = _collect(self.name, self.output, run, batches, reference)
        precisions: list[float] = []
        first = same = 0
        for rows, similar in _similarities(found.units, found.whole):
            theirs = None
            if found.reference is not None:
                theirs = found.reference[rows] @ found.reference.T
                theirs[np.arange(len(rows)), rows] = -np.inf
            for at, row in enumerate(rows.tolist()):
                match = found.labels == found.labels[row]
                match[row] = False
                nearest = int(similar[at].argmax())
                if theirs is not None:
                    same += nearest == int(theirs[at].argmax())
                if not match.any():
                    continue
                seen, other = bool(found.whole[row]), ~match
                other[row] = False
                precisions.append(
                    _average_precision(similar[at][match], similar[at][other]) if seen else 0.0
                )
                first += seen and bool(match[nearest])
        if not precisions:
            raise data_error(
                "no label occurs twice, so that nothing could be found again.",
                "Give several pictures of each identity, with the same label",
            )
        count, queries = len(found.labels), len(precisions)
        value = math.fsum(precisions) / queries
        spread = float(np.std(precisions)) / math.sqrt(queries) * _NORMAL_95
        low, high = wilson(first, queries)
        details: dict[str, object] = {
            "rank1_percent": 100 * first / queries,
            "rank1_low": 100 * low,
            "rank1_high": 100 * high,
            "queries": queries,
            **found.details(),
        }
        if found.reference is not None:
            details["same_nearest_percent"] = 100 * same / count
        return Score(
            self.name,
            100 * value,
            "percent",
            count,
            100 * max(0.0, value - spread),
            100 * min(1.0, value + spread),
            details,
        )


@dataclass(frozen=True)
class Verification:
    """True accept rate at a false accept rate: are two pictures of the same label?

    Every pair of pictures is compared by cosine. The threshold is the lowest that accepts no more
    than the share ``far`` of the pairs of unlike labels; the value is the share of the pairs of
    like labels above it (ISO/IEC 19795-1:2021). The interval is Wilson's over those pairs; they
    share pictures, so that it is somewhat narrow. A pair with an embedding that is not finite is
    not accepted.

    Attributes:
        far: The false accept rate, over 0 and under 1.
        output: See :class:`Retrieval`.
    """

    far: float = 1e-3
    output: str | None = None
    name: str = "verification"
    needs_labels: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.far < 1:
            raise InputError(
                "E_TASK", f"the false accept rate is {self.far}.", mend="Give one between 0 and 1."
            )

    def score(self, run: Run, batches: Batches, reference: Run | None = None) -> Score:
        """Judge ``run``.

        Returns:
            The true accept rate in percent; ``details`` has ``far``, the ``far_reached``, the
            ``threshold`` (a cosine), ``genuine_pairs``, ``impostor_pairs``, ``identities``,
            ``non_finite``, ``output``, with a reference its agreement.

        Raises:
            InputError: As :class:`Retrieval`; ``E_DATA`` also for too few pairs of unlike labels to
                tell that rate (10 false accepts are the least that count as a rate).
        """
        found = _collect(self.name, self.output, run, batches, reference)
        genuine_count, impostor_count = _pairs(found.labels)
        allowed = int(self.far * impostor_count + 1e-9)
        if not genuine_count or allowed < _LEAST_IMPOSTORS:
            raise data_error(
                f"{len(found.labels)} pictures give {genuine_count} pairs of like and "
                f"{impostor_count} of unlike labels; a false accept rate of {self.far:g} needs "
                f"{math.ceil(_LEAST_IMPOSTORS / self.far)} unlike ones and one like pair.",
                "Give more pictures, or a larger rate: Verification(far=...)",
            )
        genuine: list[NDArray[np.float32]] = []
        largest = np.full(0, -np.inf, np.float32)
        for rows, similar in _similarities(found.units, found.whole):
            later = np.arange(len(found.labels))[None, :] > rows[:, None]
            like = found.labels[None, :] == found.labels[rows][:, None]
            genuine.append(similar[later & like])
            largest = np.concatenate([largest, similar[later & ~like]])
            if len(largest) > allowed + 1:
                largest = np.partition(largest, -(allowed + 1))[-(allowed + 1) :]
        threshold = float(largest.min())
        accepted = int((np.concatenate(genuine) > threshold).sum())
        low, high = wilson(accepted, genuine_count)
        details: dict[str, object] = {
            "far": self.far,
            "far_reached": int((largest > threshold).sum()) / impostor_count,
            "threshold": threshold,
            "genuine_pairs": genuine_count,
            "impostor_pairs": impostor_count,
            **found.details(),
        }
        value = 100 * accepted / genuine_count
        count = len(found.labels)
        return Score(self.name, value, "percent", count, 100 * low, 100 * high, details)


@dataclass(frozen=True)
class _Embeddings:
    """All embeddings of the data, scaled to length 1; the ones that are not finite are zero."""

    units: UnitVectors
    whole: NDArray[np.bool_]
    labels: Labels
    output: str
    reference: UnitVectors | None
    agreements: Agreements

    def details(self) -> dict[str, object]:
        told: dict[str, object] = {
            "identities": len(np.unique(self.labels)),
            "non_finite": int((~self.whole).sum()),
            "output": self.output,
        }
        if self.reference is not None:
            told["agreement"] = self.agreements.to_dict()
        return told


def _collect(
    task: str, name: str | None, run: Run, batches: Batches, reference: Run | None
) -> _Embeddings:
    units: list[UnitVectors] = []
    whole: list[NDArray[np.bool_]] = []
    labels: list[Labels] = []
    theirs: list[UnitVectors] = []
    agreements = Agreements()
    for batch in batches():
        if batch.labels is None:
            raise data_error(
                f"{task} needs labels, the data has none.",
                "Give one folder per identity, a labels.csv, or y; or use the task agreement",
            )
        outputs = run(batch.inputs)
        if name is None:
            name = _embedding_output(outputs, len(batch))
        unit, finite = _units(outputs, name, len(batch))
        units.append(unit)
        whole.append(finite)
        labels.append(batch.labels)
        if reference is not None:
            wanted = reference(batch.inputs)
            agreements.add(outputs, wanted, len(batch))
            theirs.append(_units(wanted, name, len(batch))[0])
    if not units or name is None:
        raise data_error("there are no samples to compare.")
    return _Embeddings(
        np.concatenate(units),
        np.concatenate(whole),
        np.concatenate(labels),
        name,
        np.concatenate(theirs) if theirs else None,
        agreements,
    )


def _units(outputs: Arrays, name: str, count: int) -> tuple[UnitVectors, NDArray[np.bool_]]:
    if name not in outputs or not _is_embedding(outputs[name], count):
        found = tuple(outputs[name].shape) if name in outputs else "absent"
        raise InputError(
            "E_TASK",
            f"output '{name}' is {found}, expected embeddings ({count}, D) with D over 1.",
            mend="The outputs are: " + ", ".join(outputs),
            path=name,
        )
    values = np.reshape(outputs[name], (count, -1)).astype(np.float64)
    finite = np.asarray(np.isfinite(values).all(axis=1), np.bool_)
    values = np.where(finite[:, None], values, 0.0)
    values /= np.maximum(np.abs(values).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    lengths = np.sqrt((values**2).sum(axis=1, keepdims=True))
    return (values / np.where(lengths == 0, 1.0, lengths)).astype(np.float32), finite


def _embedding_output(outputs: Arrays, count: int) -> str:
    fits = [name for name, array in outputs.items() if _is_embedding(array, count)]
    if len(fits) != 1:
        shapes = {name: tuple(array.shape) for name, array in outputs.items()}
        raise InputError(
            "E_TASK",
            f"{len(fits)} outputs are embeddings (N, D), expected one; outputs: {shapes}.",
            mend="Name the output: Retrieval(output=...), or use the task agreement",
        )
    return fits[0]


def _is_embedding(array: NDArray[Any], count: int) -> bool:
    return (
        array.dtype.kind == "f"
        and array.ndim >= 2
        and array.shape[0] == count
        and array.shape[1] > 1
        and all(size == 1 for size in array.shape[2:])
    )


def _similarities(
    units: UnitVectors, whole: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Cosines of some rows with all, ``(rows, N)``; minus infinity with itself and the broken."""
    for start in range(0, len(units), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(units)))
        similar = units[rows] @ units.T
        similar[:, ~whole] = -np.inf
        similar[~whole[rows]] = -np.inf
        similar[np.arange(len(rows)), rows] = -np.inf
        yield rows, similar


def _average_precision(matches: NDArray[np.float32], others: NDArray[np.float32]) -> float:
    """From the similarities of both; of equals the unlike comes first."""
    before = len(others) - np.searchsorted(np.sort(others), -np.sort(-matches), side="left")
    found = np.arange(1, len(matches) + 1)
    return float((found / (found + before)).mean())


def _pairs(labels: Labels) -> tuple[int, int]:
    """Pairs of like and of unlike labels."""
    counts = np.unique(labels, return_counts=True)[1].astype(object)
    like = int(sum(count * (count - 1) // 2 for count in counts))
    return like, len(labels) * (len(labels) - 1) // 2 - like
