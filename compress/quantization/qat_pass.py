"""The pass ``qat``: where post-training INT8 loses too much, training goes on with its rounding."""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ...export.graph.onnx_graph import Graph
from ...export.graph.torch_capture import tensors_from
from ...export.int8.dialect import dialect
from ...export.int8.qdq_writer import write_qdq
from ...export.sensitivity.measure import Int8Network
from ...runtime.errors import InputError
from ...runtime.tensors import Arrays
from ..channels.cut_history import Pruned
from ..distillation.training_driver import TrainingDriver
from ..distillation.user_finetune import Finetune, student_graph
from ..evaluation.acceptance import EvaluatedCandidate, Verdict
from ..evaluation.score_drop import DropOf
from ..recipe.pass_context import Context, Outcome
from ..recipe.recipe import Recipe
from ..recipe.settings import Distil, Int8, Qat
from ..recipe.target_availability import TargetAvailability
from ..source.backbone import Backbone
from ..source.data_and_task import DataAndTask
from ..source.source_network import SourceNetwork, first_rows, torch_network
from ..training.processes import several
from ..training.setup import picture_count_remarks
from .fake_quantize_ranges import initialize_steps, learned_ranges, tensors_of_quantizers
from .int8_pass import finish_int8, prepare_int8
from .mixed_precision import mix_precisions
from .nncf_quantizers import check_installed, plain_weights, with_quantizers

_PLACING_PICTURES = 16
_MATCHING_PICTURES = 2
_AS_FAST = 0.95  # what times taken some minutes apart differ by


@dataclass(frozen=True)
class QatResult:
    """What the pass gives to the next step.

    Attributes:
        outcome: What might ship.
        graph: The trained network's float32 graph.
        pruned: The trained network, with what pruning did to it before.
        notes: Remarks for people.
    """

    outcome: Outcome
    graph: Graph
    pruned: Pruned
    notes: tuple[str, ...]


