"""Why an INT8 file is slow: what fell out of INT8 in an engine, by which rule, at what cost.

The file is rewritten by the engine as it would be when it runs; what has quantized inputs in the
file and is no INT8 kernel there has fallen out. Its cost is the time of its kernel and of the
quantizers around it, from the engine's own profiler on this machine.

TensorRT is not asked: it needs a GPU, and refuses whole files that others run. What its rules say
of the file as it stands is told, at no known cost.

Source: the selectors of onnxruntime/core/optimizer/qdq_transformer, 1.23 to 1.31.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from ...runtime.errors import InputError
from ..engine_views.kernel_profile import profile_kernels
from ..engine_views.view import KernelProfile
from ..graph.normalize import initializers_are_not_inputs
from ..graph.onnx_files import check_valid, fold_casts, is_quantized, read_onnx
from ..graph.onnx_graph import IR_VERSION, name_nodes
from ..int8.dialect import Dialect
from .cpu_fusion_rules import RULES, TITLES, Finding, FusionRules
from .lost_biases import lost_biases
from .tensorrt_fusion_rules import REFUSED, REMEDIES, BuilderRules


@dataclass(frozen=True)
class FloatFallback:
    """One node that has quantized inputs and runs in float.

    Attributes:
        node: Its name.
        op_type: Its operator.
        findings: Every rule that it breaks, the first that keeps it out of INT8 first.
        kernel: What it runs as; empty where the engine was not asked.
        kernel_ms: What that takes; ``None`` where nothing was timed.
        quantizers_ms: What the quantizers around it take; ``None`` as well.
    """

    node: str
    op_type: str
    findings: tuple[Finding, ...]
    kernel: str
    kernel_ms: float | None
    quantizers_ms: float | None

    @property
    def cost_ms(self) -> float | None:
        """Its own time and that of the quantizers around it."""
        if self.kernel_ms is None or self.quantizers_ms is None:
            return None
        return self.kernel_ms + self.quantizers_ms

    def to_dict(self) -> dict[str, object]:
        """JSON form."""
        return {
            "node": self.node,
            "op_type": self.op_type,
            "rule": self.findings[0].rule,
            "why": self.findings[0].why,
            "also": [vars(finding) for finding in self.findings[1:]],
            "kernel": self.kernel,
            "kernel_ms": self.kernel_ms,
            "quantizers_ms": self.quantizers_ms,
            "cost_ms": self.cost_ms,
        }


@dataclass(frozen=True)
class Slowness:
    """Where the time of an INT8 file goes.

    Attributes:
        engine: What the engine is called.
        runs: Whether it runs it optimized; the times are of the unoptimized graph else.
        error: What it said where it does not; what its rules say where it was not asked.
        total_ms: Sum of all kernels; ``None`` where nothing was timed.
        int8_ms: Sum of the INT8 kernels; ``None`` as well.
        int8_nodes: How many nodes are INT8 kernels, or would be by the rules.
        fallen: What is not, dearest first.
        by_rule: Cost by the first rule broken, dearest first; stray quantizers among them. Without
            times every rule broken counts, the commonest first.
        counts: Nodes by rule, as in ``by_rule``.
        lost: Layers whose bias the engine loses, and why; what it computes is wrong then.
    """

    engine: str
    runs: bool
    error: str
    total_ms: float | None
    int8_ms: float | None
    int8_nodes: int
    fallen: tuple[FloatFallback, ...]
    by_rule: Mapping[str, float | None]
    counts: Mapping[str, int]
    lost: Mapping[str, str]

    def to_dict(self) -> dict[str, object]:
        """JSON form."""
        return {
            "engine": self.engine,
            "runs_optimized": self.runs,
            "error": self.error or None,
            "total_ms": self.total_ms,
            "int8_ms": self.int8_ms,
            "int8_nodes": self.int8_nodes,
            "rules": [
                {
                    "rule": rule,
                    "nodes": self.counts.get(rule, 0),
                    "cost_ms": cost,
                    "share": self.share(cost),
                    "transcode": remedy(rule),
                }
                for rule, cost in self.by_rule.items()
            ],
            "fallen": [node.to_dict() for node in self.fallen],
            "lost_biases": dict(self.lost),
        }

    def share(self, part_ms: float | None) -> float | None:
        """A part of all kernels' time, 0 to 1; ``None`` where nothing was timed."""
        if part_ms is None or self.total_ms is None:
            return None
        return part_ms / self.total_ms if self.total_ms else 0.0


def remedy(rule: str) -> str:
    """What transcoding does about a rule that is broken."""
    return REMEDIES[rule] if rule in REMEDIES else RULES[rule]


