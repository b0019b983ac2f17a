"""edgepress.compress: decide what to remove and in which precision, and whether it paid.

What is named here is imported when it is first used, so that the commands of this room can say
which extra is missing where torch is not installed.
"""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from .backbone import Backbone
    from .history import History, Pruned
    from .losses import EmbeddingLoss, FeatureLoss, LogitLoss, OutputLoss, Taps
    from .pipeline import compress
    from .pruning import prune
    from .recipe import Recipe
    from .settings import Int8, Prune
    from .weights import save_weights

__all__ = [
    "Backbone",
    "EmbeddingLoss",
    "FeatureLoss",
    "History",
    "Int8",
    "LogitLoss",
    "OutputLoss",
    "Prune",
    "Pruned",
    "Recipe",
    "Taps",
    "compress",
    "prune",
    "save_weights",
]

_HOME = {
    "Backbone": "backbone",
    "EmbeddingLoss": "losses",
    "FeatureLoss": "losses",
    "History": "history",
    "Int8": "settings",
    "LogitLoss": "losses",
    "OutputLoss": "losses",
    "Prune": "settings",
    "Pruned": "history",
    "Recipe": "recipe",
    "Taps": "losses",
    "compress": "pipeline",
    "prune": "pruning",
    "save_weights": "weights",
}


def __getattr__(name: str) -> object:
    """Import what is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