@dataclass(frozen=True)
class QatTraining(TrainingDriver):
    """Trains a network for INT8.

    Attributes:
        tolerated: Points that INT8 may lose without any training.
        original: Whether it is the original that is trained, whole or pruned.
    """

    tolerated: float
    original: bool

    @staticmethod
    def of(
        recipe: Recipe,
        finetune: Finetune | None,
        out: Path,
        resume: bool,
        seed: int,
        *,
        student: bool = False,
    ) -> QatTraining | None:
        """What the recipe's pass ``qat`` needs; ``None`` where it has none.

        Raises:
            InputError: ``E_USAGE`` in several processes, or for a student where the recipe has
                none; ``E_EXISTS`` as
                :meth:`~edgepress.compress.distillation.training_driver.TrainingDriver.check_begun`.
            MissingExtraError: Where NNCF is not installed.
        """
        settings = next((one for one in recipe.passes if isinstance(one, Qat)), None)
        if settings is None:
            return None
        original = all(one.kind != Distil.kind for one in recipe.passes)
        if original and student:
            raise InputError(
                "E_USAGE",
                f"the recipe '{recipe.name}' trains the original itself, and a student was given.",
                mend="Leave the student out, or take the recipe distil-int8-qat.",
            )
        check_installed()
        if several():
            raise InputError(
                "E_USAGE",
                "quantization-aware training runs in one process, and torchrun started several.",
                mend="Start it without torchrun; recipes without qat train in several.",
            )
        folder = out.with_name(f"{out.name}.training") / "qat"
        qat_training = QatTraining(
            settings, finetune, folder, resume, seed, settings.tolerated, original
        )
        qat_training.check_begun()
        return qat_training

    def check_places(self, places: Sequence[TargetAvailability]) -> None:
        """See that it is asked for one target: what is trained is that target's own rounding.

        Raises:
            InputError: ``E_USAGE`` for several.
        """
        if len(places) > 1:
            names = ", ".join(place.target.name for place in places)
            raise InputError(
                "E_USAGE",
                f"quantization-aware training is for one target; given were {names}.",
                mend="Make a bundle for each, and join them with edgepress combine.",
            )

    def check(
        self, opened: Backbone | Graph, data_and_task: DataAndTask, example: Arrays, to: str
    ) -> None:
        """See, before the long work, that there is something to train, and enough to train on.

        Args:
            opened: The original.
            data_and_task: Pictures and task.
            example: One sample by input name.
            to: Name of the dialect.

        Raises:
            InputError: ``E_DATA`` for too few pictures; ``E_QUANTIZERS`` for a network that NNCF
                cannot follow.
        """
        if self.finetune is None:
            pictures = data_and_task.split.training
            picture_count_remarks(0 if pictures is None else len(pictures))
        if self.original:
            network = torch_network(opened)
            with_quantizers(network.module, [tensors_from(example)], dialect(to), network.name)

    def not_needed(
        self, plain: EvaluatedCandidate, drop: DropOf, max_drop: float | None, before: float = 0.0
    ) -> str | None:
        """Why nothing is to be trained, or ``None``.

        Args:
            plain: Post-training INT8 of the same network.
            drop: What a model's bytes lose.
            max_drop: Largest drop of the score; ``None`` for any.
            before: What the network loses in float32, which is not the loss of INT8.
        """
        if not plain.outcome.changed:
            return "no layer of this network can run in INT8 on this target"
        if plain.comparison is not None and plain.comparison.faster != "a":
            return "INT8 is not faster than float32 on this machine, which no training changes"
        bound, lost = self.tolerated, drop(_scored(plain.outcome)) - before
        if max_drop is not None:
            bound = min(bound, max_drop - before if 0 < before <= max_drop else max_drop)
        if lost > bound:
            return None
        return (
            f"post-training INT8 loses {max(lost, 0.0):.2f} points on the pictures that choose, "
            f"{bound:g} are tolerated"
        )

    def tune(
        self,
        start: Backbone,
        teacher: Backbone,
        original: SourceNetwork,
        data_and_task: DataAndTask,
        graph: Graph,
        int8: Int8,
        context: Context,
        again: Callable[[Graph], Context],
        drop: DropOf,
        max_drop: float | None,
        opset: int,
    ) -> QatResult:
        """Train a network with the rounding of INT8 in it, and write what comes out in INT8.

        What it does: quantizers go where NNCF finds that they belong, beginning with the ranges
        that calibration chose; weights and ranges are trained to give what the original gives,
        without any rounding, as :func:`~edgepress.compress.training.train.distil` does; the float32
        weights that come out are captured and written in the target's dialect, once with the
        learned ranges, once calibrated anew with biases corrected. The better on the selection
        pictures stays.
        When it is exact: never.
        When it refuses: see below.
        Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", 2018, section 3; see also
        :mod:`edgepress.compress.quantization.fake_quantize`.

        Args:
            start: The network to train on.
            teacher: The original.
            original: It, captured.
            data_and_task: Pictures and task.
            graph: The network to train on, captured.
            int8: Settings of the pass before.
            context: Of that pass.
            again: The same for another graph.
            drop: What a model's bytes lose on pictures that choose.
            max_drop: Largest drop of the score; ``None`` for any.
            opset: Of the exported graph.

        Raises:
            InputError: As :func:`~edgepress.compress.quantization.nncf_quantizers.with_quantizers`,
                :func:`~edgepress.compress.training.train.distil` and
                :func:`~edgepress.compress.distillation.user_finetune.run_finetune`.
        """
        images, how = data_and_task.split.calibration, original.preprocessing
        context.progress("placing quantizers", 0, None)
        whole = prepare_int8(graph, int8, context)
        feeds = first_rows(images, graph.inputs, how, _PLACING_PICTURES)
        few = {name: array[:_MATCHING_PICTURES] for name, array in feeds.items()}
        student = with_quantizers(start.module, [tensors_from(feeds)], whole.dialect, start.name)
        known = tensors_of_quantizers(student, whole.graph, few)
        begun = initialize_steps(student, known, whole.ranges)
        found = self.train(student, teacher.module, data_and_task, how, context.progress)
        module = copy.deepcopy(start.module)
        module.load_state_dict(plain_weights(found.module, start.module))
        made = student_graph(start, module.eval(), original, images, opset)
        outcome = _written(found.module, made, few, int8, again(made), drop, max_drop)
        report: dict[str, object] = {
            "training": found.log,
            "quantizers": {"known_ranges": begun, "of": len(known)},
            **{name: one for name, one in outcome.report.items() if name != "int8_nodes"},
        }
        outcome = replace(outcome, report=report, name="INT8 with training", trained=True)
        return QatResult(outcome, made, Pruned(module, start.history, report), found.notes)

    def finish(self) -> None:
        """The bundle is written: the checkpoints go, and their folder where nothing else is."""
        if self.finetune is not None:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()


