"""A campaign: many faults of one kind, drawn from a seed, and what became of each."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class Tally:
    """What became of the faults of a campaign.

    Attributes:
        outcomes: The number of faults that ended in each allowed way.
        wrong: For each other fault, what was done and what happened.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def ended(self, outcome: str, times: int = 1) -> None:
        """Count faults that ended as promised."""
        self.outcomes[outcome] += times

    def failed(self, what: str) -> None:
        """Count a fault that did not."""
        self.wrong.append(what)

    @property
    def tried(self) -> int:
        """Return the number of faults."""
        return self.outcomes.total() + len(self.wrong)


@dataclass(frozen=True)
class Campaign:
    """Faults of one kind.

    Attributes:
        name: What is done, for people: "one bit flipped in a file of a bundle".
        promise: What must happen.
        run: Tries a number of faults in an empty folder.
        short: The number of faults in the fast tier of the tests, in seconds at most.
        middle: That of the slow tier.
        long: That of ``make faults``.
    """

    name: str
    promise: str
    run: Callable[[int, np.random.Generator, Path], Tally]
    short: int
    middle: int
    long: int
