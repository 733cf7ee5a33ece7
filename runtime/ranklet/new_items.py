"""Items that are added to a loaded bundle, changed or removed, without training.

The row of a new item comes from the first of these that is there: the known items that it is like,
a ready-made vector, its attributes (item.onnx).
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.manifest import NEVER, NewItems
from ranklet.bundle.vocabulary import ItemId, Vocabulary
from ranklet.catalogue import LARGEST_BOOST, Added, Bias, Catalogue, Mask
from ranklet.engine.engine import Floats, Indices
from ranklet.errors import InputError
from ranklet.item_features import ItemEncoder
from ranklet.item_table import ItemTable, read_item_table, read_title
from ranklet.serving import Serving
from ranklet.values import Ids, bounded, flag, mapping, reading, show


@dataclass(frozen=True)
class Addition:
    """The result of adding items: ids of the table, by what became of them."""

    added: list[ItemId]  # new in the catalogue
    updated: list[ItemId]  # there already: attributes and titles are those of the table now
    unused: list[str]  # columns that are no attribute of the bundle
    bias: float  # added to the scores of the new ones
    in_histories: bool  # whether the new ones count as events of a history


def add_items(
    serving: Serving,
    table: Any,  # noqa: ANN401 (any form of a table)
    vectors: Any = None,  # noqa: ANN401 (an array from outside)
    like: Mapping[ItemId, Ids] | None = None,
    bias: float | None = None,
    in_histories: bool | None = None,
) -> tuple[Catalogue, Addition]:
    """Return the catalogue of a serving with more items, see ``Ranker.add_items``."""
    old = serving.catalogue
    items = read_item_table(table, old.vocabulary)
    known = old.vocabulary.index(items.ids, "item_id")
    new = np.flatnonzero(known == 0)
    vocabulary = old.vocabulary.grown([items.ids[row] for row in new.tolist()])
    indices = vocabulary.index(items.ids, "item_id")
    # Rows of the table whose items have no trained row: new ones, and those that were added before.
    untrained = np.flatnonzero(indices > old.last)
    rows = _rows(serving, items, untrained, vectors, like)
    if in_histories is None and len(old.added):  # all added items are alike
        in_histories = old.silent is None or not old.silent[-1]
    settings = _settings(serving, vectors, like, bias, in_histories)
    added = _grown(old, vocabulary, indices[untrained], rows, settings)
    titles = items.titles or []
    given = {int(i): title for i, title in zip(indices, titles, strict=False) if title}
    attributes = old.attributes
    if attributes.kinds:
        attributes = attributes.with_items(items.columns, indices, len(vocabulary))
    catalogue = replace(
        old,
        vocabulary=vocabulary,
        titles=old.titles.with_titles(vocabulary, given),
        attributes=attributes,
        added=added,
        own=_returned(serving, old, indices, added),
        silent=_silent(old, len(vocabulary), settings),
        sets={name: kept.grown(vocabulary) for name, kept in old.sets.items()},
        is_edited=True,
    ).fresh()
    ids = [items.ids[row] for row in np.flatnonzero(known).tolist()]
    new_ids = [items.ids[row] for row in new.tolist()]
    unused = [name for name in items.columns if name not in attributes.kinds]
    return catalogue, Addition(new_ids, ids, unused, settings.bias, settings.in_histories)


def remove_items(catalogue: Catalogue, ids: Ids) -> Catalogue:
    """Return a catalogue that does not rank some items, see ``Ranker.remove_items``."""
    indices = catalogue.vocabulary.index(ids, "items", unknown="error")
    own = catalogue.own
    table, added = own.table.copy(), own.added.copy()
    table[0, indices[indices <= catalogue.last]] = NEVER
    added[indices[indices > catalogue.last] - catalogue.last - 1] = NEVER
    return replace(catalogue, own=Bias.of(table, added), is_edited=True).fresh()


def retitle(catalogue: Catalogue, titles: Mapping[ItemId, str]) -> Catalogue:
    """Return a catalogue with other titles of some items, see ``Ranker.retitle``."""
    given = mapping(titles, "titles", "pass {item id: title}")
    indices = catalogue.vocabulary.index(list(given), "titles", unknown="error").tolist()
    changed = {}
    for index, (item, title) in zip(indices, given.items(), strict=True):
        if not issubclass(type(title), str):
            raise InputError(f"the title of {show(item)} is {show(title)}; a title is text")
        changed[index] = read_title(title, f"the title of {show(item)}") or ""
    renamed = catalogue.titles.with_titles(catalogue.vocabulary, changed)
    return replace(catalogue, titles=renamed, is_edited=True)


def _settings(
    serving: Serving,
    vectors: object,
    like: object,
    bias: float | None,
    in_histories: bool | None,
) -> NewItems:
    """Return bias and use in histories: as told, else what training measured for attributes."""
    measured = serving.manifest.new_items
    if measured is None or vectors is not None or like is not None:
        measured = NewItems(0.0, in_histories=False, figures={})
    return NewItems(
        measured.bias if bias is None else bounded(bias, "bias", LARGEST_BOOST),
        measured.in_histories if in_histories is None else flag(in_histories, "in_histories"),
        {},
    )


def _rows(
    serving: Serving,
    items: ItemTable,
    wanted: Indices,
    vectors: object,
    like: Mapping[ItemId, Ids] | None,
) -> Floats:
    """Return the rows of some items of a table, (wanted, D)."""
    catalogue, width = serving.catalogue, serving.manifest.width
    rows = np.zeros((len(wanted), width), dtype=np.float32)
    is_placed = np.zeros(len(wanted), dtype=bool)
    if vectors is not None:
        given = _vectors(vectors, len(items.ids), width)
        rows, is_placed = _scaled(catalogue, given[wanted]), ~is_placed
    place_of = {items.ids[row]: place for place, row in enumerate(wanted.tolist())}
    usage = "pass {new id: known ids}"
    for item, others in mapping({} if like is None else like, "like", usage).items():
        if item not in place_of:
            raise InputError(f"like has {show(item)}, which is no new item of the table")
        known = catalogue.vocabulary.index(others, f"like[{show(item)}]", unknown="error")
        if not len(known):
            raise InputError(f"like[{show(item)}] is empty; name at least one known item")
        rows[place_of[item]] = _scaled(catalogue, catalogue.rows(known).mean(axis=0)[None])[0]
        is_placed[place_of[item]] = True
    if is_placed.all():
        return rows
    left = np.flatnonzero(~is_placed)
    encoder = ItemEncoder(serving.engine, catalogue.attributes)
    cells = {
        name: [column[row] for row in wanted[left].tolist()]
        for name, column in {**items.columns, "title": items.titles or []}.items()
        if column
    }
    rows[left], is_known = encoder.rows(cells, len(left))
    if not is_known.all():
        strange = wanted[left][~is_known].tolist()
        raise InputError(
            f"{len(strange)} new items have no value of an attribute that the training knew, "
            f"first {show(items.ids[strange[0]])}: pass vectors or like for them, or leave them out"
        )
    return rows


def _vectors(vectors: Any, count: int, width: int) -> Floats:  # noqa: ANN401
    """Return ready-made vectors, (items of the table, D)."""
    with reading("vectors"), np.errstate(over="ignore"):
        given = vectors.filled(np.nan) if np.ma.isMA(vectors) else vectors
        given = np.asarray(given)
        if given.dtype.kind not in "iuf":
            raise InputError(f"vectors are of type {show(str(given.dtype))}; pass real numbers")
        array = given.astype(np.float32)
    if array.shape != (count, width):
        raise InputError(
            f"vectors has shape {array.shape}; pass one vector of {width} numbers for each of the "
            f"{count} items"
        )
    if not np.isfinite(array).all() or not array.any(axis=1).all():
        row = int((~np.isfinite(array).all(axis=1) | ~array.any(axis=1)).argmax())
        raise InputError(f"vectors[{row}] is zero or not finite: it has no direction")
    return array


def _scaled(catalogue: Catalogue, vectors: Floats) -> Floats:
    """Return vectors at the mean length of the rows of known items."""
    some = np.linspace(1, catalogue.last, min(catalogue.last, 1000)).astype(np.int64)
    length = np.linalg.norm(catalogue.rows(some), axis=1).mean()
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Floats = vectors * (length / np.maximum(lengths, np.finfo(np.float32).tiny))
    return scaled


def _grown(
    old: Catalogue, vocabulary: Vocabulary, indices: Indices, rows: Floats, settings: NewItems
) -> Added:
    """Return the added items with those of a table, which may replace earlier ones."""
    count = len(vocabulary) - old.last
    every = np.zeros((count, rows.shape[1]), dtype=np.float32)
    bias = np.zeros(count, dtype=np.float32)
    every[: len(old.added)], bias[: len(old.added)] = old.added.rows, old.added.bias
    places = indices - old.last - 1
    every[places], bias[places] = rows, settings.bias
    ids = vocabulary.ids(np.arange(old.last + 1, len(vocabulary) + 1))
    return Added(every, bias, _ties(vocabulary, ids))


def _silent(old: Catalogue, size: int, settings: NewItems) -> Mask | None:
    """Return which items do not count in histories; all added ones are alike."""
    silent = np.full(size + 1, not settings.in_histories)
    silent[: old.last + 1] = False if old.silent is None else old.silent[: old.last + 1]
    return silent if silent.any() else None


def _ties(vocabulary: Vocabulary, ids: Sequence[ItemId]) -> NDArray[np.float64]:
    """Return for each added id a number between the indices of its neighbours in sorted order."""
    known: Any = vocabulary.all_ids
    order = sorted(range(len(ids)), key=ids.__getitem__)
    ties = np.zeros(len(ids))
    for place, row in enumerate(order, 1):
        before = bisect_left(known, ids[row], 0, vocabulary.sorted)
        ties[row] = before + place / (len(ids) + 1)
    return ties


def _returned(serving: Serving, old: Catalogue, indices: Indices, added: Added) -> Bias:
    """Return the bias of every request, in which the items of a table may be ranked again."""
    table, of_bundle = old.own.table, indices[indices <= old.last]
    if (table[0, of_bundle] < NEVER / 2).any():
        table = table.copy()
        again = serving.engine.bias[0, of_bundle]
        table[0, of_bundle] = np.where(again < NEVER / 2, 0, again)
    bias = added.bias.copy()
    removed = np.flatnonzero(old.own.added < NEVER / 2) + old.last + 1
    bias[np.setdiff1d(removed, indices) - old.last - 1] = NEVER
    return Bias.of(table, bias)
