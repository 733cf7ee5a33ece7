"""Bundle manifest: contracts of the graphs, the numbers that a runtime needs, digests.

``Manifest`` both writes and reads it. An unknown key, another format, a changed manifest, a file
that is missing, of another size or of another digest: all are errors.
The parts are in one file because they are one document.
"""

import hashlib
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from itertools import zip_longest
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from ranklet.errors import BundleError
from ranklet.files.atomic import atomic_write, sha256
from ranklet.time_gaps import SCALES
from ranklet.values import folder_path, show

FORMAT = 6
MANIFEST, WEIGHTS, GOLDEN, CARD = "manifest.json", "weights.bin", "golden.json", "README.md"
SIGNATURE = "model.sig"  # of ``ranklet sign``, which the manifest does not list
POPULARITY, TRENDING, BIAS = "popularity.f32", "trending.f32", "bias.f32"
SILENT, ATTRIBUTES = "silent.i64", "attributes.bin"
ENCODE, ENCODE_LONG, APPEND = "encode", "encode_long", "append"
SCORE, SCORE_MANY, MODEL = "score", "score_many", "model"
ENCODE_ROWS, FIRST_BLOCK, ITEM, SEARCH = "encode_rows", "first_block", "item", "search"
PROGRAMS = (
    *(ENCODE, ENCODE_LONG, ENCODE_ROWS, APPEND, SCORE, SCORE_MANY, SEARCH),
    *(FIRST_BLOCK, ITEM, MODEL),
)
NEEDED = {ENCODE, APPEND, SCORE, MODEL}
# What the first block makes of each item: outputs of first_block.onnx, and tables of encoders.
FIRST_BLOCK_ROWS = ("queries", "keys", "values", "gates")
ID_FILES = {"int64": ("items.i64",), "string": ("items.utf8", "items.ends.i64")}
TITLE_FILES = ("titles.utf8", "titles.ends.i64")
FILE_NAMES = frozenset(
    {
        *(f"{name}.onnx" for name in PROGRAMS),
        *(name for names in ID_FILES.values() for name in names),
        *TITLE_FILES,
        *(WEIGHTS, POPULARITY, TRENDING, BIAS, SILENT, ATTRIBUTES, GOLDEN, CARD),
    }
)
# Keys that older bundles lack.
OPTIONAL = {"exclude_seen", "kinds", "target", "attributes", "new_items", "explanation", "index"}
MAX_MANIFEST_BYTES = 1 << 20
LONGEST_REASON = 1000  # characters of a message
MOST_NESTED = 32  # lists and objects inside each other
# Bounds of what is allocated before a weight is read: far beyond any trained model.
LONGEST, WIDEST, MOST_USERS, MOST_PLACES = 1 << 16, 1 << 14, 1 << 10, 1 << 40
CHUNK = 64  # items; the scored rows are a multiple
# A search takes seven times as long for an item as a scan. One that ends as a scan after all takes
# twice as long as the scan.
MOST_PROBED = 1 / 16  # of the clusters; where an index needs nearly as many, twice its probes
MEASURED_DEPTH = 10  # the export measures a search for so many of the best items
NEVER = -3e38  # below every score, and still a finite number
BEHIND = -1000.0  # the bias that ranks new items behind all others
# Files above this many bytes are hashed by ``ranklet verify`` only: to read a table of gigabytes
# would cost what mapping it saves.
HASHED_FIRST = 1 << 26  # bytes of a file; a larger one is hashed while the engine loads
Precision = Literal["fp32", "fp16", "int8", "int4"]
# Bits of the codes that choose from the catalogue, for the precisions that have codes.
CODE_BITS: dict[Precision, int] = {"int8": 8, "int4": 4}

# Kinds of an attribute of items. A title is text, too.
Kind = Literal["category", "categories", "number", "text", "vector"]
# Those that every item keeps, and the arrays of their column (``attributes``).
_TEXTS = ("codes", "ends", "values", "value_ends")
FILTERABLE: dict[str, tuple[str, ...]] = {
    "category": _TEXTS,
    "categories": _TEXTS,
    "number": ("numbers",),
}
# Types that an array may have, of those that need one.
ARRAY_TYPES = {
    **{name: ("<i4",) for name in ("codes", "seen", "buckets")},
    **{name: ("<f8",) for name in ("numbers", "edges")},
    **{name: ("<i4", "<i8") for name in ("ends", "value_ends")},
    **{name: ("<f4", "<f8") for name in ("idf", "mean")},
    "values": ("|u1",),
}
# The arrays of what new items need of each kind (``item_features``).
LEARNED: dict[str, tuple[str, ...]] = {
    "category": ("seen",),
    "categories": ("seen",),
    "number": ("edges",),
    "text": ("buckets", "idf"),
    "vector": ("mean",),
}


