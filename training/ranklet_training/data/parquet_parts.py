"""Parquet in pieces of a bounded number of rows: files, folders of parts and object stores."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import polars as pl

from ranklet.errors import DataError
from ranklet.values import reason
from ranklet_training.data.tables import (
    Table,
    columns_of_folders,
    is_hidden,
    lazy_table,
    named,
    parts_of,
    read_parts,
    scan_parquet,
    with_numbers,
)


def split_parquet(
    source: str | Path, ids: Sequence[Sequence[str]], rows: int
) -> tuple[Table, list[Table]]:
    """Open a parquet file, or a folder of parts, in pieces of at most ``rows`` rows.

    The source may lie in an object store, see ``files_in_store``; the names of its folders are no
    columns.

    Returns:
        The whole table, for its names and label, and its pieces in the order of their rows.

    Raises:
        DataError: As for ``open_table``.
    """
    as_text = {column for group in ids for column in group}
    parts = []
    for part, scan in _scan_files(source, as_text):
        with named(part):
            count = scan.select(pl.len()).collect().item()
            for begin in range(0, count, rows):
                name = f"{part} from row {begin + 1:,}" if begin else part
                parts.append(lazy_table(name, scan.slice(begin, rows)))
    names = list(dict.fromkeys(name for part in parts for name in part.names))
    of_folders = columns_of_folders(parts, as_text) if Path(source).is_dir() else set()
    read = [partial(read_parts, part.name, [part], of_folders) for part in parts]
    pieces = [Table(part.name, names, each) for part, each in zip(parts, read, strict=True)]
    return Table(str(source), names, partial(read_parts, str(source), parts, set())), pieces


def _scan_files(source: str | Path, as_text: set[str]) -> Iterator[tuple[str, pl.LazyFrame]]:
    """Open the files of a parquet source, with their names."""
    if is_address(source):
        yield from ((file, pl.scan_parquet(file)) for file in files_in_store(str(source)))
        return
    path = Path(source)
    for part in parts_of(path) if path.is_dir() else [path]:
        with named(str(part)):
            yield str(part), scan_parquet(part, as_text if path.is_dir() else None)


def is_address(source: object) -> bool:
    """Return whether a source is an address in an object store, such as s3://bucket/log/."""
    return "://" in str(source)


def files_in_store(address: str) -> dict[str, int]:
    """Return the parquet files of an address that polars can open, in order, with their rows.

    A folder ends with /; its parts are those of ``parts_of``, but polars leaves out empty objects.
    Keys and endpoints are those of the environment, such as AWS_REGION.
    """
    is_folder = address.endswith("/")
    pattern = f"{address}**/*.parquet" if is_folder else address
    try:
        scan = pl.scan_parquet(pattern, include_file_paths="file")
        rows = dict(scan.group_by("file").len().collect().iter_rows())
    except Exception as error:  # also of the packages that find keys
        raise DataError(
            f"{address} can't be read: {reason(error)[:300]}; check the address, and the keys and "
            "the region in the environment"
        ) from error
    below = {file: file.removeprefix(address).split("/") for file in rows}
    parts = [file for file in rows if not (is_folder and is_hidden(below[file]))]
    return {file: rows[file] for file in sorted(parts, key=with_numbers)}
