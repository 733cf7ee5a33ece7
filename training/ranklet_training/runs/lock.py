"""Let one process at a time work on a folder."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ranklet.errors import RunError


@contextmanager
def locked(path: Path, taken: str) -> Iterator[None]:
    """Hold a lock file; the lock goes when the process does, the file stays.

    Args:
        path: Of the lock file; its folder is made.
        taken: What the error says where another process holds it.

    Raises:
        RunError: Another process holds it, or the folder can't be locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = sqlite3.connect(path, timeout=0, isolation_level=None)
    except sqlite3.Error as error:
        raise RunError(f"{path} can't be locked: {error}") from error
    try:
        try:
            lock.execute("PRAGMA journal_mode = OFF")  # nothing is written: no second file
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            is_taken = "is locked" in str(error)
            raise RunError(taken if is_taken else f"{path} can't be locked: {error}") from error
        yield
    finally:
        lock.close()
