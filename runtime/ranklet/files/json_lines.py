"""Read JSON lines, one object each; what can't be read is named with its line.

* Text is UTF-8, with or without byte order marks, compressed where the name ends in ``.gz``.
* Lines are counted from 1, as an editor counts them; blank ones are skipped.
"""

import gzip
import json
import re
import zlib
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from ranklet.errors import DataError
from ranklet.values import show

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # as a rule one of a pair


def read_json_lines(
    source: Path | BinaryIO, name: str | None = None, parse_float: Callable[[str], Any] = float
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line that is not blank, as soon as it is there.

    Args:
        source: A path, or an open file that is left open.
        name: The name of the source in messages, by default the path.
        parse_float: Reads a number with a fraction or an exponent.

    Raises:
        DataError: The file or a line can't be read.
    """
    name, number = name or str(source), 0
    try:
        with _open(source) as file:
            for number, line in enumerate(file, 1):
                content = line.removeprefix(BOM_UTF8)
                if content.strip():
                    yield number, _object(content, f"{name}, line {number}", parse_float)
    except (OSError, EOFError, zlib.error) as error:  # gzip raises all three
        place = f" after line {number}" if number else ""
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{name} can't be read{place}: {reason}; check that it is complete and of the type "
            "that its name says"
        ) from error


def _open(source: Path | BinaryIO) -> AbstractContextManager[Iterable[bytes]]:
    if not isinstance(source, Path):
        return nullcontext(source)
    return (gzip.open if source.suffix.lower() == ".gz" else open)(source, "rb")


def _refuse(constant: str) -> None:
    raise json.JSONDecodeError(f"{constant} is no number of JSON", constant, 0)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        (repeated, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise DataError(f"has the key {show(repeated)} twice; keep one of them")
    return value


def _object(line: bytes, where: str, parse_float: Callable[[str], Any]) -> dict[str, Any]:
    try:
        text = line.decode()
        value = json.loads(
            text, parse_float=parse_float, parse_constant=_refuse, object_pairs_hook=_unique
        )
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start + 1}"
        raise DataError(f"{where} is not UTF-8: {reason}; save the file as UTF-8") from error
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise DataError(f"{where} holds {half!r}, half of a character; write all of it") from error
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at column {error.colno}"
        raise DataError(f"{where} is not JSON: {reason}; write one object a line") from error
    except RecursionError as error:
        raise DataError(f"{where} is nested too deeply; write flat objects") from error
    except DataError as error:
        raise DataError(f"{where} {error}") from None
    except ValueError as error:  # Python refuses such integers
        raise DataError(f"{where} has a number of thousands of digits; write a text") from error
    if not isinstance(value, dict):
        raise DataError(f"{where} is not an object: {show(value)}; write one object a line")
    return value
