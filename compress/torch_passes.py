"""The passes that work on torch modules: each runs once, whatever the number of targets."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..runtime.target import Target
from .distillation.distil_pass import TrainedStudent
from .job import Job
from .pruning.prune_pass import PruneResult, precision_after, prune_pass
from .recipe.pass_context import Context
from .recipe.settings import Distil, Prune


@dataclass(frozen=True)
class TorchPassResult:
    """What a pass on torch modules gave, for every target alike.

    Attributes:
        report: What the recipe in the bundle says of it.
        made: The network; ``None`` where it is judged when it has been trained.
        settings: Of the pass.
        made_on: The target that it was made on.
    """

    report: dict[str, object]
    made: PruneResult | TrainedStudent | None
    settings: Prune | Distil
    made_on: Target

    def notes_for(self, target: Target) -> list[str]:
        """Remarks for people who look at what ships for a target."""
        told = list(self.made.notes) if isinstance(self.made, TrainedStudent) else []
        narrow = isinstance(self.settings, Prune) and self.settings.max_latency_ratio
        if narrow and target != self.made_on:
            told.append(
                f"the network was pruned for its latency on {self.made_on.name}; for {target.name} "
                "the same network was tried, not pruned anew."
            )
        return told


class TorchPasses:
    """Runs the passes that work on torch modules: each once, whatever the number of targets.

    Args:
        job: What is the same for every target.
    """

    def __init__(self, job: Job) -> None:
        self._work = job
        self._steps: dict[int, TorchPassResult] = {}

    def step(self, number: int, settings: Prune | Distil, context: Context) -> TorchPassResult:
        """What the pass gives.

        Args:
            number: Its place in the recipe.
            settings: Its settings.
            context: Of the original on the target that comes first: latencies are its own.
        """
        if number not in self._steps:
            report, made = self._made(number, settings, context)
            self._steps[number] = TorchPassResult(report, made, settings, context.target)
        return self._steps[number]

    def _made(
        self, number: int, settings: Prune | Distil, context: Context
    ) -> tuple[dict[str, object], PruneResult | TrainedStudent | None]:
        job = self._work
        student_training = job.student_training
        if isinstance(settings, Distil):
            assert student_training is not None
            trained_student = student_training.learn(job.source, job.opset, context.progress)
            return trained_student.report, trained_student
        precision = precision_after(job.recipe.passes, number)
        asked = {"precision": precision, "target": context.target.name, "seed": job.seed}
        asked |= asdict(settings)
        before = None if student_training is None else student_training.cut_before(asked)
        if student_training is not None and before is not None:
            return student_training.take(before, asked), None
        cut = prune_pass(
            job.opened,
            job.source,
            job.data_and_task.split.calibration,
            settings,
            precision,
            context,
            task=job.data_and_task.task.name,
            seed=job.seed,
            opset=job.opset,
            cache=job.cache,
        )
        if student_training is not None:
            return student_training.take(cut.pruned, asked), None
        return cut.report, cut
