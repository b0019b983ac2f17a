"""Integer programs and fits that may not go below zero: the only file that imports scipy."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import MissingExtraError


def solve_milp(
    cost: NDArray[np.float64],
    rows: Sequence[tuple[Mapping[int, float], float, float]],
    *,
    seconds: float,
    gap: float,
    integral: Sequence[int] | None = None,
    upper: Sequence[float] | None = None,
) -> NDArray[np.float64] | None:
    """The vector between 0 and 1 with the least cost, by HiGHS.

    Args:
        cost: ``(n,)``, one entry for each variable.
        rows: Constraints: coefficients by variable, lower and upper bound of their sum.
        seconds: After which the best that was found is taken.
        gap: Relative distance to the best possible cost that is good enough.
        integral: ``(n,)``, 1 for a variable that is 0 or 1, 0 for any number between; all are
            whole without it.
        upper: ``(n,)``, the largest value of each; 1 without it.

    Returns:
        ``(n,)``, whole numbers to within the solver's tolerance; ``None`` where none was found in
        that time.

    Raises:
        MissingExtraError: Where scipy is not installed.
    """
    optimize, sparse = _scipy("optimize"), _scipy("sparse")
    entries = [(i, j, value) for i, (row, _, _) in enumerate(rows) for j, value in row.items()]
    constraints: Any = ()
    if entries:
        at, of, values = (np.array(part) for part in zip(*entries, strict=True))
        matrix: Any = sparse.csr_matrix((values, (at, of)), shape=(len(rows), len(cost)))
        low, high = (np.array([row[i] for row in rows], np.float64) for i in (1, 2))
        constraints = optimize.LinearConstraint(matrix, low, high)
    found: Any = optimize.milp(
        cost,
        integrality=np.ones(len(cost)) if integral is None else np.array(integral),
        bounds=optimize.Bounds(0.0, 1.0 if upper is None else np.array(upper)),
        constraints=constraints,
        options={"time_limit": seconds, "mip_rel_gap": gap},
    )
    return None if found.x is None else np.asarray(found.x, np.float64)


def fit_nonnegative(rows: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector, nowhere negative, whose products with ``rows`` are nearest to ``wanted``.

    Args:
        rows: ``(m, n)``.
        wanted: ``(m,)``.

    Returns:
        ``(n,)``, by least squares.

    Raises:
        MissingExtraError: Where scipy is not installed.
    """
    return np.asarray(_scipy("optimize").nnls(rows, wanted)[0], np.float64)


def _scipy(part: str) -> Any:
    try:
        return importlib.import_module(f"scipy.{part}")
    except ModuleNotFoundError as error:
        raise MissingExtraError("scipy", "compress", "choosing what to cut or quantize") from error
