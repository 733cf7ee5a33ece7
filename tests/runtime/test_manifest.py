"""A bundle is exactly what was written, or it is refused before onnxruntime sees it."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ranklet import BundleError, Manifest, Ranker
from ranklet.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, File, Table, Tensor
from ranklet.engine import programs

FILES = [
    "README.md",
    "append.onnx",
    "encode.onnx",
    "golden.json",
    "items.ends.i64",
    "items.utf8",
    "model.onnx",
    "popularity.f32",
    "score.onnx",
    "score_many.onnx",
    "titles.ends.i64",
    "titles.utf8",
    "weights.bin",
]


@pytest.fixture(autouse=True)
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test of this file reach onnxruntime."""

    def reach(*arguments: object) -> None:
        raise AssertionError("onnxruntime was given a bundle that should have been refused")

    monkeypatch.setattr(programs, "create_session", reach)


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as a text editor would."""
    document = json.loads((bundle / MANIFEST).read_bytes())
    change(document)
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
    for path in (tmp_path / "nowhere", tmp_path, bundle, bundle / "model.onnx"):
        with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
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
    "format NaN": (b'{"format": NaN}', "it has no format number"),
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


@pytest.mark.parametrize(
    ("number", "todo"),
    [
        (True, "export the run again"),
        (-1, "export the run again"),
        (5, "export the run again"),
        (7, "upgrade ranklet"),
        (10**6, "upgrade ranklet"),
    ],
)
def test_another_format_says_what_to_do(bundle: Path, number: int, todo: str) -> None:
    edit(bundle, lambda document: document.update(format=number, new_key=1))
    message = f"bundle format {number} and this version reads 6: {todo}$"
    with pytest.raises(BundleError, match=message):
        Ranker.load(bundle)


PARTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "Manifest": lambda document: document,
    "Table": lambda document: document["table"],
    "Pool": lambda document: document["pool"],
    "Rounding": lambda document: document["rounding"],
    "Program": lambda document: document["programs"]["score"],
    "Tensor": lambda document: document["programs"]["encode"]["inputs"][0],
    "File": lambda document: document["files"]["model.onnx"],
}


@pytest.mark.parametrize("kind", PARTS)
def test_an_unknown_key_is_named(bundle: Path, kind: str) -> None:
    edit(bundle, lambda document: PARTS[kind](document).update(extra=1))
    with pytest.raises(BundleError, match=rf"unknown keys \['extra'\] in {kind}"):
        Ranker.load(bundle)


@pytest.mark.parametrize("kind", PARTS)
def test_a_missing_key_is_named(bundle: Path, kind: str) -> None:
    document = json.loads((bundle / MANIFEST).read_bytes())
    for key in set(PARTS[kind](document)) - {"digest", "format"}:
        changed = json.loads((bundle / MANIFEST).read_bytes())
        del PARTS[kind](changed)[key]
        (bundle / "changed").mkdir(exist_ok=True)
        (bundle / "changed" / MANIFEST).write_text(json.dumps(changed))
        with pytest.raises(BundleError, match=rf"missing keys \['{key}'\] in {kind}"):
            Ranker.load(bundle / "changed")


@pytest.mark.parametrize("kind", PARTS)
def test_no_value_of_another_type_is_taken(bundle: Path, kind: str) -> None:
    written = (bundle / MANIFEST).read_bytes()
    for key in set(PARTS[kind](json.loads(written))) - {"digest"}:
        for value in (None, True, "text", -1, 0.5, 10**30, [], [1], [[]], {}, {"a": 1}):
            document = json.loads(written)
            before = PARTS[kind](document)[key]
            if before == value or (type(value) is dict and type(before) is dict):
                continue  # what is said for people may be anything
            PARTS[kind](document)[key] = value
            (bundle / MANIFEST).write_text(json.dumps(document))
            with pytest.raises(BundleError, match=r"does not follow|no format|bundle format|SHA"):
                Ranker.load(bundle)


def part(*path: str | int, **values: Any) -> Callable[[dict[str, Any]], None]:
    """Return an edit of a part of the manifest."""

    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for step in path:
            place = place[step]
        place.update(values)

    return change


BIAS = {"name": "bias", "type": "tensor(float)"}
WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "items as text": (part(items="60"), "Manifest.items is '60'"),
    "items as float": (part(items=60.0), "Manifest.items is 60.0"),
    "items true": (part(items=True), "Manifest.items is True"),
    "no items": (part(items=0), "items is 0"),
    "one item less": (part(items=59), "the item table has 61 rows for 59 items"),
    "very many items": (part(items=2**62), "score has 64 rows for"),
    "no events": (part(max_length=0), "max_length is 0"),
    "no width": (part(width=0), "width is 0"),
    "another width": (part(width=8), "the item table is 16 wide, users 8"),
    "unknown type of ids": (part(id_type="uuid"), "id_type is 'uuid'"),
    "other ids": (part(id_type="int64"), r"no entry for \['items.i64'\]"),
    "unknown precision": (part(precision="int2"), "precision is 'int2'"),
    "rounding of fp32": (part(precision="fp32"), r"precision fp32, rounding Rounding\(row_error="),
    "int8 without rounding": (part(rounding=None), "precision int8, rounding None"),
    "rounding as text": (part("rounding", row_error="0"), "Rounding.row_error is '0'"),
    "no pool": (part("pool", minimum=0), r"pool Pool\(factor=2, minimum=0\)"),
    "a negative pool": (part("pool", factor=-2), r"pool Pool\(factor=-2, "),
    "programs as list": (part(programs=[]), r"Manifest.programs is \[\]"),
    "unknown program": (part("programs", other=None), "Program is None"),
    "another file": (
        part("programs", "score", file="model.onnx"),
        "program score lies in 'model.onnx'",
    ),
    "a path": (part("programs", "score", file="../score.onnx"), "program score lies in"),
    "a gap of lengths": (part("programs", "encode", lengths=[2, 12]), "histories of up to 12"),
    "too short": (
        part("programs", "encode", lengths=[1, 11]),
        "histories of up to 12 events, enco",
    ),
    "no lengths": (part("programs", "encode", lengths=[]), "histories of up to 12 events"),
    "three lengths": (part("programs", "encode", lengths=[1, 11, 12]), "histories of up to 12"),
    "lengths as text": (part("programs", "encode", lengths="12"), "Program.lengths is '12'"),
    "shape as number": (
        part("programs", "score", "inputs", 0, shape=1),
        "Tensor.shape is 1",
    ),
    "no bias": (part("programs", "score", inputs=[]), "score has 0 rows for 60 items"),
    "a bias of no axis": (
        part("programs", "score", inputs=[{**BIAS, "shape": []}]),
        "score has 0 rows for 60 items",
    ),
    "a bias of one axis": (
        part("programs", "score", inputs=[{**BIAS, "shape": [64]}]),
        "score has 0 rows for 60 items",
    ),
    "a bias of any length": (
        part("programs", "score", inputs=[{**BIAS, "shape": ["batch", "rows"]}]),
        "score has rows rows for 60 items",
    ),
    "a bias too short": (
        part("programs", "score", inputs=[{**BIAS, "shape": ["batch", 60]}]),
        "score has 60 rows for 60 items",
    ),
    "a state of any length": (
        part("programs", "append", "inputs", 2, shape=["batch", "rows", 16]),
        r"append keeps key_0 as \['batch', 'rows', 16\]",
    ),
    "a state of one axis": (
        part("programs", "append", "inputs", 2, shape=[12]),
        r"append keeps key_0 as \[12\]",
    ),
    "a state of another width": (
        part("programs", "append", "inputs", 2, shape=["batch", 12, 8]),
        r"append keeps key_0 as \['batch', 12, 8\]",
    ),
    "no table": (part(table=None), "Table is None"),
    "negative offset": (part("table", offset=-4), "the item table has 61 rows|outside"),
    "offset past the end": (part("table", offset=10**9), "the item table lies outside its file"),
    "another file of the table": (part("table", file="popularity.f32"), "lies outside its file"),
    "a path of the table": (part("table", file="../model.onnx"), "lies outside its file"),
    "half precision": (part("table", type="<f2"), "the item table holds '<f2' for int8"),
    "foreign bytes": (part("table", type=">f4"), "Table.type is '>f4'"),
    "rows": (part("table", rows=60), "the item table has 60 rows for 60 items"),
    "negative columns": (part("table", columns=-16), "the item table is -16 wide"),
    "product overflows": (part("table", columns=2**63), "the item table lies outside its file"),
    "training as list": (part(training=[]), r"Manifest.training is \[\]"),
    "no files": (part(files={}), r"no entry for \['append.onnx', 'encode.onnx'"),
    "file null": (part("files", **{"model.onnx": None}), "File is None"),
    "size as text": (part("files", "model.onnx", size="1"), "File.size is '1'"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_named(
    bundle: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=f"does not follow the bundle format: .*{message}"):
        Ranker.load(bundle, check_digests=False)


@pytest.mark.parametrize("name", ["encode", "append", "score", "model"])
def test_a_program_that_is_missing_is_named(bundle: Path, name: str) -> None:
    edit(bundle, lambda document: document["programs"].pop(name))
    with pytest.raises(BundleError, match=rf"no program \['{name}'\]"):
        Ranker.load(bundle)


def test_an_unknown_program_is_named(bundle: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["programs"]["item"] = document["programs"]["score"]

    edit(bundle, change)
    with pytest.raises(BundleError, match=r"unknown programs \['item'\]"):
        Ranker.load(bundle)


def test_a_table_may_end_with_its_file_and_not_later(bundle: Path) -> None:
    last = (bundle / "weights.bin").stat().st_size - 61 * 16 * 4
    edit(bundle, part("table", offset=last))
    assert Manifest.read(bundle, check_digests=False).table.offset == last
    edit(bundle, part("table", offset=last + 1))
    with pytest.raises(BundleError, match="the item table lies outside its file"):
        Manifest.read(bundle, check_digests=False)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "..", ".", "", "C:x", "a\\b", "MODEL.ONNX", "x\0"]
)
def test_a_file_of_another_name_is_refused(bundle: Path, name: str) -> None:
    edit(bundle, part("files", **{name: {"size": 1, "sha256": ""}}))
    with pytest.raises(BundleError, match="unknown files"):
        Ranker.load(bundle)


@pytest.mark.parametrize("name", sorted({*FILES} - {"README.md", "titles.utf8"}))
def test_a_file_without_an_entry_is_named(bundle: Path, name: str) -> None:
    edit(bundle, lambda document: document["files"].pop(name))
    with pytest.raises(BundleError, match=rf"no entry for \['{name}'\]"):
        Ranker.load(bundle)


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "max_length": part(max_length=10),
    "quality": part("quality", ndcg=1.0),
    "no digest": lambda document: document.pop("digest"),
    "table": part("table", offset=64),
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
    manifest = Manifest.read(bundle)
    model = vars(manifest.programs["model"])
    inputs = [Tensor("x", "tensor(float)", ["\u00e9", 3]), Tensor("k", "tensor(int64)", [])]
    values: dict[str, Any] = {
        "table": Table("weights.bin", 4, 61, 16),
        "quality": {"ndcg@10": 0.1 + 0.2, "\u00e9": [None, -0.0, 1e-300]},
        "programs": {
            **manifest.programs,
            "model": type(model)(**{**vars(model), "inputs": inputs}),
        },
    }
    manifest = Manifest(**{**vars(manifest), **values})
    manifest.write(bundle)
    assert Manifest.read(bundle) == manifest


def test_a_manifest_lists_size_and_digest(bundle: Path) -> None:
    (bundle / "README.md").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    edit(bundle, part("files", **{"README.md": {"size": 3, "sha256": digest}}))
    found = Manifest.read(bundle, check_digests=False).files["README.md"]
    assert found == File(3, digest)
