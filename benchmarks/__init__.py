"""edgepress.benchmarks: pictures, tasks, latency. Needs what the runtime needs; never torch.

What is named here is imported when it is first used, so that the process that is measured holds
nothing but the runtime.
"""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from .data.batch_runner import Run, fixed_batch
    from .data.images import Batch, Images, Split
    from .latency.comparison import Comparison, compare
    from .latency.latency import measure
    from .latency.measurement import Latency, Measurement, Preset
    from .tasks.agreement_task import Agreement
    from .tasks.classification import Classification
    from .tasks.embeddings import Retrieval, Verification
    from .tasks.task import Score, Task, UserTask
    from .tasks.task_by_name import task

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
    "Agreement": "tasks.agreement_task",
    "Batch": "data.images",
    "Classification": "tasks.classification",
    "Comparison": "latency.comparison",
    "Images": "data.images",
    "Latency": "latency.measurement",
    "Measurement": "latency.measurement",
    "Preset": "latency.measurement",
    "Retrieval": "tasks.embeddings",
    "Run": "data.batch_runner",
    "Score": "tasks.task",
    "Split": "data.images",
    "Task": "tasks.task",
    "UserTask": "tasks.task",
    "Verification": "tasks.embeddings",
    "compare": "latency.comparison",
    "fixed_batch": "data.batch_runner",
    "measure": "latency.latency",
    "task": "tasks.task_by_name",
}


def __getattr__(name: str) -> object:
    """Import what is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
