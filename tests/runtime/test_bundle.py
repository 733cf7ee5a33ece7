"""A bundle is exactly what was written, or it is refused before onnxruntime sees it."""

import json
import math
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ranklet import BundleError, Manifest, Ranker
from ranklet import graph as graph_module
from ranklet.bundle import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    File,
    Table,
    TensorContract,
    map_table,
    read_popularity,
    read_titles,
    read_vocabulary,
    write_catalogue,
)
from ranklet.provider import create_session
from ranklet.vocabulary import Vocabulary

FILES = [
    "README.md",
    "append.onnx",
    "batch.onnx",
    "encoder.onnx",
    "golden.json",
    "items.offsets.npy",
    "items.utf8",
    "model.onnx",
    "model.onnx.data",
    "plain.onnx",
    "popularity.npy",
    "titles.offsets.npy",
    "titles.utf8",
]
ALL = [*FILES, MANIFEST]


@pytest.fixture(autouse=True)
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test of this file reach onnxruntime unless it says so."""

    def reach(*arguments: object) -> None:
        raise AssertionError("onnxruntime was given a bundle that should have been refused")

    monkeypatch.setattr(graph_module, "create_session", reach)


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as a text editor would."""
    document = json.loads((bundle / MANIFEST).read_bytes())
    change(document)
    (bundle / MANIFEST).write_text(json.dumps(document))


# Files


def test_the_tiny_bundle_has_every_file(tiny_bundle: Path) -> None:
    assert sorted(path.name for path in tiny_bundle.iterdir()) == sorted(ALL)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("check_digests", [True, False], ids=["digests", "sizes only"])
