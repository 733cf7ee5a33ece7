"""A bundle is exactly what was written, or it is refused before onnxruntime sees it."""

import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ranklet import BundleError, Manifest, Ranker
from ranklet.bundle.manifest import (
    FILE_NAMES,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    OPTIONAL,
    File,
    Program,
    Table,
)
from ranklet.engine import programs

MISSING = {"encode_long.onnx", "search.onnx", "items.i64", "bias.f32", "silent.i64"}
FILES = sorted(FILE_NAMES - MISSING)
GONE = object()
NEEDED = ["encode", "append", "score", "model"]
LISTED = sorted({*FILES} - {"README.md", "titles.utf8", "trending.f32"})
FILE = {"size": 1, "sha256": ""}


@pytest.fixture(autouse=True)
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test of this file reach onnxruntime."""

    def reach(*arguments: object) -> None:
        raise AssertionError("onnxruntime was given a bundle that should have been refused")

    monkeypatch.setattr(programs, "create_session", reach)


def edit(bundle: Path, path: str, value: Any) -> None:
    """Change the manifest as a text editor would, at a path such as table.rows; | is a dot."""
    document = json.loads((bundle / MANIFEST).read_bytes())
    *steps, last = [
        int(step) if step.isdigit() else step.replace("|", ".") for step in path.split(".")
    ]
    place = document
    for step in steps:
        place = place[step]
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    (bundle / MANIFEST).write_text(json.dumps(document))


def flip(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


# Files


def test_the_tiny_bundle_has_every_file(tiny_bundle: Path) -> None:
    assert sorted(path.name for path in tiny_bundle.iterdir()) == sorted([*FILES, MANIFEST])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("check_digests", [True, False], ids=["digests", "sizes only"])
def test_a_file_of_another_size_is_refused(bundle: Path, name: str, check_digests: bool) -> None:
    data = (bundle / name).read_bytes()
    for length in (0, len(data) // 2, len(data) - 1, len(data) + 1):
        (bundle / name).write_bytes((data + b"\0")[:length])
        with pytest.raises(BundleError, match=f"{name} has {length} bytes, the manifest says"):
            Ranker.load(bundle, check_digests=check_digests)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused(bundle: Path, name: str) -> None:
    data = (bundle / name).read_bytes()
    for bit in [0, 8 * len(data) - 1, *random.Random(0).sample(range(8 * len(data)), 3)]:
        (bundle / name).write_bytes(flip(data, bit))
        with pytest.raises(BundleError, match=rf"{name} is not what the manifest says \(SHA-256\)"):
            Ranker.load(bundle)


def test_without_digests_a_flipped_bit_is_not_seen(bundle: Path) -> None:
    (bundle / "encode.onnx").write_bytes(flip((bundle / "encode.onnx").read_bytes(), 1000))
    assert Manifest.read(bundle, check_digests=False).items == 60


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("instead", ["nothing", "folder"])
def test_a_missing_file_is_named(bundle: Path, name: str, instead: str) -> None:
    (bundle / name).unlink()
    if instead == "folder":
        (bundle / name).mkdir()
    with pytest.raises(BundleError, match=f"{name} is missing: copy the whole bundle again"):
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

    monkeypatch.setattr("ranklet.bundle.manifest.sha256", refuse)
    with pytest.raises(BundleError, match=r"README.md can't be read: .*Permission denied"):
        Ranker.load(bundle)


def test_a_file_that_the_manifest_does_not_list_is_ignored(bundle: Path) -> None:
    (bundle / ".DS_Store").write_bytes(b"\0")
    assert Manifest.read(bundle).items == 60


# Folder


def test_a_folder_without_a_manifest_is_no_bundle(bundle: Path, tmp_path: Path) -> None:
    (bundle / MANIFEST).unlink()
    (bundle / MANIFEST).mkdir()
    for path in (tmp_path, bundle):
        with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
            Ranker.load(path)
    for path in (tmp_path / "nowhere", bundle / "model.onnx"):
        with pytest.raises(BundleError, match="is not a bundle: there is no such folder"):
            Ranker.load(path)


def test_a_path_with_nul_is_no_bundle() -> None:
    with pytest.raises(BundleError, match=r"is damaged or no path: .*null"):
        Ranker.load("models\0x")


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
    "nothing inside": (b"{}", "it has no format number"),
    "format as text": (b'{"format": "1"}', "it has no format number"),
    "format as float": (b'{"format": 6.0}', "it has no format number"),
    "format NaN": (b'{"format": NaN}', "manifest.json is damaged: a number is nan"),
    "beyond floats": (b'{"format": 6, "gate": {"drop": 1e999}}', "damaged: a number is inf"),
    "half a character": (b'{"format": 6, "target": "\\ud800"}', "damaged: 'utf-8' codec"),
    "half a character as key": (b'{"format": 6, "\\udfff": 1}', "damaged: 'utf-8' codec"),
    "33 lists": (b'{"data": ' + b"[" * 33 + b"]" * 33 + b"}", "damaged: lists and objects are"),
    "only a format": (b'{"format": 6}', "does not follow the bundle format: missing keys"),
}


@pytest.mark.parametrize(("data", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_manifest_is_refused(bundle: Path, data: bytes, message: str) -> None:
    (bundle / MANIFEST).write_bytes(data)
    with pytest.raises(BundleError, match=message):
        Ranker.load(bundle)


def test_a_truncated_manifest_is_refused(bundle: Path) -> None:
    data = (bundle / MANIFEST).read_bytes()
    for length in range(0, len(data) - 1, len(data) // 50):
        (bundle / MANIFEST).write_bytes(data[:length])
        with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
            Ranker.load(bundle)


def test_a_flipped_bit_of_the_manifest_is_refused_or_means_the_same(bundle: Path) -> None:
    data, expected = (bundle / MANIFEST).read_bytes(), Manifest.read(bundle)
    refused = 0
    for bit in random.Random(0).sample(range(8 * len(data)), 300):
        (bundle / MANIFEST).write_bytes(flip(data, bit))
        try:
            assert Manifest.read(bundle) == expected
        except BundleError:
            refused += 1
    assert refused > 270  # 1e-5 and 1E-5 are the same number, a blank may be another blank


def test_a_huge_manifest_is_not_read(bundle: Path) -> None:
    with (bundle / MANIFEST).open("ab") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(BundleError, match=f"is larger than {MAX_MANIFEST_BYTES} bytes"):
        Ranker.load(bundle)


@pytest.mark.parametrize("number", [True, -1, 5, 7, 10**6])
def test_another_format_says_what_to_do(bundle: Path, number: int) -> None:
    edit(bundle, "format", number)
    edit(bundle, "new_key", 1)
    todo = "upgrade ranklet" if number > 6 else "export the run again"
    message = f"bundle format {number} and this version reads 6: {todo}$"
    with pytest.raises(BundleError, match=message):
        Ranker.load(bundle)


PARTS = {
    "Manifest": "",
    "Table": "table.",
    "Pool": "pool.",
    "Rounding": "rounding.",
    "Program": "programs.score.",
    "Tensor": "programs.encode.inputs.0.",
    "File": "files.model|onnx.",
    "Attribute": "attributes.0.",
    "Array": "attributes.0.arrays.codes.",
    "NewItems": "new_items.",
}


def part(bundle: Path, kind: str) -> Any:
    place = json.loads((bundle / MANIFEST).read_bytes())
    for step in PARTS[kind].split(".")[:-1]:
        place = place[int(step) if step.isdigit() else step.replace("|", ".")]
    return place


@pytest.mark.parametrize("kind", PARTS)
def test_an_unknown_or_missing_key_is_named(bundle: Path, kind: str) -> None:
    written = (bundle / MANIFEST).read_bytes()
    for key in {*part(bundle, kind)} - {"format", "digest", *OPTIONAL}:
        edit(bundle, PARTS[kind] + key, GONE)
        with pytest.raises(BundleError, match=rf"missing keys \['{key}'\] in {kind}"):
            Ranker.load(bundle)
        (bundle / MANIFEST).write_bytes(written)
    edit(bundle, PARTS[kind] + "extra", 1)
    with pytest.raises(BundleError, match=rf"unknown keys \['extra'\] in {kind}"):
        Ranker.load(bundle)


def test_a_bundle_without_a_default_for_seen_items_includes_them(bundle: Path) -> None:
    edit(bundle, "exclude_seen", GONE)
    assert Manifest.read(bundle, check_digests=False).exclude_seen is False


def test_a_bundle_without_kinds_asks_for_the_next_event(bundle: Path) -> None:
    for key in ("kinds", "target"):
        edit(bundle, key, GONE)
    manifest = Manifest.read(bundle, check_digests=False)
    assert (manifest.kinds, manifest.target, manifest.objective.tolist()) == ([], "", [1])


@pytest.mark.parametrize("kinds", [["view"], ["view", "view"], [""]])
def test_kinds_that_no_graph_takes_are_refused(kinds: list[str], bundle: Path) -> None:
    edit(bundle, "kinds", kinds)
    with pytest.raises(BundleError, match="kinds"):
        Ranker.load(bundle, check_digests=False)


@pytest.mark.parametrize("kind", PARTS)
def test_no_value_of_another_type_is_taken(bundle: Path, kind: str) -> None:
    written = (bundle / MANIFEST).read_bytes()
    anything = {"training", "data", "quality", "parity", "gate", "versions", "programs", "files"}
    anything |= {"figures"}
    for key, before in part(bundle, kind).items():
        for value in (None, True, "text", -1, 0.5, 10**30, [], [1], [[]], {}, {"a": 1}):
            if (
                (isinstance(value, dict) and key in anything)
                or value is before
                or value == before == []
                or (key == "bias" and isinstance(value, float))
            ):
                continue  # what is said for people may be anything
            edit(bundle, PARTS[kind] + key, value)
            with pytest.raises(BundleError, match=r"does not follow|no format|bundle format|SHA"):
                Ranker.load(bundle)
            (bundle / MANIFEST).write_bytes(written)


WRONG: list[tuple[str, Any, str]] = [
    ("items", "60", "Manifest.items is '60'"),
    ("items", 60.0, "Manifest.items is 60.0"),
    ("items", True, "Manifest.items is True"),
    ("items", 0, "items is 0"),
    ("items", 59, "the item table has 61 rows for 59 items"),
    ("items", 1, "the item table has 61 rows for 1 items"),
    ("items", 2**62, "the item table has 61 rows"),
    ("items", 2**62 + 1, "items is 4611686018427387905"),
    ("max_length", 2**24, "max_length is 16777216"),
    ("width", 2**24, "width is 16777216"),
    ("max_length", 0, "max_length is 0"),
    ("width", 0, "width is 0"),
    ("width", 8, "the item table is 16 wide, users 8"),
    ("id_type", "uuid", "id_type is 'uuid'"),
    ("id_type", "int64", r"no entry for \['items.i64'\]"),
    ("precision", "int2", "precision is 'int2'"),
    ("precision", "fp32", r"precision fp32, rounding Rounding\(row_error="),
    ("rounding", None, "precision int8, rounding None"),
    ("rounding.row_error", "0", "Rounding.row_error is '0'"),
    ("pool.minimum", 0, r"pool Pool\(factor=2, minimum=0\)"),
    ("pool.factor", -2, r"pool Pool\(factor=-2, "),
    ("programs", [], r"Manifest.programs is \[\]"),
    ("programs.score.least_users", 0, "score is for 0 users and more"),
    ("programs.score.least_users", 2**40, "score is for 1099511627776 users and more"),
    ("programs.append.lengths", [1, 12], r"append is for histories of \[1, 12\] events"),
    ("programs.encode_rows.lengths", [2**40, 12], "encode_rows is for histories of"),
    ("programs.encode.inputs.0.type", "tensor(float)", "encode takes Tensor.name='history'"),
    ("programs.encode.outputs.0.shape", ["b", "e"], "encode gives Tensor.name='key_0'"),
    ("programs.append.inputs.2.name", "key_1", r"append keeps \['value_0', 'events'\]"),
    ("programs.append.outputs.0.name", "new", r"append keeps \['value_0', 'events'\]"),
    ("programs.append.inputs.2.shape", ["b", 2**40, 16], "append keeps .*1099511627776"),
    ("programs.model.outputs", [], "model gives None instead of Tensor.name='items'"),
    ("programs.item.outputs.0.shape", ["b", 17], "item gives Tensor.name='row'"),
    ("rounding.row_error", -1.0, r"rounding Rounding\(row_error=-1.0"),
    ("new_items.bias", 2000.0, "new items have a bias of 2000.0"),
    ("attributes.0.arrays.codes.type", "<f4", "'codes' of 'maker' holds <f4"),
    ("attributes.0.arrays.codes.offset", -4, "'codes' of 'maker' lies outside attributes.bin"),
    ("attributes.0.arrays.codes.offset", 2**40, "'codes' of 'maker' lies outside attributes.bin"),
    ("attributes.0.arrays.codes.count", 2**40, "'codes' of 'maker' lies outside attributes.bin"),
    ("attributes.0.arrays.codes", GONE, r"attribute 'maker' without \['codes'\]"),
    ("new_items", None, "new items None, programs"),
    (
        "index",
        {"clusters": 6, "size": 10, "probes": 1, "figures": {"share": 0.5}},
        r"index Index\(clusters=6, .* programs",
    ),
    ("data.reading", [], "'list' object has no attribute"),
    ("data.reading", {"time_unit": "weeks"}, r"times in \['weeks'\]"),
    ("data.seen", {"answers": 1}, "no 'repeats'|no 'exclude_seen'"),
    ("gate", {"questions": "many"}, "Cannot specify"),
    ("new_items.figures", {"cold": {}}, "no 'all_NDCG@10'"),
    ("programs.other", None, "Program is None"),
    ("programs.score.file", "model.onnx", "program score lies in 'model.onnx'"),
    ("programs.score.file", "../score.onnx", "program score lies in"),
    ("programs.encode.lengths", [2, 12], "histories of up to 12"),
    ("programs.encode.lengths", [1, 11], "histories of up to 12"),
    ("programs.encode.lengths", [], "histories of up to 12"),
    ("programs.encode.lengths", [1, 11, 12], "histories of up to 12"),
    ("programs.encode.lengths", "12", "Program.lengths is '12'"),
    ("programs.score.inputs.0.shape", 1, "Tensor.shape is 1"),
    ("programs.score.inputs", [], "score takes None instead of Tensor.name='user'"),
    ("programs.score.inputs.1.shape", [], "score takes Tensor.name='bias'.* instead of"),
    ("programs.score.inputs.1.shape", [64], "score takes Tensor.name='bias'.* instead of"),
    ("programs.score.inputs.1.shape", ["b", "rows"], "score takes Tensor.name='bias'.* instead of"),
    ("programs.score.inputs.1.shape", ["b", 60], "score takes Tensor.name='bias'.* instead of"),
    ("programs.append.inputs.2.shape", ["b", "rows", 16], "axis 1 of 'key_0' is 'rows'"),
    ("programs.encode_rows.outputs.3.shape", ["b", "h", "t"], "axis 1 of 'attention' is 'h'"),
    (
        "programs.encode_rows.outputs.3.shape",
        ["b", 0, "t"],
        "encode_rows gives Tensor.name='attention'",
    ),
    ("programs.append.inputs.2.shape", [12], "axis 1 of 'key_0' is None"),
    ("programs.append.inputs.2.shape", ["b", 12, 8], "append takes Tensor.name='key_0'"),
    ("table", None, "Table is None"),
    ("table.offset", -4, "the item table has 61 rows|outside"),
    ("table.offset", 10**9, "the item table lies outside its file"),
    ("table.file", "popularity.f32", "the item table lies outside its file"),
    ("table.file", "../model.onnx", "the item table lies outside its file"),
    ("table.type", "<f2", "the item table holds '<f2' for int8"),
    ("table.type", ">f4", "Table.type is '>f4'"),
    ("table.rows", 60, "the item table has 60 rows for 60 items"),
    ("table.columns", -16, "the item table is -16 wide"),
    ("table.columns", 2**63, "the item table lies outside its file"),
    ("training", [], r"Manifest.training is \[\]"),
    ("files", {}, r"no entry for \['append.onnx', 'attributes.bin'"),
    ("files.model|onnx", None, "File is None"),
    *((f"programs.{name}", GONE, rf"no program \['{name}'\]") for name in NEEDED),
    *((f"files.{name.replace('.', '|')}", GONE, rf"no entry for \['{name}'\]") for name in LISTED),
    *(
        (f"files.{name}", FILE, "unknown files")
        for name in ("../x", "/etc/passwd", "", "C:x", "x\0")
    ),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_a_wrong_value_is_named(bundle: Path, path: str, value: Any, message: str) -> None:
    edit(bundle, path.replace("../", "||/"), value)
    with pytest.raises(BundleError, match=f"does not follow the bundle format: .*{message}"):
        Ranker.load(bundle, check_digests=False)


def test_an_unknown_program_is_named(bundle: Path) -> None:
    edit(bundle, "programs.else", json.loads((bundle / MANIFEST).read_bytes())["programs"]["score"])
    with pytest.raises(BundleError, match=r"unknown programs \['else'\]"):
        Ranker.load(bundle)


def test_a_table_may_end_with_its_file_and_not_later(bundle: Path) -> None:
    last = (bundle / "weights.bin").stat().st_size - 61 * 16 * 4
    edit(bundle, "table.offset", last)
    assert Manifest.read(bundle, check_digests=False).table.offset == last
    edit(bundle, "table.offset", last + 1)
    with pytest.raises(BundleError, match="the item table lies outside its file"):
        Manifest.read(bundle, check_digests=False)


def test_an_array_may_end_with_its_file_and_not_later(bundle: Path) -> None:
    array = Manifest.read(bundle).attributes[0].arrays["codes"]
    last = (bundle / "attributes.bin").stat().st_size - array.bytes
    edit(bundle, "attributes.0.arrays.codes.offset", last)
    assert Manifest.read(bundle, check_digests=False).attributes[0].arrays["codes"].offset == last
    edit(bundle, "attributes.0.arrays.codes.offset", last + 1)
    with pytest.raises(BundleError, match=r"'codes' of 'maker' lies outside attributes.bin"):
        Manifest.read(bundle, check_digests=False)


@pytest.mark.parametrize(
    ("path", "value"),
    [("pool.minimum", 10), ("quality.ndcg", 1.0), ("digest", GONE), ("table.offset", 64)],
)
def test_a_changed_manifest_is_refused(bundle: Path, path: str, value: Any) -> None:
    edit(bundle, path, value)
    with pytest.raises(BundleError, match=r"manifest.json is not what was written \(SHA-256\)"):
        Ranker.load(bundle)


def test_a_manifest_of_another_layout_is_read(bundle: Path) -> None:
    expected = Manifest.read(bundle)
    document = json.loads((bundle / MANIFEST).read_bytes())
    (bundle / MANIFEST).write_text(json.dumps(dict(reversed(document.items()))))
    assert Manifest.read(bundle) == expected


def test_a_manifest_reads_as_it_was_written(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    model = vars(manifest.programs["model"])
    inputs = [replace(model["inputs"][0], shape=["\u00e9", "x"]), model["inputs"][1]]
    values: dict[str, Any] = {
        "table": Table("weights.bin", 4, 61, 16),
        "quality": {"ndcg@10": 0.1 + 0.2, "\u00e9": [None, -0.0, 1e-300]},
        "programs": {
            **manifest.programs,
            "model": Program(**{**model, "inputs": inputs}),
        },
    }
    manifest = Manifest(**{**vars(manifest), **values})
    manifest.write(bundle)
    assert Manifest.read(bundle) == manifest


def test_a_manifest_lists_size_and_digest(bundle: Path) -> None:
    (bundle / "README.md").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    edit(bundle, "files.README|md", {"size": 3, "sha256": digest})
    found = Manifest.read(bundle, check_digests=False).files["README.md"]
    assert found == File(3, digest)
