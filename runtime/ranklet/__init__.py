"""Rank the next item for a history of events, with numpy and onnxruntime alone."""

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
from ranklet.explanation import Explanation
from ranklet.new_items import Addition
from ranklet.ranker import Ranker
from ranklet.ranking import Ranking
from ranklet.user import User, Users

__version__ = "0.1.0"

__all__ = [
    "Addition",
    "BundleError",
    "DataError",
    "Eligible",
    "Explanation",
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
