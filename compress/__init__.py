"""edgepress.compress: decide what to remove and in which precision, and whether it paid.

What is named here is imported when it is first used, so that the commands of this room can say
which extra is missing where torch is not installed.
"""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from .channels.cut_history import History, Pruned
    from .pipeline import compress
    from .pruning.prune import prune
    from .recipe.recipe import Recipe
    from .recipe.settings import Int8, Prune
    from .source.backbone import Backbone
    from .source.weights import save_weights
    from .training.losses import EmbeddingLoss, FeatureLoss, LogitLoss, OutputLoss, Taps

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
    "Backbone": "source.backbone",
    "EmbeddingLoss": "training.losses",
    "FeatureLoss": "training.losses",
    "History": "channels.cut_history",
    "Int8": "recipe.settings",
    "LogitLoss": "training.losses",
    "OutputLoss": "training.losses",
    "Prune": "recipe.settings",
    "Pruned": "channels.cut_history",
    "Recipe": "recipe.recipe",
    "Taps": "training.losses",
    "compress": "pipeline",
    "prune": "pruning.prune",
    "save_weights": "source.weights",
}


def __getattr__(name: str) -> object:
    """Import what is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
