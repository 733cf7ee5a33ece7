"""The arrays of a bundle, and a folder that is replaced while it is open."""

import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ranklet import BundleError, InputError, Manifest, Ranker, serving
from ranklet.bundle import folder as folder_module
from ranklet.bundle import manifest
from ranklet.bundle.folder import (
    describe_files,
    map_table,
    read_popularity,
    read_titles,
    read_trending,
    read_vocabulary,
    write_catalogue,
)
from ranklet.bundle.manifest import MAX_MANIFEST_BYTES, WEIGHTS, Program, Tensor
from ranklet.bundle.vocabulary import Texts, Vocabulary
from ranklet.engine import programs
from ranklet.engine.engine import History
from ranklet.files.atomic import atomic_folder
from ranklet.user import User
from ranklet.verify import verify
from ranklet_export.export import Settings

# Arrays


@pytest.mark.parametrize(
    "vocabulary",
    [Vocabulary(["", "a", "\u00e9\0", "\U0001f600"]), Vocabulary(np.array([-(2**63), 0, 7, 9]))],
    ids=["texts", "numbers"],
)
def test_a_catalogue_reads_as_it_was_written(
    tmp_path: Path, tiny_ranker: Ranker, vocabulary: Vocabulary
) -> None:
    shares = np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32)
    write_catalogue(tmp_path, vocabulary, ["A", "", "\u00e9", "\n"], shares, shares[::-1])
    values = {**vars(tiny_ranker.manifest), "items": 4, "id_type": vocabulary.id_type}
    values["files"] = describe_files(tmp_path)
    manifest = Manifest(**values)
    assert list(read_vocabulary(tmp_path, manifest).all_ids) == list(vocabulary.all_ids)
    assert read_titles(tmp_path, manifest) == ["A", "", "\u00e9", "\n"]
    assert read_popularity(tmp_path, manifest).tolist() == shares.tolist()
    trending = read_trending(tmp_path, manifest)
    assert trending is not None
    assert trending.tolist() == shares[::-1].tolist()
    (tmp_path / "trending.f32").unlink()
    assert read_trending(tmp_path, replace(manifest, files=describe_files(tmp_path))) is None


def test_the_arrays_of_a_bundle_are_read_in_four_lines_of_any_language(
    tiny_bundle: Path, number_bundle: Path, ids: list[str]
) -> None:
    ends = np.fromfile(tiny_bundle / "items.ends.i64", "<i8").tolist()
    blob = (tiny_bundle / "items.utf8").read_bytes()
    assert [blob[a:b].decode() for a, b in zip([0, *ends], ends, strict=False)] == ids
    numbers = np.fromfile(number_bundle / "items.i64", "<i8")
    assert numbers.tolist() == list(range(-30, 150, 3))


def test_a_bundle_may_lack_titles(bundle: Path, sign: Any, ids: list[str]) -> None:
    manifest = Manifest.read(bundle)
    (bundle / "titles.utf8").unlink()
    (bundle / "titles.ends.i64").unlink()
    sign(bundle, manifest)
    ranker = Ranker.load(bundle, provider="cpu")
    assert (ranker.titles(ids[:2]), ranker.find("i")) == (ids[:2], [])


def test_the_table_is_mapped_row_by_row(tiny_bundle: Path, exported: Any) -> None:
    made = exported(Settings(precision="int8"))
    table = map_table(tiny_bundle / WEIGHTS, Manifest.read(tiny_bundle).table)
    assert table.shape == (61, 16)
    rows = made.model.table().detach().numpy()
    # A score is the product of a row and a user of length 1.
    lengths = np.linalg.norm(table[1:], axis=1) / np.linalg.norm(rows[1:], axis=1)
    assert np.abs(lengths - 4).max() < 1e-5
    assert not table[0].any()


