"""Attacks by the index: search.onnx says which items a cluster has."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from attacks.bundle import Bundle, attack

SHAPE = "items=3000,width=64,blocks=1,heads=1,length=20"


@cache
def _exported() -> "TemporaryDirectory[str]":
    """Return a folder, removed at the end, with a bundle of random weights that has an index."""
    from ranklet_export.export import Settings, export_random

    folder = TemporaryDirectory(prefix="attack-")
    export_random(SHAPE, Path(folder.name) / "bundle", Settings("int8", index="clusters"))
    return folder


def _take_index(bundle: Bundle) -> None:
    """Put a bundle with an index in the place of the shipped one."""
    bundle.become(Path(_exported().name) / "bundle")


def _stored(bundle: Bundle, name: str, dtype: str) -> NDArray[Any]:
    """Take a bundle with an index; return a tensor of search.onnx, to be changed in place."""
    _take_index(bundle)
    model = onnx.load(bundle.folder / "search.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    path, shape = bundle.folder / place["location"], tuple(tensor.dims)
    return np.memmap(path, dtype, "r+", int(place["offset"]), shape)


@attack
def member_beyond_the_catalogue(bundle: Bundle) -> None:
    """A cluster with an item that is not there: a gather outside of the scores."""
    _stored(bundle, "members", "<i4")[0, 0] = 1 << 30
    bundle.sign()


@attack
def member_below_0(bundle: Bundle) -> None:
    """A gather takes -1 as the last item."""
    _stored(bundle, "members", "<i4")[:, 0] = -1
    bundle.sign()


@attack
def member_of_two_clusters(bundle: Bundle) -> None:
    """One item in all places: it would be answered ten times."""
    members = _stored(bundle, "members", "<i4")
    members[:] = members[0, 0]
    bundle.sign()


@attack
def clusters_of_nothing(bundle: Bundle) -> None:
    """All places are empty, so a search never finds enough."""
    _stored(bundle, "members", "<i4")[:] = 0
    bundle.sign()


@attack
def centroids_that_are_no_numbers(bundle: Bundle) -> None:
    """Nothing is nearest to a user."""
    _stored(bundle, "centroids", "<f4")[:] = np.nan
    bundle.sign()


@attack
def more_probes_than_clusters(bundle: Bundle) -> None:
    """A TopK of more clusters than there are."""
    _take_index(bundle)
    bundle.manifest["index"]["probes"] = 1 << 40
    bundle.sign()


@attack
def clusters_of_another_size(bundle: Bundle) -> None:
    """The manifest counts other places than the graph has."""
    _take_index(bundle)
    bundle.manifest["index"]["size"] += 1
    bundle.sign()
