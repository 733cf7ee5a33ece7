"""Catalogue: the items of a ranker, as one value that is replaced and never changed.

It has the items of the bundle and, behind them, those that were added since. A filter or a boost is
compiled once to a ``Bias``, what is added to the score of each item; the latest ones are kept.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ranklet.attributes import Attributes
from ranklet.bundle.manifest import NEVER
from ranklet.bundle.vocabulary import ItemId, Unknown, Vocabulary
from ranklet.engine.engine import Floats, Indices
from ranklet.errors import InputError
from ranklet.forks import cached_property
from ranklet.titles import Titles
from ranklet.values import Ids, bounded, kind, listed, plain, show

Mask: TypeAlias = NDArray[np.bool_]
MOST_KEPT = 1 << 26  # bytes of compiled filters
LARGEST_BOOST = 1e6  # beside it a float32 still tells scores apart that differ by 0.06


class Bias(NamedTuple):
    """What is added to the score of each item, ``NEVER`` for those that may not be ranked."""

    table: Floats  # of the items of the bundle, as score.onnx takes it, (1, rows)
    added: Floats  # of the items that were added since, (A,)
    items: int  # of the bundle that may be ranked
    others: int  # added items that may be ranked
    has_boosts: bool  # whether there are other values than 0 and NEVER
    lifts: bool = False  # whether points of a request may make an item of any cluster the best

    @classmethod
    def of(cls, table: Floats, added: Floats, *, lifts: bool = False) -> "Bias":
        """Count the items of these arrays."""
        opened = [part[part > NEVER / 2] for part in (table, added)]
        has_boosts = any(bool(part.any()) for part in opened)
        return cls(table, added, len(opened[0]), len(opened[1]), has_boosts, lifts)


@dataclass(frozen=True)
class ItemSet:
    """The items of a filter: indices, and ids that the catalogue lacked at the time."""

    indices: Indices  # unique, none is 0
    strangers: list[ItemId]

    @classmethod
    def read(cls, ids: Ids, vocabulary: Vocabulary, unknown: Unknown = "skip") -> "ItemSet":
        """Look up ids; InputError as ``Vocabulary.index``."""
        every = listed(ids, "ids")
        indices = vocabulary.index(every, "ids", unknown=unknown)
        lacking = np.flatnonzero(indices == 0).tolist()
        return cls(np.setdiff1d(indices, [0]), [plain(every[place]) for place in lacking])

    def moved(self, old: Vocabulary, new: Vocabulary) -> "ItemSet":
        """Return the same items in another vocabulary."""
        if old is new:
            return self
        return ItemSet.read([*old.ids(self.indices), *self.strangers], new)

    def grown(self, vocabulary: Vocabulary) -> "ItemSet":
        """Return the set with the ids that a grown vocabulary has by now."""
        if not self.strangers:
            return self
        more = ItemSet.read(self.strangers, vocabulary)
        return ItemSet(np.union1d(self.indices, more.indices), more.strangers)


class Eligible:
    """A filter of some items for many requests, made by ``Ranker.eligible``.

    Attributes:
        count: The number of its items that the catalogue had when it was made.
    """

    def __init__(self, items: ItemSet, vocabulary: Vocabulary, owner: object) -> None:
        """Allow only these items of a vocabulary; rankers of another owner refuse the filter."""
        self._items, self._vocabulary, self._owner = items, vocabulary, owner
        self.count = len(items.indices)
        self._compiled: tuple[Catalogue, Bias] | None = None  # of the latest catalogue

    def __copy__(self) -> "Eligible":
        """Return the filter itself, which nothing changes."""
        return self

    def __deepcopy__(self, _: object) -> "Eligible":
        """Return the filter itself, which nothing changes."""
        return self

    def __reduce__(self) -> NoReturn:
        """Refuse pickling: the filter belongs to one ranker."""
        raise TypeError(
            "an Eligible can't be pickled: pickle its ids, and make it anew with Ranker.eligible"
        )


# The name of a filter of ``Ranker.define``, or "!name"; attributes with their values, which must
# all hold; a filter of ``Ranker.eligible``; a list of these, which must all hold.
Condition: TypeAlias = str | Mapping[str, object] | Eligible
Where: TypeAlias = Condition | Sequence[Condition]
# Points for the items of named filters, or of any; or a float for each item, as ``Ranker.ids``.
Boost: TypeAlias = Mapping[str, float] | Sequence[tuple[Where, float]] | NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Added:
    """Items that were added to a loaded bundle."""

    rows: Floats  # of the item table, (A, D)
    bias: Floats  # (A,)
    ties: NDArray[np.float64]  # where each stands among the sorted ids of the bundle, (A,)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.rows)

    @cached_property
    def columns(self) -> Floats:
        """Return the rows by column, (D, A): a product with them takes two thirds of the time."""
        return np.ascontiguousarray(self.rows.T)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The items of a ranker.

    Attributes:
        owner: The ranker.
        vocabulary: The ids of the bundle's items, and behind them those of added items.
        table: The rows of the bundle's items, (items + 1, D), mapped.
        added: The added items.
        own: The bias of every request: that of the bundle, of added and of removed items.
        silent: Whether each index from 0 does not count as an event of a history, (items + 1,);
            None: all count.
        sets: The named filters.
        is_edited: Whether items were added, removed or retitled since the bundle was loaded.
    """

    owner: object
    vocabulary: Vocabulary
    table: NDArray[np.floating]
    titles: Titles
    attributes: Attributes
    added: Added
    own: Bias
    silent: Mask | None = None
    sets: Mapping[str, ItemSet] = field(default_factory=dict)
    is_edited: bool = False
    _kept: "Kept" = field(default_factory=lambda: Kept())

    @property
    def last(self) -> int:
        """Return the index of the last item of the bundle."""
        return self.vocabulary.sorted

    def counts(self, index: int) -> bool:
        """Return whether an item, 0 if it is unknown, counts as an event of a history."""
        return index > 0 and (self.silent is None or not self.silent[index])

    def rows(self, items: Indices) -> Floats:
        """Return rows of the item table, (n, D), also of added items."""
        rows: Floats = self.table[np.minimum(items, self.last)].astype(np.float32, copy=False)
        is_added = items > self.last
        if is_added.any():
            rows = np.array(rows)
            rows[is_added] = self.added.rows[items[is_added] - self.last - 1]
        return rows

    def at(self, bias: Bias, items: Indices) -> Floats:
        """Return the bias of some items."""
        values: Floats = bias.table[0, np.minimum(items, self.last)]
        is_added = items > self.last
        if is_added.any():
            values[is_added] = bias.added[items[is_added] - self.last - 1]
        return values

    def ties(self, items: Indices) -> NDArray[np.float64]:
        """Return a number for each item that sorts items as their ids do."""
        places = items.astype(np.float64)
        is_added = items > self.last
        if is_added.any():
            places[is_added] = self.added.ties[items[is_added] - self.last - 1]
        return places

    def bias(self, where: Where | None, boost: Boost | None) -> Bias:
        """Return the compiled bias of a filter and a boost.

        Raises:
            InputError: A filter is unknown, an attribute does not exist, a boost is no number.
        """
        if where is None and boost is None:
            return self.own
        if isinstance(where, Eligible) and boost is None:
            self._check_owner(where)
            compiled = where._compiled  # another thread may replace it
            if compiled is None or compiled[0] is not self:
                where._compiled = compiled = self, self._compile(self.mask(where), None)
            return compiled[1]
        is_array = hasattr(boost, "__array__")
        key = None if is_array else (_frozen(where), _frozen(boost))
        bias = None if key is None else self._kept.get(key)
        if bias is None:
            mask = None if where is None else self.mask(where)
            bias = self._compile(mask, None if boost is None else self._points(boost))
            if key is not None:
                self._kept.put(key, bias)
        return bias

    def mask(self, where: Where) -> Mask:
        """Return for each index from 0 whether a filter allows it, (items + 1,)."""
        conditions = listed_conditions(where)
        allowed = np.ones(len(self.vocabulary) + 1, dtype=bool)
        for condition in conditions:
            allowed &= self._mask(condition)
        return allowed

    def _mask(self, condition: Condition) -> Mask:
        size = len(self.vocabulary) + 1
        if isinstance(condition, Eligible):
            self._check_owner(condition)
            items = condition._items.moved(condition._vocabulary, self.vocabulary)
        elif isinstance(condition, str):
            name = condition.removeprefix("!")
            if name not in self.sets:
                raise InputError(
                    f"where names {show(name)}, which is not defined: Ranker.define makes a named "
                    f"filter, and there are {_names(self.sets)}"
                )
            items = self.sets[name]
        elif isinstance(condition, Mapping):
            allowed = np.ones(size, dtype=bool)
            for name, values in condition.items():
                if not isinstance(name, str):
                    raise InputError(f"where has the key {show(name)}; keys name attributes")
                matches = self.attributes.matches(name.removeprefix("!"), values)
                allowed &= ~matches if name.startswith("!") else matches
            return allowed
        else:
            raise InputError(f"where holds {show(condition)}; {WHERE}")
        allowed = np.zeros(size, dtype=bool)
        allowed[items.indices] = True
        return ~allowed if isinstance(condition, str) and condition.startswith("!") else allowed

    def _check_owner(self, eligible: Eligible) -> None:
        if eligible._owner is not self.owner:
            raise InputError("eligible was made by another ranker: make it with this one")

    def _points(self, boost: Boost) -> Floats:
        """Return the points of each index from 0, (items + 1,)."""
        points = np.zeros(len(self.vocabulary) + 1, dtype=np.float32)
        if hasattr(boost, "__array__"):
            values = np.asarray(boost)
            if values.shape != (len(self.vocabulary),) or values.dtype.kind not in "fiu":
                raise InputError(
                    f"boost has shape {values.shape} and dtype {values.dtype}; an array has a "
                    f"number for each of the {len(self.vocabulary)} items of Ranker.ids"
                )
            is_bad = ~(np.abs(values) <= LARGEST_BOOST)
            if is_bad.any():
                place = int(is_bad.argmax())
                raise InputError(
                    f"boost[{place}] is {values[place]}; a boost is a number up to "
                    f"{LARGEST_BOOST:g} in size"
                )
            points[1:] = values
            return points
        pairs: Iterable[Any] = boost.items() if isinstance(boost, Mapping) else boost
        try:
            pairs = [(where, value) for where, value in pairs]
        except (TypeError, ValueError) as error:
            raise InputError(
                f"boost is {show(boost)}; pass {{'name': points}}, [(where, points), ...] or an "
                "array with a number for each item"
            ) from error
        for where, value in pairs:
            points[self.mask(where)] += bounded(value, f"boost of {show(where)}", LARGEST_BOOST)
        return points

    def _compile(self, mask: Mask | None, points: Floats | None) -> Bias:
        last, (table, added, *_) = self.last, self.own
        table, added = table.copy(), added.copy()
        if points is not None:
            table[0, : last + 1] += points[: last + 1]  # NEVER stays what it is
            added += points[last + 1 :]
        if mask is not None:
            table[0, : last + 1][~mask[: last + 1]] = NEVER
            added[~mask[last + 1 :]] = NEVER
        # Points below 0 lift all other items.
        return Bias.of(table, added, lifts=points is not None)

    def neutral(self) -> "Catalogue":
        """Return the catalogue without points of its own, for scores of other units."""
        if not self.own.has_boosts:
            return self
        table, added = (
            np.where(part < NEVER / 2, part, np.float32(0))
            for part in (self.own.table, self.own.added)
        )
        own = Bias.of(table, added)
        return replace(self, own=own).fresh()

    def fresh(self) -> "Catalogue":
        """Return the catalogue without compiled filters, after a change."""
        return replace(self, _kept=Kept())

    def defined(self, name: str, items: ItemSet) -> "Catalogue":
        """Return the catalogue with a named filter."""
        return replace(self, sets={**self.sets, name: items}).fresh()

    def following(self, old: "Catalogue", before: Floats) -> "Catalogue":
        """Return this catalogue with the named filters and the removed items of another.

        ``before`` is the bias of the other's bundle: what that left out was not removed since.
        """
        sets = {n: items.moved(old.vocabulary, self.vocabulary) for n, items in old.sets.items()}
        every = np.arange(1, len(old.vocabulary) + 1)
        is_removed = old.at(old.own, every) < NEVER / 2
        is_removed[: old.last] &= before[0, 1 : old.last + 1] > NEVER / 2
        removed = old.vocabulary.ids(every[is_removed])
        places = self.vocabulary.index(removed)
        table = self.own.table.copy()
        table[0, places[places > 0]] = NEVER
        own = Bias.of(table, self.own.added) if len(removed) else self.own
        return replace(self, sets=sets, own=own, is_edited=len(removed) > 0).fresh()