@dataclass(frozen=True)
class Tensor:
    """Name, element type and axes of a graph input or output; a text axis is dynamic."""

    name: str
    type: str  # as onnxruntime writes it, like "tensor(int64)"
    shape: list[int | str]

    def fits(self, other: "Tensor") -> bool:
        """Return whether another one is the same, whatever its dynamic axes are called."""
        pairs = zip(self.shape, other.shape, strict=False)
        is_same = len(self.shape) == len(other.shape) and all(
            a == b or (isinstance(a, str) and isinstance(b, str)) for a, b in pairs
        )
        return is_same and (self.name, self.type) == (other.name, other.type)


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
class Index:
    """Clusters of the items, of which search.onnx reads those that are nearest to a user."""

    clusters: int
    size: int  # places of a cluster
    probes: int  # clusters that are read where every item may be ranked; 0: requests scan
    figures: dict[str, Any]  # of the answers beside those of a scan


@dataclass(frozen=True)
class Array:
    """The place of an array in attributes.bin."""

    offset: int  # bytes
    count: int
    type: Literal["|u1", "<i4", "<i8", "<f4", "<f8"]  # as numpy writes it

    @property
    def bytes(self) -> int:
        """Return the size of the array."""
        return self.count * np.dtype(self.type).itemsize


@dataclass(frozen=True)
class Attribute:
    """A column of the item file: its column for each item, and what new items need of it."""

    name: str
    kind: Kind
    arrays: dict[str, Array]  # see ``ranklet.attributes`` and ``ranklet.item_features``


