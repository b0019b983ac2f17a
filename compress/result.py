"""What ships and what is told of it: the files of a bundle, proved before they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..benchmarks.latency.comparison import Comparison
from ..benchmarks.latency.fingerprint import fingerprint
from ..benchmarks.tasks.task import Score
from ..export.bundle_contents import ShippedModel, assemble, synthetic_inputs
from ..runtime.build_shapes import for_batches
from ..runtime.bundle.bundle import Bundle
from ..runtime.bundle.manifest import MANIFEST, parse_manifest
from ..runtime.engines.engine import HALF_PRECISIONS
from ..runtime.errors import BoundError
from ..runtime.pictures.preprocessing import Preprocessing
from ..runtime.session import Session
from ..runtime.tensors import Arrays
from .channels.cut_history import Pruned
from .evaluation.acceptance import EvaluatedCandidate, RivalPrecision, fallen_back
from .recipe.pass_context import Outcome
from .source.data_and_task import DataAndTask, class_labels
from .source.source_network import SourceNetwork, with_batch


@dataclass(frozen=True)
class Result:
    """Everything that is known when the work is done.

    Attributes:
        source: The network.
        data_and_task: Pictures and task.
        outcome: What ships.
        trials: What was tried, in order.
        original: The original's score on the test pictures.
        macs: Multiply-adds by node.
        notes: Remarks for people.
        recipe: The recipe and all that it was run with, JSON values only.
        pruned: The torch network behind what ships, where a pass made one.
    """

    source: SourceNetwork
    data_and_task: DataAndTask
    outcome: Outcome
    trials: Sequence[EvaluatedCandidate]
    original: Score
    macs: Mapping[str, int]
    notes: Sequence[str]
    recipe: Mapping[str, object]
    pruned: Pruned | None = None

    @property
    def target(self) -> str:
        """Name of the target that it was made for."""
        return str(self.recipe["target"])

    @property
    def declined(self) -> bool:
        """Whether something was tried and nothing of it ships: the model is as it came.

        It may be computed in bfloat16 or written in FP16 all the same.
        """
        return bool(self.trials) and (not self.outcome.changed or self.outcome.stand_in)

    @property
    def _trial(self) -> EvaluatedCandidate | None:
        """The trial of what ships; ``None`` where that is the untouched network."""
        return next((one for one in self.trials if one.outcome is self.outcome), None)

    @property
    def reasons(self) -> list[str]:
        """Why what was tried does not ship."""
        told = [reason for one in self.trials for reason in one.verdict.reasons]
        if not told and self.outcome.stand_in:
            told = [f"it is not measurably faster than {self.outcome.name}"]
        return told

    def bundle(
        self,
        example: Arrays,
        preprocessing: Preprocessing | None,
        *,
        real_golden: bool,
        cache: str | None = None,
    ) -> Bundle:
        """The bundle in memory, sealed, each variant opened and proved by its own self-test.

        Args:
            example: One sample by input name.
            preprocessing: What the bundle says of pictures.
            real_golden: Whether the self-test shows that sample; made up inputs like it otherwise.
            cache: Folder for engines that are built.

        Raises:
            InputError: As :func:`edgepress.export.bundle_contents.assemble`.
            BundleError: Where the runtime would refuse the bundle: nothing is written then.
        """
        graph = self.source.graph
        golden = with_batch(example, graph)
        if not real_golden:
            golden = with_batch(synthetic_inputs(golden, self.source.preprocessing), graph)
        labels = class_labels(self.data_and_task, self.original)
        shipped = self.outcome.shipped
        beside = tuple(replace(one, made=self._made(one)) for one in shipped.beside)
        files = assemble(
            replace(shipped, beside=beside),
            inputs=graph.inputs,
            outputs=graph.outputs,
            golden_inputs=golden,
            synthetic=not real_golden,
            task=self.data_and_task.task.name,
            preprocessing=preprocessing,
            labels=labels,
            recipe=self.recipe,
            scores=self._scores(self._trial),
            measurements=self._measurements(),
            notes=self.notes,
            declined=self.declined,
            cache=cache,
        )
        manifest = parse_manifest(files[MANIFEST])
        held = None if labels is None else tuple(labels)
        made = Bundle(Path(f"the new bundle for {self.target}"), manifest, files, held)
        if shipped.emulated is None:  # else its device is not here to prove it on
            for variant in made.variants:
                build = for_batches(variant.engine, made.model(variant), golden)
                Session.open(made, variant=variant.name, cache=cache, build=build).close()
        return made

    def _made(self, beside: ShippedModel) -> dict[str, object]:
        """What is told of a variant beside the one that ships."""
        trial = next((one for one in self.trials if one.outcome.shipped is beside), None)
        sizes = {"original": len(self.source.graph.model), "result": len(beside.model)}
        return {
            "scores": self._scores(trial),
            "measurements": {
                "size_bytes": sizes,
                "macs": sum(self.macs.values()),
                "int8_macs_share": beside.receipt["int8_macs_share"],
                "latency": _latency(trial.comparison if trial else None),
            },
            "notes": [],
        }

    def _scores(self, trial: EvaluatedCandidate | None) -> dict[str, object]:
        shipped = trial.test if trial else self.original
        test = None if self.data_and_task.own_score else Path(self.data_and_task.test.source).name
        return {
            "task": self.data_and_task.task.name,
            "test_data": test,
            "original": self.original.to_dict(),
            "result": shipped.to_dict(),
            "drop": self.original.value - shipped.value,
        }

    def _measurements(self) -> dict[str, object]:
        graph = self.source.graph
        shipped = self._trial.comparison if self._trial else None
        return {
            "size_bytes": {"original": len(graph.model), "result": len(self.outcome.shipped.model)},
            "macs": sum(self.macs.values()),
            "int8_macs_share": self.outcome.receipt.int8_share,
            **{f"{word}_macs_share": self.outcome.receipt.share(word) for word in HALF_PRECISIONS},
            "parity": graph.parity.to_dict() if graph.parity else None,
            "latency": _latency(shipped),
            "candidates": [_candidate(one) for one in self.trials],
            "fingerprint": fingerprint(),
        }


def check_strict(result: Result, *, several: bool) -> None:
    """Refuse a result whose recipe was declined, or of which the engine runs less than was asked.

    Args:
        result: What came out for a target.
        several: Whether there are other targets, so that it must be named.

    Raises:
        BoundError: ``E_DECLINED``; ``E_FALLBACK`` where the engine took a part of it in INT8.
    """
    where = f" for {result.target}" if several else ""
    if not result.declined:
        fallen = fallen_back(result.outcome)
        if fallen:
            raise BoundError(
                "E_FALLBACK",
                f"{fallen}{where}.",
                mend="Nothing was written, as --strict asks. Without it the bundle says so; "
                "keep_float in the recipe asks for no more in INT8 than the engine takes.",
            )
        return
    raise BoundError(
        "E_DECLINED",
        f"the recipe '{result.recipe['name']}' was declined{where}: {'; '.join(result.reasons)}.",
        mend="Nothing was written, as --strict asks. Without it the bundle holds the network as it "
        f"came, in {result.outcome.shipped.precision}.",
    )


def _candidate(trial: EvaluatedCandidate) -> dict[str, object]:
    return {
        "name": trial.outcome.name,
        "precision": trial.outcome.shipped.precision,
        "size_bytes": len(trial.outcome.shipped.model),
        "accepted": trial.verdict.accepted,
        "reasons": list(trial.verdict.reasons),
        "selection_score": trial.selection.to_dict() if trial.selection else None,
        "test_score": trial.test.to_dict(),
        "latency": _latency(trial.comparison),
        "receipt": trial.outcome.receipt.in_short(),
        "rivals": [_rival(one) for one in trial.rivals],
    }


def _rival(rival: RivalPrecision) -> dict[str, object]:
    return {
        "precision": rival.precision,
        "drops": dict(rival.drops),
        "keeps_score": rival.keeps,
        "candidate_latency": _latency(rival.comparison),
        "over_float32": _latency(rival.over_float32),
    }


def _latency(comparison: Comparison | None) -> dict[str, object] | None:
    """The comparison in short: the candidate (a) against float32 (b)."""
    if comparison is None:
        return None
    return {
        "result_p50_ms": comparison.a.latency.p50_ms,
        "original_p50_ms": comparison.b.latency.p50_ms,
        "speedup": comparison.ratio,
        "speedup_low": comparison.ratio_low,
        "speedup_high": comparison.ratio_high,
        "rounds": comparison.rounds,
        "settled": comparison.settled,
        "threads": comparison.a.threads,
        "batch": comparison.a.batch,
        "faster": {"a": "result", "b": "original", "neither": "neither"}[comparison.faster],
    }
