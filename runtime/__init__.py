"""edgepress.runtime: open a bundle, check it, run it.

It needs numpy, Pillow and one engine, and never imports torch. Importing it imports no engine.
"""

from .bundle.bundle import Bundle
from .engine_registry import open_engine
from .engines.build_options import BuildOptions
from .engines.engine import Engine, EngineOptions
from .errors import (
    BoundError,
    BundleError,
    EdgepressError,
    EngineError,
    InputError,
    MissingExtraError,
    UnsettledError,
)
from .pictures.picture_reader import read_picture
from .pictures.preprocessing import Preprocessing
from .prediction import Candidate, Prediction
from .session import Session
from .tensors import TensorSpec

__all__ = [
    "BoundError",
    "BuildOptions",
    "Bundle",
    "BundleError",
    "Candidate",
    "EdgepressError",
    "Engine",
    "EngineError",
    "EngineOptions",
    "InputError",
    "MissingExtraError",
    "Prediction",
    "Preprocessing",
    "Session",
    "TensorSpec",
    "UnsettledError",
    "open_engine",
    "read_picture",
]
