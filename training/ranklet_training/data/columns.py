"""Raw columns: common names, words for missing values, and numbers that are whole."""

import re
from collections.abc import Sequence

import polars as pl

from ranklet.attribute_values import MISSING

# Common names of columns, in lower case without punctuation, the likeliest first.
_LIKELY = {
    "user_id": (
        *("userid", "user", "uid", "visitorid", "visitor", "customerid", "customer", "clientid"),
        *("memberid", "accountid", "reviewerid", "profileid", "sessionid", "session"),
    ),
    "item_id": (
        *("itemid", "item", "iid", "productid", "product", "sku", "movieid", "articleid"),
        *("trackid", "songid", "videoid", "contentid", "bookid", "gameid", "parentasin", "asin"),
    ),
    "timestamp": (
        *("timestamp", "ts", "time", "datetime", "date", "eventtime", "createdat", "occurredat"),
        *("unixtime", "unixtimestamp", "timestampms", "unixreviewtime"),
    ),
    "event": ("event", "eventtype", "eventname", "action", "kind", "type", "behavior"),
    "rating": ("rating", "ratings", "stars", "score", "overall"),
    "title": ("title", "name", "productname", "itemname", "movietitle", "producttitle", "label"),
}

TEXT = (pl.String, pl.Categorical, pl.Enum)
EXACT = 2**53 - 1  # beyond it, a float64 may be a rounded integer


def show_type(dtype: pl.DataType) -> str:
    """Return a type as a message names it, cut if it is long: a struct names all its fields."""
    text = str(dtype)
    return text if len(text) <= 100 else f"{text[:80]}..."


def likely_column(ours: str, names: Sequence[str]) -> str | None:
    """Return the name that looks most like the column ``ours``, if one does."""
    plain = {re.sub("[^a-z0-9]", "", n.partition(":")[0].lower()): n for n in reversed(names)}
    return next((plain[likely] for likely in _LIKELY[ours] if likely in plain), None)


def without_missing(values: pl.Series) -> pl.Series:
    """Return a column in which NaN and the words of MISSING, also among spaces, are null."""
    if values.dtype.is_float():
        return values.fill_nan(None)
    if values.dtype not in TEXT:
        return values
    text = pl.col(values.name).cast(pl.String)
    is_missing = text.str.strip_chars().is_in(list(MISSING))
    return values.to_frame().select(pl.when(~is_missing).then(text)).to_series()


def whole_numbers(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Return numbers as int64, and for each whether it is lost: not whole, or maybe rounded.

    Nulls, NaN and lost numbers are null.
    """
    values = without_missing(values)
    numbers = values.cast(pl.Int64, strict=False)
    is_exact = numbers.cast(values.dtype, strict=False) == values
    if values.dtype.is_float():
        is_exact &= numbers.is_between(-EXACT, EXACT)
    lost = ~is_exact.fill_null(value=False) & values.is_not_null()
    return numbers.set(lost, None), lost
