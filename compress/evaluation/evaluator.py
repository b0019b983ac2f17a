"""The judge: what a candidate scores and how long it takes, on the bytes that would ship."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from ...benchmarks.data.batch_runner import Run, fixed_batch
from ...benchmarks.data.images import Batch, Images
from ...benchmarks.latency.comparison import Comparison, compare
from ...benchmarks.latency.measurement import Preset
from ...benchmarks.tasks.task import Score, Task
from ...export.graph.onnx_graph import Graph
from ...runtime.build_shapes import engine_options_for
from ...runtime.engine_registry import computes_in, open_engine
from ...runtime.engines.engine import PRECISION_WORDS, Precision
from ...runtime.pictures.preprocessing import Preprocessing
from ...runtime.progress import Progress
from ...runtime.tensors import Arrays
from ..source.source_network import batch_size, with_batch

_LONGER = Preset("longer", 10.0, 662, 40.0, 4, 40.0)


@dataclass(frozen=True)
class Evaluator:
    """Scores and times candidates of one network.

    Attributes:
        graph: The float32 network.
        task: What "as good" means.
        preprocessing: How pictures reach it.
        example: One sample by input name; it tells the shapes that are free in the graph.
        progress: Told how far the work is.
        engine: What runs everything that is judged.
        cache: Folder for engines that have to be built; ``None`` builds them anew each time.
        scored: Scores so far; nothing is scored twice on the same pictures.
        timed: Comparisons so far; nothing is timed twice against the same.
    """

    graph: Graph
    task: Task
    preprocessing: Preprocessing | None
    example: Arrays
    progress: Progress
    engine: str = "onnxruntime"
    cache: str | None = None
    scored: dict[tuple[bytes, int, str], tuple[Images, Score]] = field(
        default_factory=dict[tuple[bytes, int, str], tuple[Images, Score]], compare=False
    )
    timed: dict[tuple[bytes, str, bytes, str], Comparison] = field(
        default_factory=dict[tuple[bytes, str, bytes, str], Comparison], compare=False
    )

    @property
    def batch(self) -> int:
        """Samples that are scored at once."""
        return batch_size(self.example)

    def score(self, model: bytes, images: Images, what: str, precision: Precision = "f32") -> Score:
        """The score of a model's bytes through the runtime, float32 being the reference.

        Args:
            model: What is judged.
            images: On these pictures.
            what: What is scored, for progress.
            precision: What the engine computes its floats in.
        """
        is_original = model == self.graph.model and precision == "f32"
        if self.task.name == "agreement" and is_original:
            return Score("agreement", 100.0, "percent", len(images), details={"reference": True})
        key = (hashlib.sha256(model).digest(), id(images), precision)
        if key not in self.scored:
            with ExitStack() as stack:
                run = self._run(stack, model, precision)
                reference = None if is_original else self._run(stack, self.graph.model)
                found = self.task.score(run, self._batches(images, f"scoring {what}"), reference)
            self.scored[key] = (images, found)  # which keeps the pictures, and with them their id
        return self.scored[key][1]

    def rivals(self) -> tuple[Precision, ...]:
        """Other precisions than float32 that this engine computes a float32 graph in here."""
        return tuple(
            one for one in PRECISION_WORDS if one != "f32" and computes_in(self.engine, one)
        )

    def compare(
        self,
        candidate: bytes,
        precision: Precision = "f32",
        against: Precision = "f32",
        *,
        other: bytes | None = None,
    ) -> Comparison:
        """Candidate against the original, one thread, batch 1 (or the graph's own), interleaved.

        Where some seconds of each in fresh processes do not decide it, it is measured for longer,
        up to 40 seconds of each.

        Args:
            candidate: What is timed.
            precision: What the engine computes its floats in.
            against: What it computes the original's in.
            other: What stands in the original's place, of the same inputs.
        """
        other = self.graph.model if other is None else other
        one, two = (hashlib.sha256(model).digest() for model in (candidate, other))
        key = (one, precision, two, against)
        if key not in self.timed:
            self.timed[key] = self._timed(candidate, precision, other, against)
        return self.timed[key]

    def _timed(
        self, candidate: bytes, precision: Precision, other: bytes, against: Precision
    ) -> Comparison:
        shapes: dict[str, Sequence[int]] = {}
        if any(isinstance(size, str) for spec in self.graph.inputs for size in spec.shape[1:]):
            row = with_batch(self.example, self.graph)
            shapes = {name: array.shape for name, array in row.items()}

        def compared(preset: str | Preset, stage: str) -> Comparison:
            return compare(
                candidate,
                other,
                batch=next((s.batch for s in self.graph.inputs if s.batch is not None), 1),
                preset=preset,
                engine=self.engine,
                precision=precision,
                against_precision=against,
                shapes=shapes,
                cache=self.cache,
                progress=lambda share: self.progress(stage, int(100 * share), 100),
            )

        rival = PRECISION_WORDS[against] if other == self.graph.model else "another candidate"
        found = compared("quick", f"timing against {rival}")
        if found.settled or found.faster != "neither":
            return found
        return compared(_LONGER, "timing again, for longer")

    def _run(self, stack: ExitStack, model: bytes, precision: Precision = "f32") -> Run:
        """A model's bytes as a Run for batches of any size; the engine closes with ``stack``."""
        options = engine_options_for(
            self.engine, model, self.example, precision=precision, cache=self.cache
        )
        engine = stack.enter_context(open_engine(self.engine)(model, options))
        return fixed_batch(engine.run, engine.inputs)

    def _batches(self, images: Images, stage: str) -> Callable[[], Iterator[Batch]]:
        def batches() -> Iterator[Batch]:
            done = 0
            for batch in images.batches(self.graph.inputs, self.preprocessing, self.batch):
                yield batch
                done += len(batch)
                self.progress(stage, done, len(images))

        return batches
