"""Explanations: which events of a history put an item into a ranking.

* The drop of an item by an event is its score minus its score without that event. The history is
  encoded again for it, so a drop is true: the item would be ranked with the lower score.
* The attention of an event is its weight in the last block, the mean of the heads. It costs one run
  for all events, and chooses the events whose drops are computed. The model card says how far
  attention and drops agree.
* Without its only event a history has no score: the drop is then the whole score.
* An item that occurs twice in a history is two events.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ranklet.bundle.vocabulary import ItemId
from ranklet.engine.engine import MOST_EVENTS, MOST_USERS, Engine, Floats, History, Indices
from ranklet.time_gaps import UNKNOWN
from ranklet.titles import Titles
from ranklet.values import whole

EXAMINED = 5  # events of most attention: together about two plain rankings (benchmarks/living.py)
SHOWN_ITEMS, SHOWN_REASONS = 10, 3


class Effects(NamedTuple):
    """The events of a history and what they do to the scores of some items, by place."""

    attention: Floats  # share of each event, (T,)
    examined: Indices  # places of the events whose drops are known, most attention first, (E,)
    drops: Floats  # of each item by each of these events, (k, E)


class Reason(NamedTuple):
    """An event and what it does to the score of an item."""

    place: int  # in ``Explanation.events``
    event: ItemId
    drop: float  # of the score without the event; below 0 if the event speaks against the item
    attention: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)  # comparing arrays would raise
class Explanation:
    """The reasons why items are in a ranking.

    Attributes:
        items: Item ids of the ranking, (k,).
        events: Item ids of the latest known events, those that count, oldest first, (T,).
        effects: The attention to each event, and the drops by those that were examined.
    """

    items: Sequence[ItemId]
    events: Sequence[ItemId]
    effects: Effects
    _titles: Titles | None = None

    def reasons(self, place: int) -> list[Reason]:
        """Return the examined events for the item at a place of the ranking, largest drop first.

        Raises:
            InputError: The ranking has no such place; they count from 0.
        """
        place = whole(place, "place", 0, len(self.items) - 1)
        attention, examined, drops = self.effects
        return [
            Reason(event, self.events[event], float(drop), float(attention[event]))
            for event, drop in sorted(
                zip(examined.tolist(), drops[place].tolist(), strict=True),
                key=lambda pair: (-pair[1], -pair[0]),
            )
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return events with their attention, and items with their reasons, for JSON."""
        of_events, of_items = self._names(self.events), self._names(self.items)
        attention = self.effects.attention.tolist()
        events = zip(self.events, of_events, attention, strict=True)
        return {
            "events": [
                {"item": item, "title": title, "attention": share} for item, title, share in events
            ],
            "items": [
                {
                    "item": item,
                    "title": title,
                    "because": [
                        {"event": r.place, "item": r.event, "title": of_events[r.place]}
                        | {"drop": r.drop}
                        for r in self.reasons(place)
                    ],
                }
                for place, (item, title) in enumerate(zip(self.items, of_items, strict=True))
            ],
        }

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """Pickle everything but the titles, which belong to the open bundle."""
        return Explanation, (self.items, self.events, self.effects)

    def __repr__(self) -> str:
        """Show the first items, each with the events of the largest drops."""
        of_events, lines = self._names(self.events), []
        for place, name in enumerate(self._names(self.items[:SHOWN_ITEMS])):
            reasons = self.reasons(place)[:SHOWN_REASONS]
            named = ", ".join(f"{of_events[r.place]} {r.drop:+.2f}" for r in reasons)
            lines.append(f"  {name}: {named}")
        lines += ["  ..."] * (len(self.items) > SHOWN_ITEMS)
        head = f"{len(self.items)} items, {len(self.effects.examined)} of {len(self.events)} events"
        return "\n".join([f"<Explanation of {head} examined", *lines]) + ">"

    def _names(self, items: Sequence[ItemId]) -> list[str]:
        return self._titles.of(items) if self._titles else [str(item) for item in items]


def explain(
    engine: Engine,
    history: History,
    rows: Floats,
    most_examined: int = EXAMINED,
    attention: tuple[Floats, Floats] | None = None,
) -> Effects:
    """Return what the events of a history do to the scores of items.

    Args:
        engine: The engine of the bundle.
        history: All events that count; of a kept user, the latest ones.
        rows: Of the items in the item table, (k, D).
        most_examined: The number of events to leave out, those of most attention.
        attention: ``engine.attention(history)``, if it is there already.

    Raises:
        BundleError: The bundle has no graph that gives attention.
    """
    user, weights = attention or engine.attention(history)
    shares, count = weights.mean(axis=0), len(history.items)
    examined = np.lexsort((-np.arange(count), -shares))[:most_examined]
    others = np.zeros_like(user)
    if count > 1:
        shorter = [without(history, place) for place in examined.tolist()]
        size = max(1, min(MOST_USERS, MOST_EVENTS // count))
        parts = [shorter[begin : begin + size] for begin in range(0, len(shorter), size)]
        others = np.concatenate([engine.encode(part) for part in parts])
    return Effects(shares, examined, rows @ (user - others).T)


def without(history: History, place: int) -> History:
    """Return a history without one event.

    A history has buckets of gaps and no times: where the event was, the longer of the two gaps
    around it is taken, which is right or one bucket too low.
    """
    kept = np.arange(len(history.items)) != place  # several times as fast as np.delete
    rows = None if history.rows is None else history.rows[kept]
    since, until = history.since, history.until
    if len(since):
        before, since = int(since[place]), since[kept]
        if place == len(since):
            until = _longer(before, until)
        else:
            since[place] = _longer(before, int(since[place]))
    kinds = history.kinds[kept] if len(history.kinds) else history.kinds
    return history._replace(
        items=history.items[kept], since=since, until=until, kinds=kinds, rows=rows
    )


def _longer(one: int, other: int) -> int:
    return UNKNOWN if UNKNOWN in (one, other) else max(one, other)
