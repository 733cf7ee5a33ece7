"""Filters, boosts and limits of a ranking as text: the grammar of the options, and its values.

    --where      NAME, or ATTRIBUTE=VALUE,VALUE (any of them), or ATTRIBUTE=LOW..HIGH of a number;
                 with ! before it: all other items
    --define     NAME=FILE, one id a line
    --boost      WHERE:POINTS, with any text of --where
    --at-most    ATTRIBUTE=NUMBER
    --objective  KIND=WEIGHT,KIND=WEIGHT; a kind alone weighs 1

Points stand behind the last colon, so a value may hold colons. A value with a comma stands in
quotes, and a quote in it is doubled, as in csv.
"""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ranklet.catalogue import Condition
from ranklet.errors import InputError
from ranklet.ranker import Ranker
from ranklet.values import show
from ranklet_cli.ids import read_ids
from ranklet_cli.options import combine, under

filtering = under("Filters")
wheres = combine(
    filtering(
        "--where",
        multiple=True,
        metavar="WHERE",
        help="Rank only items that meet this: NAME of --define, ATTRIBUTE=VALUE,VALUE for any of "
        "these values, or ATTRIBUTE=LOW..HIGH for numbers, where an end may be left out. '!' "
        'before it takes all others. A value with a comma stands in quotes: shop="a, b". '
        "Repeatable; an item meets all of them.",
    ),
    filtering(
        "--define",
        multiple=True,
        metavar="NAME=FILE",
        help="Name the items of a file, one id a line, for --where and --boost; repeatable.",
    ),
)


def read_filters(
    ranker: Ranker,
    *,
    where: Iterable[str],
    define: Iterable[str],
    boost: Iterable[str] = (),
    at_most: Iterable[str] = (),
) -> dict[str, Any]:
    """Define the named filters, and return arguments of ``Ranker.rank``.

    Raises:
        InputError: A text does not follow the grammar, or names what is not there.
    """
    names = _unique((_split(text, "=", "--define NAME=FILE") for text in define), "--define")
    for name, path in names.items():
        ranker.define(name, read_ids(ranker.vocabulary, Path(path)))
    kinds = {attribute.name: attribute.kind for attribute in ranker.manifest.attributes}

    def condition(text: str) -> Condition:
        name, sign, value = text.partition("=")
        if sign and not value:
            raise InputError(f"{show(text)} has no value: write ATTRIBUTE=VALUE")
        if sign:
            return {name: _values(value, kinds.get(name.removeprefix("!")), text)}
        if text.removeprefix("!") not in names:
            raise InputError(
                f"{show(text)} is not defined: add --define {name.removeprefix('!')}=FILE, or "
                f"write ATTRIBUTE=VALUE; {_attributes(ranker)}"
            )
        return text

    usage = "--boost WHERE:POINTS, like new:1.2 or brand=acme:0.5"
    boosts = [_last(text, ":", usage, float) for text in boost]
    limits = [_last(text, "=", "--at-most ATTRIBUTE=NUMBER, like brand=2", int) for text in at_most]
    return {
        "where": [condition(text) for text in where] or None,
        "boost": [(condition(text), points) for text, points in boosts] or None,
        "at_most": _unique(limits, "--at-most") or None,
    }


def read_objective(text: str) -> dict[str, float]:
    """Return the weight of each kind of event in ``buy=1,view=.2``; ``buy`` alone weighs 1."""
    usage = "--objective KIND=WEIGHT,..., like buy=1,view=.2"
    pairs = (part if "=" in part else f"{part}=1" for part in read_list(text))
    return _unique((_last(pair, "=", usage, float) for pair in pairs), "--objective")


def read_list(text: str) -> list[str]:
    """Return texts between commas; those that hold a comma stand in quotes, as in csv."""
    try:
        return next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise InputError(f"{show(text)} can't be read: {error}; quotes are doubled") from error


def _values(text: str, kind: str | None, condition: str) -> object:
    """Return the value of an attribute in a condition: texts, numbers, or a range of numbers."""
    if kind != "number":
        return read_list(text)
    low, dots, high = text.partition("..")
    try:
        if dots:
            return tuple(float(end) if end else None for end in (low, high))
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"{show(condition)} asks for no number: write 5, 5,7 or 5..7, where either end of a "
            "range may be left out"
        ) from error


def _split(text: str, sign: str, usage: str) -> tuple[str, str]:
    name, found, value = text.partition(sign)
    if not (name and found and value):
        raise InputError(f"write {usage}, not {show(text)}")
    return name, value


def _last(text: str, sign: str, usage: str, number: Any) -> tuple[str, Any]:
    """Return what stands before the last sign, and the number behind it."""
    name, _, value = text.rpartition(sign)
    try:
        if name:
            return name, number(value)
    except ValueError:
        pass
    raise InputError(f"write {usage}, not {show(text)}")


def _unique(pairs: Iterable[tuple[str, Any]], option: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(f"{option} has {show(name)} twice")
        found[name] = value
    return found


def _attributes(ranker: Ranker) -> str:
    names = ", ".join(ranker.attributes)
    return f"items have {names}" if names else "this bundle has no attributes"
