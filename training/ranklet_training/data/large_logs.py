"""Logs larger than memory, sorted in files by an external merge sort.

A log is read in parts of ``PART_ROWS`` rows, with the checks of ``read_events``. Each part is
sorted by user and time and stored. Ranges of users with about as many events are then merged from
all parts into pieces. Peak memory is that of some parts at a time and of the item ids.

    log/                written whole or not at all
      000000.arrow ...  pieces: sorted events of whole users
      item_ids.parquet  distinct item ids
      events.json       the facts of ``Events``, and what they were made of
      DIGEST/           flat arrays of a split, see ``split_events``
    lock                held while one process writes and others wait
"""

import json
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from filelock import FileLock
from tqdm import tqdm

from ranklet.errors import DataError
from ranklet.time_gaps import SCALES
from ranklet_training.data.columns import EXACT, show_type
from ranklet_training.data.events import Events, describe
from ranklet_training.data.ids import IdType
from ranklet_training.data.parquet_parts import files_in_store, is_address, split_parquet
from ranklet_training.data.rows import (
    COLUMNS,
    Columns,
    DuplicatePolicy,
    Facts,
    Options,
    check_complete,
    check_rows,
    order_rows,
)
from ranklet_training.data.stored import StoredFrames, new_folder, store_frame
from ranklet_training.data.tables import Table
from ranklet_training.data.times import NAMES, convert

T = TypeVar("T")
LARGE_BYTES = 1 << 29  # of parquet; a larger log is sorted in files
PART_ROWS = 1 << 21
_SAMPLED = 1 << 12  # user ids of a part, by which the ranges are chosen
_FORMAT = 2
_LIKE = ("time_unit", "user_id_type", "item_id_type")  # keys of ``like`` that change what is read


def is_large(source: str | Path) -> bool:
    """Return whether a log is parquet of more than ``LARGE_BYTES``, or in an object store."""
    if is_address(source):
        return True
    path = Path(source)
    files = path.rglob("*") if path.is_dir() else [path]
    parquet = [file for file in files if file.suffix == ".parquet" and file.is_file()]
    return sum(file.stat().st_size for file in parquet) > LARGE_BYTES


def read_large_events(
    source: str | Path,
    columns: Columns = COLUMNS,
    *,
    cache: Path | None = None,
    duplicates: DuplicatePolicy = "none",
    id_type: IdType = "auto",
    rating_kinds: str = "",
    like: Mapping[str, str] | None = None,
) -> Events:
    """Read a log of parquet as ``read_events`` does, into files of a folder.

    ``source`` is a file, a folder of parts or an address in an object store. ``cache`` is the
    folder, which later calls and other processes use again if the files of the log and the options
    are the same. None is a temporary folder, which ends with the events.

    Raises:
        DataError: As in ``read_events``; parts differ in the type of a column or the unit of time.
        OSError: The disk is full, or the folder can't be written.
    """
    options = Options(columns, duplicates, id_type, rating_kinds, like or {})
    folder = cache or Path(tempfile.mkdtemp(prefix="ranklet-"))
    with _removed_on_failure(folder), FileLock(folder / "lock"):
        log, identity = folder / "log", _identity(source, options)
        if not _holds(log, identity, options.like):
            with new_folder(log) as new:
                _sort_log(source, new, options, identity)
    pieces = StoredFrames(log)
    if cache is None:
        weakref.finalize(pieces, shutil.rmtree, folder, ignore_errors=True)
    facts = _read_document(log)["events"]
    item_ids = pl.read_parquet(log / "item_ids.parquet")["item_id"]
    return Events(pieces=pieces, item_ids=item_ids, **{**facts, "span": tuple(facts["span"])})


@contextmanager
def _removed_on_failure(folder: Path) -> Iterator[None]:
    """Make a folder; if the block fails and it holds no log, remove it and its new parents."""
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if not (folder / "log").exists():
            remove_sorted(folder)
            with suppress(OSError):
                for parent in made:
                    parent.rmdir()
        raise


def remove_sorted(folder: Path) -> None:
    """Remove a sorted log, and its folder unless something else is in it."""
    logs = [document.parent for document in folder.glob("log/events.json")]
    for path in (*logs, *folder.glob(".log.*.tmp")):
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        (folder / "lock").unlink(missing_ok=True)
        folder.rmdir()


