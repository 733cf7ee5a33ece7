"""Every way to a data set ends in the same content, or in an error that says what to do."""

import dataclasses
import hashlib
import http.server
import socket
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from ranklet.errors import DataError
from ranklet_training.data import datasets
from ranklet_training.data.datasets import SOURCES, fetch
from ranklet_training.data.events import read_events
from ranklet_training.data.items import read_items

RECBOLE = "recbole/dataset_example/ml-100k/ml-100k."


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def small_zip(folder: Path, name: str) -> Path:
    """A made-up set of three movies in the publisher's format."""
    members = {
        "ml-1m": {
            "ratings.dat": b"1::7::5::978300760\n1::8::3::978300761\n2::9::4::978300762\n",
            "movies.dat": "7::Café  X (1995)::Drama|Action\n8::B (2000)::Comedy\n"
            "9::C::D (2001)::War\n".replace("C::D", "C D").encode("latin-1"),
        },
        "ml-latest-small": {
            "ratings.csv": b"userId,movieId,rating,timestamp\r\n1,7,4.5,964982703\r\n2,9,4.0,5\r\n",
            "movies.csv": 'movieId,title,genres\r\n7,"Café, The (1995) ",Drama|Action\r\n'
            "8,B,(no genres listed)\r\n9,C (2001),War\r\n".encode(),
        },
    }[name]
    return write_zip(folder / "any.zip", {f"{name}/{file}": raw for file, raw in members.items()})


