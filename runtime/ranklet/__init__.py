"""Rank the next item for a history of events, with numpy and onnxruntime alone."""

from ranklet.answer import Ranking
from ranklet.bundle.manifest import Manifest
from ranklet.catalogue import Eligible
from ranklet.errors import (
    BundleError,
    DataError,
    InputError,
    ParityError,
    PrecisionError,
    ProviderError,
    RankletError,
    RunError,
)
from ranklet.ranker import Ranker
from ranklet.user import User, Users

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "DataError",
    "Eligible",
    "InputError",
    "Manifest",
    "ParityError",
    "PrecisionError",
    "ProviderError",
    "Ranker",
    "Ranking",
    "RankletError",
    "RunError",
    "User",
    "Users",
    "__version__",
]
