"""Advice on memory pages changes no answer, and is harmless where nobody takes it."""

import mmap
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ranklet import BundleError, Ranker
from ranklet.engine import memory, programs

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    path = tmp_path / "weights with spaces.data"
    path.write_bytes(bytes(range(256)) * (memory.LARGE // 256 + 1))
    return path


@on_linux
def test_a_mapped_file_is_found_by_its_name(large_file: Path) -> None:
    assert memory.regions(str(large_file)) == []
    with large_file.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        ((_, size),) = memory.regions(str(large_file))
        assert len(data) <= size < len(data) + mmap.PAGESIZE
    assert memory.regions(str(large_file)) == []


@on_linux
def test_forgotten_pages_leave_memory_until_they_are_read_again(large_file: Path) -> None:
    with large_file.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        before = data[:]
        assert resident_bytes(large_file) >= len(data)
        memory.forget_pages(memory.regions(str(large_file)))
        assert resident_bytes(large_file) == 0
        assert data[:] == before
        assert resident_bytes(large_file) >= len(data)


@on_linux
def test_a_file_that_is_kept_out_does_not_stay_resident(large_file: Path) -> None:
    with large_file.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        before = data[:]
        assert resident_bytes(large_file) >= len(data)
        with memory.kept_out(str(large_file)):
            deadline = time.monotonic() + 10
            while resident_bytes(large_file) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert resident_bytes(large_file) == 0
        assert data[:] == before
        assert resident_bytes(large_file) >= len(data)


def resident_bytes(path: Path) -> int:
    """Return how much of all mappings of a file is resident."""
    mappings = Path("/proc/self/smaps").read_text().split(f"{path}\n")[1:]
    sizes = [re.search(r"^Rss: +(\d+) kB$", rest, re.MULTILINE) for rest in mappings]
    return 1024 * sum(int(size[1]) for size in sizes if size)


@on_linux
@pytest.mark.parametrize("folder", ["plain", "with spaces", os.fsdecode(b"latin \xe9")])
def test_what_is_mapped_of_a_file_lies_in_its_copy(folder: str, tmp_path: Path) -> None:
    path = tmp_path / folder / "weights.bin"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 100)
    copy = memory.Copy(path)
    with path.open("rb") as file, memory.mapped_to(copy, str(path)):
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        part = mmap.mmap(file.fileno(), 512, access=mmap.ACCESS_COPY, offset=mmap.PAGESIZE)
    os.truncate(path, 0)
    assert whole[:] == bytes(range(256)) * 100
    assert part[:] == bytes(range(256)) * 2
    with copy.open() as file:
        assert file.read() == whole[:]
    assert str(path) not in os.fsdecode(Path("/proc/self/maps").read_bytes())


@on_linux
def test_advice_that_the_kernel_does_not_know_changes_nothing(large_file: Path) -> None:
    with large_file.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        before = data[:]
        (region,) = memory.regions(str(large_file))
        memory.advise(region, 12345)
        assert resident_bytes(large_file) >= len(data)
        assert data[:] == before


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [(0, 40)], [(0, 40)]),
        ([(0, 40)], [(0, 40)], []),
        ([(0, 40)], [(0, 90)], [(40, 50)]),
        ([(50, 40)], [(0, 90)], [(0, 50)]),
        ([(30, 20)], [(0, 100)], [(0, 30), (50, 50)]),
        ([(30, 20), (10, 5)], [(0, 100)], [(0, 10), (15, 15), (50, 50)]),
        ([(200, 50)], [(0, 30), (200, 50), (300, 60)], [(0, 30), (300, 60)]),
    ],
    ids=["new", "old", "grown up", "grown down", "around", "between", "others"],
)
def test_only_new_memory_is_put_into_huge_pages(
    before: list[memory.Region],
    after: list[memory.Region],
    expected: list[memory.Region],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    advised: list[memory.Region] = []
    monkeypatch.setattr(memory, "LARGE", 5)
    monkeypatch.setattr(memory, "regions", lambda path: after)
    monkeypatch.setattr(memory, "advise", lambda region, advice: advised.append(region))
    memory.use_huge_pages(before)
    assert advised == expected


def test_other_systems_have_no_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.regions("") == []


@pytest.fixture
def huge_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table is treated as a huge one is."""
    monkeypatch.setattr(programs, "LARGE_WEIGHTS", 0)
    monkeypatch.setattr(programs, "HUGE_WEIGHTS", 0)
    monkeypatch.setattr(memory, "use_huge_pages", lambda before: None)
    monkeypatch.setattr(memory, "LARGE", 0)


@on_linux
@pytest.mark.parametrize("lookups", [0, 100], ids=["always", "now and then"])
def test_a_table_treated_as_huge_gives_the_same_rankings(
    lookups: int,
    huge_tables: None,
    tiny_bundle: Path,
    tiny_ranker: Ranker,
    ids: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(programs, "MOST_LOOKUPS", lookups)
    ranker = Ranker.load(tiny_bundle, provider="cpu")
    user, expected = ranker.user(), tiny_ranker.user()
    for count in range(1, 31):
        assert ranker.rank(ids[:count]).items == tiny_ranker.rank(ids[:count]).items
        user.append(ids[count])
        expected.append(ids[count])
        assert user.rank().items == expected.rank().items
    assert ranker.rank(ids[:3], candidates=ids[9:]).items == (
        tiny_ranker.rank(ids[:3], candidates=ids[9:]).items
    )


@on_linux
def test_what_a_refused_graph_had_mapped_is_not_advised_later(
    huge_tables: None, tiny_bundle: Path, ids: list[str]
) -> None:
    ranker = Ranker.load(tiny_bundle, provider="cpu")
    every = ranker.manifest.programs
    every["append"] = replace(every["append"], file=every["score"].file)  # as a graph that lies
    user = ranker.user(ids[:1])
    user.rank()
    mapped = [*ranker.engine.programs.mapped]
    user.append(ids[0])
    with pytest.raises(BundleError, match="another contract"):
        user.rank()
    assert mapped
    assert ranker.engine.programs.mapped == mapped


@on_linux
def test_a_huge_table_leaves_memory_when_many_rows_were_looked_up(
    huge_tables: None, bundle: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = Ranker.load(bundle, provider="cpu")
    # Of an event, and of the candidates.
    rows = 1 + len(ids)
    monkeypatch.setattr(programs, "MOST_LOOKUPS", 3 * rows - 1)
    stays = []
    for _ in range(6):
        ranker.rank(ids[:1], candidates=ids)
        stays.append(resident_bytes(bundle / "weights.bin") > 0)
    assert stays == 2 * [True, True, False]


@on_linux
def test_only_what_was_mapped_meanwhile_is_ones_own(large_file: Path) -> None:
    with large_file.open("rb") as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
            theirs = memory.regions(str(large_file))
            with memory.new_regions(str(large_file)) as found:
                own = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            assert len(found) <= 1  # the kernel may join what lies side by side
            assert not set(found) & set(theirs)
        own.close()
