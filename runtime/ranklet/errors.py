"""Every error that ranklet raises on purpose, so that a caller knows what to catch.

RankletError
├── BundleError      a bundle is missing, damaged, or of another format
├── ProviderError    the execution provider that was asked for does not run, or not in this process
├── InputError       a request is not usable (also a ValueError)
│   └── DataError    an event log or an item file is not usable
├── RunError         a training run is missing, damaged, or does not match what was asked
└── ParityError      an exported graph does not answer like the model it was exported from
    └── PrecisionError   its precision costs more ranking quality than was allowed

Each class carries the exit status that the command line ends with.
"""


class RankletError(Exception):
    """Root of all errors that ranklet raises on purpose."""

    exit_code = 1


class BundleError(RankletError):
    """A bundle is missing, damaged, or written in a format that this version can't read."""

    exit_code = 3


class InputError(RankletError, ValueError):
    """A request holds a value that can't be used; the message names the value and its place."""

    exit_code = 4


class DataError(InputError):
    """An event log or an item file can't be used; the message names the row and the column."""


class ProviderError(RankletError):
    """The execution provider that was asked for does not run, has failed, or stayed in a parent.

    A forked child can't use a ranker of its parent: it loads the bundle anew.
    """

    exit_code = 5


class RunError(RankletError):
    """A training run is missing, damaged, or belongs to other data or another configuration."""

    exit_code = 6


class ParityError(RankletError):
    """An exported graph gives other answers than the model that it was exported from."""

    exit_code = 7


class PrecisionError(ParityError):
    """The precision of a bundle costs more ranking quality than was allowed."""
