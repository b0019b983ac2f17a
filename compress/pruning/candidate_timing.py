"""Networks as narrow as a choice makes them, exported and timed as they would ship."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from ...export.calibration.ranges import calibrate
from ...export.graph.torch_capture import capture
from ...export.int8.dialect import dialect
from ...export.int8.int8_plan import plan_int8
from ...export.int8.qdq_writer import write_qdq
from ...runtime.progress import Progress
from ...runtime.target import Target
from ...runtime.tensors import Arrays
from ..channels.channel_groups import Structure, cut_step_of
from ..channels.cut_history import CutStep, apply_cut_step
from .importance import Scores
from .latency_table import time_models
from .layer_costs import Widths


def cut_step_by(structure: Structure, scores: Scores | None, choice: Widths) -> CutStep:
    """The step that takes the weakest atoms of each group and the blocks of a choice out.

    Args:
        structure: The network's groups and blocks.
        scores: What the atoms are worth; ``None`` where only shapes matter.
        choice: How narrow it shall be.
    """
    removed = {
        group: group.weakest([0.0] * group.width if scores is None else list(scores[number]), kept)
        for number, (group, kept) in enumerate(zip(structure.groups, choice.kept, strict=True))
        if kept < group.width
    }
    pairs = zip(structure.blocks, choice.skipped, strict=True)
    return cut_step_of(removed, [block.name for block, gone in pairs if gone])


@dataclass
class CandidateTimer:
    """Times choices on the target; a call gives latencies as shares of the whole network's.

    The weights do not matter to the time, and INT8 is written with ranges of the example alone.

    Attributes:
        module: The network in evaluation mode; it is left as it is.
        structure: Its groups and blocks.
        example: Inputs by name, batch 2 or more.
        target: What it shall run on.
        precision: What will ship.
        progress: Told how far the work is.
    """

    module: nn.Module
    structure: Structure
    example: Arrays
    target: Target
    precision: str
    progress: Progress
    _whole: bytes | None = field(default=None, init=False)

    def __call__(self, choices: Sequence[Widths]) -> list[float]:
        """Export and time them, in turns with the whole network."""
        if self._whole is None:
            self._whole = self._model(None)
        models = [self._whole]
        for number, choice in enumerate(choices):
            self.progress("exporting networks to time", number, len(choices))
            models.append(self._model(choice))
        self.progress("timing whole networks", 0, None)
        row = {name: array[:1] for name, array in self.example.items()}
        whole, *others = time_models(models, self.target, row)
        return [one / whole for one in others]

    def _model(self, choice: Widths | None) -> bytes:
        module = self.module
        if choice is not None:
            module = copy.deepcopy(module)
            apply_cut_step(module, cut_step_by(self.structure, None, choice))
        graph = capture(module, self.example)
        if self.precision != "int8":
            return graph.model
        speech = dialect(self.target.dialect)
        ranges = calibrate(graph, lambda _: [self.example], method="minmax")
        return write_qdq(graph, ranges, plan_int8(graph, ranges, speech), speech).model
