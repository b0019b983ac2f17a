"""The matrix's step for pruning: to 70 % of the multiply-adds, saved, rebuilt, exported and run.

What is asked is which channels depend on which; what they are worth is their magnitude alone, and nothing is
trained back. The rebuilt network comes from its factory, the file's history and its tensors, and from nothing else.
"""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgepress.compress.channels.cut_history import History, apply_cut_step
from edgepress.compress.channels.structure import structure_of
from edgepress.compress.pruning.candidate_timing import cut_step_by
from edgepress.compress.pruning.importance import magnitude
from edgepress.compress.pruning.layer_costs import LayerWidths, macs_cost
from edgepress.compress.pruning.output_damage import OutputDamage, widths_of
from edgepress.compress.pruning.width_milp import Bound, choose_widths
from edgepress.compress.source.weights import load_weights, save_weights
from edgepress.export.graph.torch_capture import capture, input_names, run_module
from edgepress.runtime import EngineOptions, open_engine

from .matrix_networks import Entry
from .matrix_table import SHARE

_MULTIPLE = 8
_BLOCK_IS_WORTH = 1e9  # no block leaves


def prune(entry: Entry, folder: Path) -> dict[str, Any]:
    """What came of it; a network that is an ONNX file has no module that could be cut."""
    if entry.onnx is not None:
        return {"refused": "an ONNX file: only a torch module can be cut"}
    module = entry.module()
    images = torch.cat([batch[:1] for batch in entry.tensors(entry.share(0, 32))])[:2]
    feeds = {input_names(module)[0]: images.numpy()}
    structure = structure_of(module, feeds)
    if not structure.groups:
        reasons = Counter(str(one.reason) for one in structure.refused).most_common(1)
        return {"error": f"nothing can leave: {reasons[0][0]} (in {reasons[0][1]} layers)"}
    frame = LayerWidths(structure)
    scores = magnitude(module, structure.groups, [], "features", 0)
    widths = [widths_of(group, _MULTIPLE) for group in structure.groups]
    costs = tuple(
        tuple(float(sum(score[a] for a in group.weakest(list(score), width))) for width in each)
        for group, score, each in zip(structure.groups, scores, widths, strict=True)
    )
    damage = OutputDamage(costs, (_BLOCK_IS_WORTH,) * len(structure.blocks), 0, 0)
    whole = frame.total(macs_cost, frame.whole)
    bound = Bound("multiply-adds", macs_cost, SHARE * whole, "max_macs_ratio", whole)
    choice = choose_widths(frame, widths, damage, [bound], blocks=False)
    history = History().then(cut_step_by(structure, scores, choice))
    student = copy.deepcopy(module)
    apply_cut_step(student, history.steps[0])
    path = folder / "pruned.safetensors"
    save_weights(student, path, history=history, force=True)
    rebuilt = entry.module(seed=1)
    load_weights(rebuilt, str(path))
    wanted, found = (run_module(one.eval(), feeds) for one in (student, rebuilt))
    graph = capture(student, feeds)
    (folder / "pruned.onnx").write_bytes(graph.model)
    with open_engine("onnxruntime")(graph.model, EngineOptions()) as engine:
        given = engine.run(
            {spec.name: one for spec, one in zip(engine.inputs, feeds.values(), strict=True)}
        )
    return {
        "groups": len(structure.groups),
        "blocks": len(structure.blocks),
        "stays_whole": [f"{one.name}: {one.reason}" for one in structure.refused],
        "macs_left": frame.total(macs_cost, choice) / whole,
        "rebuilt_equal": all(np.array_equal(wanted[key], found[key]) for key in wanted),
        "cosine": min(
            _cosine(one, other) for one, other in zip(wanted.values(), given.values(), strict=True)
        ),
    }


def _cosine(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    a, b = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))
