"""Bundle manifest: contracts of the graphs, the numbers that a runtime needs, digests.

``Manifest`` both writes and reads it. An unknown key, another format, a changed manifest, a file
that is missing, of another size or of another digest: all are errors.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from ranklet.errors import BundleError
from ranklet.files.atomic import atomic_write, sha256

FORMAT = 6
MANIFEST, WEIGHTS, GOLDEN, CARD = "manifest.json", "weights.bin", "golden.json", "README.md"
POPULARITY = "popularity.f32"
ENCODE, ENCODE_LONG, APPEND = "encode", "encode_long", "append"
SCORE, SCORE_MANY, MODEL = "score", "score_many", "model"
PROGRAMS = (ENCODE, ENCODE_LONG, APPEND, SCORE, SCORE_MANY, MODEL)
NEEDED = {ENCODE, APPEND, SCORE, MODEL}
ID_FILES = {"int64": ("items.i64",), "string": ("items.utf8", "items.ends.i64")}
TITLE_FILES = ("titles.utf8", "titles.ends.i64")
FILE_NAMES = frozenset(
    {
        *(f"{name}.onnx" for name in PROGRAMS),
        *(name for names in ID_FILES.values() for name in names),
        *TITLE_FILES,
        *(WEIGHTS, POPULARITY, GOLDEN, CARD),
    }
)
OPTIONAL = {"exclude_seen", "kinds", "target"}  # keys that older bundles lack
MAX_MANIFEST_BYTES = 1 << 20
CHUNK = 64  # items; the scored rows are a multiple
NEVER = -3e38  # below every score, and still a finite number
# Files above this many bytes are hashed by ``ranklet verify`` only: to read a table of gigabytes
# would cost what mapping it saves.
HASHED_UP_TO = 1 << 28
Precision = Literal["fp32", "fp16", "int8", "int4"]
# Bits of the codes that choose from the catalogue, for the precisions that have codes.
CODE_BITS: dict[Precision, int] = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class Tensor:
    """Name, element type and axes of a graph input or output; a text axis is dynamic."""

    name: str
    type: str  # as onnxruntime writes it, like "tensor(int64)"
    shape: list[int | str]


@dataclass(frozen=True)
class Program:
    """A graph of the bundle: its contract, and the calls that it is for."""

    file: str
    purpose: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    lengths: list[int]  # fewest and most events of a history; empty for other programs
    least_users: int  # of one call, for which it is faster
    scanned_bytes: int  # of weights that every call reads whole

    def input(self, name: str) -> Tensor | None:
        """Return an input, None if the graph has none of this name."""
        return next((tensor for tensor in self.inputs if tensor.name == name), None)


@dataclass(frozen=True)
class Table:
    """The place of the item table in a file, so that it can be mapped.

    A score is the dot product of a user vector and a row.
    """

    file: str
    offset: int  # bytes
    rows: int  # items + 1; row 0 is padding
    columns: int
    type: Literal["<f2", "<f4"] = "<f4"  # as numpy writes it


@dataclass(frozen=True)
class Pool:
    """The re-scored pool: max(factor * k, minimum) of the best items by codes."""

    factor: int
    minimum: int

    def size(self, k: int) -> int:
        """Return the number of re-scored items for an answer of k."""
        return max(self.factor * k, self.minimum)


@dataclass(frozen=True)
class Rounding:
    """Error bounds of scores by codes: the error of a row, and the norm of a rounded row."""

    row_error: float  # largest |row - rounded row|, Euclidean
    row_norm: float  # largest |rounded row|

    def bound(self, user: NDArray[np.float32]) -> float:
        """Return the error bound of a score by codes for a user, (D,).

        That is |u| |e - e'| + |u - u'| |e'| at most (Cauchy and Schwarz), for the rounded e' and
        u'; a component of u' is off by half a step of max |u| / 127.
        """
        user_error: float = len(user) ** 0.5 * float(np.abs(user).max()) / 254
        return float(np.linalg.norm(user)) * self.row_error + user_error * self.row_norm


@dataclass(frozen=True)
class File:
    """Size and digest of a file of the bundle."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contract of a bundle; ``training``, ``data`` and the figures are for people and tools."""

    format: int
    items: int
    id_type: Literal["int64", "string"]
    max_length: int  # events of a history that count
    width: int
    precision: Precision
    programs: dict[str, Program]
    table: Table
    pool: Pool
    rounding: Rounding | None  # of codes
    training: dict[str, Any]  # all settings of the run
    data: dict[str, Any]  # digest and counts of the events
    quality: dict[str, Any]  # the figures of ``ranklet evaluate``; may be empty
    parity: dict[str, Any]  # how far the graphs are from the torch model
    gate: dict[str, Any]  # the price of the precision in ranking quality
    versions: dict[str, str]
    files: dict[str, File]
    exclude_seen: bool = False  # default of rankings
    kinds: list[str] = field(default_factory=list)  # of events; index 0 is unknown, these follow
    target: str = ""  # the kind that its figures are about and that is asked for, "": any

    @property
    def uses_times(self) -> bool:
        """Return whether the model was trained with the times of events."""
        return self.programs[ENCODE].input("since") is not None

    @property
    def objective(self) -> NDArray[np.float32]:
        """Return the default weights of the kinds of events that are asked for, (kinds + 1,)."""
        weights = np.zeros(len(self.kinds) + 1, dtype=np.float32)
        weights[1 + self.kinds.index(self.target) if self.target in self.kinds else 0] = 1
        return weights

    @property
    def state_rows(self) -> dict[str, int]:
        """Return the rows of each state array: the inputs x of append.onnx with an output new_x."""
        append, rows = self.programs[APPEND], dict[str, int]()
        given = {tensor.name for tensor in append.outputs}
        for tensor in append.inputs:
            if f"new_{tensor.name}" not in given:
                continue
            match tensor.shape:
                case [str(), int(count), self.width] if count > 0:
                    rows[tensor.name] = count
                case _:
                    raise ValueError(f"{APPEND} keeps {tensor.name} as {tensor.shape}")
        return rows

    @property
    def time_unit(self) -> str:
        """Return the unit of the training times, s, ms, us or ns since 1970; "" if unknown."""
        return str(self.data.get("reading", {}).get("time_unit", ""))

    @property
    def checked_unit(self) -> str:
        """Return ``time_unit`` if times of requests can be checked by their size, else ""."""
        return str(self.data.get("reading", {}).get("checked_unit", ""))

    @property
    def gate_text(self) -> str:
        """Return the cost of the precision as text, empty without a gate."""
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
        """Write ``manifest.json``, including its own digest."""
        document = {**asdict(self), "digest": _digest(asdict(self))}
        atomic_write(folder / MANIFEST, (json.dumps(document, indent=2) + "\n").encode())

    @classmethod
    def read(
        cls, path: str | Path, *, check_digests: bool = True, hash_up_to: int = HASHED_UP_TO
    ) -> "Manifest":
        """Read the manifest of a bundle; check it, and the files against it.

        Args:
            path: Folder of the bundle.
            check_digests: Hash the files. Without it only names and sizes are compared, and a
                flipped bit in the weights gives wrong answers without an error.
            hash_up_to: Files of more bytes are not hashed.

        Raises:
            BundleError: Something is missing, damaged, unknown or of another format.
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
                reason = f"it has no {MANIFEST}" if folder.is_dir() else "there is no such folder"
                raise BundleError(f"{folder} is not a bundle: {reason}")
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
        expected, digest = document.pop("digest", None), _digest(document)
        try:
            manifest: Manifest = _build(cls, document)
            manifest._check()
        except KeyError as error:
            raise BundleError(f"{path} does not follow the bundle format: no {error}") from error
        except (TypeError, AttributeError, ValueError) as error:
            raise BundleError(f"{path} does not follow the bundle format: {error}") from error
        if check_digest and digest != expected:
            raise BundleError(f"{path} is not what was written (SHA-256): copy it again")
        return manifest

    def _check(self) -> None:
        for name in ("format", "items", "max_length", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}")
        if (self.rounding is None) != (self.precision not in CODE_BITS):
            raise ValueError(f"precision {self.precision}, rounding {self.rounding}")
        if self.pool.factor < 1 or self.pool.minimum < 1:
            raise ValueError(f"pool {self.pool}")
        self._check_programs()
        self._check_kinds()
        self._check_files()
        self._check_table()
        _ = self.state_rows

    def _check_programs(self) -> None:
        if unknown := set(self.programs) - set(PROGRAMS):
            raise ValueError(f"unknown programs {sorted(unknown)}")
        if missing := NEEDED - set(self.programs):
            raise ValueError(f"no program {sorted(missing)}")
        for name, program in self.programs.items():
            if program.file != f"{name}.onnx":
                raise ValueError(f"program {name} lies in {program.file!r}")
        reach = [0, *self.programs[ENCODE].lengths]
        if long := self.programs.get(ENCODE_LONG):
            reach += long.lengths
        ends = list(zip(reach[::2], reach[1::2], strict=False))
        is_whole = len(reach) == (5 if long else 3) and all(b == a + 1 for a, b in ends)
        if reach[-1] < self.max_length or not is_whole:
            raise ValueError(f"histories of up to {self.max_length} events, encoders for {ends}")
        bias = self.programs[SCORE].input("bias")
        rows = bias.shape[1] if bias and len(bias.shape) == 2 else 0
        if not isinstance(rows, int) or rows <= self.items:
            raise ValueError(f"{SCORE} has {rows} rows for {self.items} items")

    def _check_kinds(self) -> None:
        if len(set(self.kinds)) < len(self.kinds) or "" in self.kinds:
            raise ValueError(f"kinds {self.kinds}")
        for name in {ENCODE, ENCODE_LONG, APPEND, MODEL} & set(self.programs):
            kind, objective = (self.programs[name].input(n) for n in ("kind", "objective"))
            weights = objective.shape[1:] if objective else [1]
            if weights != [len(self.kinds) + 1] or bool(kind) != bool(self.kinds):
                raise ValueError(f"{name} does not take the {len(self.kinds)} kinds of events")

    def _check_files(self) -> None:
        if unknown := set(self.files) - FILE_NAMES:
            raise ValueError(f"unknown files {sorted(unknown)}")
        files = {WEIGHTS, POPULARITY, GOLDEN, *ID_FILES[self.id_type]}
        files |= {program.file for program in self.programs.values()}
        files |= set(TITLE_FILES) if set(TITLE_FILES) & set(self.files) else set()
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


def _build(kind: Any, values: Any) -> Any:  # noqa: ANN401 (one builder for all)
    """Build a dataclass from exactly its keys, but for ``OPTIONAL``, each of the annotated type."""
    hints = get_type_hints(kind)
    if not isinstance(values, dict):
        raise TypeError(f"{kind.__name__} is {values!r}")
    if unknown := set(values) - set(hints):
        raise ValueError(f"unknown keys {sorted(unknown)} in {kind.__name__}")
    if missing := set(hints) - set(values) - OPTIONAL:
        raise ValueError(f"missing keys {sorted(missing)} in {kind.__name__}")
    return kind(**{k: _value(hints[k], v, f"{kind.__name__}.{k}") for k, v in values.items()})


def _value(hint: Any, value: Any, name: str) -> Any:  # noqa: ANN401
    """Return a JSON value as the annotated type."""
    origin, inner = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _build(hint, value)
    if origin is UnionType:
        matches = [kind for kind in inner if type(value) is kind or is_dataclass(kind)]
        if value is None and type(None) in inner:
            return None
        if matches:
            return _value(matches[0], value, name)
    elif origin is list and isinstance(value, list):
        return [_value(inner[0], part, name) for part in value]
    elif origin is dict and isinstance(value, dict):
        return {key: _value(inner[1], part, name) for key, part in value.items()}
    elif hint is Any or type(value) is hint or (origin is Literal and value in inner):
        return value
    raise TypeError(f"{name} is {value!r}")


def _digest(document: dict[str, Any]) -> str:
    """Return the SHA-256 of a JSON document, whatever its layout."""
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
