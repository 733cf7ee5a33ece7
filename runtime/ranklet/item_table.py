"""Item tables of callers: ids, titles and other columns of items, in any form that a program has.

* a dict of columns, which are lists or arrays
* a list of dicts, one a row; what a row lacks is missing
* a table of pandas, polars or pyarrow

None and NaN are missing values.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ranklet.bundle.vocabulary import REASON, ItemId, Vocabulary
from ranklet.errors import InputError
from ranklet.values import Ids, flat, integers, plain, show

LISTED = 20  # names in a message
FORMS = "pass a dict of columns, a list of dicts, or a table of pandas, polars or pyarrow"
FLOATS = (float, np.floating)
TO_LIST = ("to_pylist", "to_list", "tolist")  # of pyarrow, polars, pandas and numpy


class ItemTable(NamedTuple):
    """Items of a table, in its order."""

    ids: list[ItemId]
    titles: list[str | None] | None  # None: the table has no column of titles
    columns: dict[str, list[Any]]  # the others; None is missing


def read_item_table(
    table: Any,  # noqa: ANN401 (any form of a table)
    vocabulary: Vocabulary,
    *,
    item_column: str = "item_id",
    title_column: str = "title",
) -> ItemTable:
    """Read a table of items, whose ids are of a catalogue's type; it may have them or not.

    Args:
        table: The table, see above; never changed.
        vocabulary: The catalogue.
        item_column: Name of the column of ids.
        title_column: Name of the column of titles, which may be missing.

    Raises:
        InputError: There are no ids, one is missing, stands twice or has another type, a title is
            no text, or columns differ in length.
    """
    columns = _columns(table)
    if item_column not in columns:
        if not columns and _is_rows(table):
            return ItemTable([], None, {})
        raise InputError(f"items have no column {show(item_column)}, only {_listed(columns)}")
    ids = check_ids(vocabulary, _values(columns.pop(item_column), item_column), item_column)
    values = {name: _values(column, name) for name, column in columns.items()}
    for name, column in values.items():
        if len(column) != len(ids):
            raise InputError(
                f"column {show(name)} has {len(column):,} values for {len(ids):,} items"
            )
    titles = values.pop(title_column, None)
    if titles is not None:
        titles = [read_title(value, f"{title_column}[{row}]") for row, value in enumerate(titles)]
    return ItemTable(ids, titles, values)


def check_ids(vocabulary: Vocabulary, ids: Ids, name: str) -> list[ItemId]:
    """Return ids of a catalogue's type, none of them twice; the catalogue may have them or not.

    Raises:
        InputError: An id is missing, of another type or there twice; it is called ``name``.
    """
    items = flat(ids, name)
    raw = list(map(plain, items)) if isinstance(items, list) else items.tolist()
    vocabulary.index(raw, name)  # refuses other types
    checked: list[ItemId] = raw if vocabulary.is_text else integers(raw, name, REASON).tolist()
    if len(set(checked)) < len(checked) or "" in checked:
        first = dict[ItemId, int]()
        for row, item in enumerate(checked):
            if item == "":
                raise InputError(f"{name}[{row}] is empty; give every item an id")
            if first.setdefault(item, row) != row:
                raise InputError(
                    f"{name}[{row}] is {show(item)}, which stands in {name}[{first[item]}] already"
                )
    return checked


def _is_rows(table: object) -> bool:
    return isinstance(table, Sequence) and not isinstance(table, str | bytes)


def _columns(table: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the columns of a table by name."""
    columns: dict[str, Any]
    if isinstance(table, Mapping):
        columns = dict(table)
    elif _is_rows(table):
        for row, values in enumerate(table):
            if not isinstance(values, Mapping):
                raise InputError(f"items[{row}] is {show(values)}; {FORMS}")
        names = dict.fromkeys(name for values in table for name in values)
        columns = {name: [values.get(name) for values in table] for name in names}
    else:
        own = getattr(table, "column_names", getattr(table, "columns", None))
        if own is None or callable(own):
            raise InputError(f"items is {show(table)}; {FORMS}")
        columns = {name: table[name] for name in own}
    if strange := [name for name in columns if not isinstance(name, str)]:
        raise InputError(f"items have a column {show(strange[0])}; names of columns are text")
    return columns


def _values(column: Any, name: str) -> list[Any]:  # noqa: ANN401
    """Return a column as a list of Python values, None where one is missing."""
    if hasattr(column, "notna"):  # of pandas, which has several values for nothing
        column = column.astype(object).where(column.notna(), None)
    convert = next((getattr(column, way) for way in TO_LIST if hasattr(column, way)), None)
    if convert is None and not _is_rows(column):
        raise InputError(f"column {show(name)} is {show(column)}; pass a list or an array")
    values = list(column) if convert is None else convert()
    if not isinstance(values, list):  # an array without axes
        raise InputError(f"column {show(name)} is {show(values)}; pass a list or an array")
    return [None if isinstance(value, FLOATS) and value != value else value for value in values]


def read_title(value: object, place: str) -> str | None:
    """Return a title, a number as text, or None for none."""
    title = plain(value)
    if title is None or title == "":
        return None
    if type(title) in (int, float):
        return str(title)
    if type(title) is not str:
        raise InputError(f"{place} is {show(value)}; a title is text")
    try:
        title.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place} is {show(value)}, which is not valid Unicode") from error
    return title


def _listed(names: Mapping[str, Any]) -> str:
    shown = [name[:60] for name in [*names][:LISTED]]
    return ", ".join(shown) + (f" and {len(names) - LISTED:,} more" * (len(names) > LISTED))
