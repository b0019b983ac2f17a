"""The user's own loader against the runtime's preprocessing, on the same pictures.

Wrong preprocessing is the commonest silent error, so the original is scored both ways.
"""

from __future__ import annotations

import numpy as np

from ...benchmarks.data.images import Images
from ...benchmarks.tasks.task import Score
from ...runtime.errors import InputError
from ...runtime.tensors import Arrays
from ..source.data_and_task import DataAndTask
from ..source.source_network import SourceNetwork
from .evaluator import Evaluator

_POINTS = 0.1
_PICTURES = 16
_RELATIVE = 1e-2


def check_loader(
    source: SourceNetwork,
    data_and_task: DataAndTask,
    evaluator: Evaluator,
    loader: Images,
    through_runtime: Score,
) -> None:
    """Compare what the user's loader and the runtime's preprocessing make of the same pictures.

    Args:
        source: The network; it is scored in torch on the loader's tensors.
        data_and_task: The test pictures, as the runtime reads them, and the task.
        evaluator: Of the network.
        loader: The user's loader over the same pictures in the same order.
        through_runtime: The original's score on the test pictures through the runtime.

    Raises:
        InputError: ``E_PREPROCESSING_DIFFERS`` where scores differ by more than 0.1 points (or by
            more than one picture, if that is more), or for tasks without labels where the tensors
            of the first pictures differ; ``E_USAGE`` where there is nothing to compare (an ONNX
            file has no torch original, lengths or labels that differ).
    """
    test = data_and_task.test
    if source.original is None:
        raise InputError(
            "E_USAGE",
            "an ONNX file has no original in torch to run your loader through.",
            mend="Leave the loader out.",
        )
    if len(loader) != len(test) or _other_labels(loader, test):
        what = "other labels" if len(loader) == len(test) else f"{len(loader)} pictures"
        raise InputError(
            "E_USAGE",
            f"your loader gives {what}, the test data has {len(test)} pictures of its own.",
            mend="Both must show the same pictures in the same order; "
            "a training loader shuffles and drops.",
        )
    inputs = source.graph.inputs
    theirs = next(iter(loader.batches(inputs, None, _PICTURES))).inputs
    ours = next(iter(test.batches(inputs, source.preprocessing, _PICTURES))).inputs
    apart = _largest_difference(ours, theirs)
    if data_and_task.task.needs_labels:
        own = data_and_task.task.score(
            source.original, lambda: loader.batches(inputs, None, evaluator.batch), None
        )
        if abs(own.value - through_runtime.value) <= max(_POINTS, 100 / len(test) + 1e-9):
            return
        told = f"{own.value:.2f} through your loader, {through_runtime.value:.2f} through the "
        told += "runtime's preprocessing"
    elif apart <= _RELATIVE * max(float(np.abs(array).max()) for array in ours.values()):
        return
    else:
        told = "its input tensors differ"
    raise InputError(
        "E_PREPROCESSING_DIFFERS",
        f"the original does not see the same pictures both ways: {told} (tensors of the first "
        f"pictures differ by up to {apart:.3g}).",
        mend="Make the preprocessing equal to your loader's: size, crop, interpolation, channel "
        "order, mean, std.",
    )


def _other_labels(loader: Images, test: Images) -> bool:
    mine, theirs = loader.labels, test.labels
    return mine is not None and theirs is not None and not np.array_equal(mine, theirs)


def _largest_difference(ours: Arrays, theirs: Arrays) -> float:
    """Of any value of any input; infinite where shapes differ."""
    return max(
        float(np.abs(theirs[name].astype(np.float64) - array).max(initial=0.0))
        if theirs[name].shape == array.shape
        else float("inf")
        for name, array in ours.items()
    )
