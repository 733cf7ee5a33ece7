"""A path that is a descriptor of this process is written into, and stays open."""

import os
import sys
from pathlib import Path

import pytest

from ranklet.files.atomic import atomic_file, atomic_write

pytestmark = pytest.mark.skipif(not Path("/dev/fd").exists(), reason="this system has no /dev/fd")
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")


@pytest.mark.parametrize("folder", ["/dev/fd", pytest.param("/proc/self/fd", marks=linux)])
def test_a_descriptor_is_written_into_and_left_open(folder: str) -> None:
    source, target = os.pipe()
    os.set_blocking(source, False)
    try:
        path = Path(folder, str(target))
        atomic_write(path, b"one, ")
        with atomic_file(path) as file:
            file.write(b"two")
        assert os.read(source, 99) == b"one, two"
        os.write(target, b"three")
        assert os.read(source, 99) == b"three"
    finally:
        os.close(source)
        os.close(target)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="this system has no /dev/full")
def test_a_full_descriptor_is_named() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match=f"No space left on device: '/dev/fd/{descriptor}'"):
            atomic_write(Path(f"/dev/fd/{descriptor}"), b"x")
    finally:
        os.close(descriptor)


def test_standard_streams_are_written_into(capfd: pytest.CaptureFixture[str]) -> None:
    atomic_write(Path("/dev/stdout"), b"answer")
    atomic_write(Path("/dev/stderr"), b"note")
    assert capfd.readouterr() == ("answer", "note")


@pytest.mark.parametrize("name", ["dev/stdout", "dev/fd/1", "dev/fd/1x", "proc/self/fd/1"])
def test_a_file_whose_name_ends_like_a_descriptor_is_a_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    atomic_write(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]
