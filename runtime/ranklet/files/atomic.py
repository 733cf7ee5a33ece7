"""Write files so that a reader finds either the whole new file or the old one.

A failure is an OSError that names the file, or a file in the folder, by its final name.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO

DESCRIPTOR = re.compile(r"/dev/(stdout|stderr|fd/[0-9]+)|/proc/self/(fd/[0-9]+)")
NO_REPLACE, EXCHANGE, HERE = 1, 2, -100  # of renameat2(2)
OLD = ".old"


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
def _named(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Name ``path`` in an OSError that names nothing, as those of writes, or its temporary."""
    try:
        yield
    except OSError as error:
        name = str(error.filename or path)
        error.filename = name.replace(str(temporary), str(path)) if temporary else name
        del error.filename2
        raise


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
        with _named(path), os.fdopen(os.dup(number), "wb") as file:
            yield file
        return
    mode = path.stat().st_mode if path.exists() else None
    if mode is not None and not stat.S_ISREG(mode):
        with _named(path), path.open("wb") as file:
            yield file
        return
    path = path.resolve()
    temporary = _aside(path)
    with _named(path, temporary):
        try:
            with temporary.open("xb") as file:
                if mode is not None:
                    temporary.chmod(stat.S_IMODE(mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):  # the first error says more
                temporary.unlink()
            raise
        _sync(path.parent)


def append(path: Path, data: bytes) -> None:
    """Write ``data`` behind what is in a file."""
    with _named(path), path.open("ab") as file:
        file.write(data)


def atomic_write(path: Path, data: bytes) -> None:
    """Replace the file at ``path`` by ``data``, whole or not at all."""
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Give an empty folder to fill; on success it takes the place of ``path``, else it vanishes.

    On Linux that is one step: at any moment ``path`` is the whole old folder or the whole new one.
    Of several writers the last one wins. Elsewhere, and on file systems that do not know the step,
    there is a short moment without ``path``, see ``recover``. Of a link the target is replaced.

    Raises:
        FileExistsError: ``path`` exists at the end, and ``replace`` is false.
    """
    path = path.resolve()
    recover(path)
    temporary = _aside(path)
    try:
        with _named(path, temporary):
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.iterdir():
                _sync(file)
            _sync(temporary)
            _put(temporary, path, replace=replace)
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # half a folder, or what was replaced


def _put(new: Path, path: Path, *, replace: bool) -> None:
    """Rename a folder to ``path``; what was there has the name of the new one then."""
    while True:
        try:
            return _rename(new, path, NO_REPLACE)
        except FileExistsError:
            if not replace:
                raise
        with suppress(FileNotFoundError, FileExistsError):  # another writer changed it meanwhile
            return _rename(new, path, EXCHANGE)


def _rename(source: Path, target: Path, how: int) -> None:
    """Call renameat2(2); where it is not known, do its steps one after the other."""
    import ctypes  # only writers need it

    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    renameat2 = getattr(libc, "renameat2", None)
    if renameat2 is None:
        return _rename_in_steps(source, target, how)
    if renameat2(HERE, os.fsencode(source), HERE, os.fsencode(target), how) == 0:
        return None
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS):  # the file system or the kernel does not know it
        return _rename_in_steps(source, target, how)
    raise OSError(code, os.strerror(code), str(target))


def _rename_in_steps(source: Path, target: Path, how: int) -> None:
    """Rename as renameat2 does; what was replaced vanishes instead of getting the other name."""
    if how == NO_REPLACE:
        try:
            if not os.path.lexists(target):
                source.rename(target)
                return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    old = _aside(target).with_suffix(OLD)
    try:
        target.rename(old)
        _rename_in_steps(source, target, NO_REPLACE)
    except FileExistsError:  # another writer was faster
        shutil.rmtree(old, ignore_errors=True)
        raise
    except BaseException:
        recover(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover(path: Path) -> None:
    """Bring back a folder that a killed process had moved aside to put another in its place.

    Only systems where that is not one step need it.
    """
    if not path.exists():
        for old in path.parent.glob(f".{escape(path.name)}.*{OLD}"):
            with suppress(OSError):  # another process did it, or the folder can't be changed
                old.rename(path)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 digest of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
