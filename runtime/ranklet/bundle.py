"""A bundle on disk: a plain folder with all that a ranking needs, and nothing that runs code.

    manifest.json        what the others are: sizes, digests, graph contract, origin, figures
    model.onnx           the graph: history and state in, best items out
    encoder.onnx         its first half: history and state in, user vectors out
    batch.onnx           the same as model.onnx, laid out for many users at once; int8 only
    plain.onnx           the same for the whole history of one user; not for large catalogues
    append.onnx          the same for one more event of one user; not for large catalogues
    model.onnx.data      the tables of all; mapped, not read
    items.npy            int64 ids in index order, or
    items.utf8 + items.offsets.npy      text ids: one blob, and where each id ends in it
    titles.utf8 + titles.offsets.npy    what to show a person, optional
    popularity.npy       share of the training events of each item: the answer for cold users
    golden.json          histories with their right answers, for ``ranklet verify``
    README.md            model card

``Manifest`` both writes and reads the manifest. An unknown key, a newer format, a file that is
missing, of another size or of another digest, a manifest that is not what was written: all are
errors.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from math import isfinite
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ranklet.errors import BundleError
from ranklet.files.atomic import atomic_write, sha256
from ranklet.positions import WAVES
from ranklet.vocabulary import Texts, Vocabulary

FORMAT = 5
MANIFEST = "manifest.json"
GRAPH, ENCODER, DATA = "model.onnx", "encoder.onnx", "model.onnx.data"
BATCH = "batch.onnx"  # of int8 bundles
# Where the catalogue is small enough to be held once more.
PLAIN, APPEND = "plain.onnx", "append.onnx"
MAX_MANIFEST_BYTES = 1 << 20
CHUNK = 64  # items; the table of a graph is padded to a multiple
NEVER = -3e38  # below every score, and still a finite number
# Files above this many bytes are hashed by ``ranklet verify`` only: to read a table of gigabytes
# would cost what mapping it saves.
HASHED_UP_TO = 1 << 28
FILE_NAMES = frozenset(
    {
        GRAPH,
        ENCODER,
        BATCH,
        PLAIN,
        APPEND,
        DATA,
        "items.npy",
        "items.utf8",
        "items.offsets.npy",
        "titles.utf8",
        "titles.offsets.npy",
        "popularity.npy",
        "golden.json",
        "README.md",
    }
)
TEXTS_IN_MEMORY = 1 << 17  # ids or titles; more are searched where they lie
Precision = Literal["fp32", "fp16", "int8", "int4"]
# Bits of the codes that choose from the catalogue, for the precisions that have codes.
CODE_BITS: dict[Precision, int] = {"int8": 8, "int4": 4}
# numpy reads the header of an array as Python source, so a damaged one fails in many ways.
NPY_ERRORS = (OSError, ValueError, EOFError, OverflowError, SyntaxError, TokenError)


@dataclass(frozen=True)
class TensorContract:
    """Name, element type and axes of a graph input or output; a text axis is dynamic."""

    name: str
    type: str  # as onnxruntime writes it, like "tensor(int64)"
    shape: list[int | str]


@dataclass(frozen=True)
class Table:
    """Where the rows of the item table lie in a file, so that they can be mapped.

    A score is the product of a user vector and a row.
    """

    file: str
    offset: int  # bytes
    rows: int  # items + 1; row 0 is padding
    columns: int
    type: Literal["<f2", "<f4"] = "<f4"  # as numpy writes it


@dataclass(frozen=True)
class Rounding:
    """How far scores by codes can be off: what a row loses, and how long a rounded one is."""

    row_error: float  # largest |row - rounded row|, Euclidean
    row_norm: float  # largest |rounded row|

    def bound(self, user: NDArray[np.float32]) -> float:
        """Return by how much a score by codes may be off for a user, (D,).

        That is |u| |e - e'| + |u - u'| |e'| at most (Cauchy and Schwarz), for the rounded e' and
        u'; a component of u' is off by half a step of max |u| / 127.
        """
        user_error: float = len(user) ** 0.5 * float(np.abs(user).max()) / 254
        return float(np.linalg.norm(user)) * self.row_error + user_error * self.row_norm


@dataclass(frozen=True)
class BlockMask:
    """What attention of a block adds to its scores; ``ranklet.positions`` makes a bias of it."""

    hidden: float  # for later events, for padding, and for what is too long ago
    cosines: list[list[float]]  # of each head, each wave
    sines: list[list[float]]
    window: int  # how many events are seen, the one that asks included; 0: all


@dataclass(frozen=True)
class File:
    """What a file of the bundle must be."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contract of a bundle; ``training``, ``data`` and the figures are for people and tools."""

    format: int
    items: int
    id_type: Literal["int64", "string"]
    max_length: int
    width: int
    precision: Precision
    opset: int
    inputs: list[TensorContract]
    outputs: list[TensorContract]
    table: Table
    rounding: Rounding | None  # of codes
    rotary_base: float | None  # of the positions that kept keys are turned by
    masks: list[BlockMask]  # of each block
    training: dict[str, Any]  # all settings of the run
    data: dict[str, Any]  # digest and counts of the events
    quality: dict[str, Any]  # what ``ranklet evaluate`` found; may be empty
    parity: dict[str, Any]  # how far the graph is from the torch model
    gate: dict[str, Any]  # what the precision costs in ranking quality
    versions: dict[str, str]
    files: dict[str, File]

    @property
    def gate_text(self) -> str:
        """Say what the precision costs; nothing where it passed no gate."""
        gate = self.gate
        if not gate:
            return ""
        has_targets = "fp32" in gate
        drop = f", NDCG@10 lower by {gate['drop']:.2%}" if has_targets else ""
        return (
            f"{self.precision} on {gate['questions']:,} {'held-out' if has_targets else 'drawn'} "
            f"histories: {gate['overlap']:.2%} of the best 10 of fp32, "
            f"{gate['proven']:.2%} of answers proven{drop}"
        )

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``, with its own digest beside what this object holds."""
        document = {**asdict(self), "digest": _digest(asdict(self))}
        atomic_write(folder / MANIFEST, (json.dumps(document, indent=2) + "\n").encode())

    @classmethod
    def read(
        cls, path: str | Path, *, check_digests: bool = True, hash_up_to: int = HASHED_UP_TO
    ) -> "Manifest":
        """Read and check the manifest of a bundle, and that its files are what it says.

        Args:
            path: Folder of the bundle.
            check_digests: Hash the files; without it only names and sizes are compared, and a
                flipped bit in the weights gives wrong answers without a word.
            hash_up_to: Files of more bytes are not hashed.

        Raises:
            BundleError: Something is missing, damaged, unknown or of a newer format.
        """
        folder = Path(path)
        manifest = cls._parse(folder, check_digest=check_digests)
        for name, expected in manifest.files.items():
            try:
                is_hashed = check_digests and expected.size <= hash_up_to
                _check_file(folder / name, expected, check_digest=is_hashed)
            except OSError as error:
                raise BundleError(f"{folder / name} can't be read: {error}") from error
        return manifest

    @classmethod
    def _parse(cls, folder: Path, *, check_digest: bool) -> "Manifest":
        path = folder / MANIFEST
        try:
            if not path.is_file():  # a pipe would be waited for
                raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}")
            if path.stat().st_size > MAX_MANIFEST_BYTES:
                raise BundleError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes")
            document = json.loads(path.read_bytes().decode(), object_pairs_hook=_no_duplicates)
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{path} is damaged: {error}") from error
        if not isinstance(document, dict) or not isinstance(document.get("format"), int):
            raise BundleError(f"{path} is not the manifest of a bundle: it has no format number")
        if document["format"] != FORMAT:
            todo = "upgrade ranklet" if document["format"] > FORMAT else "export the run again"
            raise BundleError(
                f"{folder} has bundle format {document['format']} and this version reads "
                f"{FORMAT}: {todo}"
            )
        expected, found = document.pop("digest", None), _digest(document)
        try:
            document["inputs"] = [_build(TensorContract, value) for value in document["inputs"]]
            document["outputs"] = [_build(TensorContract, value) for value in document["outputs"]]
            document["table"] = _build(Table, document["table"])
            if document["rounding"] is not None:
                document["rounding"] = _build(Rounding, document["rounding"])
            document["masks"] = [_build(BlockMask, value) for value in document["masks"]]
            document["files"] = {k: _build(File, v) for k, v in document["files"].items()}
            manifest: Manifest = _build(cls, document)
            manifest._check()
        except KeyError as error:
            raise BundleError(f"{path} does not follow the bundle format: no {error}") from error
        except (TypeError, AttributeError, ValueError) as error:
            raise BundleError(f"{path} does not follow the bundle format: {error}") from error
        if check_digest and found != expected:
            raise BundleError(f"{path} is not what was written (SHA-256): copy it again")
        return manifest

    def _check(self) -> None:
        for name in ("format", "items", "max_length", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}")
        if self.id_type not in ("int64", "string") or self.precision not in get_args(Precision):
            raise ValueError(f"id_type {self.id_type!r}, precision {self.precision!r}")
        if (self.rounding is None) != (self.precision not in CODE_BITS):
            raise ValueError(f"precision {self.precision}, rounding {self.rounding}")
        if self.rotary_base is not None and type(self.rotary_base) is not float:
            raise ValueError(f"rotary_base {self.rotary_base!r}")
        self._check_masks()
        self._check_files()
        self._check_table()

    def _check_masks(self) -> None:
        for place, mask in enumerate(self.masks):
            if not (type(mask.hidden) is float and NEVER <= mask.hidden < 0):
                raise ValueError(f"masks[{place}] hides with {mask.hidden!r}")
            if mask.window < 0:
                raise ValueError(f"masks[{place}] has the window {mask.window}")
            for heads in (mask.cosines, mask.sines):
                waves = [wave for head in heads for wave in head]
                if not all(type(wave) is float and isfinite(wave) for wave in waves):
                    raise ValueError(f"masks[{place}] has waves that are no finite numbers")
                if [len(head) for head in heads] != [WAVES] * len(mask.cosines):
                    raise ValueError(f"masks[{place}] does not have {WAVES} waves a head")
        windows = [mask.window for mask in self.masks]
        if len(set(windows[:-1])) > 1 or any(windows[-1:]):
            raise ValueError(f"masks have the windows {windows}: one for all, 0 for the last")
        found = [(t.name, t.shape[1:2]) for t in self.inputs if t.name.startswith("mask_")]
        expected = [(f"mask_{i}", [len(mask.cosines)]) for i, mask in enumerate(self.masks)]
        if found != expected:
            raise ValueError(f"masks are {expected}, the graph takes {found}")

    def _check_files(self) -> None:
        if unknown := set(self.files) - FILE_NAMES:
            raise ValueError(f"unknown files {sorted(unknown)}")
        id_files = {"items.npy"} if self.id_type == "int64" else {"items.utf8", "items.offsets.npy"}
        if "titles.utf8" in self.files:
            id_files.add("titles.offsets.npy")
        files = {GRAPH, ENCODER, DATA, "popularity.npy", "golden.json", *id_files}
        if missing := files - set(self.files):
            raise ValueError(f"no entry for {sorted(missing)}")

    def _check_table(self) -> None:
        if self.table.type != ("<f2" if self.precision == "fp16" else "<f4"):
            raise ValueError(f"the item table holds {self.table.type!r} for {self.precision}")
        size = np.dtype(self.table.type).itemsize
        end = self.table.offset + size * self.table.rows * self.table.columns
        if self.table.file not in self.files or end > self.files[self.table.file].size:
            raise ValueError("the item table lies outside its file")
        if self.table.offset < 0 or self.table.rows != self.items + 1:
            raise ValueError(f"the item table has {self.table.rows} rows for {self.items} items")
        if self.table.columns != self.width:
            raise ValueError(f"the item table is {self.table.columns} wide, users {self.width}")


class Opened:
    """The folder of a bundle that was opened: what is read of it later must be what lay there then.

    Attributes:
        folder: Wherever the process changes its working directory to, and links their targets.
        files: What the manifest says; a file that was replaced by an equal one will do.
    """

    def __init__(self, path: Path) -> None:
        """Note which files lie there.

        Raises:
            BundleError: No path can be so.
        """
        try:
            self.folder = path.resolve()
        except (OSError, RuntimeError, ValueError) as error:  # loops of links, NUL
            raise BundleError(f"{path} is damaged or no path: {error}") from error
        self.files: dict[str, File] = {}
        self._then = {name: self._identity(name) for name in FILE_NAMES}

    @contextmanager
    def unchanged(self, *names: str) -> Iterator[Path]:
        """Give the folder to read some files from.

        Raises:
            BundleError: Before or meanwhile one of them was replaced or removed.
        """
        self._check(names)
        yield self.folder
        self._check(names)

    def _check(self, names: Sequence[str]) -> None:
        for name in names:
            now = self._identity(name)
            if now != self._then[name] and not (now and self._is_copy(name)):
                raise BundleError(
                    f"{self.folder / name} was replaced or removed since the bundle was opened: "
                    "load it again"
                )
            self._then[name] = now

    def _identity(self, name: str) -> tuple[int, ...] | None:
        try:
            status = (self.folder / name).stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def _is_copy(self, name: str) -> bool:
        try:
            return name in self.files and sha256(self.folder / name) == self.files[name].sha256
        except OSError:
            return False


def of_one_event(shapes: dict[str, list[int | str]]) -> dict[str, list[int | str]]:
    """Return what append.onnx takes or gives in the place of what model.onnx does.

    One event of one user: its state does not grow, heads are the first axis of keys and values,
    ``last`` says where the event is put, and ``last_key`` where its keys and values are, by head.
    """
    sizes: dict[int | str, int | str] = {"batch": 1, "length": 1, "past": "kept", "total": "kept"}
    sizes["recent_total"] = "recent"
    found = {k: [sizes.get(axis, axis) for axis in v] for k, v in shapes.items() if k != "exclude"}
    for name in found:
        if name.startswith(("past_key", "past_value", "present_key", "present_value")):
            found[name] = found[name][1:]
    if "last" in found:
        found["last"] = [1, 1, 2]
    if "past_key_0" in found:
        found["last_key"] = [found["past_key_0"][0], 1, 2]
    return found


def of_whole_history(shapes: dict[str, list[int | str]]) -> dict[str, list[int | str]]:
    """Return what plain.onnx takes or gives in the place of what model.onnx does.

    The whole history of one user, in chunks, each beside the ``keys`` that its events may see.
    """
    found: dict[str, list[int | str]] = {}
    for name, axes in shapes.items():
        if name != "exclude" and not name.startswith(("past_", "present_")):
            found[name] = [1 if axis == "batch" else axis for axis in axes]
    if "history" in found:
        found["history"] = found["positions"] = ["chunks", "length"]
        found["keys"] = found["key_positions"] = ["chunks", "visible"]
        found["mask_0"] = ["chunks", 1, "length", "visible"]
        found["mask_1"] = [*found["mask_1"][:3], "padded"]
    return found


def describe_files(folder: Path) -> dict[str, File]:
    """Return size and digest of every file of a bundle that is about to get its manifest."""
    paths = sorted(path for path in folder.iterdir() if path.name in FILE_NAMES)
    return {path.name: File(path.stat().st_size, sha256(path)) for path in paths}


def write_catalogue(
    folder: Path,
    vocabulary: Vocabulary,
    titles: Sequence[str] | None,
    popularity: NDArray[np.float32],
) -> None:
    """Write ids, titles and popularity, all in index order."""
    if vocabulary.is_text:
        _write_texts(folder, "items", [str(text) for text in vocabulary.all_ids])
    else:
        np.save(folder / "items.npy", np.asarray(vocabulary.all_ids, dtype="<i8"))
    if titles is not None:
        _write_texts(folder, "titles", titles)
    np.save(folder / "popularity.npy", popularity.astype("<f4"))


def read_vocabulary(folder: Path, manifest: Manifest) -> Vocabulary:
    """Read the ids of a bundle."""
    if manifest.id_type == "string":
        return Vocabulary(_read_texts(folder, "items", manifest.items))
    numbers = _read_array(folder / "items.npy", "<i8", manifest.items).astype(np.int64)
    if (numbers[1:] <= numbers[:-1]).any():
        raise BundleError(f"{folder / 'items.npy'} is not sorted, so ids would not be found")
    return Vocabulary(numbers)


def read_titles(folder: Path, manifest: Manifest) -> Sequence[str] | None:
    """Read the titles of a bundle, None if it has none."""
    if "titles.utf8" not in manifest.files:
        return None
    return _read_texts(folder, "titles", manifest.items)


def read_popularity(folder: Path, manifest: Manifest) -> NDArray[np.float32]:
    """Read the share of training events of each item, (items,)."""
    shares = _read_array(folder / "popularity.npy", "<f4", manifest.items).astype(np.float32)
    if not np.isfinite(shares).all():
        raise BundleError(f"{folder / 'popularity.npy'} holds NaN or infinity")
    return shares


def map_table(folder: Path, manifest: Manifest) -> NDArray[np.floating]:
    """Map the item table, (items + 1, width): nothing is read before a row is used."""
    table = manifest.table
    shape = (table.rows, table.columns)
    return np.memmap(folder / table.file, table.type, "r", offset=table.offset, shape=shape)


def _build(kind: type[Any], values: dict[str, Any]) -> Any:  # noqa: ANN401 (one builder for all)
    """Make a dataclass of exactly these keys, and refuse values of another plain type."""
    names = {f.name for f in fields(kind)}
    if unknown := set(values) - names:
        raise ValueError(f"unknown keys {sorted(unknown)} in {kind.__name__}")
    if missing := names - set(values):
        raise ValueError(f"missing keys {sorted(missing)} in {kind.__name__}")
    for f in fields(kind):
        plain = {"int": int, "float": float, "str": str, "dict": dict, "list": list}.get(
            getattr(f.type, "__name__", str(f.type)).split("[")[0]
        )
        value = values[f.name]
        if plain is not None and (not isinstance(value, plain) or isinstance(value, bool)):
            raise TypeError(f"{kind.__name__}.{f.name} is {value!r}")
    return kind(**values)


def _digest(document: dict[str, Any]) -> str:
    """Return the SHA-256 of a JSON document, however it is laid out."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return document


