"""Tasks: what "as good as before" means. Each judges a run, whatever runs behind it."""

from __future__ import annotations

from ...runtime.errors import InputError
from .agreement_task import Agreement
from .classification import Classification
from .task import Task

TASK_NAMES = ("classification", "retrieval", "verification", "agreement")


def task(name: str) -> Task:
    """The task called ``name``.

    Raises:
        InputError: ``E_TASK`` for a name that is not a task.
    """
    if name == "classification":
        return Classification()
    if name == "agreement":
        return Agreement()
    if name in TASK_NAMES:
        from .embeddings import Retrieval, Verification

        return Retrieval() if name == "retrieval" else Verification()
    raise InputError("E_TASK", f"unknown task '{name}'.", mend="Tasks: " + ", ".join(TASK_NAMES))
