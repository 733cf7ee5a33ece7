"""Forked processes: a child can't use the locks and the sessions that it inherits.

A fork copies the memory of all threads, and runs one of them. A session with threads of its own
then crashes or waits for ever when it is freed. One without waits for a lock that no thread will
give back: 15 of 300 rankings did, while three threads ranked in the parent.
"""

import ctypes
import functools
import mmap  # noqa: F401 (numpy imports this late, and numpy.ma: it too holds a lock meanwhile)
import os
from collections.abc import Callable
from threading import RLock
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import numpy.ma  # noqa: F401

T = TypeVar("T")


class Inherited(Protocol):
    """An object of one process."""

    def after_fork(self) -> None:
        """Start anew in a forked child."""


INHERITED: WeakSet[Inherited] = WeakSet()  # what a forked child would inherit


class ProcessLock:
    """A reentrant lock that a forked child finds free, whichever thread held it.

    Attributes:
        lock: The lock of this process.
    """

    def __init__(self) -> None:
        """Make a free lock."""
        self.lock = RLock()
        INHERITED.add(self)

    def after_fork(self) -> None:
        """Replace a lock of another thread."""
        if self.lock.acquire(blocking=False):  # free, or of the thread that forked
            self.lock.release()
        else:
            self.lock = RLock()


class cached_property(functools.cached_property[T], ProcessLock):  # noqa: N801 (like the other)
    """The one of Python, which up to 3.11 holds a lock while it computes."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        """Decorate a method."""
        functools.cached_property.__init__(self, compute)
        ProcessLock.__init__(self)


def leak(inherited: object) -> None:
    """Never free an object, not even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


def _start_anew() -> None:
    for inherited in INHERITED:
        inherited.after_fork()


# Held while onnxruntime makes a session and holds a lock of the whole process: a fork waits for it.
UNFORKED = RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=UNFORKED.acquire, after_in_parent=UNFORKED.release, after_in_child=UNFORKED.release
    )
    os.register_at_fork(after_in_child=_start_anew)
