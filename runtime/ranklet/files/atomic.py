"""Write files so that a reader finds either the whole new file or the old one."""

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

DESCRIPTOR = re.compile(r"/dev/(stdout|stderr|fd/[0-9]+)|/proc/self/(fd/[0-9]+)")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _aside(path: Path) -> Path:
    """Return an unused name in the same folder, so that a rename stays on one file system."""
    import secrets  # only writers need it

    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Give a binary file to fill; on success it takes the place of ``path``, else it vanishes.

    Temporary file, fsync, rename, fsync of the folder. Of a link the target is replaced; only who
    may read what was there may read what takes its place. A descriptor of this process, a pipe or a
    device is written into.
    """
    if descriptor := DESCRIPTOR.fullmatch(str(path)):
        name = descriptor[1] or descriptor[2]
        number = {"stdout": 1, "stderr": 2}.get(name) or int(name.rpartition("/")[2])
        with os.fdopen(os.dup(number), "wb") as file:
            yield file
        return
    mode = path.stat().st_mode if path.exists() else None
    if mode is not None and not stat.S_ISREG(mode):
        with path.open("wb") as file:
            yield file
        return
    path = path.resolve()
    temporary = _aside(path)
    try:
        with temporary.open("xb") as file:
            if mode is not None:
                temporary.chmod(stat.S_IMODE(mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def atomic_write(path: Path, data: bytes) -> None:
    """Replace the file at ``path`` by ``data``, whole or not at all."""
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; on success it takes the place of ``path``, else it vanishes.

    An existing folder is moved aside first and removed last: there is a short moment without
    ``path``, but never one with a mixture of old and new files. Of a link the target is replaced.
    """
    path = path.resolve()
    temporary, old = _aside(path), _aside(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 digest of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
