"""Named data sets, with the same content from the publisher, from PyPI or from a copy.

* Every source gives the same two tables: ids and titles are text, spaces in titles are single,
  genres are sorted, and the publisher's genre "unknown" is dropped.
* The digest of the content is compared with the recorded digest. A difference is an error, but only
  a note if the file has the publisher's MD5.
"""

import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
import pooch
from polars.exceptions import PolarsError

from ranklet.errors import DataError
from ranklet.files.atomic import atomic_folder, atomic_write
from ranklet_training.data.digest import frame_digest
from ranklet_training.data.simulator import simulate
from ranklet_training.data.tables import write_frame

Way = Literal["auto", "publisher", "pip"]

_WHEEL = "recbole==1.2.1"  # holds a copy of ml-100k
_CONNECT_SECONDS, _READ_SECONDS = 5, 60  # a closed network fails fast, a slow network works
_PIP_SECONDS = 180
_LARGEST_MEMBER = 1 << 28  # bytes; ten times the largest file of these sets
# fmt: off
_GENRES_100K = (  # in the order of the flags of u.item
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)
# fmt: on
_NO_GENRE = {"", "unknown", "(no genres listed)"}

_CITATION = (
    "F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. "
    "ACM Transactions on Interactive Intelligent Systems 5, 4, Article 19. "
    "https://doi.org/10.1145/2827872"
)
_TERMS = (
    "For research; {}, no commercial use without permission of the GroupLens Research Project at "
    "the University of Minnesota, which is to be acknowledged in publications and does not endorse "
    "the results."
)
_NO_COPIES = "no redistribution without separate permission"
_SAME_CONDITIONS = "may be redistributed under the same conditions"


@dataclass(frozen=True)
class Source:
    """Origin, terms and digests of a data set."""

    name: str
    address: str | None
    licence: str
    citation: str | None
    md5: str | None = None  # of the publisher's zip file
    events_digest: str | None = None
    items_digest: str | None = None


@dataclass(frozen=True)
class Fetched:
    """A data set on disk."""

    name: str
    directory: Path
    events: Path
    items: Path
    events_digest: str
    items_digest: str
    user_count: int
    item_count: int  # rows of the item file; some may have no event
    event_count: int
    via: str  # publisher, pip, copy or simulator
    notes: list[str]
    best_hit_rate: float | None = None  # the highest possible HR@10, known only for synthetic


def _movielens(name: str, redistribution: str, **digests: str) -> Source:
    address = f"https://files.grouplens.org/datasets/movielens/{name}.zip"
    return Source(name, address, _TERMS.format(redistribution), _CITATION, **digests)


SOURCES: dict[str, Source] = {
    "ml-100k": _movielens(
        "ml-100k",
        _NO_COPIES,
        md5="0e33842e24a9c977be4e0107933c0723",
        # Of the copy in the recbole wheel.
        events_digest="d8ae9355a6ec26b5a6b45447055f4dbc3e9de26d644047a557c1246e57c531ea",
        items_digest="86ebb25e3f0d0bb5d25094d11b25af0c8fa7f03a955afaef32481e08b8816536",
    ),
    "ml-1m": _movielens("ml-1m", _NO_COPIES, md5="c4d9eecfca2ab87c1945afe126590906"),
    # The publisher replaces this file from time to time.
    "ml-latest-small": _movielens("ml-latest-small", _SAME_CONDITIONS),
    "synthetic": Source("synthetic", None, "Simulated: no terms beyond those of ranklet.", None),
}

_Frames = tuple[pl.DataFrame, pl.DataFrame]  # events, items


def fetch(
    name: str, directory: str | Path, *, source: Path | None = None, via: Way = "auto"
) -> Fetched:
    """Write events.parquet, items.parquet and SOURCE.md of a data set into a folder.

    ``source`` is a copy that replaces the download: the publisher's zip file, its unpacked folder,
    or for ml-100k a recbole wheel. ``auto`` tries the publisher, then pip for ml-100k.

    Raises:
        DataError: The data set is unknown, can't be reached, or differs from the published one.
    """
    if name not in SOURCES:
        raise DataError(f"data set {name!r} is unknown; choose from {', '.join(SOURCES)}")
    if via not in ("auto", "publisher", "pip"):
        raise DataError(f"via {via!r} is unknown; choose from auto, publisher, pip")
    if name == "synthetic":
        if source is not None or via != "auto":
            raise DataError("synthetic is simulated; leave out the source and the way")
        world = simulate()
        frames = (world.events, world.items)
        return _write(SOURCES[name], Path(directory), frames, "simulator", [], world.best_hit_rate)
    notes: list[str] = []
    md5 = SOURCES[name].md5
    if source is not None:
        way, frames = "copy", _parse(name, Path(source))
        is_publishers = source.is_file() and pooch.file_hash(str(source), alg="md5") == md5
    else:
        frames, way = _download(name, via, notes)
        is_publishers = way == "publisher" and md5 is not None
    _compare(SOURCES[name], frames, notes, is_publishers=is_publishers)
    return _write(SOURCES[name], Path(directory), frames, way, notes, None)


