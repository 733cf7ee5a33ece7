"""Ranking: the answer to a request, and the margin that proves it."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.manifest import Rounding
from ranklet.engine.engine import SUMS, Floats
from ranklet.explanation import Explanation
from ranklet.titles import Titles

SHOWN, SHOWN_ROWS = 10, 50  # items of a long ranking, as text and as a table


@dataclass(frozen=True, slots=True, eq=False, repr=False)  # comparing arrays would raise
class Ranking:
    """The best items for one history, best first. A notebook shows it as a table.

    Attributes:
        items: Item ids, of the bundle's id type.
        scores: One score for each item, falling, (items,). For a cold user the score is the
            popularity of the item, its share of the training events.
        unknown: The number of history ids that the catalogue lacks.
        cold: Whether no event of the history is known. The items are then the most popular ones.
        explanation: The events of the history that led to each item, if that was asked for.
    """

    items: list[str] | list[int]
    scores: NDArray[np.float32]
    unknown: int
    cold: bool
    explanation: Explanation | None = None
    _margin: "Margin | None" = None
    _origin: "Origin | None" = None

    @property
    def bundle(self) -> str:
        """The digest of the manifest of the bundle that made the ranking."""
        return self._origin.bundle if self._origin else ""

    @property
    def exact(self) -> bool:
        """Whether these items are proven to be those of fp32 scores.

        It is false for some rankings of an int8 or int4 bundle, where an item outside the re-scored
        pool may be as good as the last one here, and for all that an index found.
        """
        return self._margin is None or self._margin.is_safe()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as lists and Python values, for JSON.

        The keys are items, scores, unknown, cold, exact, bundle and, if it was asked for,
        explanation.
        """
        values = {
            "items": list(self.items),
            "scores": self.scores.tolist(),
            "unknown": self.unknown,
            "cold": self.cold,
            "exact": self.exact,
            "bundle": self.bundle,
        }
        if self.explanation is not None:
            values["explanation"] = self.explanation.to_dict()
        return values

    def __repr__(self) -> str:
        """Show the first items with their scores."""
        pairs = zip(self.items[:SHOWN], self.scores[:SHOWN].tolist(), strict=True)
        best = [f"{item!r}: {score:.4f}" for item, score in pairs]
        best += ["..."] * (len(self.items) > SHOWN)
        counts = f"{len(self.items)} items, unknown={self.unknown}, cold={self.cold}"
        return f"<Ranking {{{', '.join(best)}}}, {counts}>"

    def _repr_html_(self) -> str:
        """Return the first items as a table, with their titles if the bundle has any."""
        items = self.items[:SHOWN_ROWS]
        columns: dict[str, Sequence[object]] = {
            "rank": range(1, len(items) + 1),
            "item": items,
            "popularity" if self.cold else "score": [f"{s:.4f}" for s in self.scores[:SHOWN_ROWS]],
        }
        names = self._origin.titles if self._origin else None
        titles = names.of(items) if names else None
        if titles and titles != [str(item) for item in items]:
            columns["title"] = titles
        head = "".join(f"<th>{name}</th>" for name in columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in zip(*columns.values(), strict=True)
        )
        more = len(self.items) - len(items)
        note = f"<p>and {more:,} more</p>" if more else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """Pickle everything but the titles, which belong to the open bundle."""
        values = (self.items, self.scores, self.unknown, self.cold, self.explanation)
        return Ranking, (*values, self._margin, Origin(self.bundle, None))


class Origin(NamedTuple):
    """What made a ranking."""

    bundle: str  # digest of the manifest
    titles: Titles | None


class Margin(NamedTuple):
    """The margin that proves that scores by codes missed no better item."""

    user: Floats  # (D,), a copy: the original array holds a batch
    last: float  # score of the last item
    floor: float  # by codes, the last score of the pool; infinite: an index left items unread
    rounding: Rounding

    def is_safe(self) -> bool:
        """Return whether the last score beats every possible score outside the pool."""
        # Sums of fp32 products are off, too, by far less than 1e-4.
        slack = self.rounding.bound(self.user) + SUMS * (1 + abs(self.floor))
        return bool(self.last > self.floor + slack)
