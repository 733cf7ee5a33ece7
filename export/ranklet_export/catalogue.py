"""A bundle with a changed catalogue, written without training and without torch.

Items are added with their rows of the item table, removed from rankings, or renamed. Every array
and tensor that has a row for each item is written for the new sorted ids; all other weights are
copied. Removed items keep their rows, so that histories with them still count.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ranklet.attributes import Attributes
from ranklet.bundle.folder import (
    Opened,
    describe_files,
    map_table,
    read_bias,
    read_popularity,
    read_titles,
    read_vocabulary,
    write_catalogue,
)
from ranklet.bundle.manifest import (
    APPEND,
    BIAS,
    CARD,
    CHUNK,
    CODE_BITS,
    ENCODE,
    FILE_NAMES,
    FIRST_BLOCK,
    FIRST_BLOCK_ROWS,
    GOLDEN,
    MANIFEST,
    MODEL,
    NEVER,
    SCORE,
    SCORE_MANY,
    WEIGHTS,
    Manifest,
    Precision,
    Program,
    Rounding,
)
from ranklet.bundle.vocabulary import ItemId, Vocabulary
from ranklet.engine.engine import Engine, History
from ranklet.errors import BundleError, InputError
from ranklet.files.atomic import atomic_folder, atomic_write
from ranklet.item_table import check_ids
from ranklet.ranker import Ranker
from ranklet.serving import Serving
from ranklet.values import show
from ranklet.verify import verify
from ranklet_export.card import model_card
from ranklet_export.hidden import hidden_score
from ranklet_export.scorer import Codes, Scorer, can_score_many, quantize
from ranklet_export.target import check_target
from ranklet_export.writer import MASK, GraphWriter, WeightFile, offset_of, scanned_bytes, size_of

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]
Array = NDArray[Any]

FP16 = ".fp16"  # ends the name of a tensor that a graph widens
ROWS_AT_ONCE = 1 << 16
# Golden answers: histories of the export, added items in one more, items of an answer.
GOLDEN_HISTORIES, GOLDEN_ADDED, GOLDEN_K = 5, 5, 10
MOST_CHANGES = 100  # that a manifest lists


class ItemAttributes(Protocol):
    """Attributes of items: of the bundle in its order, then of added ones in their order."""

    def take(self, items: Indices) -> "ItemAttributes":
        """Return the attributes of these item indices, in this order."""

    def write(self, folder: Path) -> list[Any]:
        """Write their file, and return what the manifest says of it."""


@dataclass(frozen=True)
class Changes:
    """Changes of a catalogue.

    Attributes:
        ids: Items to add.
        rows: Their rows of the item table, (added, D), scaled as those of the bundle.
        bias: What is added to the score of each of them, (added,), in units of the score; None: 0.
        titles: New titles of added or known items; an added item without one is shown by its id.
        removed: Known items that are not ranked any more; histories with them still count.
        attributes: Of all items, None if the bundle has none.
    """

    ids: Sequence[ItemId] = ()
    rows: Floats | None = None
    bias: Floats | None = None
    titles: Mapping[ItemId, str] = field(default_factory=dict)
    removed: Sequence[ItemId] = ()
    attributes: ItemAttributes | None = None


def save_catalogue(
    bundle: Path, changes: Changes, target: Path, *, replace_target: bool = False
) -> Manifest:
    """Write a bundle with a changed catalogue; it appears whole and verified, or not at all.

    Its answers are those of the bundle with the new scores, in order and to 1e-4, equal scores by
    id. Its golden answers are worked out from the user vectors of the old bundle.

    Args:
        bundle: Folder of the bundle, which is only read, also if it is the target.
        changes: What changes.
        target: Folder of the new bundle.
        replace_target: Replace a bundle that is there.

    Raises:
        InputError: A change is not possible; the message names its value.
        BundleError: The bundle is damaged or old, or ``target`` must not be replaced.
    """
    check_target(target, replace=replace_target)
    opened = Opened(bundle)
    with opened.unchanged(*FILE_NAMES) as folder:
        manifest = Manifest.read(folder)
        opened.files = manifest.files
        old = _Old(opened, manifest)
        new = _Catalogue(old, changes)
    with atomic_folder(target) as made, opened.unchanged(*FILE_NAMES):
        return _write(old, new, changes, made)


class _Old:
    """The bundle that is there."""

    def __init__(self, opened: Opened, manifest: Manifest) -> None:
        folder = opened.folder
        self.folder, self.manifest = folder, manifest
        self.vocabulary = read_vocabulary(folder, manifest)
        self.engine = Engine(opened, manifest, "cpu", 1)
        self.table = map_table(folder, manifest)
        self.weights = np.memmap(folder / WEIGHTS, np.uint8, "r")

    def values(self, tensor: onnx.TensorProto) -> Array:
        """Return the values of an initializer; stored ones are mapped."""
        if not tensor.external_data:
            return numpy_helper.to_array(tensor)
        begin = offset_of(tensor)
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return self.weights[begin : begin + size_of(tensor)].view(dtype).reshape(tensor.dims)

    def first_block(self, table: Array) -> Iterator[tuple[Floats, ...]]:
        """Yield the rows of the first block for rows of the item table, in pieces."""
        session = self.engine.programs.session(FIRST_BLOCK)
        for begin in range(0, len(table), ROWS_AT_ONCE):
            rows = table[begin : begin + ROWS_AT_ONCE].astype(np.float32)
            yield tuple(session.run(None, {"rows": rows}))


class _Catalogue:
    """The new catalogue in the order of its ids."""

    def __init__(self, old: _Old, changes: Changes) -> None:
        manifest, known = old.manifest, old.vocabulary
        ids = check_ids(known, changes.ids, "ids")
        if (there := known.index(ids, "ids")).any():
            place = int(there.argmax())
            raise InputError(f"ids[{place}] is {show(ids[place])}, which the catalogue has already")
        every = [*known.all_ids, *ids] if known.is_text else [*known.ids(_all(known)), *ids]
        every.sort()
        self.vocabulary = Vocabulary(every if known.is_text else np.array(every, dtype=np.int64))
        # Places in the new order, with 0 for padding.
        places = self.vocabulary.index(known.all_ids)
        self.known, self.added = np.concatenate([[0], places]), self.vocabulary.index(ids)
        rows = _numbers("rows", changes.rows, (len(ids), manifest.width))
        self.table = self.merge(old.table, rows.astype(manifest.table.type))
        popularity = np.append(np.float32(0), read_popularity(old.folder, manifest))
        self.popularity = self.merge(popularity, np.float32(0))[1:]
        bias = np.append(np.float32(NEVER), _bias(old))
        bias[_known(known, changes.removed, "removed")] = NEVER
        self.bias = self.merge(bias, _numbers("bias", changes.bias, (len(ids),)))
        if (self.bias == NEVER).all():
            raise InputError("no item would be left to rank: keep one")
        titles = read_titles(old.folder, manifest)
        self.titles = list(titles or [""] * (len(known) if changes.titles else 0))
        if self.titles:
            self._rename(changes.titles)

    def merge(self, known: Array, added: Any) -> Array:  # noqa: ANN401 (an array or a number)
        """Return rows of known items, padding first, and of added ones in the new order."""
        size = len(self.known) + len(self.added)
        merged = np.empty((size, *known.shape[1:]), dtype=known.dtype)
        merged[self.known], merged[self.added] = known, added
        return merged

    @property
    def order(self) -> Indices:
        """Return the item index before of each item, where added ones follow the known ones."""
        size = len(self.known)
        return self.merge(np.arange(size), size + np.arange(len(self.added)))[1:]

    def _rename(self, titles: Mapping[ItemId, str]) -> None:
        merged = [""] * len(self.vocabulary)
        for place, title in zip(self.known[1:].tolist(), self.titles, strict=True):
            merged[place - 1] = title
        places = _known(self.vocabulary, list(titles), "titles")
        for place, (item, title) in zip(places.tolist(), titles.items(), strict=True):
            if not isinstance(title, str):
                raise InputError(f"titles[{show(item)}] is {show(title)}; a title is text")
            merged[place - 1] = title
        self.titles = merged


def _all(vocabulary: Vocabulary) -> Indices:
    return np.arange(1, len(vocabulary) + 1)


def _known(vocabulary: Vocabulary, ids: Sequence[ItemId], name: str) -> Indices:
    return vocabulary.index(list(ids), name, unknown="error")


def _bias(old: _Old) -> Floats:
    bias = read_bias(old.folder, old.manifest)
    return np.zeros(old.manifest.items, dtype=np.float32) if bias is None else bias


def _numbers(name: str, values: Any, shape: tuple[int, ...]) -> Floats:  # noqa: ANN401
    """Return finite numbers of a shape, zeros for None."""
    if values is None and (name == "bias" or not shape[0]):
        return np.zeros(shape, dtype=np.float32)
    try:
        numbers = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} holds no numbers: {error}") from error
    if numbers.shape != shape:
        raise InputError(f"{name} has shape {numbers.shape}; these items need {shape}")
    if len(bad := np.argwhere(~np.isfinite(numbers))):
        place = "".join(f"[{number}]" for number in bad[0])
        raise InputError(f"{name}{place} is {numbers[tuple(bad[0])]}; numbers must be finite")
    return numbers


def _write(old: _Old, new: _Catalogue, changes: Changes, folder: Path) -> Manifest:
    """Write the whole new bundle, and verify it."""
    manifest = _write_graphs(old, new, folder)
    write_catalogue(folder, new.vocabulary, new.titles or None, new.popularity)
    if new.bias[1:].any():
        new.bias[1:].astype("<f4").tofile(folder / BIAS)
    described: dict[str, Any] = {}
    if changes.attributes is not None:
        described["attributes"] = changes.attributes.take(new.order).write(folder)
    note = {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "from": json.loads((old.folder / MANIFEST).read_bytes())["digest"],
        "added": len(changes.ids),
        "removed": len(changes.removed),
        "retitled": len(set(changes.titles) - set(changes.ids)),
    }
    notes = [*manifest.data.get("changes", []), note][-MOST_CHANGES:]
    manifest = replace(
        manifest,
        items=len(new.vocabulary),
        data={**manifest.data, "changes": notes},
        files=describe_files(folder),
        **described,
    )
    opened = Opened(folder)
    engine = Engine(opened, manifest, "cpu", 1)
    golden = json.dumps(_golden(old, new, engine), indent=1) + "\n"
    atomic_write(folder / GOLDEN, golden.encode())
    attributes = Attributes.read(folder, manifest)
    serving = Serving.start(opened, manifest, engine, new.vocabulary, attributes, object())
    ranker = Ranker(serving)
    atomic_write(folder / CARD, model_card(manifest, ranker).encode())
    manifest = replace(manifest, files=describe_files(folder))
    manifest.write(folder)
    verify(folder, provider="cpu")
    return manifest


def _write_graphs(old: _Old, new: _Catalogue, folder: Path) -> Manifest:
    """Write graphs and weights; return the manifest with what it says of them."""
    manifest, items = old.manifest, len(new.vocabulary)
    bits = CODE_BITS.get(manifest.precision)
    codes = quantize(new.table, bits) if bits else None
    of_items, hidden = _first_block(old, new)
    bias = np.full(_whole_chunks(items + 1), NEVER, dtype=np.float32)
    bias[: items + 1] = new.bias
    programs = dict[str, Program]()
    with (folder / WEIGHTS).open("wb") as file:
        weights = WeightFile(file)
        place = weights.tensor("table", new.table, len(bias))
        for name, program in manifest.programs.items():
            model = onnx.load(old.folder / program.file, load_external_data=False)
            if name in (SCORE, SCORE_MANY):
                many = name == SCORE_MANY
                if many and not (codes and can_score_many(codes)):
                    continue
                model = _score(model, new, manifest.precision, codes, weights, many=many)
            else:
                changed = {"table": new.table, **of_items}
                if name == MODEL:
                    changed[_bias_of(model.graph)] = bias
                _copy_weights(old, model.graph, weights, changed, hidden)
            (folder / program.file).write_bytes(model.SerializeToString())
            programs[name] = replace(
                program,
                inputs=[
                    replace(t, shape=[*t.shape[:1], len(bias)]) if t.name == "bias" else t
                    for t in program.inputs
                ],
                scanned_bytes=scanned_bytes(model.graph),
            )
        file.flush()
        os.fsync(file.fileno())
    for program in programs.values():
        onnx.checker.check_model(folder / program.file, full_check=True)
    return replace(
        manifest,
        programs=programs,
        table=replace(manifest.table, offset=offset_of(place), rows=items + 1),
        rounding=Rounding(codes.row_error, codes.row_norm) if codes else None,
    )


def _bias_of(graph: onnx.GraphProto) -> str:
    """Return the name of what model.onnx adds to the scores of items."""
    scores = next(n for n in graph.node if n.op_type == "Gemm" and n.input[1] == "table")
    return str(scores.input[2])


def _first_block(old: _Old, new: _Catalogue) -> tuple[dict[str, Array], float]:
    """Return the tables of the first block, and the score that hides an event from it.

    Without new items all stays as it is: no tables, and 0. Known items keep their rows.
    """
    manifest, stored = old.manifest, _initializers(old, ENCODE)
    names = [name for name in FIRST_BLOCK_ROWS if {name, name + FP16} & set(stored)]
    if not len(new.added):
        return {}, 0.0
    if FIRST_BLOCK not in manifest.programs:
        sees_items_alone = (
            "key_0" in manifest.state_rows and len(manifest.programs[ENCODE].inputs) == 1
        )
        if sees_items_alone:
            raise BundleError(
                f"{old.folder} has no {FIRST_BLOCK}.onnx, which new items need: an older version "
                "exported it; export the run again"
            )
        return {}, 0.0
    added = [
        np.concatenate(part) for part in zip(*old.first_block(new.table[new.added]), strict=True)
    ]
    of_items = {
        name: new.merge(old.values(stored.get(name) or stored[name + FP16]), part)
        for name, part in zip(FIRST_BLOCK_ROWS, added, strict=False)
        if name in names
    }
    mask = _initializers(old, APPEND).get(MASK)
    if mask is None:
        return of_items, 0.0
    queries_keys = ((parts[0], parts[1]) for parts in old.first_block(new.table))
    heads = manifest.training["model"]["heads"]
    needed = hidden_score(queries_keys, heads, manifest.max_length)
    return of_items, min(needed, float(old.values(mask).min()))


def _initializers(old: _Old, program: str) -> dict[str, onnx.TensorProto]:
    path = old.folder / old.manifest.programs[program].file
    graph = onnx.load(path, load_external_data=False).graph
    return {tensor.name: tensor for tensor in graph.initializer}


def _score(
    model: onnx.ModelProto,
    new: _Catalogue,
    precision: Precision,
    codes: Codes | None,
    weights: WeightFile,
    *,
    many: bool,
) -> onnx.ModelProto:
    """Return a scorer of the new catalogue, for the opset of the one before."""
    writer = GraphWriter(weights)
    Scorer(writer, new.table, precision, many=many).write(codes)
    return writer.model(next(o.version for o in model.opset_import if not o.domain))


def _copy_weights(
    old: _Old,
    graph: onnx.GraphProto,
    weights: WeightFile,
    changed: Mapping[str, Array],
    hidden: float,
) -> None:
    """Store the weights of a graph, of which some have changed; ``hidden`` is below 0 if it has."""
    for tensor in graph.initializer:
        key = tensor.name.removesuffix(FP16)
        if key in changed:
            values = changed[key]
        elif key == MASK and hidden < 0:
            values = old.values(tensor)
            values = np.where(values < 0, np.float32(hidden), values)
        elif tensor.external_data:
            key, values = f"at {offset_of(tensor)}", old.values(tensor)
        else:
            continue
        stored = weights.tensor(key, values, _whole_chunks(len(values)) if key == "table" else 0)
        stored.name = tensor.name
        tensor.CopyFrom(stored)


def _whole_chunks(rows: int) -> int:
    return -(-rows // CHUNK) * CHUNK


def _golden(old: _Old, new: _Catalogue, engine: Engine) -> list[dict[str, Any]]:
    """Return the golden histories with their right answers: all scores, sorted by score and id."""
    answers = json.loads((old.folder / GOLDEN).read_bytes())[:GOLDEN_HISTORIES]
    histories = [answer["history"] for answer in answers]
    users = [old.engine.encode([History(old.vocabulary.index(each))]) for each in histories]
    if latest := new.vocabulary.ids(new.added[-min(GOLDEN_ADDED, old.manifest.max_length) :]):
        histories.append(latest)
        users.append(engine.encode([History(new.vocabulary.index(latest))]))
    k, golden = min(GOLDEN_K, np.count_nonzero(new.bias != np.float32(NEVER))), []
    for history, user in zip(histories, users, strict=True):
        scores = new.table.astype(np.float32, copy=False) @ user[0] + new.bias
        items = np.argsort(-scores, kind="stable")[:k]
        best = [round(float(score), 5) for score in scores[items]]
        golden.append({"history": history, "items": new.vocabulary.ids(items), "scores": best})
    return golden