class Kept:
    """Compiled filters, the latest ones up to ``MOST_KEPT`` bytes; threads share them."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._values: dict[Hashable, Bias] = {}

    def get(self, key: Hashable) -> Bias | None:
        """Return a kept bias."""
        return self._values.get(key)

    def put(self, key: Hashable, bias: Bias) -> None:
        """Keep a bias, and drop the oldest ones that are too many."""
        most = max(2, MOST_KEPT // (bias.table.nbytes + bias.added.nbytes))
        self._values[key] = bias
        for oldest in [*self._values][:-most]:
            self._values.pop(oldest, None)


WHERE = (
    "pass the name of a defined filter or '!name', {attribute: value, ...}, a filter of "
    "Ranker.eligible, or a list of these"
)


def listed_conditions(where: Where) -> list[Condition]:
    """Return the conditions of a filter, which must all hold."""
    if isinstance(where, str | Mapping | Eligible):
        return [where]
    try:
        return list(where)
    except TypeError as error:
        raise InputError(f"where is {show(where)}; {WHERE}") from error


def _names(names: Iterable[str]) -> str:
    """Return some names for a message."""
    some = sorted(names)
    return ", ".join(map(show, some[:20])) + (", ..." if len(some) > 20 else "") if some else "none"


def _frozen(value: object) -> Hashable:
    """Return a key that is equal for equal filters and boosts."""
    if isinstance(value, Mapping):
        return "dict", tuple((key, _frozen(part)) for key, part in value.items())
    if isinstance(value, tuple):
        return "tuple", *map(_frozen, value)
    if isinstance(value, list):
        return "list", *map(_frozen, value)
    if isinstance(value, Set):
        return "set", frozenset(map(_frozen, value))
    if hasattr(value, "__array__"):
        return "list", *map(_frozen, np.asarray(value).ravel().tolist())
    if not isinstance(value, Hashable):
        raise InputError(f"where or boost holds {show(value)}, a {kind(value)}")
    return type(value), value