def test_a_truncated_file_is_refused(bundle: Path, name: str, check_digests: bool) -> None:
    data = (bundle / name).read_bytes()
    for length in sorted({len(data) * percent // 100 for percent in range(0, 100, 7)}):
        (bundle / name).write_bytes(data[:length])
        with pytest.raises(BundleError, match=f"{name} has {length} bytes, the manifest says"):
            Ranker.load(bundle, check_digests=check_digests)


def test_a_truncated_manifest_is_refused(bundle: Path) -> None:
    data = (bundle / MANIFEST).read_bytes()
    for length in range(0, len(data) - 1, len(data) // 50):
        (bundle / MANIFEST).write_bytes(data[:length])
        with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
            Ranker.load(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_longer_file_is_refused(bundle: Path, name: str) -> None:
    with (bundle / name).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match=rf"{name} has \d+ bytes, the manifest says"):
        Ranker.load(bundle, check_digests=False)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused(bundle: Path, name: str) -> None:
    data = (bundle / name).read_bytes()
    for bit in random.Random(0).sample(range(8 * len(data)), 25):
        (bundle / name).write_bytes(flip(data, bit))
        with pytest.raises(BundleError, match=rf"{name} is not what the manifest says \(SHA-256\)"):
            Ranker.load(bundle)


def test_without_digests_a_flipped_bit_is_not_seen(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(flip((bundle / "model.onnx").read_bytes(), 10_000))
    assert Manifest.read(bundle, check_digests=False).items == 60


def test_a_flipped_bit_of_the_manifest_is_refused_or_means_the_same(bundle: Path) -> None:
    data, expected = (bundle / MANIFEST).read_bytes(), Manifest.read(bundle)
    refused = 0
    for bit in random.Random(0).sample(range(8 * len(data)), 400):
        (bundle / MANIFEST).write_bytes(flip(data, bit))
        try:
            assert Manifest.read(bundle) == expected
        except BundleError:
            refused += 1
    assert refused > 390  # 1e-5 and 1E-5 are the same number


def flip(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing: copy the whole bundle again"):
        Ranker.load(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_is_no_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    (bundle / name).mkdir()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Ranker.load(bundle)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize(("name", "message"), [("model.onnx", "missing"), (MANIFEST, "has no")])
def test_a_pipe_is_not_waited_for(bundle: Path, name: str, message: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(BundleError, match=message):
        Ranker.load(bundle)


def test_a_file_that_cannot_be_read_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ranklet.bundle.sha256", refuse)
    with pytest.raises(BundleError, match=r"README.md can't be read: .*Permission denied"):
        Ranker.load(bundle)


def test_a_file_that_the_manifest_does_not_list_is_ignored(bundle: Path) -> None:
    (bundle / ".DS_Store").write_bytes(b"\0")
    assert Manifest.read(bundle).items == 60


# Folder


def test_nothing_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere is not a bundle: it has no manifest\.json"):
        Ranker.load(tmp_path / "nowhere")


def test_an_empty_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        Ranker.load(tmp_path)


def test_a_file_is_no_bundle(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"model\.onnx is not a bundle: it has no manifest"):
        Ranker.load(bundle / "model.onnx")


def test_a_path_with_nul_is_no_bundle() -> None:
    with pytest.raises(BundleError, match=r"is not a bundle|null"):
        Ranker.load("models\0x")


def test_a_manifest_that_is_a_folder_is_no_manifest(bundle: Path) -> None:
    (bundle / MANIFEST).unlink()
    (bundle / MANIFEST).mkdir()
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        Ranker.load(bundle)


def test_a_bundle_may_be_named_by_text(tiny_bundle: Path) -> None:
    with pytest.raises(AssertionError, match="onnxruntime was given"):
        Ranker.load(str(tiny_bundle))


# Manifest

DAMAGED = {
    "empty": (b"", "manifest.json is damaged"),
    "no JSON": (b"format: 1", "manifest.json is damaged"),
    "NUL": (b'{"format": 1}\0', "manifest.json is damaged"),
    "two documents": (b'{"format": 1}{}', "manifest.json is damaged"),
    "not UTF-8": (b'{"format": 1, "\xff": 1}', "manifest.json is damaged: 'utf-8' codec"),
    "UTF-16": ('{"format": 1}'.encode("utf-16"), "manifest.json is damaged: 'utf-8' codec"),
    "byte order mark": ('\ufeff{"format": 1}'.encode(), "manifest.json is damaged: .*BOM"),
    "deep lists": (b"[" * 100_000, "manifest.json is damaged"),
    "deep objects": (b'{"format": ' * 50_000, "manifest.json is damaged"),
    "twice a key": (b'{"format": 1, "format": 1}', "a key occurs twice"),
    "twice a key inside": (b'{"format": 1, "x": [{"a": 1, "a": 2}]}', "a key occurs twice"),
    "long number": (b'{"format": ' + b"9" * 5000 + b"}", "manifest.json|bundle format 9"),
    "null": (b"null", "it has no format number"),
    "list": (b"[1]", "it has no format number"),
    "number": (b"1", "it has no format number"),
    "text": (b'"format"', "it has no format number"),
    "nothing inside": (b"{}", "it has no format number"),
    "format as text": (b'{"format": "1"}', "it has no format number"),
    "format as float": (b'{"format": 1.0}', "it has no format number"),
    "format NaN": (b'{"format": NaN}', "it has no format number"),
    "only a format": (b'{"format": 5}', "does not follow the bundle format: no 'inputs'"),
}


@pytest.mark.parametrize(("data", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_manifest_is_refused(bundle: Path, data: bytes, message: str) -> None:
    (bundle / MANIFEST).write_bytes(data)
    with pytest.raises(BundleError, match=message):
        Ranker.load(bundle)


def test_a_huge_manifest_is_not_read(bundle: Path) -> None:
    with (bundle / MANIFEST).open("ab") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(BundleError, match=f"is larger than {MAX_MANIFEST_BYTES} bytes"):
        Ranker.load(bundle)


@pytest.mark.parametrize(
    ("number", "todo"),
    [
        (True, "export the run again"),
        (-1, "export the run again"),
        (0, "export the run again"),
        (1, "export the run again"),
        (4, "export the run again"),
        (6, "upgrade ranklet"),
        (10**6, "upgrade ranklet"),
    ],
)
def test_another_format_says_what_to_do(bundle: Path, number: int, todo: str) -> None:
    edit(bundle, lambda document: document.update(format=number, new_key=1))
    message = f"bundle format {number} and this version reads 5: {todo}"
    with pytest.raises(BundleError, match=message):
        Ranker.load(bundle)


@pytest.mark.parametrize("key", sorted(Manifest.__dataclass_fields__))
def test_a_missing_key_is_named(bundle: Path, key: str) -> None:
    edit(bundle, lambda document: document.pop(key))
    with pytest.raises(BundleError, match=f"'{key}'|{key} number"):
        Ranker.load(bundle)


UNKNOWN_KEYS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "Manifest": lambda document: document,
    "Table": lambda document: document["table"],
    "Rounding": lambda document: document["rounding"],
    "BlockMask": lambda document: document["masks"][0],
    "File": lambda document: document["files"]["model.onnx"],
    "TensorContract": lambda document: document["inputs"][0],
}


@pytest.mark.parametrize("kind", UNKNOWN_KEYS)
def test_an_unknown_key_is_named(bundle: Path, kind: str) -> None:
    edit(bundle, lambda document: UNKNOWN_KEYS[kind](document).update(extra=1))
    with pytest.raises(BundleError, match=rf"unknown keys \['extra'\] in {kind}"):
        Ranker.load(bundle)


def mask(**values: Any) -> dict[str, Any]:
    waves = [[0.0] * 8]
    return {"hidden": -20.0, "cosines": waves, "sines": waves, "window": 0, **values}


WRONG_VALUES: dict[str, tuple[str, Any, str]] = {
    "items as text": ("items", "60", "Manifest.items is '60'"),
    "items as float": ("items", 60.0, "Manifest.items is 60.0"),
    "items true": ("items", True, "Manifest.items is True"),
    "no items": ("items", 0, "items is 0"),
    "negative items": ("items", -60, "items is -60"),
    "one item less": ("items", 59, "the item table has 61 rows for 59 items"),
    "very many items": ("items", 2**62, "the item table has 61 rows for"),
    "max_length 0": ("max_length", 0, "max_length is 0"),
    "max_length null": ("max_length", None, "Manifest.max_length is None"),
    "width 0": ("width", 0, "width is 0"),
    "width 8": ("width", 8, "the item table is 16 wide, users 8"),
    "id type": ("id_type", "uuid", "id_type 'uuid'"),
    "id type as list": ("id_type", ["string"], r"id_type \['string'\]"),
    "other ids": ("id_type", "int64", r"no entry for \['items.npy'\]"),
    "precision": ("precision", "int2", "precision 'int2'"),
    "precision null": ("precision", None, "precision None"),
    "rounding of fp32": ("precision", "fp32", r"precision fp32, rounding Rounding\(row_error="),
    "int8 without rounding": ("rounding", None, "precision int8, rounding None"),
    "rounding as list": ("rounding", [1.0, 2.0], "unknown keys"),
    "rounding as text": ("rounding", {"row_error": "0", "row_norm": 1.0}, "row_error is '0'"),
    "rotary base as text": ("rotary_base", "1000", "rotary_base '1000'"),
    "masks as text": ("masks", "-20", "unknown keys"),
    "mask without waves": ("masks", [{"hidden": -20.0}], "missing keys"),
    "hidden score as text": ("masks", [mask(hidden="-20")], "BlockMask.hidden is '-20'"),
    "hidden score above 0": ("masks", [mask(hidden=1.0)], r"masks\[0\] hides with 1.0"),
    "a window below 0": ("masks", [mask(window=-1)], r"masks\[0\] has the window -1"),
    "a window of the last block": (
        "masks",
        [mask(), mask(window=3)],
        r"masks have the windows \[0, 3\]: one for all, 0 for the last",
    ),
    "two windows": ("masks", [mask(window=2), mask(), mask()], r"windows \[2, 0, 0\]"),
    "a window as text": ("masks", [mask(window="3")], "BlockMask.window is '3'"),
    "hidden score NaN": ("masks", [mask(hidden=math.nan)], r"masks\[0\] hides with nan"),
    "too few waves": ("masks", [mask(sines=[[0.0]])], r"masks\[0\] does not have 8 waves a head"),
    "waves of another head": ("masks", [mask(sines=[[0.0] * 8] * 2)], "not have 8 waves a head"),
    "ragged waves": ("masks", [mask(cosines=[[0.0] * 8, [0.0]])], "not have 8 waves a head"),
    "a wave as text": ("masks", [mask(cosines=[["1.0"] * 8])], "no finite numbers"),
    "an infinite wave": ("masks", [mask(cosines=[[math.inf] * 8])], "no finite numbers"),
    "too few masks": ("masks", [mask()], r"masks are .* the graph takes .*'mask_1'"),
    "a mask of another head": ("masks", [mask(), mask()], r"masks are .*, the graph takes .*\[2\]"),
    "inputs null": ("inputs", None, "NoneType"),
    "inputs as text": ("inputs", "history", "unknown keys"),
    "inputs as object": ("inputs", {"name": "k"}, "unknown keys"),
    "input without a type": ("inputs", [{"name": "k", "shape": []}], r"missing keys \['type'\]"),
    "input shape": ("inputs", [{"name": "k", "type": "x", "shape": 1}], "shape is 1"),
    "table null": ("table", None, "NoneType"),
    "table as list": ("table", [*Table.__dataclass_fields__], "list indices"),
    "training as list": ("training", [], r"Manifest.training is \[\]"),
    "versions null": ("versions", None, "Manifest.versions is None"),
    "no files": ("files", {}, r"no entry for \['encoder.onnx', 'golden.json'"),
    "files as list": ("files", [], "'list' object has no attribute 'items'"),
    "file null": ("files", {"model.onnx": None}, "NoneType"),
    "file size": ("files", {"model.onnx": {"size": "1", "sha256": ""}}, "File.size is '1'"),
}


@pytest.mark.parametrize(("key", "value", "message"), WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_a_wrong_value_is_named(bundle: Path, key: str, value: Any, message: str) -> None:
    edit(bundle, lambda document: document.update({key: value}))
    with pytest.raises(BundleError, match=f"does not follow the bundle format: .*{message}"):
        Ranker.load(bundle)


WRONG_TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "negative offset": ({"offset": -4}, "the item table has 61 rows|outside"),
    "offset past the end": ({"offset": 10**9}, "the item table lies outside its file"),
    "other file": ({"file": "popularity.npy"}, "the item table lies outside its file"),
    "unlisted file": ({"file": "items.npy"}, "the item table lies outside its file"),
    "path": ({"file": "../model.onnx"}, "the item table lies outside its file"),
    "half precision": ({"type": "<f2"}, "the item table holds '<f2' for int8"),
    "foreign bytes": ({"type": ">f4"}, "the item table holds '>f4' for int8"),
    "integers": ({"type": "<i4"}, "the item table holds '<i4'"),
    "rows": ({"rows": 60}, "the item table has 60 rows for 60 items"),
    "negative columns": ({"columns": -16}, "the item table is -16 wide"),
    "product overflows": ({"columns": 2**63}, "the item table lies outside its file"),
}


@pytest.mark.parametrize(("values", "message"), WRONG_TABLES.values(), ids=WRONG_TABLES)
def test_a_wrong_table_is_refused(bundle: Path, values: dict[str, Any], message: str) -> None:
    edit(bundle, lambda document: document["table"].update(values))
    with pytest.raises(BundleError, match=message):
        Ranker.load(bundle)


def test_a_table_may_end_with_its_file_and_not_later(bundle: Path) -> None:
    last = (bundle / "model.onnx.data").stat().st_size - 61 * 16 * 4
    edit(bundle, lambda document: document["table"].update(offset=last))
    assert Manifest.read(bundle, check_digests=False).table.offset == last
    edit(bundle, lambda document: document["table"].update(offset=last + 1))
    with pytest.raises(BundleError, match="the item table lies outside its file"):
        Manifest.read(bundle, check_digests=False)


@pytest.mark.parametrize(
    "name",
    ["../x", "sub/x", "/etc/passwd", "..", ".", "", "C:x", "a\\b", "MODEL.ONNX", "x\0", "%2e%2e/x"],
)
def test_a_file_of_another_name_is_refused(bundle: Path, name: str) -> None:
    file = {"size": 1, "sha256": ""}
    edit(bundle, lambda document: document["files"].update({name: file}))
    with pytest.raises(BundleError, match="unknown files"):
        Ranker.load(bundle)


# Without these a bundle may be whole.
MAY_LACK = {"README.md", "append.onnx", "batch.onnx", "plain.onnx", "titles.utf8"}


@pytest.mark.parametrize("name", sorted(set(FILES) - MAY_LACK))
def test_a_file_without_an_entry_is_named(bundle: Path, name: str) -> None:
    edit(bundle, lambda document: document["files"].pop(name))
    with pytest.raises(BundleError, match=rf"no entry for \['{name}'\]|outside its file"):
        Ranker.load(bundle)


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "max_length": lambda document: document.update(max_length=10),
    "quality": lambda document: document["quality"].update(ndcg=1.0),
    "no digest": lambda document: document.pop("digest"),
    "table": lambda document: document["table"].update(offset=document["table"]["offset"] + 64),
}


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_a_changed_manifest_is_refused(bundle: Path, change: Any) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=r"manifest.json is not what was written \(SHA-256\)"):
        Ranker.load(bundle)


def test_a_manifest_of_another_layout_is_read(bundle: Path) -> None:
    expected = Manifest.read(bundle)
    document = json.loads((bundle / MANIFEST).read_bytes())
    (bundle / MANIFEST).write_text(json.dumps(dict(reversed(document.items()))))
    assert Manifest.read(bundle) == expected


def test_a_manifest_reads_as_it_was_written(bundle: Path) -> None:
    table = Table("model.onnx.data", 0, 61, 16)
    manifest = Manifest(
        **{
            **vars(Manifest.read(bundle)),
            "table": table,
            "quality": {"ndcg@10": 0.1 + 0.2, "\u00e9": [None, -0.0, 1e-300]},
            "inputs": [TensorContract("k", "tensor(int64)", [])],
            "masks": [],
        }
    )
    manifest.write(bundle)
    assert Manifest.read(bundle) == manifest


def test_a_manifest_lists_size_and_digest(bundle: Path) -> None:
    (bundle / "README.md").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    edit(bundle, lambda d: d["files"].update({"README.md": {"size": 3, "sha256": digest}}))
    found = Manifest.read(bundle, check_digests=False).files["README.md"]
    assert found == File(3, digest)


# Contract


@pytest.mark.parametrize("part", ["inputs", "outputs"])
@pytest.mark.parametrize(
    "change", [{"name": "x"}, {"type": "tensor(int32)"}, {"shape": ["batch", 3]}], ids=str
)
def test_another_graph_than_the_manifest_says_is_refused(
    bundle: Path,
    sign: Any,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    change: dict[str, Any],
) -> None:
    monkeypatch.setattr(graph_module, "create_session", create_session)
    manifest = Manifest.read(bundle)
    tensors = getattr(manifest, part)
    changed = [TensorContract(**{**vars(tensors[0]), **change}), *tensors[1:]]
    sign(bundle, manifest, **{part: changed})
    with pytest.raises(BundleError, match="does not take and give what the manifest says"):
        _ = Ranker.load(bundle, provider="cpu").graphs.session


# Catalogue


@pytest.mark.parametrize(
    "vocabulary",
    [Vocabulary(["", "a", "\u00e9\0", "\U0001f600"]), Vocabulary(np.array([-(2**63), 0, 7, 9]))],
    ids=["texts", "numbers"],
)
def test_a_catalogue_reads_as_it_was_written(
    tmp_path: Path, bundle: Path, vocabulary: Vocabulary
) -> None:
    shares = np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32)
    write_catalogue(tmp_path, vocabulary, ["A", "", "\u00e9", "\n"], shares)
    values = {**vars(Manifest.read(bundle)), "items": 4, "id_type": vocabulary.id_type}
    manifest = Manifest(**values)
    assert list(read_vocabulary(tmp_path, manifest).all_ids) == list(vocabulary.all_ids)
    assert read_titles(tmp_path, manifest) == ["A", "", "\u00e9", "\n"]
    assert read_popularity(tmp_path, manifest).tolist() == shares.tolist()


def test_a_bundle_may_lack_titles(bundle: Path, sign: Any) -> None:
    manifest = Manifest.read(bundle)
    (bundle / "titles.utf8").unlink()
    (bundle / "titles.offsets.npy").unlink()
    sign(bundle, manifest)
    assert read_titles(bundle, Manifest.read(bundle)) is None


def test_the_table_is_mapped_row_by_row(tiny_bundle: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    table = map_table(tiny_bundle, manifest)
    assert table.shape == (61, 16)
    assert not table[0].any()
    # The rows of a sequence model have length 1, and are stored times the root of the width.
    assert np.abs(np.linalg.norm(table[1:], axis=1) - 4).max() < 1e-5


ENDS = np.arange(1, 61, dtype="<i8") * 3
WRONG_ENDS = {
    "fewer": (ENDS[:-1], r"holds int64 \(59,\), not <i8 \(60,\)"),
    "2-d": (ENDS[:, None], r"holds int64 \(60, 1\)"),
    "int32": (ENDS.astype("<i4"), "holds int32"),
    "big-endian": (ENDS.astype(">i8"), "holds >i8"),
    "float": (ENDS.astype(np.float64), "holds float64"),
    "past the end": (ENDS + 1, "do not fit together"),
    "falling": (ENDS[::-1].copy(), "do not fit together"),
    "negative": (np.r_[-3, ENDS[1:]], "do not fit together"),
    "objects": (ENDS.astype(object), "is damaged"),
}


@pytest.mark.parametrize(("ends", "message"), WRONG_ENDS.values(), ids=WRONG_ENDS)
def test_wrong_offsets_are_refused(bundle: Path, sign: Any, ends: Any, message: str) -> None:
    assert (bundle / "items.utf8").stat().st_size == 180
    manifest = Manifest.read(bundle)
    np.save(bundle / "items.offsets.npy", ends, allow_pickle=True)
    sign(bundle, manifest)
    with pytest.raises(BundleError, match=message):
        Ranker.load(bundle)


def test_ids_that_are_no_text_are_refused(bundle: Path, sign: Any) -> None:
    manifest = Manifest.read(bundle)
    (bundle / "items.utf8").write_bytes(b"\xff" * 180)
    sign(bundle, manifest)
    with pytest.raises(BundleError, match=r"items\.utf8 is not UTF-8"):
        Ranker.load(bundle)


@pytest.mark.parametrize("order", ["falling", "twice"])
def test_numbers_that_are_not_sorted_are_refused(
    number_bundle: Path, tmp_path: Path, sign: Any, order: str
) -> None:
    bundle = Path(shutil.copytree(number_bundle, tmp_path / "bundle"))
    manifest = Manifest.read(bundle)
    np.save(bundle / "items.npy", np.arange(60)[::-1] if order == "falling" else np.zeros(60, int))
    sign(bundle, manifest)
    with pytest.raises(BundleError, match=r"items\.npy is not sorted"):
        Ranker.load(bundle)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_popularity_that_is_not_finite_is_refused(bundle: Path, sign: Any, value: float) -> None:
    manifest = Manifest.read(bundle)
    np.save(bundle / "popularity.npy", np.full(60, value, dtype="<f4"))
    sign(bundle, manifest)
    with pytest.raises(BundleError, match=r"popularity\.npy holds NaN or infinity"):
        read_popularity(bundle, manifest)


class Payload:
    """A pickle that leaves a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (self.path, "executed")


@pytest.mark.parametrize("as_array", [True, False], ids=["array", "plain pickle"])
def test_no_pickle_is_loaded(tmp_path: Path, bundle: Path, sign: Any, as_array: bool) -> None:
    manifest, trace = Manifest.read(bundle), tmp_path / "trace"
    if as_array:
        objects = np.array([Payload(trace)] * 60, dtype=object)
        np.save(bundle / "popularity.npy", objects, allow_pickle=True)
    else:
        (bundle / "popularity.npy").write_bytes(pickle.dumps(Payload(trace)))
    sign(bundle, manifest)
    with pytest.raises(BundleError, match=r"popularity\.npy is damaged"):
        read_popularity(bundle, manifest)
    assert not trace.exists()


def test_a_zip_of_arrays_is_no_array(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    np.savez(bundle / "popularity", np.zeros(60))
    (bundle / "popularity.npz").rename(bundle / "popularity.npy")
    with pytest.raises(BundleError, match=r"popularity\.npy is damaged"):
        read_popularity(bundle, manifest)


SHAPES = ["(2**60,)", f"({2**60},)", f"({10**20},)", "(-1,)", "(60, 60)", "()", "[60]", "(" * 200]


@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_wrong_shape_in_the_header_of_an_array_is_refused(bundle: Path, shape: str) -> None:
    manifest = Manifest.read(bundle)
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(240)
    (bundle / "popularity.npy").write_bytes(data)
    with pytest.raises(BundleError, match=r"is damaged|holds float32"):
        read_popularity(bundle, manifest)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_a_flipped_bit_in_the_header_of_an_array_raises_nothing_else(bundle: Path) -> None:
    path, manifest = bundle / "popularity.npy", Manifest.read(bundle)
    data, refused = path.read_bytes(), 0
    for bit in range(0, 8 * 128, 3):
        path.write_bytes(flip(data, bit))
        try:
            read_popularity(bundle, manifest)
        except BundleError:
            refused += 1
    assert refused > 330  # the header ends in blanks, which may be other blanks
