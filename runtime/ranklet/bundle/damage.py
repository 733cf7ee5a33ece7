"""Checks of what the graphs of a bundle answer, and the errors of those that answer wrongly."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranklet.errors import BundleError

REMEDY = "the bundle is damaged; export the run again"


def outside(index: int) -> BundleError:
    """Return the error of an item index that the catalogue lacks."""
    return BundleError(
        f"a graph of the bundle answers item {index}, which is none of its catalogue: {REMEDY}"
    )


def check_items(items: NDArray[np.int64], last: int) -> None:
    """Check that items lie between 1 and the last one."""
    if items.size and not 0 < items.min() <= items.max() <= last:
        raise outside(int(items.max() if items.min() > 0 else items.min()))


def check_unique(items: NDArray[np.int64]) -> None:
    """Check that no item is answered twice."""
    if len({*(places := items.tolist())}) < len(places):
        raise BundleError(f"a graph of the bundle answers an item twice: {REMEDY}")


def not_finite() -> BundleError:
    """Return the error of a vector or a score that is NaN or infinite."""
    return BundleError(f"a graph of the bundle gives NaN or infinity: {REMEDY}")


def finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return values that are finite."""
    if not np.isfinite(values).all():
        raise not_finite()
    return values


def states_of(arrays: list[NDArray[Any]], batch: int, length: int) -> list[list[NDArray[Any]]]:
    """Return the arrays of each history, which an encoder gave for all, (B, T, D) each."""
    if any(len(array) != batch or array.shape[1] < length for array in arrays):
        raise BundleError(f"an encoder of the bundle gives the state of too few events: {REMEDY}")
    return [[array[row] for array in arrays] for row in range(batch)]
