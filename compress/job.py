"""The job: what the user handed over, opened and checked once, the same for every target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..export.graph.onnx_graph import Graph
from ..export.receipt import count_macs
from ..runtime.target import Target
from ..runtime.tensors import Arrays
from .distillation.distil_pass import StudentTraining
from .evaluation.evaluator import Evaluator
from .quantization.qat_pass import QatTraining
from .recipe.pass_context import Context, RangesCache
from .recipe.recipe import Recipe
from .source.backbone import Backbone
from .source.data_and_task import DataAndTask
from .source.source_network import SourceNetwork, fixed_batches, with_batch


@dataclass(frozen=True)
class Job:
    """What is the same for every target.

    Attributes:
        opened: What the user brought, open.
        source: That, captured.
        data_and_task: Pictures and task.
        recipe: What shall be done.
        example: One sample by input name.
        max_drop: Largest drop of the score, in points; ``None`` for any.
        seed: Of everything random.
        opset: Of exported graphs; an ONNX file's own.
        cache: Folder in which latencies of layers are kept, or ``None``.
        student_training: Who is trained, or ``None``.
        qat_training: Trains for INT8, or ``None``.
        ranges: What calibration saw so far.
    """

    opened: Backbone | Graph
    source: SourceNetwork
    data_and_task: DataAndTask
    recipe: Recipe
    example: Arrays
    max_drop: float | None
    seed: int
    opset: int
    cache: str | Path | None
    student_training: StudentTraining | None
    qat_training: QatTraining | None
    ranges: RangesCache

    def context(self, target: Target, graph: Graph, evaluator: Evaluator, here: bool) -> Context:
        """What a pass from ``graph`` for a target may look at."""
        split, preprocessing = self.data_and_task.split, self.source.preprocessing
        return Context(
            target=target,
            calibration=fixed_batches(graph, split.calibration, preprocessing),
            calibration_count=len(split.calibration),
            selection=fixed_batches(graph, split.selection, preprocessing),
            macs=count_macs(graph, with_batch(self.example, graph)),
            progress=evaluator.progress,
            device_here=here,
            seen=self.ranges,
            example=self.example,
            cache=evaluator.cache,
        )

    def settled(self, target: Target) -> dict[str, object]:
        """The recipe and all that it was run with."""
        split = self.data_and_task.split
        return {
            **self.recipe.to_dict(),
            "model": self.source.name,
            "weights_sha256": self.source.weights_sha256,
            "target": target.name,
            "task": self.data_and_task.task.name,
            "max_drop": self.max_drop,
            "calibration_size": len(split.calibration),
            "selection_size": len(split.selection),
            **({} if self.student_training is None else self.student_training.to_dict()),
            "seed": self.seed,
            "opset": self.opset,
        }