def why_slow(
    path: str,
    dialect: Dialect,
    *,
    engine: str = "onnxruntime",
    runs: int = 20,
    threads: int = 1,
) -> Slowness:
    """Find what fell out of INT8 in a file, why, and, but for TensorRT, what it costs here.

    Args:
        path: An ONNX file with quantizers.
        dialect: What the engine fuses on this machine.
        engine: Which engine.
        runs: Over how many runs the median of each kernel is taken.
        threads: Threads for one inference.

    Raises:
        InputError: As :func:`~edgepress.export.graph.onnx_files.read_onnx`; ``E_MODEL`` for a file
            that ONNX's checker refuses, or without quantizers.
        EngineError: ``E_BACKEND`` where the engine runs it in no way; ``E_ENGINE``.
        MissingExtraError: Where the engine is not installed.
    """
    model = read_onnx(path)
    check_valid(model, path)
    if not any(is_quantized(node) for node in model.graph.node):
        raise InputError(
            "E_MODEL",
            f"'{path}' has no quantizers: it is no INT8 file, so that nothing fell out of INT8.",
            mend="Give an INT8 file; 'edgepress bench' tells how fast a float32 one is.",
            path=path,
        )
    if model.ir_version < 4:  # where initializers are constants, and have to be inputs as well
        initializers_are_not_inputs(model)
    fold_casts(model)
    name_nodes(model)
    model.ir_version = min(max(model.ir_version, 4), IR_VERSION)
    if dialect.at_inputs:
        return _by_rules(model, BuilderRules(model, dialect, dialect.name), TITLES[dialect.name])
    seen = profile_kernels(engine, model, runs=runs, threads=threads)
    rules = FusionRules(model, dialect, engine)
    fallen: list[FloatFallback] = []
    accounted: set[str] = set()
    for node in model.graph.node:
        home = seen.home_of(node) if rules.has_quantized_inputs(node) else None
        if home is None or home.int8:
            continue
        around = seen.quantizers_around(home) - accounted
        own = 0.0 if home.name in accounted else home.ms  # two may have become one kernel
        accounted |= around | {home.name}
        costs = sum(seen.kernels[name].ms for name in around)
        fallen.append(
            FloatFallback(node.name, node.op_type, rules.findings(node), home.told, own, costs)
        )
    lost = lost_biases(model) if engine == "onnxruntime" else {}
    return _told(tuple(fallen), seen, accounted, lost)


def _by_rules(model: onnx.ModelProto, rules: BuilderRules, title: str) -> Slowness:
    """What the rules alone say of a file."""
    asked = [node for node in model.graph.node if rules.has_quantized_inputs(node)]
    findings = {node.name: rules.findings(node) for node in asked}
    fallen = [
        FloatFallback(node.name, node.op_type, findings[node.name], "", None, None)
        for node in asked
        if findings[node.name]
    ]
    counts = Counter(rule for one in fallen for rule in {finding.rule for finding in one.findings})
    refused = [one for one in fallen if one.findings[0].rule in REFUSED]
    error = ""
    if refused:
        first = refused[0].findings[0]
        error = f"{first.rule} at '{refused[0].node}' and {len(refused) - 1} more"
    by_rule = dict.fromkeys(rule for rule, _ in counts.most_common())
    good = len(asked) - len(fallen)
    return Slowness(
        title, not error, error, None, None, good, tuple(fallen), by_rule, dict(counts), {}
    )


def _told(
    fallen: tuple[FloatFallback, ...],
    seen: KernelProfile,
    accounted: set[str],
    lost: Mapping[str, str],
) -> Slowness:
    costs: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for node in fallen:
        costs[node.findings[0].rule] += node.cost_ms or 0.0
        counts[node.findings[0].rule] += 1
    kernels = list(seen.kernels.values())
    int8 = [kernel for kernel in kernels if kernel.int8]
    used = {name for kernel in int8 for name in seen.quantizers_around(kernel)}
    left = [k for k in kernels if k.quantizes and k.name not in accounted | used]
    for rule, found in (("stray quantizers", left), ("float16", [k for k in kernels if k.halves])):
        if found:
            costs[rule] = sum(kernel.ms for kernel in found)
            counts[rule] = len(found)
    return Slowness(
        seen.title,
        not seen.error,
        seen.error,
        sum(kernel.ms for kernel in kernels),
        sum(kernel.ms for kernel in int8),
        len(int8),
        tuple(sorted(fallen, key=lambda node: -(node.cost_ms or 0.0))),
        dict(sorted(costs.items(), key=lambda pair: pair[1], reverse=True)),
        dict(counts),
        lost,
    )
