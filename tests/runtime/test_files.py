"""A file or folder is the whole old one or the whole new one, whichever step fails."""

import errno
import hashlib
import io
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ranklet.files import atomic
from ranklet.files.atomic import atomic_file, atomic_folder, atomic_write, sha256

OLD, NEW = b"old" * 1000, b"new" * 2000
Action = Callable[[Path], None]


class Faults:
    """Let the n-th write, sync, open, rename or mkdir fail, and all later ones too if asked.

    Removing is left alone: what could not be removed lies beside, under a hidden name.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
        self.error = error
        self.countdown = 0  # nothing fails
        self.for_good = False
        owners = {"fsync": os, "rename": Path, "replace": Path, "mkdir": Path}
        for name, owner in owners.items():
            monkeypatch.setattr(owner, name, self.wrap(getattr(owner, name)))
        monkeypatch.setattr(atomic, "_rename", self.wrap(atomic._rename))
        monkeypatch.setattr(Path, "open", self.wrap(self.open))

    def step(self) -> None:
        if self.countdown == 0:
            return
        self.countdown -= 1
        if self.countdown == 0:
            self.countdown = 1 if self.for_good else 0
            raise self.error(errno.EIO, "injected")

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.step()
            return function(*arguments, **options)

        return call

    def open(self, path: Path, mode: str = "rb") -> io.BufferedIOBase:
        faults = self

        class Writer(io.BufferedWriter):
            def write(self, data: Any) -> int:
                faults.step()
                return super().write(data)

        file = io.FileIO(path, mode.replace("b", ""))
        return Writer(file) if file.writable() else io.BufferedReader(file)


@pytest.fixture(params=["one step", "several"])
def renaming(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Return how a folder is replaced; without renameat2 in several steps."""
    if request.param == "several":
        monkeypatch.setattr(atomic, "_rename", atomic._rename_in_steps)
    return str(request.param)