def _check_file(path: Path, expected: File, *, check_digest: bool) -> None:
    if not path.is_file():
        raise BundleError(f"{path} is missing: copy the whole bundle again")
    if path.stat().st_size != expected.size:
        raise BundleError(
            f"{path} has {path.stat().st_size} bytes, the manifest says {expected.size}: "
            "copy the whole bundle again"
        )
    if check_digest and sha256(path) != expected.sha256:
        raise BundleError(f"{path} is not what the manifest says (SHA-256): copy it again")


def _write_texts(folder: Path, name: str, texts: Sequence[str]) -> None:
    encoded = [text.encode() for text in texts]
    (folder / f"{name}.utf8").write_bytes(b"".join(encoded))
    ends = np.cumsum([len(text) for text in encoded], dtype="<i8")
    np.save(folder / f"{name}.offsets.npy", ends)


def _read_texts(folder: Path, name: str, count: int) -> Sequence[str]:
    """Read texts; many stay on disk, mapped."""
    ends = _read_array(folder / f"{name}.offsets.npy", "<i8", count)
    path = folder / f"{name}.utf8"
    if ends[0] < 0 or ends[-1] != path.stat().st_size or (ends[1:] < ends[:-1]).any():
        raise BundleError(f"{path} and its offsets do not fit together")
    if count > TEXTS_IN_MEMORY:
        return Texts(np.memmap(path, np.uint8, "r").data, ends.data)
    blob, places = path.read_bytes(), [0, *ends.tolist()]
    try:
        return [blob[a:b].decode() for a, b in pairwise(places)]
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not UTF-8: {error}") from error


def _read_array(path: Path, dtype: str, count: int) -> NDArray[Any]:
    try:
        # Mapped, so that a size in the header that the file does not have can't take memory.
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except NPY_ERRORS as error:
        raise BundleError(f"{path} is damaged: {error}") from error
    if array.dtype != np.dtype(dtype) or array.shape != (count,):
        raise BundleError(f"{path} holds {array.dtype} {array.shape}, not {dtype} ({count},)")
    return array
