"""Attributes of items: the kind of each column of an item file, inferred or chosen.

category     text, truth values, and whole numbers of few values
categories   lists of these, and text that separates them by |
number       other numbers, and dates (as days since 1970)
text         the title, and text of several words that hardly repeats
vector       lists of as many fractions
"""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import polars as pl

from ranklet.attribute_values import BETWEEN
from ranklet.attributes import Attributes
from ranklet.bundle.manifest import FILTERABLE, Kind
from ranklet.errors import DataError, InputError
from ranklet.item_features import TITLE, learn
from ranklet.values import show
from ranklet_training.data.columns import TEXT, likely_column, show_type, without_missing
from ranklet_training.data.tables import listed

Kinds = dict[str, Kind]
COUNTED = ("training_events", "recent_events")  # columns that a run counts
FEW_VALUES, FEW_SHARE = 100, 0.1  # whole numbers of up to 100 values, or a tenth of the items
FEW_WORDS = 4  # on average; from here on a column holds text
MOST_LEARNED = 50_000  # items of which words are counted: some seconds
NONE = "none"  # the kind of a column that is not used


def parse_kinds(text: str) -> dict[str, str]:
    """Return the kinds of ``price:number,color:none``.

    Raises:
        InputError: It is no such list, or a kind is unknown.
    """
    chosen = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, kind = (piece.strip() for piece in part.rpartition(":"))
        if not name or kind not in (*get_args(Kind), NONE):
            kinds = ", ".join((*get_args(Kind), NONE))
            raise InputError(f"attributes are NAME:KIND, with one of {kinds}; got {show(part)}")
        chosen[name] = kind
    return chosen


def attribute_kinds(items: pl.DataFrame, chosen: Mapping[str, str]) -> Kinds:
    """Return the kind of every column of an item frame that is used, chosen or inferred.

    Raises:
        DataError: A chosen column is not there, or its values are not of its kind.
    """
    columns = {name: items[name] for name in items.columns if name not in ("item_id", *COUNTED)}
    if missing := [name for name in chosen if name not in columns]:
        raise DataError(
            f"no attribute column {show(missing[0])} among the items; there are {listed(columns)}"
        )
    kinds: dict[str, Any] = {
        name: chosen.get(name) or ("text" if name == TITLE else _infer(values)[0])
        for name, values in columns.items()
    }
    return {name: kind for name, kind in kinds.items() if kind != NONE}


def describe_attributes(items: pl.DataFrame, kinds: Mapping[str, str]) -> str:
    """Return a line on the attributes of an item file, and on its columns that are not used."""
    columns = [name for name in items.columns if name not in ("item_id", *COUNTED)]
    used = listed(f"{name} {kinds[name]}" for name in columns if name in kinds)
    unused = [name for name in columns if name not in kinds]
    line = f"attributes: {used or 'none'}"
    if unused:
        reasons = (f"{name} ({_infer(items[name])[1] or 'as chosen'})" for name in unused)
        line += f"; not used: {listed(reasons)}"
    line += " (others: --attributes NAME:KIND,...)" if columns else ""
    if TITLE not in columns and (likely := likely_column(TITLE, columns)):
        line += f"; {show(likely)} may hold titles: read them with --title-column {likely!r}"
    return line


def read_attributes(items: pl.DataFrame, kinds: Kinds) -> Attributes:
    """Return the attributes of the catalogue of a run, and what new items need of them.

    Words are learned from the ``MOST_LEARNED`` items with the most training events.

    Raises:
        DataError: A value is not of the kind of its column.
    """
    some = items
    if len(items) > MOST_LEARNED:
        some = items.top_k(MOST_LEARNED, by="training_events")
    try:
        columns = {name: cells(items[name]) for name in kinds if kinds[name] in FILTERABLE}
        places = np.arange(1, len(items) + 1)
        attributes = Attributes.empty(kinds).with_items(columns, places, len(items))
        return learn(attributes, {name: cells(some[name]) for name in kinds})
    except InputError as error:
        raise DataError(f"attribute {error}: choose another kind (--attributes)") from error


def cells(values: pl.Series) -> list[Any]:
    """Return the values of a column as the runtime takes them."""
    if isinstance(values.dtype, pl.Array):
        values = values.arr.to_list()
    if values.dtype.is_decimal():
        values = values.cast(pl.Float64)
    return values.to_list()


def _infer(column: pl.Series) -> tuple[str, str]:
    """Return the kind of a column, and the reason if it is not used."""
    values = column.arr.to_list() if isinstance(column.dtype, pl.Array) else column
    if isinstance(values.dtype, pl.List):
        return _infer_list(values.drop_nulls())
    values = without_missing(values).drop_nulls()
    if values.is_empty():
        return NONE, "no value"
    if values.dtype in TEXT:
        return _infer_text(values.cast(pl.String))
    if values.dtype == pl.Boolean:
        return "category", ""
    if values.dtype.is_numeric():
        return _infer_numbers(values.cast(pl.Float64)), ""
    if values.dtype in (pl.Date, pl.Datetime):
        return "number", ""
    return NONE, f"holds {show_type(values.dtype)}"


def _infer_list(values: pl.Series) -> tuple[str, str]:
    inner = values.explode().drop_nulls()
    if inner.is_empty():
        return NONE, "no value"
    if inner.dtype.is_float():
        is_vector = values.list.len().n_unique() == 1
        return ("vector", "") if is_vector else (NONE, "lists of numbers of several lengths")
    if inner.dtype in (*TEXT, pl.Boolean) or inner.dtype.is_integer():
        return "categories", ""
    return NONE, f"holds {show_type(values.dtype)}"


def _infer_text(values: pl.Series) -> tuple[str, str]:
    numbers = values.str.strip_chars().str.replace(",", ".", literal=True)
    numbers = numbers.cast(pl.Float64, strict=False)
    if not numbers.null_count():
        return _infer_numbers(numbers), ""
    distinct, half = values.n_unique(), len(values) / 2
    split = values.str.split(BETWEEN)
    has_several = (split.list.len() > 1).mean()
    if has_several and split.explode().n_unique() <= max(FEW_VALUES, FEW_SHARE * len(values)):
        return "categories", ""
    words = values.str.count_matches(r"\S+").mean()
    assert isinstance(words, float)
    if words >= FEW_WORDS and distinct > half:
        return "text", ""
    if distinct == len(values) > FEW_VALUES:
        return NONE, "each value is of one item"
    return "category", ""


def _infer_numbers(values: pl.Series) -> str:
    is_whole = bool((values % 1 == 0).all())
    few = max(FEW_VALUES, FEW_SHARE * len(values))
    return "category" if is_whole and values.n_unique() <= few else "number"
