"""The pass ``prune``: a cut network, exported and proved against itself, as what might ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...benchmarks.data.images import Images
from ...export.graph.onnx_graph import Graph
from ...export.graph.torch_capture import capture
from ...export.receipt import count_macs
from ...runtime.errors import InputError
from ...runtime.tensors import Arrays
from ..channels.cut_history import Pruned
from ..recipe.pass_context import Context, Outcome, float32_outcome
from ..recipe.recipe import Recipe
from ..recipe.settings import Int8, PassSettings, Prune
from ..source.backbone import Backbone
from ..source.source_network import SourceNetwork, example_of, torch_network, with_batch
from .prune import IMPORTANCE_PICTURES, PruneRequest, prune_backbone, sample
from .width_search import PruneLimits

_PARITY_PICTURES = 16


@dataclass(frozen=True)
class PruneResult:
    """What the pass gives to the next one.

    Attributes:
        pruned: The network, with its history.
        graph: Its float32 graph.
        example: A batch by input name.
    """

    pruned: Pruned
    graph: Graph
    example: Arrays

    @property
    def report(self) -> dict[str, object]:
        """What pruning did and saw, JSON values only."""
        return self.pruned.told()

    def outcome(self, context: Context) -> Outcome:
        """The pruned network in float32 as what might ship.

        Args:
            context: Of the original.
        """
        return pruned_outcome(self.graph, self.pruned, context, self.example)


def with_limits(recipe: Recipe, given: dict[str, float | None], keep: Sequence[str]) -> Recipe:
    """A recipe with the user's limits in its pass ``prune``; those override the recipe's own.

    Args:
        recipe: The recipe.
        given: Limits by the names of :class:`~edgepress.compress.recipe.settings.Prune`; ``None``
            for none.
        keep: Names of modules that stay whole, beside the recipe's.

    Raises:
        InputError: ``E_USAGE`` for limits or names where the recipe does not prune, a recipe that
            prunes without any limit, or a limit that is none.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    passes: list[PassSettings] = []
    prunes = False
    for settings in recipe.passes:
        if isinstance(settings, Prune):
            prunes = True
            settings = replace(settings, keep=(*settings.keep, *keep), **asked)
            limits_of(settings, asked).check()
        passes.append(settings)
    if (asked or keep) and not prunes:
        what = ", ".join([*asked, *(["keep"] if keep else [])])
        raise InputError(
            "E_USAGE",
            f"the recipe '{recipe.name}' does not prune; {what} was given.",
            mend="Choose the recipe prune or prune-int8, or leave that out.",
        )
    return Recipe(recipe.name, tuple(passes))


def limits_of(settings: Prune, asked: dict[str, float] | None = None) -> PruneLimits:
    """The limits of a pass; what was asked for in words counts even where it is 0."""
    names = ("max_latency_ratio", "max_macs_ratio", "max_size_mb")
    values = {name: getattr(settings, name) for name in names}
    return PruneLimits(**{n: v for n, v in values.items() if v or n in (asked or {})})


def precision_after(passes: Sequence[PassSettings], number: int) -> str:
    """What a pass prunes for: what it says itself, or INT8 where a later pass makes it that."""
    pruning = passes[number]
    if isinstance(pruning, Prune) and pruning.measured_in != "auto":
        return pruning.measured_in
    return "int8" if any(isinstance(one, Int8) for one in passes[number:]) else "float32"


def prune_pass(
    backbone: Backbone | Graph,
    source: SourceNetwork,
    images: Images,
    settings: Prune,
    precision: str,
    context: Context,
    *,
    task: str,
    seed: int,
    opset: int,
    cache: str | Path | None,
) -> PruneResult:
    """Prune the network and export it.

    Args:
        backbone: What the user brought, open.
        source: Its name and preprocessing.
        images: Pictures that tell what channels are worth.
        settings: Of the pass.
        precision: What will ship.
        context: Of the float32 network; its target and progress are used.
        task: Name of the task; ``classification`` means that the outputs are class scores.
        seed: Of everything random.
        opset: Of the exported graph.
        cache: Folder in which latencies are kept, or ``None``.

    Raises:
        InputError: ``E_USAGE`` for an ONNX file; what
            :func:`~edgepress.compress.pruning.prune.prune` and capturing raise.
        BoundError: ``E_BOUND`` for a limit that no legal network meets.
    """
    backbone = torch_network(backbone)
    batches = sample(backbone.module, images, source.preprocessing, IMPORTANCE_PICTURES, seed)
    wanted = PruneRequest(
        limits_of(settings),
        context.target.name,
        precision,
        settings.keep,
        settings.blocks,
        settings.importance,
        seed,
        settings.time_limit_s,
        cache,
    )
    outputs = "logits" if task == "classification" else "features"
    pruned = prune_backbone(backbone, batches, outputs, wanted, context.progress)
    context.progress("exporting the pruned network", 0, None)
    parity = example_of(pruned.module, images, source.preprocessing, _PARITY_PICTURES)
    example = {name: array[:2] for name, array in parity.items()}
    graph = capture(
        pruned.module, example, opset=opset, parity_on=[parity], source=f"{source.name}, pruned"
    )
    return PruneResult(pruned, graph, example)


def pruned_outcome(graph: Graph, pruned: Pruned, context: Context, example: Arrays) -> Outcome:
    """A pruned network's graph as what might ship in float32.

    Args:
        graph: Captured from it.
        pruned: The network, with its history.
        context: Of the float32 network.
        example: A batch by input name.
    """
    row = {name: array[:1] for name, array in example.items()}
    macs = count_macs(graph, with_batch(row, graph))
    made = float32_outcome(graph, replace(context, macs=macs))
    return replace(made, changed=True, report=pruned.told(), name="the pruned network")
