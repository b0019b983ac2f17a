"""Agreement: how close a run is to a reference; needs no labels."""

from __future__ import annotations

from dataclasses import dataclass

from ...runtime.errors import InputError
from ..data.batch_runner import Run
from ..data.sources import data_error
from .agreement import Agreements
from .task import Batches, Score


@dataclass(frozen=True)
class Agreement:
    """Closeness to a reference: 100 times the smallest mean cosine over the outputs.

    An output of probabilities, rows ``(N, C)`` that sum to 1, must also choose the same: of it the
    share of equal first places counts, where that is the smaller number.
    """

    name: str = "agreement"
    needs_labels: bool = False

    def score(self, run: Run, batches: Batches, reference: Run | None = None) -> Score:
        """Compare ``run`` with ``reference`` on the same batches.

        Returns:
            The value in percent; ``details["outputs"]`` has for each output the mean and smallest
            cosine of a sample, the largest difference, the signal-to-noise ratio, and for ``(N,
            C)`` outputs how often the largest entry is the same.

        Raises:
            InputError: ``E_TASK`` without a reference, or where outputs cannot be compared;
                ``E_DATA`` for no samples.
        """
        if reference is None:
            raise InputError(
                "E_TASK",
                "agreement needs a reference to agree with.",
                mend="Give the original network, or use the task classification with labelled data",
            )
        agreements = Agreements()
        count = 0
        for batch in batches():
            agreements.add(run(batch.inputs), reference(batch.inputs), len(batch))
            count += len(batch)
        if not count or not agreements.outputs:
            raise data_error("there are no samples, or no outputs, to compare.")
        value = 100 * min(entry.closeness for entry in agreements.outputs.values())
        details: dict[str, object] = {"outputs": agreements.to_dict()}
        return Score(self.name, value, "percent", count, details=details)