def _download(name: str, via: Way, notes: list[str]) -> tuple[_Frames, str]:
    with tempfile.TemporaryDirectory() as folder:
        if via != "pip":
            try:
                archive = _from_publisher(SOURCES[name], folder)
            except OSError as error:
                reason = f"{SOURCES[name].address} can't be reached ({type(error).__name__})"
                if via == "publisher" or name != "ml-100k":
                    raise DataError(
                        f"{reason}; fetch that file on a machine that can, and pass it: --from FILE"
                    ) from error
                notes.append(f"{reason}: took the copy in {_WHEEL} from PyPI instead")
            else:
                return _parse(name, archive), "publisher"
        if name != "ml-100k":
            raise DataError(f"pip holds no copy of {name}; use the publisher, or --from FILE")
        return _parse(name, _from_pip(folder)), "pip"


def _from_publisher(source: Source, folder: str) -> Path:
    """Download the zip file; OSError: the publisher can't be reached."""
    downloader = pooch.HTTPDownloader(timeout=(_CONNECT_SECONDS, _READ_SECONDS))
    digest = None if source.md5 is None else f"md5:{source.md5}"
    file = f"{source.name}.zip"
    try:
        path = pooch.retrieve(source.address, digest, file, folder, downloader=downloader)
    except ValueError as error:
        raise DataError(
            f"{source.address} is not the file it was ({error}); try again, or look for a proxy "
            "that answers in the publisher's place"
        ) from error
    return Path(path)


