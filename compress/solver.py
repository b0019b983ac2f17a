"""Integer programs: the only file that imports scipy."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import EngineError, MissingExtraError


def minimize(
    cost: NDArray[np.float64],
    rows: Sequence[tuple[Mapping[int, float], float, float]],
    *,
    seconds: float,
    gap: float,
) -> NDArray[np.float64]:
    """The binary vector with the least cost, by HiGHS.

    Args:
        cost: ``(n,)``, one entry for each binary variable.
        rows: Constraints: coefficients by variable, lower and upper bound of their sum.
        seconds: After which the best that was found is taken.
        gap: Relative distance to the best possible cost that is good enough.

    Returns:
        ``(n,)``, zeros and ones.

    Raises:
        MissingExtraError: Where scipy is not installed.
        EngineError: ``E_SOLVER`` where no solution was found in that time.
    """
    try:
        optimize: Any = importlib.import_module("scipy.optimize")
        sparse: Any = importlib.import_module("scipy.sparse")
    except ModuleNotFoundError as error:
        raise MissingExtraError("scipy", "compress", "deciding on precision") from error
    entries = [(i, j, value) for i, (row, _, _) in enumerate(rows) for j, value in row.items()]
    constraints: Any = ()
    if entries:
        at, of, values = (np.array(part) for part in zip(*entries, strict=True))
        matrix: Any = sparse.csr_matrix((values, (at, of)), shape=(len(rows), len(cost)))
        low, high = (np.array([row[i] for row in rows], np.float64) for i in (1, 2))
        constraints = optimize.LinearConstraint(matrix, low, high)
    found: Any = optimize.milp(
        cost,
        integrality=np.ones(len(cost)),
        bounds=optimize.Bounds(0, 1),
        constraints=constraints,
        options={"time_limit": seconds, "mip_rel_gap": gap},
    )
    if found.x is None:
        raise EngineError("E_SOLVER", f"no precision plan was found: {found.message}")
    return np.rint(np.asarray(found.x, np.float64))
