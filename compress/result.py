"""What ships and what is told of it: the files of a bundle, proved before they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..benchmarks.comparison import Comparison
from ..benchmarks.fingerprint import fingerprint
from ..benchmarks.tasks import Score
from ..export.bundling import assemble, synthetic_inputs
from ..runtime.bundle import Bundle
from ..runtime.manifest import MANIFEST, parse_manifest
from ..runtime.preprocessing import Preprocessing
from ..runtime.session import Session
from ..runtime.tensors import Arrays
from .material import Material, class_labels
from .passes import Outcome
from .prove import Rival, Trial
from .subject import Subject, with_batch


@dataclass(frozen=True)
class Result:
    """Everything that is known when the work is done.

    Attributes:
        subject: The network.
        material: Pictures and task.
        outcome: What ships.
        trials: What was tried, in order.
        original: The original's score on the test pictures.
        macs: Multiply-adds by node.
        notes: Remarks for people.
        recipe: The recipe and all that it was run with, JSON values only.
    """

    subject: Subject
    material: Material
    outcome: Outcome
    trials: Sequence[Trial]
    original: Score
    macs: Mapping[str, int]
    notes: Sequence[str]
    recipe: Mapping[str, object]

    @property
    def declined(self) -> bool:
        """Whether something was tried and nothing of it ships."""
        return bool(self.trials) and not self.outcome.changed

    @property
    def _trial(self) -> Trial | None:
        """The trial of what ships; ``None`` where that is the untouched network."""
        return next((one for one in self.trials if one.outcome is self.outcome), None)

    @property
    def reasons(self) -> list[str]:
        """Why what was tried does not ship."""
        return [reason for one in self.trials for reason in one.verdict.reasons]

    def files(
        self, example: Arrays, preprocessing: Preprocessing | None, *, real_golden: bool
    ) -> dict[str, bytes]:
        """The files of the bundle, sealed, opened and proved by their own self-test.

        Args:
            example: One sample by input name.
            preprocessing: What the bundle says of pictures.
            real_golden: Whether the self-test shows that sample; made up inputs like it otherwise.

        Raises:
            InputError: As :func:`edgepress.export.bundling.assemble`.
            BundleError: Where the runtime would refuse the bundle: nothing is written then.
        """
        graph = self.subject.graph
        golden = with_batch(example, graph)
        if not real_golden:
            golden = with_batch(synthetic_inputs(golden, self.subject.preprocessing), graph)
        labels = class_labels(self.material, self.original)
        files = assemble(
            self.outcome.shipped,
            inputs=graph.inputs,
            outputs=graph.outputs,
            golden_inputs=golden,
            synthetic=not real_golden,
            task=self.material.task.name,
            preprocessing=preprocessing,
            labels=labels,
            recipe=self.recipe,
            scores=self._scores(),
            measurements=self._measurements(),
            notes=self.notes,
            declined=self.declined,
        )
        manifest = parse_manifest(files[MANIFEST])
        held = None if labels is None else tuple(labels)
        if self.outcome.shipped.emulated is None:  # else its device is not here to prove it on
            Session.open(Bundle(Path("the new bundle"), manifest, files, held)).close()
        return files

    def _scores(self) -> dict[str, object]:
        shipped = self._trial.test if self._trial else self.original
        test = None if self.material.own_score else Path(self.material.test.source).name
        return {
            "task": self.material.task.name,
            "test_data": test,
            "original": self.original.to_dict(),
            "result": shipped.to_dict(),
            "drop": self.original.value - shipped.value,
        }

    def _measurements(self) -> dict[str, object]:
        graph = self.subject.graph
        shipped = self._trial.comparison if self._trial else None
        return {
            "size_bytes": {"original": len(graph.model), "result": len(self.outcome.shipped.model)},
            "macs": sum(self.macs.values()),
            "int8_macs_share": self.outcome.receipt.int8_share,
            "parity": graph.parity.to_dict() if graph.parity else None,
            "latency": _latency(shipped),
            "candidates": [_candidate(one) for one in self.trials],
            "fingerprint": fingerprint(),
        }


def _candidate(trial: Trial) -> dict[str, object]:
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


def _rival(rival: Rival) -> dict[str, object]:
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