def _from_pip(folder: str) -> Path:
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
    options += ["--retries=1", "--timeout=10"]  # a closed network fails fast
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, _WHEEL]
    advice = "download that wheel on a machine that can, and pass it: --from FILE"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"pip took over {_PIP_SECONDS} s to get {_WHEEL}; {advice}") from error
    wheels = list(Path(folder).glob("recbole-*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DataError(f"pip can't get {_WHEEL}: {reason}; {advice}")
    return wheels[0]


def _parse(name: str, source: Path) -> _Frames:
    first_missing = None
    for inside, files, parse in _LAYOUTS[name]:
        for folder in (inside, ""):
            try:
                return parse(*(_read_member(source, folder + file) for file in files))
            except KeyError as error:
                first_missing = first_missing or error
            except (PolarsError, ValueError, IndexError, AttributeError) as error:
                if isinstance(error, DataError):
                    raise
                raise DataError(f"{source} holds a damaged {name}: {error}") from error
    raise DataError(
        f"{source} doesn't hold {name}: no {first_missing} in it; pass the publisher's zip file or "
        "its unpacked folder"
    )


def _read_member(source: Path, name: str) -> bytes:
    """Return a file of a folder or zip file by its exact name; KeyError: it is missing."""
    if source.is_dir():
        if not (source / name).is_file():
            raise KeyError(name)
        return (source / name).read_bytes()
    try:
        with zipfile.ZipFile(source) as archive:
            if archive.getinfo(name).file_size > _LARGEST_MEMBER:
                raise DataError(f"{source}: {name} is too large; pass the publisher's own file")
            return archive.read(name)
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{source} can't be read: {error}; pass the publisher's zip file or its folder"
        ) from error


def _events(raw: bytes, separator: str, skip: int) -> pl.DataFrame:
    """Read rows of user, item, rating, time, in the publisher's order."""
    text, number = pl.String, pl.Float64  # recbole writes times as floats
    schema = {"user_id": text, "item_id": text, "rating": number, "timestamp": number}
    frame = pl.read_csv(raw, separator=separator, has_header=False, skip_lines=skip, schema=schema)
    if frame.is_empty() or frame.null_count().sum_horizontal().item():
        raise ValueError("ratings are missing")
    return frame.select("user_id", "item_id", pl.col("timestamp").cast(pl.Int64), "rating")


def _items(rows: list[tuple[str, str, list[str]]]) -> pl.DataFrame:
    cleaned = [(i, " ".join(title.split()), sorted(set(g) - _NO_GENRE)) for i, title, g in rows]
    schema = {"item_id": pl.String(), "title": pl.String(), "genres": pl.List(pl.String)}
    return pl.DataFrame(cleaned, schema=schema, orient="row")


def _parse_100k(data: bytes, item: bytes) -> _Frames:
    rows = []
    for line in item.decode("latin-1").splitlines():
        item_id, title, _released, _video, _link, *flags = line.split("|")
        present = [genre for genre, flag in zip(_GENRES_100K, flags, strict=True) if flag == "1"]
        rows.append((item_id, title, present))
    return _events(data, "\t", 0), _items(rows)


def _parse_recbole(inter: bytes, item: bytes) -> _Frames:
    rows = []
    for line in item.decode().split("\n")[1:]:
        if line:
            item_id, title, year, genres = line.split("\t")
            # recbole moved the last brackets of every title into the year column, even without a
            # year in them, and invented (unkonwn) for the only title without brackets.
            whole = "unknown" if year == "unkonwn" else f"{title} ({year})"
            rows.append((item_id, whole, genres.split(" ")))
    return _events(inter, "\t", 1), _items(rows)


def _parse_1m(ratings: bytes, movies: bytes) -> _Frames:
    lines = [line.split("::") for line in movies.decode("latin-1").splitlines()]
    rows = [(item_id, title, genres.split("|")) for item_id, title, genres in lines]
    return _events(ratings.replace(b"::", b"\t"), "\t", 0), _items(rows)


def _parse_latest(ratings: bytes, movies: bytes) -> _Frames:
    frame = pl.read_csv(movies, infer_schema=False)
    rows = [(item_id, title, genres.split("|")) for item_id, title, genres in frame.iter_rows()]
    return _events(ratings, ",", 1), _items(rows)


# Folder inside the source, files of events and items, parser.
_Layout = tuple[str, tuple[str, str], Callable[[bytes, bytes], _Frames]]
_RECBOLE = ("recbole/dataset_example/ml-100k/", ("ml-100k.inter", "ml-100k.item"), _parse_recbole)
_LAYOUTS: dict[str, list[_Layout]] = {
    "ml-100k": [("ml-100k/", ("u.data", "u.item"), _parse_100k), _RECBOLE],
    "ml-1m": [("ml-1m/", ("ratings.dat", "movies.dat"), _parse_1m)],
    "ml-latest-small": [("ml-latest-small/", ("ratings.csv", "movies.csv"), _parse_latest)],
}


def _compare(source: Source, frames: _Frames, notes: list[str], *, is_publishers: bool) -> None:
    recorded = (source.events_digest, source.items_digest)
    for part, frame, expected in zip(("events", "items"), frames, recorded, strict=True):
        digest = frame_digest(frame)
        if expected is None:
            notes.append(f"{part}: digest {digest} was not compared, none is recorded")
        elif digest != expected and is_publishers:
            notes.append(f"{part}: digest {digest} differs from the recorded {expected}")
        elif digest != expected:
            raise DataError(
                f"{source.name}: the {part} are not the published ones (digest {digest}, expected "
                f"{expected}); get the file again from {source.address}"
            )


def _write(
    source: Source, folder: Path, frames: _Frames, via: str, notes: list[str], best: float | None
) -> Fetched:
    events, items = frames
    fetched = Fetched(
        name=source.name,
        directory=folder,
        events=folder / "events.parquet",
        items=folder / "items.parquet",
        events_digest=frame_digest(events),
        items_digest=frame_digest(items),
        user_count=events["user_id"].n_unique(),
        item_count=len(items),
        event_count=len(events),
        via=via,
        notes=notes,
        best_hit_rate=best,
    )
    sizes = (fetched.user_count, fetched.item_count, fetched.event_count)
    lines = {
        "address": source.address,
        "arrived via": via,
        "terms": source.licence,
        "citation": source.citation,
        "size": "{} users, {} items, {} events".format(*sizes),
        "digest of the events": fetched.events_digest,
        "digest of the items": fetched.items_digest,
        "best HR@10": best,
        "note": "; ".join(notes) or None,
    }
    text = [f"- {key}: {value}" for key, value in lines.items() if value is not None]
    # A new folder appears with all files, in an existing one each file appears whole.
    with nullcontext(folder) if folder.exists() else atomic_folder(folder, replace=False) as place:
        write_frame(place / fetched.events.name, events)
        write_frame(place / fetched.items.name, items)
        atomic_write(place / "SOURCE.md", "\n".join([f"# {source.name}", "", *text, ""]).encode())
    return fetched