@pytest.fixture(params=[OSError, KeyboardInterrupt], ids=["error", "Ctrl-C"])
def faults(
    renaming: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Faults:
    return Faults(monkeypatch, request.param)


def write(folder: Path) -> None:
    atomic_write(folder / "file", NEW)


def fill(folder: Path) -> None:
    with atomic_folder(folder / "bundle") as empty:
        (empty / "a").write_bytes(NEW)
        (empty / "b").write_bytes(NEW)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, hidden ones too."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


BEFORE = {write: {"file": OLD}, fill: {"bundle/a": OLD, "bundle/c": OLD}}
AFTER = {write: {"file": NEW}, fill: {"bundle/a": NEW, "bundle/b": NEW}}
BOTH = pytest.mark.parametrize("action", [write, fill])


def prepare(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        os.makedirs(path.parent, exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
    os.makedirs(folder, exist_ok=True)
    return folder


def fail_in_turn(
    faults: Faults, tmp_path: Path, action: Action, before: dict[str, bytes]
) -> Iterator[Path]:
    """Yield the folder after the first step failed, then after the second, until none does."""
    for n in itertools.count(1):
        folder = prepare(tmp_path / str(n), before)
        faults.countdown = n
        try:
            action(folder)
        except faults.error:
            faults.countdown = 0
            yield folder
        else:
            assert n > 4, "too few steps could fail"
            return


@BOTH
def test_what_was_there_stays_whole_until_the_new_is_whole(
    faults: Faults, tmp_path: Path, action: Action
) -> None:
    found = []
    for folder in fail_in_turn(faults, tmp_path, action, BEFORE[action]):
        found.append(contents(folder))
        assert [path.name for path in folder.iterdir()] in (["file"], ["bundle"])
    # The last step syncs the parent folder: the new is in place by then.
    assert found == [BEFORE[action]] * (len(found) - 1) + [AFTER[action]]


@BOTH
def test_what_is_new_is_whole_or_absent(faults: Faults, tmp_path: Path, action: Action) -> None:
    found = [contents(folder) for folder in fail_in_turn(faults, tmp_path, action, {})]
    assert found == [{}] * (len(found) - 1) + [AFTER[action]]


@BOTH
def test_nothing_old_is_lost_where_every_later_step_fails_too(
    faults: Faults, tmp_path: Path, action: Action
) -> None:
    before, faults.for_good = BEFORE[action], True
    for folder in fail_in_turn(faults, tmp_path, action, before):
        found = contents(folder)
        assert found == AFTER[action] or set(before.values()) <= set(found.values())


@BOTH
def test_success_replaces_the_old_and_leaves_nothing_else(tmp_path: Path, action: Action) -> None:
    folder = prepare(tmp_path / "folder", BEFORE[action])
    action(folder)
    assert contents(folder) == AFTER[action]
    assert len(list(folder.iterdir())) == 1


@BOTH
@pytest.mark.usefixtures("renaming")
def test_a_failure_names_the_file_and_not_its_temporary(
    tmp_path: Path, action: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults, found = Faults(monkeypatch, OSError), []
    for n in itertools.count(1):
        folder = prepare(tmp_path / str(n), BEFORE[action])
        faults.countdown = n
        try:
            action(folder)
        except OSError as error:
            found.append(str(error).replace(str(folder), "FOLDER"))
        else:
            break
    names = {write: ("file",), fill: ("bundle", "bundle/a", "bundle/b")}[action]
    assert {*found} <= {f"[Errno 5] injected: 'FOLDER/{name}'" for name in names}
    assert len(found) > 3


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="this system has no /dev/full")
def test_what_a_full_device_refuses_is_named(tmp_path: Path) -> None:
    for action in (atomic_write, atomic.append):
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            action(Path("/dev/full"), NEW)


def test_a_name_too_long_for_its_temporary_file_is_named_itself(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250)
    with pytest.raises(OSError, match="File name too long") as caught:
        atomic_write(path, NEW)
    assert (caught.value.errno, caught.value.filename) == (errno.ENAMETOOLONG, str(path))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system has no /proc")
@BOTH
def test_no_descriptor_stays_open(tmp_path: Path, action: Action) -> None:
    before = os.listdir("/proc/self/fd")
    action(tmp_path)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
@BOTH
def test_what_is_only_half_made_vanishes(tmp_path: Path, action: Action, error: Any) -> None:
    def half_made() -> None:
        if action is write:
            with atomic_file(tmp_path / "file") as file:
                file.write(NEW)
                raise error("half way")
        with atomic_folder(tmp_path / "bundle") as folder:
            (folder / "a").write_bytes(NEW)
            raise error("half way")

    prepare(tmp_path, BEFORE[action])
    with pytest.raises(error, match="half way"):
        half_made()
    assert contents(tmp_path) == BEFORE[action]


def test_a_folder_makes_its_parents_and_a_file_does_not(tmp_path: Path) -> None:
    fill(tmp_path / "not" / "there")
    assert contents(tmp_path / "not" / "there") == AFTER[fill]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write(tmp_path / "nowhere")


@pytest.mark.parametrize("size", [0, 3, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_digest_is_that_of_the_whole_file(tmp_path: Path, size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    (tmp_path / "file").write_bytes(data)
    assert sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "other" / "target"
    target.parent.mkdir()
    target.write_bytes(OLD)
    link.symlink_to(target)
    atomic_write(link, NEW)
    assert link.is_symlink()
    assert target.read_bytes() == NEW
    assert {path.name for path in tmp_path.rglob("*")} == {"link", "other", "target"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_and_a_device_are_written_into(tmp_path: Path) -> None:
    pipe, null = tmp_path / "pipe", Path(os.devnull)
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(pipe.read_bytes)
        atomic_write(pipe, NEW)
        assert found.result() == NEW
    assert pipe.is_fifo()
    atomic_write(null, NEW)
    assert null.is_char_device()


def test_who_may_read_a_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "private"
    path.write_bytes(OLD)
    path.chmod(0o600)
    atomic_write(path, NEW)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (NEW, 0o600)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="this system has no /dev/fd")
def test_what_was_written_to_stdout_before_and_after_stays(tmp_path: Path) -> None:
    names = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
    code = f"""
import os
from pathlib import Path
from ranklet.files.atomic import atomic_write
for name in {names!r}:
    os.write(1, b"before ")
    atomic_write(Path(name), b"this ")
    os.write(1, b"after ")
"""
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_bytes() == b"before this after " * 3


@pytest.mark.parametrize("kind", ["link", "dots"])
def test_a_folder_is_replaced_where_it_lies(kind: str, tmp_path: Path) -> None:
    folder, link = prepare(tmp_path / "folder", {"old": OLD}), tmp_path / "link"
    link.symlink_to("folder")
    with atomic_folder(link if kind == "link" else folder / ".." / "folder") as made:
        (made / "new").write_bytes(NEW)
    assert {path.name for path in tmp_path.rglob("*")} == {"link", "folder", "new"}
    assert link.is_symlink()


@pytest.mark.parametrize("there", [True, False], ids=["replaced", "new"])
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it takes several steps")
def test_a_kill_at_any_moment_leaves_a_whole_folder(there: bool, tmp_path: Path) -> None:
    code = """
import os, shutil, sys
from pathlib import Path
from ranklet.files import atomic
import ctypes, secrets

def write(steps):
    def trace(frame, event, argument):
        nonlocal steps
        steps -= 1
        if not steps:
            os.kill(os.getpid(), 9)
        return trace
    sys.settrace(lambda frame, *_: trace if frame.f_code.co_filename in FILES else None)
    with atomic.atomic_folder(Path(sys.argv[1], str(number), "bundle")) as folder:
        for name in "ab":
            (folder / name).write_text("new")
    os._exit(0)

FILES, number = (atomic.__file__, shutil.__file__), 0
while True:
    number += 1
    folder = Path(sys.argv[1], str(number), "bundle")
    folder.parent.mkdir()
    if sys.argv[2:]:
        folder.mkdir()
        (folder / "old").write_text("old")
    child = os.fork()
    if not child:
        write(number)
    if os.waitpid(child, 0)[1] == 0:
        break
"""
    arguments = [sys.executable, "-c", code, str(tmp_path), *(["there"] if there else [])]
    subprocess.run(arguments, check=True)
    found = [
        sorted(path.name for path in (parent / "bundle").glob("*")) for parent in tmp_path.iterdir()
    ]
    before = ["old"] if there else []
    assert len(found) > 40
    assert {*map(tuple, found)} == {tuple(before), ("a", "b")}


@pytest.mark.usefixtures("renaming")
def test_many_writers_of_one_folder_leave_that_of_one(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(50):
            with atomic_folder(tmp_path / "bundle") as folder:
                for name in "ab":
                    (folder / name).write_text(str(number))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert len({*contents(tmp_path / "bundle").values()}) == 1


@pytest.mark.usefixtures("renaming")
@pytest.mark.parametrize("other", ["folder", "empty", "file", "link"])
def test_what_appeared_meanwhile_stays(other: str, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    make = {
        "folder": lambda: prepare(path, {"other": OLD}),
        "empty": path.mkdir,
        "file": lambda: path.write_bytes(OLD),
        "link": lambda: path.symlink_to("nowhere"),
    }

    def write() -> None:
        with atomic_folder(path, replace=False) as folder:
            (folder / "new").write_bytes(NEW)
            make[other]()

    with pytest.raises(FileExistsError, match="bundle"):
        write()
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]
    assert contents(tmp_path) == {"folder": {"bundle/other": OLD}, "file": {"bundle": OLD}}.get(
        other, {}
    )


def test_a_folder_that_a_killed_process_had_moved_aside_comes_back(tmp_path: Path) -> None:
    aside = prepare(tmp_path / ".bundle.0123abcd.old", BEFORE[write])
    atomic.recover(tmp_path / "bundle")
    assert contents(tmp_path / "bundle") == BEFORE[write]
    assert not aside.exists()