@dataclass(frozen=True)
class _Way:
    """A way to write the trained network, and how many points it loses."""

    whole: Int8Network
    settings: Int8
    outcome: Outcome
    drop: float


def _written(
    trained: nn.Module,
    graph: Graph,
    few: Arrays,
    int8: Int8,
    context: Context,
    drop: DropOf,
    max_drop: float | None,
) -> Outcome:
    """The trained network in INT8, the better way of two on the selection pictures."""
    anew = prepare_int8(graph, int8, context)
    ranges = learned_ranges(trained, tensors_of_quantizers(trained, anew.graph, few), anew.ranges)
    codes = write_qdq(anew.graph, ranges, anew.plan, anew.dialect, weight_method="minmax")
    as_trained = replace(anew, ranges=ranges, quantized=codes, weight_method="minmax")
    untouched = replace(int8, weights="minmax", rounding=False, bias_correction=False)
    ways: dict[str, _Way] = {}
    for name, whole, settings in (
        ("as trained", as_trained, untouched),
        ("calibrated anew", anew, int8),
    ):
        outcome = finish_int8(whole, settings, context)
        ways[name] = _Way(whole, settings, outcome, drop(_scored(outcome)))
    chosen = min(ways, key=lambda name: ways[name].drop)
    way = ways[chosen]
    outcome = way.outcome
    if int8.mixed and not int8.int8_nodes and "float16" not in context.target.precisions:
        outcome = mix_precisions(way.whole, way.settings, context, drop, max_drop)
    told = {name: round(one.drop, 4) for name, one in ways.items()}
    report = {**outcome.report, "drop_on_selection": told, "written": chosen}
    return replace(outcome, report=report)


def held_against_ptq(trial: EvaluatedCandidate, plain: EvaluatedCandidate) -> EvaluatedCandidate:
    """A trained candidate's trial, declined where INT8 without training is as good.

    Args:
        trial: Of the trained candidate.
        plain: Of post-training INT8 of the same network.
    """
    ours, theirs = trial.selection or trial.test, plain.selection or plain.test
    if ours.value > theirs.value:
        return trial
    where = "selection" if trial.selection is not None else "test"
    reason = (
        f"training for INT8 brought nothing: on the {where} pictures it scores {ours.value:.2f}, "
        f"and {theirs.value:.2f} without"
    )
    return replace(trial, verdict=Verdict(False, (*trial.verdict.reasons, reason)))


def replaces_ptq(
    trial: EvaluatedCandidate, plain: EvaluatedCandidate, best: EvaluatedCandidate | None
) -> bool:
    """Whether a trained candidate takes the place of INT8 without training.

    It scores better already, so that it need not be faster; the two were not timed in turns.

    Args:
        trial: Of the trained candidate.
        plain: Of post-training INT8 of the same network.
        best: What would ship so far.
    """
    if best is not plain or trial.comparison is None or plain.comparison is None:
        return False
    return trial.comparison.ratio_high >= _AS_FAST * plain.comparison.ratio_low


def _scored(outcome: Outcome) -> bytes:
    """What is scored of an outcome: its bytes, or what stands in for them."""
    shipped = outcome.shipped
    return shipped.model if shipped.emulated is None else shipped.emulated