def _identity(source: str | Path, options: Options) -> dict[str, Any]:
    """Return what the files of a log depend on, as in JSON.

    The files of an object store are known by name and number of rows alone.
    """
    files: list[Sequence[object]]
    if is_address(source):
        files = [*files_in_store(str(source)).items()]
    else:
        path = Path(source)
        paths = sorted(path.rglob("*")) if path.is_dir() else [path]
        stats = [(str(file), file.stat()) for file in paths if file.is_file()]
        files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    known = {
        "format": _FORMAT,
        "part_rows": PART_ROWS,
        "files": files,
        "options": asdict(replace(options, like={})),
    }
    return json.loads(json.dumps(known))  # type: ignore[no-any-return]


def _holds(log: Path, identity: dict[str, Any], like: Mapping[str, str]) -> bool:
    """Return whether a folder holds the log as it would be read now.

    Reading it like itself, as a resumed training does, changes nothing.
    """
    known = _read_document(log)
    return (
        known.get("identity") == identity
        and known["sizes"] == _sizes(log)
        and all(
            like.get(name) in (known["like"].get(name), known["reading"][name]) for name in _LIKE
        )
    )


def _sizes(log: Path) -> dict[str, int]:
    """Return the sizes of the pieces and of the item ids in bytes, by name."""
    files = sorted([*log.glob("*.arrow"), *log.glob("item_ids.parquet")])
    return {file.name: file.stat().st_size for file in files}


def _read_document(log: Path) -> dict[str, Any]:
    try:
        return json.loads((log / "events.json").read_bytes())  # type: ignore[no-any-return]
    except (FileNotFoundError, ValueError):  # absent, or damaged
        return {}