ENDS = np.arange(1, 61, dtype="<i8") * 6
WRONG_ENDS = {
    "fewer": (ENDS[:-1].tobytes(), "holds 59 numbers for 60 items"),
    "half a number": (ENDS.tobytes() + b"\0", "is damaged"),
    "nothing": (b"", "holds 0 numbers for 60 items"),
    "int32": (ENDS.astype("<i4").tobytes(), "holds 30 numbers for 60 items"),
    "big-endian": (ENDS.astype(">i8").tobytes(), "do not fit together"),
    "past the end": ((ENDS + 1).tobytes(), "do not fit together"),
    "short of the end": ((ENDS - 1).tobytes(), "do not fit together"),
    "falling": (ENDS[::-1].tobytes(), "do not fit together"),
    "negative": (np.r_[-3, ENDS[1:]].tobytes(), "do not fit together"),
    "NumPy's own format": (b"\x93NUMPY\x01\x00" + ENDS.tobytes(), "holds 61 numbers"),
}


@pytest.mark.parametrize(("data", "message"), WRONG_ENDS.values(), ids=WRONG_ENDS)
def test_wrong_ends_are_refused(
    bundle: Path, sign: Any, data: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.read(bundle)
    (bundle / "items.ends.i64").write_bytes(data)
    sign(bundle, manifest)
    for most in (60, 0):  # in memory, and mapped
        monkeypatch.setattr(folder_module, "TEXTS_SEARCHED", most)
        with pytest.raises(BundleError, match=message):
            Ranker.load(bundle)


WRONG_FILES = {
    "no text": ("items.utf8", b"\xff" * 360, r"items\.utf8 is not UTF-8"),
    "not sorted": ("items.i64", np.arange(60, 0, -1).tobytes(), r"items\.i64 is not sorted"),
    "twice": ("items.i64", np.full(60, 7).tobytes(), r"items\.i64 is not sorted"),
    "NaN": ("popularity.f32", np.full(60, np.nan, "<f4").tobytes(), "holds NaN or infinity"),
    "infinity": ("popularity.f32", np.full(60, np.inf, "<f4").tobytes(), "holds NaN or infinity"),
    "fewer": ("popularity.f32", bytes(4 * 59), "holds 59 numbers for 60 items"),
    "a pickle": ("popularity.f32", pickle.dumps([0.5] * 60), "is damaged|holds"),
    "no graph": ("score.onnx", b"a graph", r"score\.onnx is no graph of a bundle"),
    "zeros": ("append.onnx", bytes(1000), r"append\.onnx is no graph of a bundle"),
    "falling texts": ("items.utf8", b"i00002" * 30 + b"i00001" * 30, r"items\.utf8 is not sorted"),
    "half a number": ("silent.i64", bytes([1, *bytes(8)]), "holds no item indices"),
}


@pytest.mark.parametrize(("name", "data", "message"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_file_is_refused_whatever_its_digest(
    tiny_bundle: Path,
    number_bundle: Path,
    tmp_path: Path,
    sign: Any,
    name: str,
    data: bytes,
    message: str,
) -> None:
    source = number_bundle if name == "items.i64" else tiny_bundle
    bundle = Path(shutil.copytree(source, tmp_path / "copy"))
    manifest = Manifest.read(bundle)
    (bundle / name).write_bytes(data)
    sign(bundle, manifest)

    def use() -> None:
        ranker = Ranker.load(bundle, provider="cpu")
        LATE.get(name, Ranker.titles)(ranker, ["i00000"] * 9)

    with pytest.raises(BundleError, match=message):
        use()


# Contracts


@pytest.mark.parametrize("part", ["inputs", "outputs"])
@pytest.mark.parametrize(
    "name", ["encode", "encode_rows", "append", "score", "score_many", "model"]
)
def test_a_program_of_another_contract_than_the_manifest_says_is_refused(
    bundle: Path, sign: Any, name: str, part: str
) -> None:
    manifest = Manifest.read(bundle)
    program = manifest.programs[name]
    for change in ({"name": "x"}, {"type": "tensor(int32)"}, {"shape": ["batch", 3, 4, 5]}):
        first, *others = getattr(program, part)
        tensors = [Tensor(**{**vars(first), **change}), *others]
        changed = Program(**{**vars(program), part: tensors})
        sign(bundle, manifest, programs={**manifest.programs, name: changed})
        with pytest.raises(BundleError, match=rf"{name}\.onnx has another contract|does not foll"):
            Ranker.load(bundle, provider="cpu").engine.programs.session(name)


def test_a_bundle_of_an_earlier_version_ranks_and_says_what_it_lacks(
    bundle: Path, sign: Any, ids: list[str]
) -> None:
    manifest = Manifest.read(bundle)
    (bundle / "encode_rows.onnx").unlink()
    programs = {name: one for name, one in manifest.programs.items() if name != "encode_rows"}
    sign(bundle, manifest, programs=programs)
    ranker = Ranker.load(bundle, provider="cpu")
    assert len(ranker.rank(ids[:2]).items) == 10
    with pytest.raises(BundleError, match=r"has no encode_rows\.onnx: export its run again"):
        ranker.engine.attention(History(np.array([1, 2])))


# Golden answers


def test_a_bundle_is_verified(tiny_bundle: Path) -> None:
    report = verify(tiny_bundle, provider="cpu")
    assert (report.items, report.files, report.provider) == (
        60,
        len([*tiny_bundle.iterdir()]) - 1,
        "cpu",
    )
    assert report.golden > 0
    assert report.max_score_difference < 1e-4


WRONG_GOLDEN = {
    "blanks": (b" " * MAX_MANIFEST_BYTES + b"[]", "it is larger than 1,048,576 bytes"),
    "a number beyond floats": (
        b'[{"history": ["i00001"], "items": ["i00001"], "scores": [1' + b"0" * 400 + b"]}]",
        "golden.json is damaged: OverflowError",
    ),
    "no UTF-8": (b'["\xff", "' + b"x" * 10_000, "golden.json is damaged: .{,200}$"),
    "no list": (b"7", "golden.json is damaged"),
    "nothing": (b"[]", "golden.json holds no answers"),
    "no JSON": (b"[", "golden.json is damaged"),
    "no history": (b'[{"items": ["i00001"], "scores": [1]}]', "golden.json is damaged"),
    "an empty history": (
        b'[{"history": [], "items": ["i00001"], "scores": [1]}]',
        "golden.json is damaged",
    ),
    "no items": (b'[{"history": ["i00001"], "items": [], "scores": []}]', "is damaged"),
    "other scores": (
        b'[{"history": ["i00001"], "items": ["i00001"], "scores": [99]}]',
        r"golden answer 0 .*differs on this machine: expected \['i00001'\], got",
    ),
}


@pytest.mark.parametrize(("data", "message"), WRONG_GOLDEN.values(), ids=WRONG_GOLDEN)
def test_golden_answers_that_can_not_be_are_refused(
    bundle: Path, sign: Any, data: bytes, message: str
) -> None:
    manifest = Manifest.read(bundle)
    (bundle / "golden.json").write_bytes(data)
    sign(bundle, manifest)
    with pytest.raises(BundleError, match=message):
        verify(bundle, provider="cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model", "golden answer 0 of model differs on this machine"),
        ("encode_rows", "golden answer 0 of encode_rows differs on this machine"),
        ("append", r"golden answer \d of a kept user differs on this machine"),
        ("encode", "golden answer 0 differs on this machine"),
        ("score_many", r"codes are off by .* for 8 user\(s\)"),
    ],
)
def test_golden_answers_are_asked_of_every_program(
    bundle: Path, sign: Any, name: str, message: str
) -> None:
    manifest = Manifest.read(bundle)
    graph = onnx.load(bundle / f"{name}.onnx", load_external_data=False)
    output = "pool_scores" if name == "score_many" else "scores" if name == "model" else "user"
    node = next(node for node in graph.graph.node if output in node.output)
    node.output[list(node.output).index(output)] = "before"
    factor = onnx.numpy_helper.from_array(np.array(1.5, dtype=np.float32), "factor")
    graph.graph.initializer.append(factor)
    graph.graph.node.append(onnx.helper.make_node("Mul", ["before", "factor"], [output]))
    (bundle / f"{name}.onnx").write_bytes(graph.SerializeToString())
    sign(bundle, manifest)
    with pytest.raises(BundleError, match=message):
        verify(bundle, provider="cpu")


@pytest.mark.parametrize("name", ["weights.bin", "titles.utf8"])
def test_a_large_file_is_hashed_while_the_engine_loads(
    bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "HASHED_FIRST", 0)
    monkeypatch.setattr(manifest, "HASHED_FIRST", 0)
    assert len(Ranker.load(bundle, provider="cpu")) == 60
    change_last_byte(bundle / name)
    with pytest.raises(BundleError, match=rf"{name} is not what the manifest says"):
        Ranker.load(bundle, provider="cpu")
    assert len(Ranker.load(bundle, provider="cpu", check_digests=False)) == 60


# A folder that is replaced while it is open

REPLACED = "was replaced or removed since the bundle was opened: load it again"
Late = Callable[[Ranker, list[str]], object]
# What reads a file that loading did not.
LATE: dict[str, Late] = {
    "score.onnx": lambda ranker, ids: ranker.rank(ids[:2]),
    "score_many.onnx": lambda ranker, ids: ranker.rank_batch([ids[:2]] * 8),
    "encode_rows.onnx": lambda ranker, _: ranker.engine.attention(History(np.array([1, 2]))),
    "append.onnx": lambda ranker, ids: rank_twice(ranker.user(ids[:2]), ids),
    "model.onnx": lambda ranker, _: ranker.engine.programs.session("model"),
    "popularity.f32": lambda ranker, _: ranker.rank([]),
    "titles.utf8": lambda ranker, ids: ranker.titles(ids),
}


def rank_twice(user: User, ids: list[str]) -> None:
    user.rank(candidates=ids[:5])
    user.append(ids[5])
    user.rank(candidates=ids[:5])


def change_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
def test_a_bundle_that_was_replaced_is_not_mixed_with_the_old_one(
    bundle: Path, ids: list[str], late: Late
) -> None:
    ranker = Ranker.load(bundle, provider="cpu")
    before = ranker.rank(ids[:2], candidates=ids)
    with atomic_folder(bundle) as folder:  # as ``export --replace``
        shutil.copytree(bundle, folder, dirs_exist_ok=True)
        for name in LATE:
            change_last_byte(folder / name)
    with pytest.raises(BundleError, match=REPLACED):
        late(ranker, ids)
    assert ranker.rank(ids[:2], candidates=ids).items == before.items


@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
def test_a_bundle_that_was_copied_anew_goes_on(bundle: Path, ids: list[str], late: Late) -> None:
    ranker = Ranker.load(bundle, provider="cpu")
    with atomic_folder(bundle) as folder:
        shutil.copytree(bundle, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    (bundle / "README.md").write_text("Ours.")
    late(ranker, ids)


def test_a_path_that_is_too_long_is_named() -> None:
    with pytest.raises(InputError, match=r"path is .x+\.\.\. .* which is too long for a path"):
        Ranker.load("x" * 5000)


def test_a_bundle_that_a_killed_process_had_moved_aside_loads(bundle: Path) -> None:
    bundle.rename(bundle.with_name(".bundle.0123abcd.old"))
    assert len(Ranker.load(bundle, provider="cpu")) == 60


def test_a_bundle_that_was_removed_is_named(bundle: Path, ids: list[str]) -> None:
    rankers = [Ranker.load(bundle, provider="cpu") for _ in LATE]
    shutil.rmtree(bundle)
    for ranker, late in zip(rankers, LATE.values(), strict=True):
        with pytest.raises(BundleError, match=REPLACED):
            late(ranker, ids)


def test_a_bundle_that_is_replaced_while_a_program_loads_is_refused(
    bundle: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker, load = Ranker.load(bundle, provider="cpu"), programs.create_session

    def replace_first(*arguments: object) -> object:
        change_last_byte(bundle / "weights.bin")
        return load(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(programs, "create_session", replace_first)
    with pytest.raises(BundleError, match=r"weights\.bin was replaced"):
        ranker.rank(ids[:2])


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (manifest, "_check_file"),
        (programs, "create_session"),
        (programs, "map_table"),
        (serving, "read_vocabulary"),
        (serving.Attributes, "read"),
    ],
)
def test_a_bundle_that_goes_away_while_it_loads_is_named(
    owner: Any, name: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(owner, name)

    def late(*arguments: Any, **options: Any) -> Any:
        if bundle.exists():
            bundle.rename(bundle.with_name("aside"))
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, late)
    with pytest.raises(BundleError, match=REPLACED):
        Ranker.load(bundle, provider="cpu")


def test_the_working_directory_may_change(
    bundle: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.parent)
    ranker = Ranker.load(bundle.name, provider="cpu")
    monkeypatch.chdir("/")
    for late in LATE.values():
        late(ranker, ids)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the weights stay mapped")
@pytest.mark.parametrize("damage", ["overwritten", "truncated"])
@pytest.mark.parametrize("searched", [False, True], ids=["texts", "searched texts"])
def test_a_bundle_that_is_overwritten_in_place_gives_the_old_answers(
    bundle: Path, ids: list[str], damage: str, searched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if searched:
        monkeypatch.setattr(folder_module, "TEXTS_SEARCHED", 0)
    ranker = Ranker.load(bundle, provider="cpu")

    def answers() -> list[object]:
        user = ranker.user(ids[:2])
        user.append(ids[3])
        users = ranker.rank_batch([ids[i : i + 3] for i in range(8)])
        every = [*users, ranker.rank([]), ranker.rank(ids[:2], candidates=ids[:9]), user.rank()]
        values = [value for ranking in every for value in (ranking.items, [*ranking.scores])]
        return [*values, ranker.titles(ids), ranker.similar(ids[0]).items]

    before = answers()
    for path in bundle.iterdir():
        size = path.stat().st_size if damage == "overwritten" else 0
        path.write_bytes(bytes([255]) * size)
    assert answers() == before


def test_a_link_may_point_to_another_bundle_from_now_on(
    bundle: Path, ids: list[str], tmp_path: Path
) -> None:
    link, other = tmp_path / "current", tmp_path / "other"
    shutil.copytree(bundle, other)
    link.symlink_to(bundle)
    ranker = Ranker.load(link, provider="cpu")
    link.unlink()
    link.symlink_to(other)
    assert len(ranker.rank_batch([ids[:2]] * 8)) == 8


# Texts that stay in their file


def test_a_large_catalogue_ranks_and_reads_as_a_small_one(
    tiny_bundle: Path, tiny_ranker: Ranker, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "TEXTS_SEARCHED", 0)
    mapped = Ranker.load(tiny_bundle, provider="cpu")
    assert isinstance(mapped.vocabulary.all_ids, Texts)
    for history in (ids[:5], [*ids[:3], "nowhere"], [], ids[::-1]):
        found, expected = mapped.rank(history, k=60), tiny_ranker.rank(history, k=60)
        assert found.items == expected.items
        assert (found.unknown, found.cold) == (expected.unknown, expected.cold)
    assert mapped.titles([*ids, "nowhere"]) == tiny_ranker.titles([*ids, "nowhere"])
    assert mapped.find("TITLE 7") == tiny_ranker.find("TITLE 7") == [ids[7]]
