"""The names and numbers of bundle format 6, spelled out: other languages read them, too."""

import re
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ranklet.bundle import manifest as m
from ranklet.bundle.folder import read_silent, read_vocabulary, write_catalogue
from ranklet.bundle.vocabulary import Vocabulary
from ranklet.errors import BundleError

BUNDLE_PAGE = Path(__file__).parents[2] / "docs" / "bundle.md"
PROGRAMS = {
    *("encode", "encode_long", "encode_rows", "append", "score", "score_many", "search"),
    *("first_block", "item", "model"),
}


def test_the_files_of_a_bundle_have_these_names() -> None:
    assert set(m.PROGRAMS) == PROGRAMS
    assert {
        *(f"{program}.onnx" for program in PROGRAMS),
        *("weights.bin", "golden.json", "README.md", "items.i64", "items.utf8"),
        *("items.ends.i64", "titles.utf8", "titles.ends.i64", "popularity.f32", "trending.f32"),
        *("bias.f32", "silent.i64", "attributes.bin"),
    } == m.FILE_NAMES
    assert m.MANIFEST == "manifest.json"
    assert m.WEIGHTS == "weights.bin"
    assert m.ID_FILES == {"int64": ("items.i64",), "string": ("items.utf8", "items.ends.i64")}
    assert m.TITLE_FILES == ("titles.utf8", "titles.ends.i64")


def test_every_file_is_in_the_manual() -> None:
    page = BUNDLE_PAGE.read_text(encoding="utf-8")
    assert {name for name in m.FILE_NAMES if f"`{name}`" not in page} == set()


def test_a_manifest_may_lack_only_these_keys() -> None:
    assert {
        *("exclude_seen", "kinds", "target", "attributes", "new_items", "explanation"),
        "index",
    } == m.OPTIONAL
    assert {"encode", "append", "score", "model"} == m.NEEDED


def test_the_numbers_of_the_format() -> None:
    assert (m.FORMAT, m.CHUNK, m.NEVER, m.BEHIND) == (6, 64, -3e38, -1000.0)
    assert m.MAX_MANIFEST_BYTES == 1 << 20
    assert m.CODE_BITS == {"int8": 8, "int4": 4}
    assert m.FIRST_BLOCK_ROWS == ("queries", "keys", "values", "gates")


def test_attributes_have_these_arrays() -> None:
    texts = ("codes", "ends", "values", "value_ends")
    expected = {"category": texts, "categories": texts, "number": ("numbers",)}
    assert expected == m.FILTERABLE
    assert {
        **{kind: ("seen",) for kind in ("category", "categories")},
        **{"number": ("edges",), "text": ("buckets", "idf"), "vector": ("mean",)},
    } == m.LEARNED


def test_the_format_is_that_of_the_manual() -> None:
    page = BUNDLE_PAGE.read_text(encoding="utf-8")
    assert re.search(rf"format {m.FORMAT}\b", page)


def test_arrays_are_little_endian_and_texts_one_blob_whatever_they_were(tmp_path: Path) -> None:
    shares = np.array([0.5, 0.25], dtype=">f8")
    write_catalogue(tmp_path, Vocabulary(["a", "\u00e9b"]), ["", "x"], shares, shares[::-1])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "items.utf8": b"a\xc3\xa9b",
        "items.ends.i64": struct.pack("<2q", 1, 4),
        "titles.utf8": b"x",
        "titles.ends.i64": struct.pack("<2q", 0, 1),
        "popularity.f32": struct.pack("<2f", 0.5, 0.25),
        "trending.f32": struct.pack("<2f", 0.25, 0.5),
    }


def test_integer_ids_are_read_exactly(tiny_bundle: Path, tmp_path: Path) -> None:
    ids = [-(2**63), 2**53 + 1, 2**63 - 1]
    write_catalogue(tmp_path, Vocabulary(np.array(ids)), None, np.zeros(3, np.float32))
    assert {path.name for path in tmp_path.iterdir()} == {"items.i64", "popularity.f32"}
    assert (tmp_path / "items.i64").read_bytes() == struct.pack("<3q", *ids)
    manifest = replace(m.Manifest.read(tiny_bundle), items=3, id_type="int64")
    assert read_vocabulary(tmp_path, manifest).ids(np.array([1, 2, 3])) == ids


def test_silent_items_are_those_of_the_file_and_others_are_refused(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    manifest = m.Manifest.read(tiny_bundle)
    assert read_silent(tmp_path, manifest) is None
    entry = {"silent.i64": m.File(16, "")}
    manifest = replace(manifest, items=4, files={**manifest.files, **entry})
    with pytest.raises(BundleError, match=r"silent\.i64 can't be read: "):
        read_silent(tmp_path, manifest)
    (tmp_path / "silent.i64").write_bytes(struct.pack("<2q", 1, 4))
    silent = read_silent(tmp_path, manifest)
    assert silent is not None
    assert silent.tolist() == [False, True, False, False, True]
    for items in ([], [0], [1, 5], [-1, 2]):
        (tmp_path / "silent.i64").write_bytes(struct.pack(f"<{len(items)}q", *items))
        with pytest.raises(BundleError, match=r"silent\.i64 holds no item indices of this cat"):
            read_silent(tmp_path, manifest)
