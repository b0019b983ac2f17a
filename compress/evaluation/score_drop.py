"""Drops: how many points of the score something loses on the pictures that choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ...benchmarks.tasks.task import Score
from ...export.graph.onnx_graph import Graph
from ...runtime.engines.engine import Precision
from ..source.data_and_task import DataAndTask
from .acceptance import EvaluatedCandidate
from .evaluator import Evaluator

DropOf: TypeAlias = Callable[[bytes], float]
"""How many points of the score a model's bytes lose on pictures that choose."""


def score_drop(
    evaluator: Evaluator, data_and_task: DataAndTask, original: Score, floats: Precision
) -> DropOf:
    """What a model's bytes lose when their floats are computed in ``floats``.

    Those of the original are computed in float32.

    Args:
        evaluator: Of the original, on the target's engine.
        data_and_task: Pictures and task.
        original: The original's score on the test pictures.
        floats: What floats are computed in.
    """

    def drop(model: bytes) -> float:
        part = data_and_task.split.selection
        if data_and_task.own_score:  # it brings its own samples: nothing else can choose
            before, part = original, data_and_task.test
        else:
            before = evaluator.score(evaluator.graph.model, part, "float32 on the selection")
        found = evaluator.score(model, part, "a candidate on the selection", floats)
        return before.value - found.value

    return drop


@dataclass(frozen=True)
class ScoreDrops:
    """What a network loses when it is quantized, apart from what it had lost before.

    Attributes:
        judged: How many points a model's bytes lose, as far as that is held against them: not what
            a student loses on pictures that the original knows by heart.
        before: What of it the network that is quantized loses in float32.
    """

    judged: DropOf
    before: float

    @staticmethod
    def of(
        dropping: Callable[[Precision], DropOf],
        graph: Graph,
        best: EvaluatedCandidate | None,
        floats: Precision,
    ) -> ScoreDrops:
        """Drops of what is made of a graph.

        Args:
            dropping: Gives what a model's bytes lose when it is computed in a precision.
            graph: What is quantized.
            best: What would ship so far.
            floats: What is float beside INT8 is computed in.
        """
        lost, drop = dropping("f32")(graph.model), dropping(floats)
        if best is None or best.seen is None:
            return ScoreDrops(drop, lost)
        return ScoreDrops(lambda model: drop(model) - lost, 0.0)
