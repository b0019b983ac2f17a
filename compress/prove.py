"""Prove or decline: is a candidate faster on this machine, and as good as asked?

Everything is scored and timed on the bytes that would ship.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from ..benchmarks.comparison import Comparison, compare
from ..benchmarks.images import Batch, Images
from ..benchmarks.measurement import Preset
from ..benchmarks.running import Run, fixed_batch
from ..benchmarks.tasks import Score, Task
from ..export.graph import Graph
from ..runtime.engine import EngineOptions
from ..runtime.engines.onnxruntime import OnnxRuntimeEngine
from ..runtime.preprocessing import Preprocessing
from ..runtime.tensors import Arrays
from .material import Material
from .passes import Outcome, Progress
from .subject import batch_size, with_batch

DEFAULT_MAX_DROP = {"classification": 1.0, "agreement": 3.0}
"""Points that a score may drop by, where the user does not say."""

_LONGER = Preset("longer", 10.0, 662, 40.0, 4, 40.0)


@dataclass(frozen=True)
class Judge:
    """Scores and times candidates of one network.

    Attributes:
        graph: The float32 network.
        task: What "as good" means.
        preprocessing: How pictures reach it.
        example: One sample by input name; it tells the shapes that are free in the graph.
        progress: Told how far the work is.
    """

    graph: Graph
    task: Task
    preprocessing: Preprocessing | None
    example: Arrays
    progress: Progress

    @property
    def batch(self) -> int:
        """Samples that are scored at once."""
        return batch_size(self.example)

    def score(self, model: bytes, images: Images, what: str) -> Score:
        """The score of a model's bytes through the runtime, float32 being the reference.

        Args:
            model: What is judged.
            images: On these pictures.
            what: What is scored, for progress.
        """
        is_original = model == self.graph.model
        if self.task.name == "agreement" and is_original:
            return Score("agreement", 100.0, "percent", len(images), details={"reference": True})
        with ExitStack() as stack:
            run = engine_run(stack, model)
            reference = None if is_original else engine_run(stack, self.graph.model)
            return self.task.score(run, self._batches(images, f"scoring {what}"), reference)

    def compare(self, candidate: bytes) -> Comparison:
        """Candidate against float32, one thread, batch 1 (or the graph's own), interleaved.

        Where some seconds of each in fresh processes do not decide it, it is measured for longer,
        up to 40 seconds of each.
        """
        shapes: dict[str, Sequence[int]] = {}
        if any(isinstance(size, str) for spec in self.graph.inputs for size in spec.shape[1:]):
            row = with_batch(self.example, self.graph)
            shapes = {name: array.shape for name, array in row.items()}
        found = self._compared(candidate, shapes, "quick", "timing against float32")
        if found.settled or found.faster != "neither":
            return found
        return self._compared(candidate, shapes, _LONGER, "timing again, for longer")

    def _compared(
        self,
        candidate: bytes,
        shapes: Mapping[str, Sequence[int]],
        preset: str | Preset,
        stage: str,
    ) -> Comparison:
        return compare(
            candidate,
            self.graph.model,
            batch=next((s.batch for s in self.graph.inputs if s.batch is not None), 1),
            preset=preset,
            shapes=shapes,
            progress=lambda share: self.progress(stage, int(100 * share), 100),
        )

    def _batches(self, images: Images, stage: str) -> Callable[[], Iterator[Batch]]:
        def batches() -> Iterator[Batch]:
            done = 0
            for batch in images.batches(self.graph.inputs, self.preprocessing, self.batch):
                yield batch
                done += len(batch)
                self.progress(stage, done, len(images))

        return batches


def engine_run(stack: ExitStack, model: bytes) -> Run:
    """A model's bytes as a Run for batches of any size; the engine closes with ``stack``."""
    engine = stack.enter_context(OnnxRuntimeEngine(model, EngineOptions()))
    return fixed_batch(engine.run, engine.inputs)


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate ships, and why not.

    Attributes:
        accepted: Whether it ships.
        reasons: Why it does not; empty where it does.
    """

    accepted: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """A candidate, what was measured of it and what was decided.

    Attributes:
        outcome: The candidate.
        comparison: With float32; ``None`` where it is the float32 graph.
        selection: Its score on the selection pictures; ``None`` for a score of the user's own.
        test: Its score on the test pictures.
        verdict: What was decided.
    """

    outcome: Outcome
    comparison: Comparison | None
    selection: Score | None
    test: Score
    verdict: Verdict


def try_out(
    candidate: Outcome,
    judge: Judge,
    material: Material,
    original_test: Score,
    max_drop: float | None,
) -> Trial:
    """Score and time a candidate, and decide.

    Args:
        candidate: What a pass made.
        judge: Of the network.
        material: Pictures and task.
        original_test: The original's score on the test pictures.
        max_drop: Largest drop of the score; ``None`` for any.
    """
    model, precision = candidate.shipped.model, candidate.shipped.precision
    drops: dict[str, float] = {}
    selection = None
    if not material.own_score:
        part = material.split.selection
        original = judge.score(judge.graph.model, part, "float32 on the selection pictures")
        selection = judge.score(model, part, f"{precision} on the selection pictures")
        drops["selection"] = original.value - selection.value
    test = judge.score(model, material.test, f"{precision} on the test pictures")
    drops["test"] = original_test.value - test.value
    comparison = judge.compare(model) if candidate.changed else None
    return Trial(candidate, comparison, selection, test, decide(comparison, drops, max_drop))


def decide(
    comparison: Comparison | None, drops: Mapping[str, float], max_drop: float | None
) -> Verdict:
    """Whether a candidate ships. A pure function of what was measured.

    Args:
        comparison: Candidate (``a``) against float32 (``b``); ``None`` where nothing was changed.
        drops: Original's score less the candidate's, by the name of the pictures.
        max_drop: The largest drop allowed, in the unit of the score; ``None`` for any.
    """
    reasons: list[str] = []
    if comparison is None:
        reasons.append("no layer of this network can run in INT8 on this target")
    elif comparison.faster != "a":
        how = "slower" if comparison.faster == "b" else "not measurably faster"
        busy = "" if comparison.settled else "; it did not settle, the machine is busy"
        reasons.append(
            f"INT8 is {how} on this machine: {comparison.ratio:.2f}x the speed of float32 "
            f"(95 % interval {comparison.ratio_low:.2f} to {comparison.ratio_high:.2f}{busy})"
        )
    for where, drop in drops.items():
        if max_drop is not None and not drop <= max_drop:
            reasons.append(
                f"the score drops by {drop:.2f} on the {where} pictures, {max_drop:g} are allowed"
            )
    return Verdict(not reasons, tuple(reasons))