@dataclass(frozen=True)
class NewItems:
    """How items that training never saw are ranked, as training measured on held-out items."""

    bias: float  # added to their scores; ``BEHIND`` puts them behind all others
    in_histories: bool  # whether they count as events of a history
    figures: dict[str, Any]  # what decided that


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
    attributes: list[Attribute] = field(default_factory=list)
    new_items: NewItems | None = None  # None: item.onnx is not there
    explanation: dict[str, Any] = field(default_factory=dict)  # how far attention explains
    index: Index | None = None  # None: search.onnx is not there

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the manifest, which names every file by its own."""
        return _digest(self._document)

    @property
    def _document(self) -> dict[str, Any]:
        """Return what is written; without an index it is that of versions that know none."""
        values = asdict(self)
        if self.index is None:
            del values["index"]
        return values

    @property
    def uses_times(self) -> bool:
        """Return whether the model was trained with the times of events."""
        return self.programs[ENCODE].input("since") is not None

    def probes(self, left: int, depth: int) -> int:
        """Return the clusters to read, 0 for a scan of all items.

        Args:
            left: The number of items that may be ranked.
            depth: The number of the best items, with those that are excluded or demoted by name.
                Each further ``MEASURED_DEPTH`` of them take as many clusters again.
        """
        if (index := self.index) is None:
            return 0
        wanted = index.probes * self.items * max(MEASURED_DEPTH, depth)
        probes = -(-wanted // (MEASURED_DEPTH * max(1, left)))
        is_few = probes <= max(2 * index.probes, MOST_PROBED * index.clusters)
        return min(probes, index.clusters) if is_few else 0

    @property
    def objective(self) -> NDArray[np.float32]:
        """Return the default weights of the kinds of events that are asked for, (kinds + 1,)."""
        weights = np.zeros(len(self.kinds) + 1, dtype=np.float32)
        weights[1 + self.kinds.index(self.target) if self.target in self.kinds else 0] = 1
        return weights

    @property
    def state_rows(self) -> dict[str, int]:
        """Return the rows of each state array: the inputs x of append.onnx with an output new_x."""
        append = self.programs[APPEND]
        given = {tensor.name for tensor in append.outputs}
        return {t.name: _axis(t, 1) for t in append.inputs if f"new_{t.name}" in given}

    @property
    def attention_heads(self) -> int:
        """Return the heads whose weights encode_rows.onnx gives, 0 if it gives none."""
        program = self.programs.get(ENCODE_ROWS)
        outputs = program.outputs if program else []
        return next((_axis(tensor, 1) for tensor in outputs if tensor.name == "attention"), 0)

    @property
    def contracts(self) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
        """Return the inputs and the outputs that each program must have."""

        def floats(name: str, *axes: int | str) -> Tensor:
            return Tensor(name, "tensor(float)", [*axes])

        def integers(name: str, *axes: int | str) -> Tensor:
            return Tensor(name, "tensor(int64)", [*axes])

        def asked(length: int | str) -> list[Tensor]:
            times = [integers("since", "batch", length), integers("until", "batch")]
            objective = floats("objective", "batch", len(self.kinds) + 1)
            kinds = [integers("kind", "batch", length), objective]
            return [*(times if self.uses_times else ()), *(kinds if self.kinds else ())]

        width, heads, rows = self.width, self.attention_heads, self.state_rows
        history = [integers("history", "batch", "length"), *asked("length")]
        user, k = floats("user", "batch", width), integers("k", 1)
        events = [floats(name, "batch", "events", width) for name in rows]
        states = [floats(name, "batch", count, width) for name, count in rows.items()]
        attention = [floats("attention", "batch", heads, "length")] if heads else []
        scored = CHUNK * (self.items // CHUNK + 1)
        pool = [integers("pool", 1)] if self.rounding else []
        pooled = [floats("pool_scores", "batch", "pool")] if self.rounding else []
        best = [integers("items", "batch", "k"), floats("scores", "batch", "k")]
        score = [user, floats("bias", "biases", scored), k, *pool], [*pooled, *best]
        place = integers("position", "batch", 1, 1)
        first = self.programs[FIRST_BLOCK].outputs if FIRST_BLOCK in self.programs else []
        return {
            ENCODE: (history, [*events, user]),
            ENCODE_LONG: (history, [*events, user]),
            ENCODE_ROWS: (
                [*history, floats("rows", "batch", "length", width)],
                [*events, *attention, user],
            ),
            APPEND: (
                [integers("item", "batch", 1), place, *asked(1), *states],
                [*(replace(state, name=f"new_{state.name}") for state in states), user],
            ),
            SCORE: score,
            SCORE_MANY: score,
            SEARCH: (
                [floats("user", 1, width), *score[0][1:], integers("probes", 1)],
                [replace(each, shape=[1, *each.shape[1:]]) for each in score[1]],
            ),
            FIRST_BLOCK: (
                [floats("rows", "items", width)],
                [floats(n, "items", width) for n in FIRST_BLOCK_ROWS[: max(3, len(first))]],
            ),
            ITEM: (
                [integers("codes", "batch", "features"), floats("weights", "batch", "features")],
                [floats("row", "batch", width)],
            ),
            MODEL: ([*history, k], [*best, user]),
        }

    @property
    def time_unit(self) -> str:
        """Return the unit of the training times, s, ms, us or ns since 1970; "" if unknown."""
        return str(self.data.get("reading", {}).get("time_unit", ""))

    @property
    def checked_unit(self) -> str:
        """Return ``time_unit`` if times of requests can be checked by their size, else ""."""
        return str(self.data.get("reading", {}).get("checked_unit", ""))

    @property
    def seen_text(self) -> str:
        """Return the default of rankings for seen items, and the validation that speaks for it."""
        default = f"seen items are {'excluded' if self.exclude_seen else 'included'} by default"
        seen = self.data.get("seen")
        if not seen:
            return f"{default}: nothing was held out that could tell what serves better"
        told = "" if seen["exclude_seen"] == self.exclude_seen else ", as the export was told"
        return (
            f"{default}{told}: of {seen['answers']:,} validation answers {seen['repeats']:.1%} "
            f"were repeats, and NDCG@10 was {seen['masked_NDCG@10']:.4f} with seen items excluded, "
            f"{seen['unmasked_NDCG@10']:.4f} with them included"
        )

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

    @property
    def index_text(self) -> str:
        """Return what the index reads and what that costs as text, empty without one."""
        if self.index is None:
            return ""
        index, figures = self.index, self.index.figures
        if not index.probes:
            return (
                "the index is not used: points of the bundle lift items (bias.f32), so all are read"
            )
        text = (
            f"the index reads {index.probes:,} of {index.clusters:,} clusters, "
            f"{figures['share']:.1%} of the items"
        )
        if "questions" not in figures:
            return f"{text}, which nobody measured: the weights are random"
        kind = "held-out" if "NDCG@10" in figures else "drawn"
        text += (
            f", and finds {figures['recall@10']:.2%} of the best 10 of a scan on "
            f"{figures['questions']:,} {kind} histories"
        )
        if "NDCG@10" not in figures:
            return text
        kept = (f"{figures[name]:.2%} of its {name}" for name in ("NDCG@10", "HR@10"))
        return f"{text}, with {' and '.join(kept)}"

    @property
    def new_items_text(self) -> str:
        """Return how new items are ranked and why, empty for a bundle that can't place them."""
        if self.new_items is None:
            return ""
        figures, bias = self.new_items.figures, self.new_items.bias
        if not figures:
            return "new items are ranked behind all others, as nothing was held out to measure them"
        every, warm = figures["all_NDCG@10"], figures["warm_NDCG@10"]
        chosen = f"with a bias of {bias:g}" if bias > BEHIND else "behind all others"
        inside = "count" if self.new_items.in_histories else "do not count"
        return (
            f"new items are ranked {chosen} and {inside} in histories: of "
            f"{figures['questions']:,} answers {figures['cold_questions']:,} are among "
            f"{figures['held_out_items']:,} held-out items, and with a bias of "
            f"{figures['best_bias']:g} NDCG@10 of all goes from {every['not_shown']:.4f} to "
            f"{every['shown']:.4f}, of the others from {warm['not_shown']:.4f} to "
            f"{warm['shown']:.4f}; HR@50 of held-out items {figures['cold']['HR@50']:.4f}"
        )

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``, including its own digest."""
        document = {**self._document, "digest": self.digest}
        atomic_write(folder / MANIFEST, (json.dumps(document, indent=2) + "\n").encode())

    @classmethod
    def read(
        cls, path: str | Path, *, check_digests: bool = True, hash_up_to: int = sys.maxsize
    ) -> "Manifest":
        """Read the manifest of a bundle; check it, and the files against it.

        Args:
            path: Folder of the bundle.
            check_digests: Hash the files. Without it only names and sizes are compared, and a
                flipped bit in the weights gives wrong answers without an error.
            hash_up_to: Files of more bytes are left to ``hashing_large``.

        Raises:
            BundleError: Something is missing, damaged, unknown or of another format.
        """
        folder = folder_path(path)
        manifest = cls._parse(folder, check_digest=check_digests)
        for name, expected in manifest.files.items():
            is_hashed = check_digests and expected.size <= hash_up_to
            _check_file(folder / name, expected, check_digest=is_hashed)
        return manifest

    @contextmanager
    def hashing_large(self, folder: Path) -> Iterator[None]:
        """Hash the files of more than ``HASHED_FIRST`` bytes beside the block.

        BundleError at its end: one of them is not what the manifest says.
        """
        large = [name for name in self.files if self.files[name].size > HASHED_FIRST]
        if not large:
            yield
            return
        from concurrent.futures import ThreadPoolExecutor  # for large bundles alone

        with ThreadPoolExecutor(1) as thread:
            checks = [
                thread.submit(_check_file, folder / name, self.files[name], check_digest=True)
                for name in large
            ]
            yield
            for check in checks:
                check.result()

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
            _check_json(document)
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{path} is damaged: {error}") from error
        if not isinstance(document, dict) or not isinstance(document.get("format"), int):
            raise BundleError(f"{path} is not the manifest of a bundle: it has no format number")
        if document["format"] != FORMAT:
            todo = "upgrade ranklet" if document["format"] > FORMAT else "export the run again"
            raise BundleError(
                f"{folder} has bundle format {show(document['format'])} and this version reads "
                f"{FORMAT}: {todo}"
            )
        expected, digest = document.pop("digest", None), _digest(document)
        try:
            manifest: Manifest = _build(cls, document)
            manifest._check()
        except KeyError as error:
            raise BundleError(f"{path} does not follow the bundle format: no {error}") from error
        except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
            reason = str(error)[:LONGEST_REASON]
            raise BundleError(f"{path} does not follow the bundle format: {reason}") from error
        if check_digest and digest != expected:
            raise BundleError(f"{path} is not what was written (SHA-256): copy it again")
        return manifest

    def _check(self) -> None:
        most = {"items": 2**62, "max_length": LONGEST, "width": WIDEST}
        for name, largest in most.items():
            if not 1 <= getattr(self, name) <= largest:
                raise ValueError(f"{name} is {getattr(self, name)}, of 1 to {largest:,}")
        if (self.rounding is None) != (self.precision not in CODE_BITS):
            raise ValueError(f"precision {self.precision}, rounding {self.rounding}")
        if self.rounding and not min(self.rounding.row_error, self.rounding.row_norm) >= 0:
            raise ValueError(f"rounding {self.rounding}")
        if self.pool.factor < 1 or self.pool.minimum < 1:
            raise ValueError(f"pool {self.pool}")
        if self.new_items and abs(self.new_items.bias) > -BEHIND:
            raise ValueError(f"new items have a bias of {self.new_items.bias}")
        if len(set(self.kinds)) < len(self.kinds) or "" in self.kinds:
            raise ValueError(f"kinds {show(self.kinds)}")
        self._check_programs()
        self._check_files()
        self._check_table()
        self._check_contracts()
        self._check_attributes()
        self._check_index()
        self._check_facts()

    def _check_programs(self) -> None:
        if unknown := set(self.programs) - set(PROGRAMS):
            raise ValueError(f"unknown programs {show(sorted(unknown))}")
        if missing := NEEDED - set(self.programs):
            raise ValueError(f"no program {sorted(missing)}")
        for name, program in self.programs.items():
            if program.file != f"{name}.onnx":
                raise ValueError(f"program {name} lies in {show(program.file)}")
            if not 1 <= program.least_users <= MOST_USERS:
                raise ValueError(f"{name} is for {program.least_users} users and more")
        longest = self.programs.get(ENCODE_LONG)
        begin = longest.lengths[0] if longest and longest.lengths else self.max_length + 1
        lengths = {
            ENCODE: [1, begin - 1],
            ENCODE_LONG: [begin, self.max_length],
            ENCODE_ROWS: [1, self.max_length],
        }
        for name, program in self.programs.items():
            if program.lengths != lengths.get(name, []) or begin < 2:
                raise ValueError(
                    f"{name} is for histories of {show(program.lengths)} events instead of "
                    f"{lengths.get(name, [])}, in a bundle for histories of up to {self.max_length}"
                )

    def _check_contracts(self) -> None:
        rows = self.state_rows
        blocks = [f"{part}_{n}" for n in range(len(rows) // 2) for part in ("key", "value")]
        if list(rows) != [*blocks, "events"][: len(rows)] or len(rows) % 2 != bool(rows):
            raise ValueError(f"{APPEND} keeps {show(list(rows))}")
        if not all(1 <= count <= LONGEST for count in rows.values()):
            raise ValueError(f"{APPEND} keeps {show(rows)} rows")
        if not 0 <= self.attention_heads <= self.width:
            raise ValueError(f"{ENCODE_ROWS} gives the attention of {self.attention_heads} heads")
        contracts = self.contracts
        for name, program in self.programs.items():
            for does, found, expected in (
                ("takes", program.inputs, contracts[name][0]),
                ("gives", program.outputs, contracts[name][1]),
            ):
                for tensor, other in zip_longest(found, expected):
                    if not (tensor and other and tensor.fits(other)):
                        raise ValueError(f"{name} {does} {show(tensor)} instead of {show(other)}")

    def _check_files(self) -> None:
        if unknown := set(self.files) - FILE_NAMES:
            raise ValueError(f"unknown files {show(sorted(unknown))}")
        files = {WEIGHTS, POPULARITY, GOLDEN, *ID_FILES[self.id_type]}
        files |= {program.file for program in self.programs.values()}
        files |= set(TITLE_FILES) if set(TITLE_FILES) & set(self.files) else set()
        files |= {ATTRIBUTES} if any(attribute.arrays for attribute in self.attributes) else set()
        if missing := files - set(self.files):
            raise ValueError(f"no entry for {sorted(missing)}")

    def _check_table(self) -> None:
        if self.table.type != ("<f2" if self.precision == "fp16" else "<f4"):
            raise ValueError(f"the item table holds {self.table.type!r} for {self.precision}")
        size = np.dtype(self.table.type).itemsize
        end = self.table.offset + size * self.table.rows * self.table.columns
        if self.table.file != WEIGHTS or end > self.files[WEIGHTS].size:
            raise ValueError("the item table lies outside its file")
        if self.table.offset < 0 or self.table.rows != self.items + 1:
            raise ValueError(f"the item table has {self.table.rows} rows for {self.items} items")
        if self.table.columns != self.width:
            raise ValueError(f"the item table is {self.table.columns} wide, users {self.width}")

    def _check_attributes(self) -> None:
        names = [attribute.name for attribute in self.attributes]
        if len(set(names)) != len(names):
            raise ValueError(f"attributes {show(names)}")
        size = self.files[ATTRIBUTES].size if ATTRIBUTES in self.files else 0
        for attribute in self.attributes:
            needed = {*FILTERABLE.get(attribute.kind, ())}
            needed |= {*LEARNED[attribute.kind]} if self.new_items else set()
            if missing := needed - {*attribute.arrays}:
                raise ValueError(f"attribute {show(attribute.name)} without {sorted(missing)}")
            for name, array in attribute.arrays.items():
                place = f"{show(name)} of {show(attribute.name)}"
                if min(array.offset, array.count) < 0 or array.offset + array.bytes > size:
                    raise ValueError(f"{place} lies outside {ATTRIBUTES}")
                if array.type not in ARRAY_TYPES.get(name, ()):
                    raise ValueError(f"{place} holds {array.type}")
        if (self.new_items is None) != (ITEM not in self.programs):
            raise ValueError(f"new items {show(self.new_items)}, programs {sorted(self.programs)}")

    def _check_index(self) -> None:
        index = self.index
        if (index is None) != (SEARCH not in self.programs):
            raise ValueError(f"index {show(index)}, programs {sorted(self.programs)}")
        if index and (
            self.precision != "int8"
            or not 0 <= index.probes <= index.clusters <= self.items
            or not self.items <= index.clusters * index.size <= MOST_PLACES
        ):
            raise ValueError(f"index {show(index)} of {self.items} items in {self.precision}")

    def _check_facts(self) -> None:
        """Check what is said for people as far as a ranking or a message reads it."""
        units = {self.time_unit, self.checked_unit} - {"", *SCALES}
        if units:
            raise ValueError(f"times in {show(sorted(units))}")
        _ = self.seen_text, self.gate_text, self.new_items_text, self.index_text


def _build(kind: Any, values: Any) -> Any:  # noqa: ANN401 (one builder for all)
    """Build a dataclass from exactly its keys, but for ``OPTIONAL``, each of the annotated type."""
    hints = get_type_hints(kind)
    if not isinstance(values, dict):
        raise TypeError(f"{kind.__name__} is {show(values)}")
    if unknown := set(values) - set(hints):
        raise ValueError(f"unknown keys {show(sorted(unknown))} in {kind.__name__}")
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
    raise TypeError(f"{name} is {show(value)}")


def _axis(tensor: Tensor, place: int) -> int:
    """Return an axis of a tensor, which must be fixed."""
    axis = tensor.shape[place] if place < len(tensor.shape) else None
    if not isinstance(axis, int):
        raise ValueError(f"axis {place} of {show(tensor.name)} is {show(axis)}")
    return axis


def _check_json(value: Any, depth: int = MOST_NESTED) -> None:  # noqa: ANN401
    """Refuse what JSON of Python takes and others do not: NaN, infinity, half characters."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a number is {value}")
    elif isinstance(value, dict | list):
        if not depth:
            raise ValueError(f"lists and objects are nested more than {MOST_NESTED} deep")
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_json(part, depth - 1)


def _digest(document: dict[str, Any]) -> str:
    """Return the SHA-256 of a JSON document, whatever its layout."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return document


def _check_file(path: Path, expected: File, *, check_digest: bool) -> None:
    try:
        if not path.is_file():
            raise BundleError(f"{path} is missing: copy the whole bundle again")
        if (size := path.stat().st_size) != expected.size:
            raise BundleError(
                f"{path} has {size} bytes, the manifest says {expected.size}: "
                "copy the whole bundle again"
            )
        if check_digest and sha256(path) != expected.sha256:
            raise BundleError(f"{path} is not what the manifest says (SHA-256): copy it again")
    except OSError as error:
        raise BundleError(f"{path} can't be read: {error.strerror}") from error
