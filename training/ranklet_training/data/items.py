"""Item files: titles and attributes of items."""

from pathlib import Path

import polars as pl

from ranklet.errors import DataError
from ranklet.values import show
from ranklet_training.data.columns import likely_column, show_type
from ranklet_training.data.events import Events
from ranklet_training.data.ids import IdType, read_ids
from ranklet_training.data.tables import ArrowStream, open_table, refuse


def read_items(
    source: str | Path | ArrowStream,
    *,
    item_column: str = "item_id",
    title_column: str = "title",
    id_type: IdType = "auto",
) -> pl.DataFrame:
    """Read an item file: unique ``item_id`` first, ``title`` as text, other columns unchanged.

    The column of ids is ``item_column``, or ``item_id`` if the file lacks it; that of titles is
    ``title_column``, and may be missing under its default name. ``id_type`` ``auto`` depends on
    this file alone: pass the type of the log's ids so that both match. Errors are as in
    ``read_events``.
    """
    ids = [[item_column], ["item_id"]]
    table = open_table(source, ids, texts=[title_column], infer_types=True)
    if item_column not in table.names and "item_id" in table.names:
        item_column = "item_id"
    names = {"item_id": item_column}
    if title_column in table.names or title_column != "title":
        names["title"] = title_column
    for name in table.names:
        if name not in names.values():
            if name in names:
                beside = show(names[name])
                raise DataError(f"{table.name}: {show(name)} is there beside {beside}; rename one")
            names[name] = name
    raw = table.collect(names, lambda ours: _advice(ours, table.names))
    label = table.label(item_column)
    item_ids = read_ids(raw["item_id"], label, id_type, table.is_text)
    repeats = ~item_ids.is_first_distinct()
    refuse(repeats, item_ids, label, "repeats an earlier id", "keep one row for each item")
    if "title" in names:
        titles = raw["title"]
        if titles.dtype.is_nested() or titles.dtype in (pl.Binary, pl.Object):
            holds = (
                f"{show_type(titles.dtype)}, such as {show(titles.drop_nulls().head(1).to_list())}"
            )
            raise DataError(f"{table.label(title_column)} holds {holds}; titles are text")
        raw = raw.with_columns(titles.cast(pl.String))
    return raw.with_columns(item_ids)


def _advice(ours: str, names: list[str]) -> str:
    option, python = (
        ("--item-column", "item_column")
        if ours == "item_id"
        else (
            "--title-column",
            "title_column",
        )
    )
    if likely := likely_column(ours, names):
        return f"is it {show(likely)}? Say {option} {likely!r}, in Python {python}"
    return f"give the column this name, or say {option} NAME, in Python {python}"


def match_ids(items: pl.DataFrame, log_ids: pl.Series) -> pl.DataFrame:
    """Return items with ids of a log's type; ids that its type can't hold are of no event."""
    ids = items["item_id"]
    if ids.dtype == log_ids.dtype:
        return items
    matched = ids.cast(log_ids.dtype, strict=False)
    is_same = (matched.cast(ids.dtype) == ids).fill_null(value=False)  # 7 is "7", not "007"
    return items.with_columns(matched).filter(is_same)


def note_unmatched(events: Events, items: pl.DataFrame, name: str) -> str:
    """Return a line on items of the log without a row in an item file, "" if there are none.

    ``items`` are from ``read_items``, with ids of the log's type; ``name`` is that of the file.
    DataError: no item of the log has a row.
    """
    known = events.item_ids.to_frame()
    lacking = known.join(items, on="item_id", how="anti")["item_id"].sort()
    if lacking.is_empty():
        return ""
    first = show(lacking[0])
    if len(lacking) == len(known):
        example = f"{name} has ids like {show(items['item_id'][0])}: " if len(items) else ""
        raise DataError(
            f"none of the {len(known):,} items of the log has a row in {name}, first {first}; "
            f"{example}write ids alike in both"
        )
    return f"{name} has no row for {len(lacking):,} of {len(known):,} items, first {first}"
