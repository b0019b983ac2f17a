"""The same graph computed in bfloat16, on an engine and a processor that have it.

What it does: nothing to the graph. The bundle asks the engine to compute its floats in bfloat16,
and holds the same model in float32 as a second variant, for processors without.
When it is exact: never; 8 bits of every product's factors are kept, sums are float32.
When it refuses: where the engine computes none of the multiply-adds in bfloat16 after all.
Source: OpenVINO's ``INFERENCE_PRECISION_HINT``; the precisions of the graph that it executes.
"""

from __future__ import annotations

from dataclasses import replace

from ..export.graph import Graph
from ..export.receipt import bf16_receipt
from ..runtime.engine import WORDS
from .judge import Judge
from .passes import Outcome
from .prove import Rival, Trial, Verdict

NAME = WORDS["bf16"]


def in_bfloat16(outcome: Outcome, graph: Graph) -> Outcome | None:
    """A float network computed in bfloat16, as what might ship; ``None`` where nothing of it is.

    Args:
        outcome: The network in float32; it ships beside.
        graph: Its graph.
    """
    plain = outcome.shipped
    macs = {node.name: node.macs for node in outcome.receipt.nodes}
    receipt = bf16_receipt(graph, macs, plain.engine)
    if not receipt.share(NAME):
        return None
    shipped = replace(plain, precision=NAME, receipt=receipt.to_dict(), beside=(plain,))
    return replace(outcome, shipped=shipped, receipt=receipt, name=f"{outcome.name} in {NAME}")


def ways(candidate: Outcome, graph: Graph, judge: Judge) -> list[Outcome]:
    """A float network in every precision that the engine computes it in here, float32 first."""
    found = [in_bfloat16(candidate, graph)] if "bf16" in judge.rivals() else []
    return [candidate, *(one for one in found if one is not None)]


def untouched(rival: Rival, original: Outcome, graph: Graph) -> Trial | None:
    """The network as it came, computed in a precision that was proved on the way.

    Args:
        rival: What was measured of it.
        original: The network in float32.
        graph: Its graph.
    """
    named = replace(original, name="the network as it came")
    outcome = in_bfloat16(named, graph)
    if outcome is None or rival.test is None:
        return None
    kept = Verdict(accepted=True, reasons=())
    return Trial(outcome, rival.over_float32, rival.selection, rival.test, kept)


def note_of(trial: Trial) -> list[str]:
    """In words, that what ships is computed in bfloat16, and what that means elsewhere."""
    found = trial.comparison
    if trial.outcome.shipped.precision != NAME or found is None:
        return []
    what = "the network as it came" if not trial.outcome.changed else "its network"
    return [
        f"the bundle runs {what} in {NAME}: {found.ratio:.2f}x the speed of the original in "
        f"float32 ({found.ratio_low:.2f} to {found.ratio_high:.2f}). On a processor without "
        f"{NAME} its variant float32 runs, which is not as fast."
    ]
