"""A bundle with a changed catalogue, written without training and without torch.

Items are added with their rows of the item table, removed from rankings, or renamed. Everything
that has a row for each item is written for the new sorted ids. Removed items keep their rows, so
that histories with them still count. The clusters of an index are made anew, and the histories
that say how many of them are read are drawn, as the held-out ones are not in a bundle.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranklet.attributes import Attributes
from ranklet.bundle.folder import (
    Opened,
    describe_files,
    read_popularity,
    read_titles,
    read_trending,
    write_array,
    write_catalogue,
)
from ranklet.bundle.manifest import (
    BIAS,
    CARD,
    FILE_NAMES,
    GOLDEN,
    NEVER,
    SILENT,
    TRENDING,
    Manifest,
)
from ranklet.bundle.vocabulary import ItemId, Vocabulary
from ranklet.engine.engine import Engine, History
from ranklet.errors import InputError
from ranklet.files.atomic import atomic_write
from ranklet.item_table import check_ids
from ranklet.ranker import Ranker
from ranklet.serving import Serving
from ranklet.values import show
from ranklet.verify import verify
from ranklet_export.card import model_card
from ranklet_export.probes import choose_probes, draw_histories
from ranklet_export.rewrite import Places, write_graphs
from ranklet_export.target import check_target, new_bundle

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]

# Golden answers: histories of the export, added items in one more, items of an answer.
GOLDEN_HISTORIES, GOLDEN_ADDED, GOLDEN_K = 5, 5, 10
MOST_CHANGES = 100  # that a manifest lists


@dataclass(frozen=True)
class Changes:
    """Changes of a catalogue.

    Attributes:
        ids: Items to add.
        rows: Their rows of the item table, (added, D), scaled as those of the bundle.
        bias: What is added to the score of each of them, (added,), in units of the score; None: 0.
        titles: New titles of added or known items; an added item without one is shown by its id.
        removed: Known items that are not ranked any more; histories with them still count.
        returned: Items that were removed and are ranked again.
        silent: Added items that do not count as events of a history.
        attributes: Of the known items and, behind them, of the added ones; None: added items have
            none.
    """

    ids: Sequence[ItemId] = ()
    rows: Floats | None = None
    bias: Floats | None = None
    titles: Mapping[ItemId, str] = field(default_factory=dict)
    removed: Sequence[ItemId] = ()
    returned: Sequence[ItemId] = ()
    silent: Sequence[ItemId] = ()
    attributes: Attributes | None = None


def changes_of(serving: Serving) -> Changes:
    """Return the changes of a loaded bundle since it was loaded."""
    catalogue, last, silent = serving.catalogue, serving.catalogue.last, serving.catalogue.silent
    vocabulary, changed = catalogue.vocabulary, catalogue.titles.changed
    was, now = (
        bias[0, : last + 1] < NEVER / 2 for bias in (serving.engine.bias, catalogue.own.table)
    )
    titles = vocabulary.ids(np.array(list(changed), dtype=np.int64))
    return Changes(
        ids=vocabulary.ids(np.arange(last + 1, len(vocabulary) + 1)),
        rows=catalogue.added.rows,
        bias=catalogue.own.added,
        titles=dict(zip(titles, changed.values(), strict=True)),
        removed=vocabulary.ids(np.flatnonzero(now & ~was)),
        returned=vocabulary.ids(np.flatnonzero(was & ~now)),
        silent=[]
        if silent is None
        else vocabulary.ids(np.flatnonzero(silent[last + 1 :]) + last + 1),
        attributes=catalogue.attributes,
    )


def save_catalogue(
    bundle: Path, changes: Changes, target: Path, *, replace_target: bool = False
) -> Manifest:
    """Write a bundle with a changed catalogue; it appears whole and verified, or not at all.

    Its answers are those of the bundle with the new scores, in order and to 1e-4, equal scores by
    id. Its golden answers are worked out from the user vectors of the old bundle.

    Args:
        bundle: Folder of the bundle, which is only read, also if it is the target.
        changes: What changes.
        target: Folder of the new bundle.
        replace_target: Replace a bundle that is there.

    Raises:
        InputError: A change is not possible; the message names its value.
        BundleError: The bundle is damaged or old, or ``target`` must not be replaced.
    """
    check_target(target, replace=replace_target)
    old = Serving.open(bundle, "cpu", 1, owner=None, check_digests=True)
    new = _Catalogue(old, changes)
    with new_bundle(target, replace=replace_target) as folder:
        manifest = _write(old, new, changes, folder)
        old.opened.check(*FILE_NAMES)
    return manifest


class _Catalogue:
    """The new catalogue in the order of its ids, padding first."""

    def __init__(self, old: Serving, changes: Changes) -> None:
        manifest, known = old.manifest, old.catalogue.vocabulary
        ids = check_ids(known, changes.ids, "ids")
        if (there := known.index(ids, "ids")).any():
            place = int(there.argmax())
            raise InputError(f"ids[{place}] is {show(ids[place])}, which the catalogue has already")
        every = sorted([*known.ids(np.arange(1, len(known) + 1)), *ids])
        self.vocabulary = Vocabulary(every if known.is_text else np.array(every, dtype=np.int64))
        of_known = np.concatenate([[0], self.vocabulary.index(known.all_ids)])
        self.places = Places(of_known, self.vocabulary.index(ids))
        self.merge = self.places.merge
        rows = _numbers("rows", changes.rows, (len(ids), manifest.width))
        self.table = self.merge(old.engine.table, rows.astype(manifest.table.type))
        bias = old.engine.bias[0, : len(known) + 1].copy()
        bias[known.index(changes.returned, "returned", unknown="error")] = 0
        bias[known.index(changes.removed, "removed", unknown="error")] = NEVER
        self.bias: Floats = self.merge(bias, _numbers("bias", changes.bias, (len(ids),)))
        was_silent = old.catalogue.silent
        before = np.zeros(len(known) + 1, dtype=bool) if was_silent is None else was_silent
        self.silent = self.merge(
            before, np.array([item in {*changes.silent} for item in ids], dtype=bool)
        )
        if (self.bias <= NEVER).all():
            raise InputError("no item would be left to rank: keep one")
        titles = read_titles(old.opened.folder, manifest)
        self.titles = None
        if titles is not None or changes.titles:
            self.titles = self._titles(titles or [""] * len(known), changes.titles)

    def shares(self, known: Floats) -> NDArray[Any]:
        """Return a share of the events for each item, 0 of added ones, (items,)."""
        return self.merge(np.append(np.float32(0), known), 0)[1:].astype("<f4")

    def attributes(self, old: Serving, changed: Attributes | None) -> Attributes:
        """Return the attributes of all items."""
        every = changed or old.catalogue.attributes.with_items(
            {}, np.zeros(0, dtype=np.int64), len(self.vocabulary)
        )
        before = np.arange(len(self.bias))  # added items follow the known ones
        known, added = np.split(before, [len(self.places.known)])
        return every.take(self.merge(known, added)[1:])

    def _titles(self, known: Sequence[str], changed: Mapping[ItemId, str]) -> list[str]:
        merged = [""] * len(self.vocabulary)
        for place, title in zip(self.places.known[1:].tolist(), known, strict=True):
            merged[place - 1] = title
        places = self.vocabulary.index(list(changed), "titles", unknown="error").tolist()
        for place, (item, title) in zip(places, changed.items(), strict=True):
            if not isinstance(title, str):
                raise InputError(f"titles[{show(item)}] is {show(title)}; a title is text")
            merged[place - 1] = title
        return merged


def _numbers(name: str, values: Any, shape: tuple[int, ...]) -> Floats:  # noqa: ANN401
    """Return finite numbers of a shape, zeros for None."""
    if values is None and (name == "bias" or not shape[0]):
        return np.zeros(shape, dtype=np.float32)
    try:
        numbers = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} holds no numbers: {error}") from error
    if numbers.shape != shape:
        raise InputError(f"{name} has shape {numbers.shape}; these items need {shape}")
    if len(bad := np.argwhere(~np.isfinite(numbers))):
        place = "".join(f"[{number}]" for number in bad[0])
        raise InputError(f"{name}{place} is {numbers[tuple(bad[0])]}; numbers must be finite")
    return numbers


def _write(old: Serving, new: _Catalogue, changes: Changes, folder: Path) -> Manifest:
    """Write the whole new bundle, and verify it."""
    bundle = old.opened.folder
    manifest = write_graphs(bundle, old.engine, new.places, new.table, new.bias, folder)
    popularity = new.shares(read_popularity(bundle, old.manifest))
    write_catalogue(folder, new.vocabulary, new.titles, popularity)
    if (trending := read_trending(bundle, old.manifest)) is not None:
        write_array(folder / TRENDING, new.shares(trending), "<f4")
    if new.bias[1:].any():
        write_array(folder / BIAS, new.bias[1:], "<f4")
    if new.silent.any():
        write_array(folder / SILENT, np.flatnonzero(new.silent), "<i8")
    attributes = new.attributes(old, changes.attributes)
    note = {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "from": old.manifest.digest,
        "added": len(changes.ids),
        "removed": len(changes.removed),
        "returned": len(changes.returned),
        "retitled": len(set(changes.titles) - set(changes.ids)),
    }
    notes = [*manifest.data.get("changes", []), note][-MOST_CHANGES:]
    manifest = replace(
        manifest,
        data={**manifest.data, "changes": notes},
        attributes=attributes.write(folder),
        files=describe_files(folder),
    )
    opened = Opened(folder)
    engine = Engine(opened, manifest, "cpu", 1)

    def serve(manifest: Manifest) -> Ranker:
        opening = opened, manifest, engine, new.vocabulary, attributes, None
        return Ranker(Serving.start(*opening))

    if manifest.index:
        histories = draw_histories(popularity, manifest.max_length)
        manifest = replace(manifest, index=choose_probes(manifest, serve, histories))
    golden = json.dumps(_golden(old, new, engine), indent=1) + "\n"
    atomic_write(folder / GOLDEN, golden.encode())
    atomic_write(folder / CARD, model_card(manifest, serve(manifest)).encode())
    manifest = replace(manifest, files=describe_files(folder))
    manifest.write(folder)
    verify(folder, provider="cpu")
    return manifest


def _golden(old: Serving, new: _Catalogue, engine: Engine) -> list[dict[str, Any]]:
    """Return the golden histories with their right answers: all scores, sorted by score and id."""
    answers = json.loads((old.opened.folder / GOLDEN).read_bytes())[:GOLDEN_HISTORIES]
    histories, known = [answer["history"] for answer in answers], old.catalogue.vocabulary
    users = [old.engine.encode([History(known.index(each))]) for each in histories]
    counted = new.places.added[~new.silent[new.places.added]]
    if latest := new.vocabulary.ids(counted[-min(GOLDEN_ADDED, old.manifest.max_length) :]):
        histories.append(latest)
        users.append(engine.encode([History(new.vocabulary.index(latest))]))
    k, golden = min(GOLDEN_K, np.count_nonzero(new.bias > NEVER / 2)), []
    for history, user in zip(histories, users, strict=True):
        scores = new.table.astype(np.float32, copy=False) @ user[0] + new.bias
        items = np.argsort(-scores, kind="stable")[:k]
        best = [round(float(score), 5) for score in scores[items]]
        golden.append({"history": history, "items": new.vocabulary.ids(items), "scores": best})
    return golden
