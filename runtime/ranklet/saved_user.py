"""Saved users: a kept history as bytes, for the same bundle and the same added items alone.

magic, length of the header, header as JSON, items and gaps (int64), rows of the state (float32),
SHA-256 of all before
"""

import hashlib
import json

import numpy as np

from ranklet.bundle.manifest import ENCODE, WEIGHTS
from ranklet.bundle.vocabulary import ItemId
from ranklet.engine.engine import Floats
from ranklet.errors import InputError
from ranklet.kept import Aside, Counts, KeptHistory, Log
from ranklet.serving import Serving
from ranklet.time_gaps import BUCKETS
from ranklet.values import show

MAGIC = b"ranklet user 4\n"
DIGEST_BYTES = 32
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)


def pack(kept: KeptHistory) -> bytes:
    """Return a kept history as bytes."""
    counts = kept.counts
    log = counts.log
    header = {
        "bundle": _fingerprint(kept.serving),
        "counts": counts[1:],
        "times": log.times[: counts.events] if kept.serving.manifest.uses_times else [],
        "kinds": log.kinds[: counts.events] if kept.serving.manifest.kinds else [],
        "aside": [event[:4] for event in log.aside[: counts.aside]],
        "added": _added(counts),
    }
    text = json.dumps(header).encode()
    numbers = np.array([log.items[: counts.events], log.since[: counts.events]], dtype="<i8")
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
        counts, rows = _read(body, kept)
    except InputError:  # of another bundle
        raise
    except MALFORMED as error:
        raise InputError(f"the saved user does not follow the format: {error}") from error
    kept.counts = Counts(Log.empty(kept.serving, kept.state))  # until all parts are there
    kept.state.restore(0, rows)
    kept.counts = counts


def _read(body: bytes, kept: KeptHistory) -> tuple[Counts, list[Floats]]:
    """Return counts with their log, and rows of the state."""
    start = len(MAGIC) + 4
    end = start + int.from_bytes(body[len(MAGIC) : start], "little")
    header = json.loads(body[start:end])
    if header["bundle"] != _fingerprint(kept.serving):
        raise InputError("the saved user belongs to another bundle: start it again")
    log = Log.empty(kept.serving, kept.state)
    counts = Counts(log, *header["counts"])
    numbers = np.frombuffer(body, "<i8", 2 * counts.events, end).reshape(2, counts.events)
    items, since = numbers.tolist()
    log.items.extend(items)
    log.since.extend(since)
    log.times.extend(header["times"] or [None] * counts.events)
    log.kinds.extend(header["kinds"] or [0] * counts.events)
    _read_aside(log, header["aside"])
    counts = counts._replace(unknown=sum(event.known == 0 for event in log.aside))
    _check(counts)
    if _added(counts) != header["added"]:
        raise InputError("the saved user has events of added items: add the same items first")
    place, rows = end + numbers.nbytes, []
    for array in kept.state.arrays.values() if counts.encoded else ():
        part = np.frombuffer(body, "<f4", array[0].size, place).reshape(array[0].shape)
        if not np.isfinite(part).all():
            raise ValueError("a state that is not finite")
        rows.append(part.astype(np.float32))
        place += part.nbytes
    if place != len(body):
        raise ValueError(f"{len(body)} bytes, of which {place} are read")
    return counts, rows


def _check(counts: Counts) -> None:
    """Refuse an impossible user: onnxruntime takes item -1 for the last one."""
    log, *numbers = counts
    catalogue, kinds = log.serving.catalogue, log.serving.manifest.kinds
    if not all(type(count) is int and count >= 0 for count in numbers):
        raise ValueError(f"counts {numbers}")
    encoded, position = counts.encoded, counts.position
    if not position <= encoded <= counts.events or bool(encoded) != bool(position):
        raise ValueError(f"{counts.events} events, {encoded} encoded, {position} of a state")
    places = [event.place for event in log.aside]
    times = [*log.times, *(event.time for event in log.aside)]
    for name, values, least, most in (
        ("item", log.items, 1, len(catalogue.vocabulary)),
        ("since", log.since, 0, BUCKETS - 1),
        ("time", [time for time in times if time is not None], -(2**63), 2**63 - 1),
        ("kind", [*log.kinds, *(event.kind for event in log.aside)], 0, len(kinds)),
        ("place", places, 0, counts.events),
    ):
        if not all(type(value) is int and least <= value <= most for value in values):
            raise ValueError(f"{name} outside {least} to {most}")
    if places != sorted(places):
        raise ValueError("events aside that are not in order")
    if not all(map(catalogue.counts, log.items)):
        raise ValueError("an item that does not count in histories")
    lengths = len(log.times), len(log.kinds), len(log.aside)
    if lengths != (counts.events, counts.events, counts.aside):
        raise ValueError("{} times, {} kinds, {} events aside".format(*lengths))


def _read_aside(log: Log, events: list[tuple[int, ItemId, int | None, int]]) -> None:
    """Add the events that do not count, with the indices that their items have by now."""
    indices = log.serving.catalogue.vocabulary.index([item for _, item, *_ in events]).tolist()
    for event, index in zip(events, indices, strict=True):
        log.aside.append(Aside(*event, index))


def _added(counts: Counts) -> dict[str, ItemId]:
    """Return the ids of the added items that events are of, by index."""
    log = counts.log
    last = log.serving.catalogue.last
    added = sorted({item for item in log.items[: counts.events] if item > last})
    ids = log.serving.catalogue.vocabulary.ids(np.array(added, dtype=np.int64))
    return dict(zip(map(str, added), ids, strict=True))


def _fingerprint(serving: Serving) -> str:
    """Return the digests of the files that a state depends on."""
    manifest = serving.manifest
    return "".join(
        manifest.files[name].sha256 for name in (manifest.programs[ENCODE].file, WEIGHTS)
    )
