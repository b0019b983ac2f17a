"""How far outputs agree with a reference's: sums over batches, so that memory stays flat."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import InputError
from ...runtime.tensors import Array

_SUMS_TO_ONE = 1e-3


@dataclass
class OutputAgreement:
    """What one output adds up to, batch by batch.

    Attributes:
        cosines: The cosine of each sample, both outputs flattened; 1 where both are zero
            throughout, 0 where only one is, or where values that are not finite differ.
        max_abs: The largest difference of two finite values.
        signal: The sum of the reference's squares.
        noise: The sum of the squared differences.
        non_finite: Samples in which the judged output is not finite.
        same_class: Samples whose largest entry is at the same place; counted for ``(N, C)``, C over
            1.
        shares: Whether every row of the reference's is a probability distribution: no entry below
            0, their sum 1.
        divergences: Kullback-Leibler divergence (nats) of the softmax from the reference's, by
            sample; for ``(N, C)``, C over 1. It says something only where the outputs are logits.
    """

    cosines: list[float] = field(default_factory=list[float])
    max_abs: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    non_finite: int = 0
    same_class: int | None = None
    shares: bool = True
    divergences: list[float] = field(default_factory=list[float])

    @property
    def mean_cosine(self) -> float:
        """The mean of the samples' cosines."""
        return math.fsum(self.cosines) / len(self.cosines)

    @property
    def closeness(self) -> float:
        """The mean cosine; of probabilities the share of equal first places, where that is less.

        Two distributions that choose differently can be almost parallel.
        """
        if not self.shares or self.same_class is None:
            return self.mean_cosine
        return min(self.mean_cosine, self.same_class / len(self.cosines))

    def to_dict(self) -> dict[str, object]:
        """JSON form.

        Keys: ``mean_cosine``, ``min_cosine``, ``max_abs``, ``sqnr_db`` (signal over noise; ``None``
            where
        there is no noise, or no signal), ``non_finite``, and for ``(N, C)`` outputs
        ``top1_agreement_percent`` and ``kl_nats``.
        """
        sqnr = 10 * math.log10(self.signal / self.noise) if self.noise and self.signal else None
        result: dict[str, object] = {
            "mean_cosine": self.mean_cosine,
            "min_cosine": min(self.cosines),
            "max_abs": self.max_abs,
            "sqnr_db": sqnr,
            "non_finite": self.non_finite,
        }
        if self.same_class is not None:
            result["top1_agreement_percent"] = 100 * self.same_class / len(self.cosines)
            if self.divergences:
                result["kl_nats"] = math.fsum(self.divergences) / len(self.divergences)
        return result

    def add(self, name: str, judged: Array, reference: Array, count: int) -> None:
        """Add one batch.

        Args:
            name: The output's name, for messages.
            judged: ``(N, ...)``; where dimension 0 is not the batch, all of it is one sample.
            reference: Of the same shape.
            count: Samples in the batch.

        Raises:
            InputError: ``E_TASK`` where the shapes differ or the values are no numbers.
        """
        if judged.shape != reference.shape or "c" in judged.dtype.kind + reference.dtype.kind:
            raise InputError(
                "E_TASK",
                f"output '{name}' is {judged.dtype} {judged.shape}, the reference's "
                f"{reference.dtype} {reference.shape}.",
                mend="Agreement needs real outputs of one shape; leave out steps that choose how "
                "many rows come out, such as non-maximum suppression",
                path=name,
            )
        batched = judged.ndim > 0 and len(judged) == count
        rows = count if batched else 1
        try:
            a = np.reshape(judged, (rows, -1)).astype(np.float64)
            b = np.reshape(reference, (rows, -1)).astype(np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(
                "E_TASK",
                f"output '{name}' is {judged.dtype}, which cannot be compared as numbers.",
                mend="Expected numbers or booleans; leave this output out of the network.",
                path=name,
            ) from error
        finite = np.isfinite(a) & np.isfinite(b)
        whole = finite.all(axis=1)
        self.non_finite += int((~np.isfinite(a)).any(axis=1).sum())
        clean_a, clean_b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
        difference = clean_a - clean_b
        self.max_abs = max(self.max_abs, float(np.abs(difference).max(initial=0.0)))
        self.signal += float((clean_b**2).sum())
        self.noise += float((difference**2).sum())
        cosines = _cosines(clean_a, clean_b)
        equal = ((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=1)
        self.cosines.extend(np.where(equal, 1.0, np.where(whole, cosines, 0.0)).tolist())
        if batched and judged.ndim == 2 and judged.shape[1] > 1:
            same = (a.argmax(axis=1) == b.argmax(axis=1)) & (whole | equal)
            self.same_class = (self.same_class or 0) + int(same.sum())
            self.shares = self.shares and are_shares(b)
            self.divergences.extend(_divergences(a[whole], b[whole]).tolist())


@dataclass
class Agreements:
    """The agreement of every output.

    Attributes:
        outputs: By name; empty before the first batch.
    """

    outputs: dict[str, OutputAgreement] = field(default_factory=dict[str, OutputAgreement])

    def add(self, judged: Mapping[str, Array], reference: Mapping[str, Array], count: int) -> None:
        """Add one batch of ``count`` samples.

        Raises:
            InputError: ``E_TASK`` where names or shapes differ.
        """
        if set(judged) != set(reference):
            raise InputError(
                "E_TASK",
                f"the outputs are {sorted(judged)}, the reference's {sorted(reference)}.",
                mend="Compare two forms of the same network",
            )
        for name, array in reference.items():
            agreement = self.outputs.setdefault(name, OutputAgreement())
            agreement.add(name, np.asarray(judged[name]), np.asarray(array), count)

    def to_dict(self) -> dict[str, object]:
        """JSON form: :meth:`OutputAgreement.to_dict` by output name."""
        return {name: agreement.to_dict() for name, agreement in self.outputs.items()}


def _cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Row by row, ``(N,)``; scaled by the largest entry first, so that nothing overflows."""
    largest_a = np.abs(a).max(axis=1, initial=0.0, keepdims=True)
    largest_b = np.abs(b).max(axis=1, initial=0.0, keepdims=True)
    scaled_a = a / np.where(largest_a == 0, 1.0, largest_a)
    scaled_b = b / np.where(largest_b == 0, 1.0, largest_b)
    norms = np.sqrt((scaled_a**2).sum(axis=1) * (scaled_b**2).sum(axis=1))
    dots = (scaled_a * scaled_b).sum(axis=1)
    both_zero = (largest_a[:, 0] == 0) & (largest_b[:, 0] == 0)
    return np.where(both_zero, 1.0, (dots / np.where(norms == 0, 1.0, norms)).clip(-1.0, 1.0))


def are_shares(b: NDArray[Any]) -> bool:
    """Whether every row ``(N, C)`` is a probability distribution: no entry below 0, their sum 1."""
    sums = b.sum(axis=1)
    return bool((b >= 0).all() and (np.abs(sums - 1) < _SUMS_TO_ONE).all())


def _divergences(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Row by row, ``(N,)``: KL(softmax(b) || softmax(a))."""
    log_a, log_b = _log_softmax(a), _log_softmax(b)
    return np.maximum((np.exp(log_b) * (log_b - log_a)).sum(axis=1), 0.0)


def _log_softmax(x: NDArray[Any]) -> NDArray[Any]:
    shifted = x - x.max(axis=1, keepdims=True) if x.size else x
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
