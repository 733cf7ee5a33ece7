"""Kinds of events, such as view and buy: names of a caller as indices, and weights of an objective.

Index 0 is an event of unknown kind, and of any kind where it is asked for; the kinds of the bundle
follow in its order.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ranklet.errors import InputError
from ranklet.values import bounded, flat, mapping, plain, show

Kinds: TypeAlias = Sequence[str | None] | NDArray[Any]  # one for each event; None: unknown
Objective: TypeAlias = str | Mapping[str | None, float]  # None: an event of any kind

NO_KINDS = "this bundle does not use kinds of events: its model was trained without them"
LARGEST_WEIGHT = 1e6  # the sums of squares of a layer norm stay far from the largest float32


class EventKinds:
    """The kinds of events that a model knows."""

    def __init__(self, names: Sequence[str]) -> None:
        """Know kinds by their names; empty: the model does not use kinds."""
        self.names = names
        self._index: dict[str | None, int] = {None: 0}
        self._index.update({name: place for place, name in enumerate(names, 1)})

    def index(self, kind: str | None, name: str = "kind") -> int:
        """Return the index of a kind, which errors call ``name``.

        Raises:
            InputError: There is no such kind, or the bundle does not use kinds.
        """
        if not self.names:
            raise InputError(NO_KINDS)
        text = plain(kind)
        if (text is None or type(text) is str) and text in self._index:
            return self._index[text]
        raise InputError(
            f"{name} is {show(kind)}, and the kinds of this bundle are {show(self.names)}"
        )

    def indices(self, kinds: Kinds, events: int, name: str) -> NDArray[np.int64]:
        """Return the index of each kind, one for each of ``events``; errors call them ``name``.

        Raises:
            InputError: There is no such kind, the number is another one, or the bundle does not use
                kinds.
        """
        if not self.names:
            raise InputError(NO_KINDS)
        given = flat(kinds, name)
        if len(given) != events:
            raise InputError(
                f"{name} has {len(given)} kinds for {events} events: pass one for each"
            )
        try:
            found = [self._index[kind] for kind in given]
        except Exception:  # of the methods of what is no kind
            found = [self.index(kind, f"{name}[{place}]") for place, kind in enumerate(given)]
        return np.array(found, dtype=np.int64)

    def weights(self, objective: Objective | None) -> NDArray[np.float32] | None:
        """Return the weight of each kind that is asked for, (kinds + 1,); None: the default.

        Raises:
            InputError: It is no mapping of kinds to numbers, all of them are 0, or the bundle does
                not use kinds.
        """
        if objective is None:
            return None
        if not self.names:
            raise InputError(NO_KINDS)
        if issubclass(type(objective), str):
            objective = {plain(objective): 1.0}
        usage = f"pass a kind of events, or weights of some like {{{show(self.names[0])}: 1}}"
        weights = np.zeros(len(self.names) + 1, dtype=np.float32)
        for kind, weight in mapping(objective, "objective", usage).items():
            place = self.index(kind, "a kind of objective")
            weights[place] = bounded(weight, f"objective of {show(kind)}", LARGEST_WEIGHT)
        if not weights.any():
            raise InputError("objective has no weight but 0: ask for at least one kind of events")
        return weights

    def translated(self, other: "EventKinds") -> list[int]:
        """Return the index in another bundle of every index, 0 where it lacks the kind."""
        return [0, *(other._index.get(name, 0) for name in self.names)]
