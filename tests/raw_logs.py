"""Seeded raw logs of a shop and of a music service, as such systems write them, with their flaws.

* Shop: a csv with semicolons, text ids, ISO dates and three kinds of events. Visitors without an
  account are NULL, a search text holds a bare quote. A purchase follows views of the same item, so
  that many answers are repeats.
* Music: parquet parts of a Spark job, integer ids, milliseconds. Half of the plays are songs that
  the user has heard before.
"""

import csv
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

START = datetime(2025, 3, 1, tzinfo=timezone.utc)


class Event(NamedTuple):
    """An event of a known user, as a correct reader sees it."""

    user: str
    item: str
    time: int  # microseconds


def write_shop(folder: Path, *, users: int = 300, items: int = 150, seed: int = 0) -> list[Event]:
    """Write ``events.csv`` and ``items.csv``; return the events that a reader must find.

    Visitors walk through items in small steps from a random place, so that the next item can be
    learned. Of the products they see, they view most once, and buy some after a second view.
    """
    random = np.random.default_rng(seed)
    skus = [f"SKU-{number:05}" for number in random.permutation(items * 7)[:items]]
    rows, right = [], []
    for user in range(users):
        time = START + timedelta(seconds=int(random.integers(60 * 86_400)))
        place = int(random.integers(items))
        for _ in range(int(random.integers(4, 12))):
            place = (place + int(random.choice([1, 1, 1, 2, 5]))) % items
            kinds = ["view", "view", "purchase"] if random.random() < 0.3 else ["view"]
            for kind in kinds:
                time += timedelta(seconds=int(random.integers(5, 90)))
                name = "NULL" if random.random() < 0.03 else f"c{user:04}"
                query = random.choice(["", "desk", '15" tv', "tv; stand"], p=[0.7, 0.2, 0.05, 0.05])
                rows.append([name, skus[place], kind, time.isoformat(), query])
                if name != "NULL":
                    right.append(Event(name, skus[place], _microseconds(time)))
            time += timedelta(seconds=int(random.integers(20, 4000)))
    rows.sort(key=lambda row: row[3])  # a log is in the order of its writing
    with (folder / "events.csv").open("w", newline="", encoding="utf-8") as file:
        file.write("customer_id;sku;event;created_at;query\n")
        for row in rows:  # fields with the separator are quoted, a bare quote is not
            file.write(";".join(f'"{field}"' if ";" in field else field for field in row) + "\n")
    with (folder / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["sku", "name", "category", "price"])
        for place, sku in enumerate(skus):
            shelf = ("desks", "chairs", "lamps", "screens", "tables")[place * 5 // items]
            writer.writerow([sku, f"{shelf[:-1].title()} {place}", shelf, f"{place * 3.7 + 9:.2f}"])
    return right


def write_music(folder: Path, *, users: int = 120, songs: int = 200, seed: int = 0) -> list[Event]:
    """Write ``plays.parquet/part-*.parquet`` and ``songs.parquet``; return the plays."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        time, heard = START + timedelta(seconds=int(random.integers(30 * 86_400))), [user % songs]
        for _ in range(int(random.integers(30, 90))):
            if random.random() < 0.5:
                song = heard[-int(random.integers(1, min(len(heard), 8) + 1))]
            else:
                song = (heard[-1] + int(random.choice([1, 2, 3]))) % songs
            heard.append(song)
            time += timedelta(milliseconds=int(random.integers(60_000, 400_000)))
            rows.append(
                (user, 1000 + song, _microseconds(time) // 1000, bool(random.random() < 0.2))
            )
    schema = ["user", "song", "played_at", "skipped"]
    frame = pl.DataFrame(rows, schema=schema, orient="row").sample(
        fraction=1.0, shuffle=True, seed=seed
    )
    parts = folder / "plays.parquet"
    parts.mkdir()
    for number, part in enumerate(frame.iter_slices(len(frame) // 3 + 1)):
        part.write_parquet(parts / f"part-{number:05}-c000.snappy.parquet")
    (parts / "_SUCCESS").touch()
    names = [f"Song {song}" for song in range(songs)]
    pl.DataFrame({"song": range(1000, 1000 + songs), "title": names}).write_parquet(
        folder / "songs.parquet"
    )
    return [Event(str(user), str(song), time * 1000) for user, song, time, _ in rows]


def _microseconds(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)
