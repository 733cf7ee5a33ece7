"""User states: ring buffers that append.onnx changes in place.

A state holds rows of the latest events: keys and values of the blocks before the last, and the
events that entered the last block. Event p lies in row p modulo the number of rows, so the newest
takes the place of the oldest; the graph computes the age of each row.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ranklet.engine.runs import Device, Value

Floats = NDArray[np.float32]


class State:
    """The states of some users, one row of each array per user.

    Attributes:
        arrays: By name, (users, rows, D); on CUDA current after ``read``.
        users: Their number.
        values: Input, output and memory of each array, for ``Run.change``.
    """

    def __init__(self, arrays: Mapping[str, Floats], device: Device, users: int) -> None:
        """Wrap contiguous arrays of this number of users."""
        self.arrays, self.device, self.users = dict(arrays), device, users
        self.values = [
            (name, f"new_{name}", Value(array, device)) for name, array in arrays.items()
        ]

    @classmethod
    def empty(cls, rows: Mapping[str, int], users: int, width: int, device: Device) -> "State":
        """Return the states of users without an event; arrays have these ``rows``."""
        arrays = {
            name: np.zeros((users, count, width), dtype=np.float32) for name, count in rows.items()
        }
        return cls(arrays, device, users)

    def rows(self) -> "list[State]":
        """Return the state of each single user, in the same memory."""
        if self.users == 1:
            return [self]
        assert self.device == "cpu"
        return [
            State({name: array[row : row + 1] for name, array in self.arrays.items()}, "cpu", 1)
            for row in range(self.users)
        ]

    def fill(self, user: int, events: Sequence[Floats], count: int) -> None:
        """Fill the rings of a user with the events of a history.

        Args:
            user: The row of the user.
            events: Rows of each array from an encoder, (T, D), padded on the right.
            count: The number of events of the history.
        """
        for (_, _, value), new in zip(self.values, events, strict=True):
            rows = value.array[user]
            latest = np.arange(max(0, count - len(rows)), count)
            rows[latest % len(rows)] = new[latest]
            value.send()

    def read(self, user: int) -> list[Floats]:
        """Return copies of a user's arrays, (rows, D) each."""
        for _, _, value in self.values:
            value.fetch()
        return [array[user].copy() for array in self.arrays.values()]

    def restore(self, user: int, rows: Sequence[Floats]) -> None:
        """Restore a user's arrays from those that ``read`` returned."""
        for (_, _, value), saved in zip(self.values, rows, strict=False):
            value.array[user] = saved
            value.send()
