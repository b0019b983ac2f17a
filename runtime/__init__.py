"""edgepress.runtime: open a bundle, check it, run it.

It needs numpy, Pillow and one engine, and never imports torch. Importing it imports no engine.
"""

from .bundle import Bundle
from .engine import Engine, EngineOptions
from .engines import open_engine
from .errors import (
    BoundError,
    BundleError,
    EdgepressError,
    EngineError,
    InputError,
    MissingExtraError,
    UnsettledError,
)
from .nvidia.options import BuildOptions
from .pictures import read_picture
from .prediction import Candidate, Prediction
from .preprocessing import Preprocessing
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
