"""Damaged event logs: every row is read or counted, in its order, or an error says why."""

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from faults.campaign import Campaign, Tally
from ranklet import RankletError

Row = tuple[str, str, str]  # user, item, time
HEAD = ("user_id", "item_id", "timestamp")
LONGEST = 2_000
# Cells of a row that may take the place of a right one: those that are no id and no time.
MISSING = ("", "NULL", "nan")
ODD_TIMES = (
    "x",
    "1e400",
    "-1e400",
    "inf",
    "2024-13-01",
    "12:00",
    "1,5",
    "0x10",
    "--1",
    "1 2",
)


def rows_of(rng: np.random.Generator) -> list[Row]:
    """Return events whose times are numbers of one of several kinds."""
    count, kind = int(rng.integers(1, 40)), rng.integers(4)
    users, items = rng.integers(1, 6, count), rng.integers(1, 9, count)
    times = rng.permutation(count)
    if kind == 0:
        texts = [str(1_700_000_000 + int(t)) for t in times]
    elif kind == 1:
        texts = [str(1_700_000_000_000_000_000 + int(t)) for t in times]
    elif kind == 2:
        texts = [f"{1_700_000_000 + int(t)}.{int(t) % 10}" for t in times]
    else:
        texts = [f"2024-05-01T00:{int(t):02}:00Z" for t in times]
    return [
        (str(u), str(i), t) for u, i, t in zip(users.tolist(), items.tolist(), texts, strict=True)
    ]


def expected(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the items of each user by time, slowly; equal times keep the order of the file."""
    of_user: dict[str, list[tuple[float, int, str]]] = {}
    for place, (user, item, time) in enumerate(rows):
        if user in MISSING or item in MISSING or time in MISSING:
            continue
        instant = (
            sum(60**n * int(p) for n, p in enumerate(time[11:16].split(":")[::-1]))
            if "T" in time
            else 0
        )
        number = float(instant) if "T" in time else _number(time)
        of_user.setdefault(user, []).append((number, place, item))
    return {user: [item for *_, item in sorted(events)] for user, events in of_user.items()}


def _number(text: str) -> float:
    whole, _, part = text.partition(".")
    return int(whole) + (int(part) / 10 ** len(part) if part else 0)


def as_bytes(rows: Sequence[Row], name: str) -> bytes:
    """Return rows as a file."""
    if "jsonl" in name:
        lines = [json.dumps(dict(zip(HEAD, row, strict=True))) for row in rows]
        data = ("\n".join(lines) + "\n").encode()
    elif "parquet" in name:
        buffer = io.BytesIO()
        pl.DataFrame(list(rows), HEAD, orient="row").write_parquet(buffer)
        return buffer.getvalue()
    else:
        text = io.StringIO()
        csv.writer(text, delimiter="\t" if "tsv" in name else ",").writerows([HEAD, *rows])
        data = text.getvalue().encode()
    return gzip.compress(data) if name.endswith("gz") else data


NAMES = ("log.csv", "log.tsv", "log.jsonl", "log.csv.gz", "log.jsonl.gz", "log.parquet")


def damage(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Return a damaged file, and what was done."""
    place, kind = int(rng.integers(max(1, len(data)))), rng.integers(6)
    if kind == 0:
        return data[:place], f"{place} of {len(data)} bytes"
    if kind == 1:
        flipped = data[place] ^ 1 << int(rng.integers(8))
        return data[:place] + bytes([flipped]) + data[place + 1 :], f"a flipped bit of byte {place}"
    if kind == 2:
        return data[:place] + b"\0" * 4 + data[place:], f"four NUL at {place}"
    if kind == 3:
        return data[:place] + b'"' + data[place:], f"a quote at {place}"
    if kind == 4:
        return data[:place] + b"\xff\xfe" + data[place:], f"no UTF-8 at {place}"
    return b"", "no byte"


def run_cells(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Read logs of which cells are missing or are no time."""
    from ranklet_training.data.events import read_events

    tally = Tally()
    for number in range(count):
        rows = rows_of(rng)
        for place in rng.integers(len(rows), size=rng.integers(3)).tolist():
            cells = [*rows[place]]
            column = int(rng.integers(3))
            words = ODD_TIMES if column == 2 and rng.integers(2) else MISSING
            cells[column] = words[rng.integers(len(words))]
            rows[place] = (cells[0], cells[1], cells[2])
        is_odd = any(time in ODD_TIMES for _, _, time in rows)
        name = NAMES[rng.integers(len(NAMES))]
        path = folder / f"{number}-{name}"
        path.write_bytes(as_bytes(rows, name))
        what = f"{name} of {rows}"
        try:
            log = read_events(path)
        except RankletError as error:
            is_wrong = is_odd or not expected(rows)  # or no row is left
            if len(str(error)) > LONGEST or not is_wrong:
                tally.failed(f"{what}: {error}")
            else:
                tally.ended("refused by name")
        except Exception as error:
            tally.failed(f"{what}: {type(error).__name__}: {error}")
        else:
            frame = log.frame.group_by("user_id", maintain_order=True).agg("item_id")
            found = {str(user): [*map(str, items)] for user, items in frame.iter_rows()}
            lost = len(rows) - sum(log.dropped.values()) - log.frame.height
            if is_odd or lost or found != expected(rows):
                tally.failed(f"{what}: {lost} rows lost, {found}")
            else:
                tally.ended("every row read or counted, in order")
        path.unlink()
    return tally


def run_bytes(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Read logs of which bytes are damaged: no row may vanish uncounted."""
    from ranklet_training.data.events import read_events

    tally = Tally()
    for number in range(count):
        rows, name = rows_of(rng), NAMES[rng.integers(len(NAMES))]
        data, what = damage(as_bytes(rows, name), rng)
        path = folder / f"{number}-{name}"
        path.write_bytes(data)
        try:
            log = read_events(path)
        except RankletError as error:
            end = "refused by name" if len(str(error)) <= LONGEST else f"!{error}"
        except Exception as error:
            end = f"!{type(error).__name__}: {error}"
        else:
            counted = log.frame.height + sum(log.dropped.values())
            is_all = counted == log.rows_read
            end = "every row read or counted" if is_all else f"!{counted} of {log.rows_read} rows"
        if end.startswith("!"):
            tally.failed(f"{name} with {what} of {rows}: {end[1:]}")
        else:
            tally.ended(end)
        path.unlink()
    return tally


CAMPAIGNS = [
    Campaign(
        "event log with cells that are missing or no time",
        "every row in order or counted, or an error with a name",
        run_cells,
        short=50,
        middle=500,
        long=2_000,
    ),
    Campaign(
        "event log with damaged bytes",
        "every row read or counted, or an error with a name",
        run_bytes,
        short=50,
        middle=500,
        long=2_000,
    ),
]
