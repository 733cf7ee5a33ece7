"""Rankings of the rows of a frame, whichever library holds the frame.

A frame has one row for each user: a column of histories, and perhaps columns of other arguments of
which each history has its own. It gets two more columns, ``items`` and ``scores``.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ranklet.errors import InputError
from ranklet.ranker import Ranker
from ranklet.values import show

BATCH = 4096  # users of whom lists exist at a time
# Arguments of ``Ranker.rank_batch`` of which each history has its own.
OF_EACH = ("times", "now", "kinds", "candidates", "exclude", "seen_recently")
ADDED = ("items", "scores")


class RowRanker:
    """Ranker of rows: names of columns and options, checked once; it may be pickled."""

    def __init__(
        self, bundle: Ranker | str | Path, history: str, options: Mapping[str, Any]
    ) -> None:
        """Take a ranker or the folder of a bundle, and arguments of ``Ranker.rank_batch``.

        Raises:
            BundleError: The folder is no bundle.
            InputError: An option can't be used.
        """
        self.ranker = bundle if isinstance(bundle, Ranker) else Ranker.load(bundle)
        self._columns = {n: options[n] for n in OF_EACH if options.get(n) is not None}
        self._options = {n: value for n, value in options.items() if n not in OF_EACH}
        self._history = history
        none: dict[str, Any] = {name: [] for name in self._columns}
        self.ranker.rank_batch([], **none, **self._options)

    def check(self, columns: Collection[str]) -> None:
        """Raise InputError if a frame lacks a column, or has one that would be added."""
        for name, column in {"history": self._history, **self._columns}.items():
            if not isinstance(column, str) or column not in columns:
                raise InputError(
                    f"{name} is {show(column)}, and the frame has no such column: pass the name of "
                    "one that has a value for each user"
                )
        if taken := set(ADDED) & set(columns):
            raise InputError(f"the frame has a column {sorted(taken)[0]} already: rename it")

    def rank(self, column: Callable[[str], list[Any]]) -> tuple[list[Any], list[Any]]:
        """Return the item ids and the scores of each row; ``column`` returns a column's values."""
        histories = [[] if events is None else events for events in column(self._history)]
        own: dict[str, Any] = {name: column(source) for name, source in self._columns.items()}
        rankings = self.ranker.rank_batch(histories, **own, **self._options)
        items = [ranking.items for ranking in rankings]
        return items, [ranking.scores.tolist() for ranking in rankings]
