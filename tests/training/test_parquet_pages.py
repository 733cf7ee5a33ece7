"""Damaged parquet: polars ends the process over some, so its pages are checked before."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from ranklet.errors import DataError
from ranklet_training.data.events import read_events
from ranklet_training.data.parquet_pages import check_pages

LOG = pl.DataFrame({"user_id": [1, 1, None], "item_id": ["a", None, "b"], "timestamp": [1, 2, 3]})
FLIP = """
import sys
from pathlib import Path
from ranklet.errors import DataError
from ranklet_training.data.events import read_events
path, every = Path(sys.argv[1]), int(sys.argv[2])
whole, refused = path.read_bytes(), 0
for bit in range(0, 8 * len(whole), every):
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    try:
        read_events(path)
    except DataError:
        refused += 1
print(refused)
"""


def test_a_negative_number_of_values_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    LOG.write_parquet(path, compression="uncompressed")
    whole = path.read_bytes()
    # Fields of a page header: 5 is the structure of a data page, whose field 1 counts its values.
    place = whole.index(b"\x2c\x15\x06") + 2  # 3, as a zigzag integer
    path.write_bytes(whole[:place] + b"\x05" + whole[place + 1 :])  # -3
    with pytest.raises(DataError, match=r"log\.parquet can't be read: a page header"):
        read_events(path)


@pytest.mark.parametrize("every", [61, pytest.param(7, marks=pytest.mark.slow)])
def test_no_flipped_bit_ends_the_process(tmp_path: Path, every: int) -> None:
    path = tmp_path / "log.parquet"
    LOG.write_parquet(path)
    flips = len(range(0, 8 * path.stat().st_size, every))
    command = [sys.executable, "-c", FLIP, str(path), str(every)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert flips / 4 < int(run.stdout) < flips


@pytest.mark.parametrize("version", ["1.0", "2.4", "2.6"])
@pytest.mark.parametrize("pages", ["1.0", "2.0"])
@pytest.mark.parametrize("rows", [0, 1, 3000])
def test_files_of_other_writers_pass(tmp_path: Path, version: str, pages: str, rows: int) -> None:
    path = tmp_path / "log.parquet"
    numbers = pl.int_range(rows, eager=True)
    frame = pl.DataFrame(
        {
            "text": numbers.cast(pl.String),
            "missing": pl.repeat(None, rows, dtype=pl.Int64, eager=True),
            "flag": numbers % 2 == 0,
            "list": pl.Series([[1, 2]] * rows, dtype=pl.List(pl.Int64)),
            "double": numbers.cast(pl.Float64),
        }
    )
    for more in ({}, {"row_group_size": 100, "compression": "none", "write_page_index": True}):
        pq.write_table(
            frame.to_arrow(),
            path,
            version=version,
            data_page_version=pages,
            **more,
            data_page_size=200,
        )
        check_pages(path)
    frame.write_parquet(path)
    check_pages(path)
