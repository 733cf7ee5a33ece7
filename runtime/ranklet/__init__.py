"""Rank the next item for a history of events, with numpy and onnxruntime alone."""

from ranklet.bundle import Manifest
from ranklet.errors import (
    BundleError,
    DataError,
    InputError,
    ParityError,
    ProviderError,
    RankletError,
    RunError,
)
from ranklet.ranker import Ranker, Ranking

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "DataError",
    "InputError",
    "Manifest",
    "ParityError",
    "ProviderError",
    "Ranker",
    "Ranking",
    "RankletError",
    "RunError",
    "__version__",
]
