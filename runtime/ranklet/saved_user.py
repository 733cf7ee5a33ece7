"""Saved users: a kept history as bytes, for the same bundle alone.

magic, length of the header, header as JSON, items and gaps (int64), rows of the state (float32),
SHA-256 of all before
"""

import hashlib
import json

import numpy as np

from ranklet.bundle.manifest import ENCODE, WEIGHTS, Manifest
from ranklet.engine.engine import Floats
from ranklet.errors import InputError
from ranklet.kept import Counts, KeptHistory
from ranklet.time_gaps import BUCKETS
from ranklet.values import show

MAGIC = b"ranklet user 3\n"
DIGEST_BYTES = 32
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)


def pack(kept: KeptHistory) -> bytes:
    """Return a kept history as bytes."""
    counts, manifest = kept.counts, kept.engine.manifest
    text = json.dumps({"bundle": _fingerprint(manifest), **counts._asdict()}).encode()
    numbers = np.array([kept.items[: counts.events], kept.since[: counts.events]], dtype="<i8")
    rows = kept.state.read(0) if counts.encoded else []
    body = MAGIC + len(text).to_bytes(4, "little") + text + numbers.tobytes()
    body += b"".join(part.astype("<f4").tobytes() for part in rows)
    return body + hashlib.sha256(body).digest()


def unpack(data: bytes, kept: KeptHistory) -> None:
    """Restore bytes that ``pack`` returned into a kept history.

    Raises:
        InputError: These are not the bytes of a user, they are damaged, or they belong to another
            bundle. The history stays as it was.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InputError(f"a saved user is bytes, got {show(data)}")
    data = bytes(data)
    body, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if not data.startswith(MAGIC):
        raise InputError(f"these {len(data)} bytes are not a saved user")
    if hashlib.sha256(body).digest() != digest:
        raise InputError(f"the saved user is damaged (SHA-256 of {len(data)} bytes)")
    try:
        counts, items, since, rows = _read(body, kept)
    except InputError:  # of another bundle
        raise
    except MALFORMED as error:
        raise InputError(f"the saved user does not follow the format: {error}") from error
    kept.counts = Counts()  # until all parts are there
    kept.items, kept.since = items, since
    kept.state.restore(0, rows)
    kept.counts = counts


def _read(body: bytes, kept: KeptHistory) -> tuple[Counts, list[int], list[int], list[Floats]]:
    """Return counts, items, gaps and rows of the state."""
    start = len(MAGIC) + 4
    end = start + int.from_bytes(body[len(MAGIC) : start], "little")
    header = json.loads(body[start:end])
    if header.pop("bundle") != _fingerprint(kept.engine.manifest):
        raise InputError("the saved user belongs to another bundle: start it again")
    counts = Counts(**header)
    numbers = np.frombuffer(body, "<i8", 2 * counts.events, end).reshape(2, counts.events)
    items, since = numbers.tolist()
    _check(counts, items, since, len(kept.reader.vocabulary))
    place, rows = end + numbers.nbytes, []
    for array in kept.state.arrays.values() if counts.encoded else ():
        part = np.frombuffer(body, "<f4", array[0].size, place).reshape(array[0].shape)
        if not np.isfinite(part).all():
            raise ValueError("a state that is not finite")
        rows.append(part.astype(np.float32))
        place += part.nbytes
    if place != len(body):
        raise ValueError(f"{len(body)} bytes, of which {place} are read")
    return counts, items, since, rows


def _check(counts: Counts, items: list[int], since: list[int], catalogue: int) -> None:
    """Refuse an impossible user: onnxruntime takes item -1 for the last one."""
    events, unknown, last, *of_state = counts
    is_whole = all(type(count) is int and count >= 0 for count in (events, unknown, *of_state))
    if not is_whole or not (last is None or (type(last) is int and -(2**63) <= last < 2**63)):
        raise ValueError(f"counts {tuple(counts)}")
    encoded, position = counts.encoded, counts.position
    if not position <= encoded <= events or bool(encoded) != bool(position):
        raise ValueError(f"{events} events, {encoded} encoded, {position} of a state")
    for name, values, least, most in (
        ("item", items, 1, catalogue),
        ("since", since, 0, BUCKETS - 1),
    ):
        if events and not least <= min(values) <= max(values) <= most:
            raise ValueError(f"{name} from {min(values)} to {max(values)}")


def _fingerprint(manifest: Manifest) -> str:
    """Return the digests of the files that a state depends on."""
    return "".join(
        manifest.files[name].sha256 for name in (manifest.programs[ENCODE].file, WEIGHTS)
    )