@pytest.fixture(scope="session")
def publishers_zip(recbole_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's ml-100k in the publisher's format, with the oddities that were seen there."""
    with zipfile.ZipFile(recbole_wheel) as wheel:
        inter = wheel.read(RECBOLE + "inter").decode().splitlines()[1:]
        item = wheel.read(RECBOLE + "item").decode().splitlines()[1:]
    lines = []
    for row in item:
        item_id, title, year, genres = row.split("\t")
        flags = "|".join(str(int(genre in genres.split(" "))) for genre in datasets._GENRES_100K)
        whole = "unknown" if item_id == "267" else f"{title} ({year})"
        whole += " " * (item_id in {"1201", "1635"})
        lines.append(f"{item_id}|{whole}|01-Jan-1995||http://example.org/{item_id}|{flags}\n")
    members = {
        "ml-100k/README": b"",
        "ml-100k/u.data": "".join(row + "\n" for row in inter).encode(),
        "ml-100k/u.item": "".join(lines).encode("latin-1"),
    }
    return write_zip(tmp_path_factory.mktemp("publisher") / "ml-100k.zip", members)


@pytest.fixture
def publisher(publishers_zip: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve the publisher's zip on this machine, and let ml-100k's source point there."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = partial(QuietHandler, directory=str(publishers_zip.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        point_to(
            monkeypatch,
            f"http://127.0.0.1:{server.server_port}/ml-100k.zip",
            hashlib.md5(publishers_zip.read_bytes(), usedforsecurity=False).hexdigest(),
        )
        yield
        server.shutdown()
        thread.join()


@pytest.fixture
def closed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("ml-100k", "ml-1m", "ml-latest-small"):
        point_to(monkeypatch, f"http://127.0.0.1:{port}/{name}.zip", None, name)


def point_to(
    monkeypatch: pytest.MonkeyPatch, address: str, md5: str | None, name: str = "ml-100k"
) -> None:
    source = dataclasses.replace(SOURCES[name], address=address, md5=md5)
    monkeypatch.setitem(SOURCES, name, source)


def test_wheel_and_download_have_the_recorded_content(
    recbole_wheel: Path, publisher: None, tmp_path: Path
) -> None:
    copy = fetch("ml-100k", tmp_path / "copy", source=recbole_wheel)
    download = fetch("ml-100k", tmp_path / "download")
    assert download.via == "publisher"
    for fetched in (copy, download):
        assert (fetched.user_count, fetched.item_count, fetched.event_count) == (943, 1682, 100_000)
        assert fetched.events_digest == SOURCES["ml-100k"].events_digest
        assert fetched.items_digest == SOURCES["ml-100k"].items_digest
        assert fetched.notes == []


@pytest.mark.parametrize("inside", ["", "ml-100k"])
def test_an_unpacked_folder_has_the_same_content(
    publishers_zip: Path, tmp_path: Path, inside: str
) -> None:
    with zipfile.ZipFile(publishers_zip) as archive:
        archive.extractall(tmp_path)
    fetched = fetch("ml-100k", tmp_path / "out", source=tmp_path / inside)
    assert fetched.items_digest == SOURCES["ml-100k"].items_digest


def test_pip_steps_in_for_the_publisher_and_says_so(
    recbole_wheel: Path, closed_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "_from_pip", lambda folder: recbole_wheel)
    fetched = fetch("ml-100k", tmp_path)
    assert fetched.via == "pip"
    assert "can't be reached" in fetched.notes[0]
    assert "recbole" in fetched.notes[0]


@pytest.mark.parametrize(
    ("name", "via"),
    [("ml-1m", "auto"), ("ml-latest-small", "auto"), ("ml-100k", "publisher")],
)
def test_a_closed_network_is_an_error_that_says_what_to_do(
    closed_network: None, tmp_path: Path, name: str, via: datasets.Way
) -> None:
    with pytest.raises(DataError, match=rf"{name}\.zip can't be reached.*--from FILE"):
        fetch(name, tmp_path, via=via)
    assert list(tmp_path.iterdir()) == []


def test_a_publishers_file_outranks_the_recorded_digest_and_is_known_by_its_md5(
    publisher: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = dataclasses.replace(SOURCES["ml-100k"], items_digest="0" * 64)
    monkeypatch.setitem(SOURCES, "ml-100k", source)
    assert "differs from the recorded 000" in fetch("ml-100k", tmp_path).notes[0]
    point_to(monkeypatch, SOURCES["ml-100k"].address or "", "0" * 32)
    with pytest.raises(DataError, match="is not the file it was"):
        fetch("ml-100k", tmp_path)


def test_changed_content_is_refused(publishers_zip: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(publishers_zip) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["ml-100k/u.data"] = members["ml-100k/u.data"].replace(b"881250949", b"881250948", 1)
    changed = write_zip(tmp_path / "changed.zip", members)
    with pytest.raises(DataError, match="events are not the published ones"):
        fetch("ml-100k", tmp_path / "out", source=changed)


ODD_ROWS = {
    "267": ("unknown", []),
    "1373": ("Good Morning (1971)", []),
    "1412": (
        "Land Before Time III: The Time of the Great Giving (1995) (V)",
        ["Animation", "Children's"],
    ),
    "1366": ("JLG/JLG - autoportrait de décembre (1994)", ["Documentary", "Drama"]),
    "1420": ("Gilligan's Island: The Movie (1998)", ["Comedy"]),
    "1635": ("Two Friends (1986)", ["Drama"]),
}


def test_odd_rows_are_as_the_publisher_has_them(recbole_wheel: Path) -> None:
    _, items = datasets._parse("ml-100k", recbole_wheel)
    found = {item_id: row for item_id, *row in items.iter_rows() if item_id in ODD_ROWS}
    assert {item_id: tuple(row) for item_id, row in found.items()} == ODD_ROWS


def test_other_sets_are_read_in_the_publishers_format(tmp_path: Path) -> None:
    fetched = fetch("ml-1m", tmp_path, source=small_zip(tmp_path, "ml-1m"))
    rows = [("1", "7", 978300760, 5.0), ("1", "8", 978300761, 3.0), ("2", "9", 978300762, 4.0)]
    assert pl.read_parquet(fetched.events).rows() == rows
    assert pl.read_parquet(fetched.items).rows()[0] == ("7", "Café X (1995)", ["Action", "Drama"])
    assert len(fetched.notes) == 2
    assert "was not compared" in fetched.notes[0]
    text = (tmp_path / "SOURCE.md").read_text()
    for words in ("files.grouplens.org", "no redistribution", "Harper", fetched.items_digest):
        assert words in text
    fetched = fetch("ml-latest-small", tmp_path, source=small_zip(tmp_path, "ml-latest-small"))
    assert pl.read_parquet(fetched.events).rows() == [("1", "7", 964982703, 4.5), ("2", "9", 5, 4)]
    assert pl.read_parquet(fetched.items).rows() == [
        ("7", "Café, The (1995)", ["Action", "Drama"]),
        ("8", "B", []),
        ("9", "C (2001)", ["War"]),
    ]


def test_synthetic_is_read_back_and_knows_its_best_hit_rate(tmp_path: Path) -> None:
    fetched = fetch("synthetic", tmp_path)
    assert fetched.via == "simulator"
    assert fetched.best_hit_rate is not None
    assert 0 < fetched.best_hit_rate < 1
    assert read_events(fetched.events).users == fetched.user_count == 2000
    assert len(read_items(fetched.items)) == fetched.item_count == 500


def test_a_set_that_nobody_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'ml-2k' is unknown.*ml-100k, ml-1m"):
        fetch("ml-2k", tmp_path)
    with pytest.raises(DataError, match="pip holds no copy of ml-1m"):
        fetch("ml-1m", tmp_path, via="pip")
    (tmp_path / "no.zip").write_text("hello")
    with pytest.raises(DataError, match=r"no\.zip can't be read"):
        fetch("ml-1m", tmp_path, source=tmp_path / "no.zip")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"readme": b""}, "doesn't hold ml-1m.*ratings.dat"),
        ({"../ml-1m/ratings.dat": b"", "../ml-1m/movies.dat": b""}, "doesn't hold ml-1m"),
        ({"ml-1m/ratings.dat": b"1::2::x::4", "ml-1m/movies.dat": b"2::A::War"}, "damaged ml-1m"),
        ({"ml-1m/ratings.dat": b"1::2::3::4", "ml-1m/movies.dat": b"2::A"}, "damaged ml-1m"),
    ],
    ids=["other files", "outside path", "text for a rating", "short row"],
)
def test_a_wrong_zip_is_named(tmp_path: Path, members: dict[str, bytes], words: str) -> None:
    source = write_zip(tmp_path / "wrong.zip", members)
    with pytest.raises(DataError, match=words):
        fetch("ml-1m", tmp_path / "out", source=source)
