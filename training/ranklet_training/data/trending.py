"""Trending items: those of the last events of a training log."""

from typing import NamedTuple

import numpy as np

from ranklet.time_gaps import SCALES
from ranklet_training.data.sequences import Ints, Sequences

WEEK = 7 * 24 * 60 * 60  # seconds
LONG = 4  # weeks of a log, from which on its last week counts
SHARE = 10  # else the last tenth of its time


class Recent(NamedTuple):
    """The last events of a log."""

    begin: float  # their earliest time, in the unit of the log
    end: float  # the time of the last event
    counts: Ints  # of each item, by index, (items + 1,)


def recent_events(training: Sequences, items: int, unit: str) -> Recent:
    """Count the last events of each item: those of the last 7 days if the log is long enough.

    Args:
        training: The histories, with times.
        items: The size of the catalogue.
        unit: Of the times, see ``Events.time_unit``; "" is unknown.
    """
    times = training.times
    assert times is not None
    first, last = times.min().item(), times.max().item()
    week, span = WEEK * SCALES.get(unit, 0), last - first
    begin = last - week if week and span > LONG * week else last - span / SHARE
    counts = np.zeros(items + 1, dtype=np.int64)
    for _, events in training.blocks():
        recent = training.items[events][times[events] >= begin]
        counts += np.bincount(recent, minlength=items + 1)
    return Recent(begin, last, counts)
