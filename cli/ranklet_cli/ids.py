"""Item ids on the command line and in files of one id a line."""

from collections.abc import Iterable
from pathlib import Path

from ranklet.bundle.vocabulary import Vocabulary
from ranklet.errors import InputError
from ranklet.values import show
from ranklet_cli.options import note


def exact_ids(vocabulary: Vocabulary, texts: Iterable[str], name: str) -> list[str] | list[int]:
    """Return ids as written; only where the catalogue lacks one, without the spaces around it.

    Texts without a character are skipped, and so are unknown ones of spaces alone.
    """
    if not vocabulary.is_text:
        return vocabulary.parse(filter(None, map(str.strip, texts)))
    ids: list[str] = []
    spaced: list[str] = []
    for text in texts:
        trimmed = text.strip()
        if vocabulary.find(text):
            ids.append(text)
        elif vocabulary.find(trimmed):
            ids.append(trimmed)
            spaced.append(text)
        elif trimmed:
            ids.append(text)
    if spaced:
        count = f"{len(spaced)} of {len(ids)} ids are read without the spaces around them"
        note(f"{name}: {count}, first {show(spaced[0])}")
    return ids


def read_ids(vocabulary: Vocabulary, path: Path) -> list[str] | list[int]:
    """Read one id a line, with a note on ids outside the catalogue."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            lines = [line.removesuffix("\n").removesuffix("\r") for line in file]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}; save it as UTF-8") from error
    ids = exact_ids(vocabulary, lines, str(path))
    indices = vocabulary.index(ids, str(path)).tolist()
    if unknown := [item for item, index in zip(ids, indices, strict=True) if not index]:
        first = show(unknown[0])
        note(f"{path}: the catalogue lacks {len(unknown)} of {len(ids)} ids, first {first}")
    return ids