@dataclass(frozen=True)
class _Part:
    """A part of a log, with its complete rows sorted by user and time in a file."""

    name: str
    path: Path
    facts: Facts
    schema: pl.Schema
    users: pl.Series  # the ids of some rows

    def column(self, name: str) -> pl.Series:
        """Return a column of the rows."""
        return pl.scan_ipc(self.path).select(name).collect()[name]

    def rows(self, begin: int, end: int, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
        """Return some rows with the columns and types of a schema."""
        rows = pl.scan_ipc(self.path).select(*schema).slice(begin, end - begin).collect()
        return rows.with_columns(rows[name].cast(dtype) for name, dtype in schema.items())


def _sort_log(source: str | Path, folder: Path, options: Options, identity: dict[str, Any]) -> None:
    """Write the pieces of a log and its facts into a new folder."""
    ids = [[options.columns.user], [options.columns.item]]
    table, tables = split_parquet(source, ids, PART_ROWS)
    names = options.names(table)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        tables = tables or [table]  # the whole has no rows then
        parts = [
            _sort_part(part, Path(scratch) / str(number), names, options)
            for number, part in enumerate(_bar(tables, "sort", len(tables)))
        ]
        facts = _facts_of(parts)
        check_complete(facts, table.name)
        complete = [part for part in parts if part.facts.complete]
        pieces = _merge(complete, facts, table.name)
        for number, piece in enumerate(_bar(pieces, "merge", -(-facts.complete // PART_ROWS))):
            store_frame(folder / f"{number:06}.arrow", order_rows(piece, options.duplicates))
    events = describe(StoredFrames(folder), facts, table, options)
    events.item_ids.to_frame().write_parquet(folder / "item_ids.parquet")
    of_files = {"pieces", "item_ids"}
    known = {name: value for name, value in vars(events).items() if name not in of_files}
    document = {"identity": identity, "like": dict(options.like), "reading": events.reading}
    document |= {"sizes": _sizes(folder), "events": known}
    (folder / "events.json").write_text(json.dumps(document))


def _bar(steps: Iterable[T], name: str, total: int) -> Iterable[T]:
    """Draw a bar on a terminal."""
    is_hidden = sys.stderr is None or not sys.stderr.isatty()
    return tqdm(steps, name, total, leave=False, disable=is_hidden)


def _sort_part(table: Table, path: Path, names: Mapping[str, str], options: Options) -> _Part:
    rows, facts = check_rows(table, names, options)
    rows = rows.sort("user_id", "order", maintain_order=True)
    store_frame(path, rows)
    users = rows["user_id"].gather_every(max(1, PART_ROWS // _SAMPLED))
    return _Part(table.name, path, facts, rows.schema, users)


def _facts_of(parts: Sequence[_Part]) -> Facts:
    """Return the facts of all parts together."""
    lacking = dict[str, tuple[int, str]]()
    for part in parts:
        for name, (count, first) in part.facts.lacking.items():
            before, earlier = lacking.get(name, (0, f"{first} of {part.name}"))
            lacking[name] = before + count, earlier
    timed = [part for part in parts if part.facts.complete] or parts
    unit, original_unit = _units_of(timed)
    return Facts(
        read=sum(part.facts.read for part in parts),
        complete=sum(part.facts.complete for part in parts),
        lacking=lacking,
        unit=unit,
        original_unit=original_unit,
        is_dates=timed[0].facts.is_dates,
        notes=list(dict.fromkeys(note for part in parts for note in part.facts.notes)),
    )


def _units_of(parts: Sequence[_Part]) -> tuple[str, str]:
    """Return the unit of the times of all parts, and the original one, before a conversion.

    Dates have the finest unit of a part; numbers have no known unit if those of a part have none.
    DataError: the units of two parts differ otherwise.
    """
    examples = {(p.facts.is_dates, p.facts.original_unit): p for p in reversed(parts)}
    if (False, "") in examples and not any(is_dates for is_dates, _ in examples):
        return "", ""
    if len(examples) > 1 and not all(is_dates for is_dates, _ in examples):
        found = " and ".join(
            f"{'dates' if is_dates else NAMES[unit]} in {part.name}"
            for (is_dates, unit), part in reversed(examples.items())
        )
        raise DataError(f"the times of a log have one unit, and these are {found}: write one unit")
    units = zip(*((part.facts.unit, part.facts.original_unit) for part in parts), strict=True)
    unit, original = (max(each, key=lambda unit: SCALES.get(unit, 0)) for each in units)
    return unit, original


def _schema_of(parts: Sequence[_Part], name: str) -> dict[str, pl.DataType]:
    """Return the columns that all parts have, with types that hold their values.

    DataError: ids or times are of types that no common one holds.
    """
    types = dict[str, pl.DataType]()
    for column in parts[0].schema:
        found = [part.schema[column] for part in parts if column in part.schema]
        if len(found) < len(parts):
            continue  # a note says why it is left out
        types[column] = max(found, key=lambda dtype: dtype.is_float())
        is_rounded = types[column].is_float() and any(
            (part.column(column).abs() > EXACT).any()
            for part in parts
            if part.schema[column].is_integer()
        )
        if is_rounded or len({dtype.is_numeric() for dtype in found}) > 1:
            shown = " and ".join(dict.fromkeys(map(show_type, found)))
            raise DataError(
                f"{name}: column {column} is {shown} in different parts; write one type"
            )
    return types


def _merge(parts: Sequence[_Part], facts: Facts, name: str) -> Iterator[pl.DataFrame]:
    """Yield the rows of ranges of users, in the order of the parts."""
    schema = _schema_of(parts, name)
    users = pl.concat([part.users for part in parts]).sort()
    ranges = -(-facts.complete // PART_ROWS)
    places = np.linspace(0, len(users), ranges, endpoint=False).astype(np.int64)[1:]
    bounds = users.gather(places).unique().sort()
    cuts = [part.column("user_id").search_sorted(bounds, "left").to_list() for part in parts]
    ends = [[0, *cut, part.facts.complete] for cut, part in zip(cuts, parts, strict=True)]
    for begin_end in zip(*map(pairwise, ends), strict=True):
        rows = pl.concat(
            _in_units(part.rows(begin, end, schema), part.facts, facts)
            for part, (begin, end) in zip(parts, begin_end, strict=True)
        )
        if len(rows):
            yield rows


def _in_units(rows: pl.DataFrame, facts: Facts, every: Facts) -> pl.DataFrame:
    """Return rows of a part with times in the units of all parts."""
    if not every.unit:
        return rows.with_columns(timestamp=rows["order"])
    units = (
        ("timestamp", facts.unit, every.unit),
        ("order", facts.original_unit, every.original_unit),
    )
    for column, unit, to in units:
        if unit != to and len(rows):
            rows = rows.with_columns(convert(rows[column], unit, to, column))
    return rows
