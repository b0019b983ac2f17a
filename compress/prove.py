"""Prove or decline: is a candidate faster on this machine, and as good as asked?

Everything is scored and timed on the bytes that would ship.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from ..benchmarks.comparison import Comparison, compare
from ..benchmarks.images import Batch, Images
from ..benchmarks.measurement import Preset
from ..benchmarks.running import Run, fixed_batch
from ..benchmarks.tasks import Score, Task
from ..export.graph import Graph
from ..runtime.engine import EngineOptions, Precision
from ..runtime.engines import open_engine
from ..runtime.engines.openvino import has_bf16
from ..runtime.preprocessing import Preprocessing
from ..runtime.tensors import Arrays
from .material import Material
from .passes import Outcome, Progress
from .subject import batch_size, with_batch

WORDS: dict[Precision, str] = {"f32": "float32", "bf16": "bfloat16"}
"""What people call the precisions."""

DEFAULT_MAX_DROP = {
    "classification": 1.0,
    "retrieval": 1.0,
    "verification": 1.0,
    "agreement": 3.0,
}
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
        engine: What runs everything that is judged.
        cache: Folder for engines that have to be built; ``None`` builds them anew each time.
        scored: Scores so far; nothing is scored twice on the same pictures.
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
        """Other precisions than float32 that this engine runs the untouched graph in here."""
        return ("bf16",) if self.engine == "openvino" and has_bf16() else ()

    def compare(
        self, candidate: bytes, precision: Precision = "f32", against: Precision = "f32"
    ) -> Comparison:
        """Candidate against the original, one thread, batch 1 (or the graph's own), interleaved.

        Where some seconds of each in fresh processes do not decide it, it is measured for longer,
        up to 40 seconds of each.

        Args:
            candidate: What is timed.
            precision: What the engine computes its floats in.
            against: What it computes the original's in.
        """
        shapes: dict[str, Sequence[int]] = {}
        if any(isinstance(size, str) for spec in self.graph.inputs for size in spec.shape[1:]):
            row = with_batch(self.example, self.graph)
            shapes = {name: array.shape for name, array in row.items()}

        def compared(preset: str | Preset, stage: str) -> Comparison:
            return compare(
                candidate,
                self.graph.model,
                batch=next((s.batch for s in self.graph.inputs if s.batch is not None), 1),
                preset=preset,
                engine=self.engine,
                precision=precision,
                against_precision=against,
                shapes=shapes,
                cache=self.cache,
                progress=lambda share: self.progress(stage, int(100 * share), 100),
            )

        found = compared("quick", f"timing against {WORDS[against]}")
        if found.settled or found.faster != "neither":
            return found
        return compared(_LONGER, "timing again, for longer")

    def _run(self, stack: ExitStack, model: bytes, precision: Precision = "f32") -> Run:
        """A model's bytes as a Run for batches of any size; the engine closes with ``stack``."""
        options = EngineOptions(precision=precision, cache=self.cache)
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
class Rival:
    """Another way to run the untouched network on the target.

    Attributes:
        precision: What it computes in.
        drops: Original's score less its own, by the name of the pictures.
        keeps: Whether those are within the bound; what does not keep the score is no way to run it.
        comparison: The candidate (``a``) against it (``b``); ``None`` where it does not keep the
            score, or there is no candidate to time.
        over_float32: It (``a``) against float32 (``b``); measured where the candidate is declined
            already, which leaves open which of the two is best.
    """

    precision: Precision
    drops: Mapping[str, float]
    keeps: bool
    comparison: Comparison | None
    over_float32: Comparison | None = None

    @property
    def is_best(self) -> bool:
        """Whether it keeps the score and neither the candidate nor float32 is faster."""
        if self.over_float32 is not None:
            return self.keeps and self.over_float32.faster == "a"
        return self.keeps and self.comparison is not None and self.comparison.faster != "a"


@dataclass(frozen=True)
class Trial:
    """A candidate, what was measured of it and what was decided.

    Attributes:
        outcome: The candidate.
        comparison: With float32; ``None`` where it is the float32 graph.
        selection: Its score on the selection pictures; ``None`` for a score of the user's own.
        test: Its score on the test pictures.
        verdict: What was decided.
        rivals: Other ways to run the untouched network, which the candidate had to beat as well.
        seen: The original's score on the selection pictures where it was trained on them, so that
            a drop there says nothing of a student; else ``None``.
    """

    outcome: Outcome
    comparison: Comparison | None
    selection: Score | None
    test: Score
    verdict: Verdict
    rivals: tuple[Rival, ...] = ()
    seen: Score | None = None


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
    shipped = candidate.shipped
    original_selection = None
    if not material.own_score:
        part = material.split.selection
        original_selection = judge.score(judge.graph.model, part, "float32 on the selection")
    seen = candidate.trained and has_seen(original_selection, original_test)
    told = original_selection if seen else None
    known = _Known(judge, material, original_selection, original_test, seen)
    if shipped.emulated is not None:  # its device is not here: what it scores, and no time
        selection, test, drops = known.scores(shipped.emulated, shipped.precision)
        verdict = decide_score(drops, max_drop)
        if not candidate.changed:
            verdict = decide(None, drops, max_drop)
        return Trial(candidate, None, selection, test, verdict, seen=told)
    selection, test, drops = known.scores(shipped.model, shipped.precision)
    comparison = judge.compare(shipped.model) if candidate.changed else None
    so_far = decide(comparison, drops, max_drop, name=candidate.name)
    rivals = tuple(
        _rival(precision, known, max_drop, candidate, so_far) for precision in judge.rivals()
    )
    verdict = decide(comparison, drops, max_drop, rivals, name=candidate.name)
    return Trial(candidate, comparison, selection, test, verdict, rivals, told)


def has_seen(selection: Score | None, test: Score) -> bool:
    """Whether the original scores clearly better on the selection than on the test pictures.

    Then it was trained on them, and what it knows of those by heart no student can.
    """
    if selection is None or selection.low is None or test.high is None:
        return False
    return selection.low > test.high


@dataclass(frozen=True)
class _Known:
    """The original's scores, which others are held against."""

    judge: Judge
    material: Material
    selection: Score | None
    test: Score
    seen: bool = False

    def scores(
        self, model: bytes, name: str, precision: Precision = "f32"
    ) -> tuple[Score | None, Score, dict[str, float]]:
        """Scores on the selection and on the test pictures, and how far they are below."""
        drops: dict[str, float] = {}
        selection = None
        if self.selection is not None:
            part = self.material.split.selection
            what = f"{name} on the selection pictures"
            selection = self.judge.score(model, part, what, precision)
            if not self.seen:
                drops["selection"] = self.selection.value - selection.value
        what = f"{name} on the test pictures"
        test = self.judge.score(model, self.material.test, what, precision)
        drops["test"] = self.test.value - test.value
        return selection, test, drops


def _rival(
    precision: Precision,
    known: _Known,
    max_drop: float | None,
    candidate: Outcome,
    so_far: Verdict,
) -> Rival:
    judge = known.judge
    _, _, drops = known.scores(judge.graph.model, WORDS[precision], precision)
    keeps = max_drop is None or all(drop <= max_drop for drop in drops.values())
    against = over_float32 = None
    if keeps and candidate.changed:
        against = judge.compare(candidate.shipped.model, against=precision)
    if keeps and not so_far.accepted:
        over_float32 = judge.compare(judge.graph.model, precision=precision)
    return Rival(precision, drops, keeps, against, over_float32)


def decide(
    comparison: Comparison | None,
    drops: Mapping[str, float],
    max_drop: float | None,
    rivals: Sequence[Rival] = (),
    name: str = "INT8",
) -> Verdict:
    """Whether a candidate ships. A pure function of what was measured.

    Args:
        comparison: Candidate (``a``) against float32 (``b``); ``None`` where nothing was changed.
        drops: Original's score less the candidate's, by the name of the pictures.
        max_drop: The largest drop allowed, in the unit of the score; ``None`` for any.
        rivals: Other ways to run the untouched network; the candidate must be faster than each that
            keeps the score.
        name: What the candidate is called.
    """
    reasons: list[str] = []
    if comparison is None:
        reasons.append("no layer of this network can run in INT8 on this target")
    else:
        held: list[tuple[str, Comparison]] = [("float32", comparison)]
        held += [(WORDS[one.precision], one.comparison) for one in rivals if one.comparison]
        reasons += [_slower(name, other, one) for other, one in held if one.faster != "a"]
    reasons += decide_score(drops, max_drop).reasons
    return Verdict(not reasons, tuple(reasons))


def decide_score(drops: Mapping[str, float], max_drop: float | None) -> Verdict:
    """Whether a candidate's score will do; arguments as for :func:`decide`."""
    reasons = tuple(
        f"the score drops by {drop:.2f} on the {where} pictures, {max_drop:g} are allowed"
        for where, drop in drops.items()
        if max_drop is not None and not drop <= max_drop
    )
    return Verdict(not reasons, reasons)


def _slower(name: str, other: str, found: Comparison) -> str:
    how = "slower" if found.faster == "b" else "not measurably faster"
    busy = "" if found.settled else "; it did not settle, the machine is busy"
    return (
        f"{name} is {how} on this machine: {found.ratio:.2f}x the speed of {other} "
        f"(95 % interval {found.ratio_low:.2f} to {found.ratio_high:.2f}{busy})"
    )


def forgotten(trial: Trial, original: Score) -> list[str]:
    """In words, why a student's drop on the selection pictures is not held against it."""
    if trial.seen is None:
        return []
    return [
        f"the original scores {trial.seen.value:.2f} on the selection pictures and "
        f"{original.value:.2f} on the test pictures: it was trained on the former, so that only "
        "the latter judge the student."
    ]


def is_faster(trial: Trial, before: Trial | None) -> bool:
    """Whether a candidate's measured speed over the original is higher than another's."""
    if before is None or before.comparison is None:
        return True
    return trial.comparison is not None and trial.comparison.ratio > before.comparison.ratio


def best_rival(trial: Trial) -> str | None:
    """In words, the untouched network in another precision that is the best way to run it here."""
    for rival in trial.rivals:
        if rival.is_best and not trial.verdict.accepted:
            name, found = WORDS[rival.precision], rival.over_float32
            gain = f"{found.ratio:.2f}x the speed of float32, " if found else ""
            lost = max(rival.drops.values(), default=0.0)
            return (
                f"the float32 network computed in {name} is the best that was found for this "
                f"processor: {gain}its score at most {max(lost, 0.0):.2f} lower. The bundle runs "
                f"in float32; EngineOptions(precision='{rival.precision}') runs its model so."
            )
    return None
