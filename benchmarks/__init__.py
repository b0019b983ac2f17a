"""edgepress.benchmarks: pictures, tasks, latency. Needs what the runtime needs; never torch.

What is named here is imported when it is first used, so that the process that is measured holds
nothing but the runtime.
"""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from .comparison import Comparison, compare
    from .images import Batch, Images, Split
    from .latency import measure
    from .measurement import Latency, Measurement, Preset
    from .running import Run, fixed_batch
    from .tasks import Agreement, Classification, Score, Task, UserTask, task
    from .tasks_embeddings import Retrieval, Verification

__all__ = [
    "Agreement",
    "Batch",
    "Classification",
    "Comparison",
    "Images",
    "Latency",
    "Measurement",
    "Preset",
    "Retrieval",
    "Run",
    "Score",
    "Split",
    "Task",
    "UserTask",
    "Verification",
    "compare",
    "fixed_batch",
    "measure",
    "task",
]

_HOME = {
    "Agreement": "tasks",
    "Batch": "images",
    "Classification": "tasks",
    "Comparison": "comparison",
    "Images": "images",
    "Latency": "measurement",
    "Measurement": "measurement",
    "Preset": "measurement",
    "Retrieval": "tasks_embeddings",
    "Run": "running",
    "Score": "tasks",
    "Split": "images",
    "Task": "tasks",
    "UserTask": "tasks",
    "Verification": "tasks_embeddings",
    "compare": "comparison",
    "fixed_batch": "running",
    "measure": "latency",
    "task": "tasks",
}


def __getattr__(name: str) -> object:
    """Import what is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
