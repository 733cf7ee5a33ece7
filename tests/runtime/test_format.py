"""Bundle format 6: its names, numbers and contracts spelled out, and what it says to people."""

import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    assert m.SIGNATURE == "model.sig"
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
    assert (m.LONGEST, m.WIDEST, m.MOST_USERS) == (65_536, 16_384, 1_024)
    assert (m.MOST_PLACES, m.MOST_NESTED, m.LONGEST_REASON) == (2**40, 32, 1_000)
    assert (m.MOST_PROBED, m.HASHED_FIRST) == (0.0625, 67_108_864)
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


# Contracts of graphs


def others(program: str, tensor: m.Tensor) -> Iterator[m.Tensor]:
    """Yield tensors that differ in one thing that a contract fixes."""
    yield replace(tensor, name=f"{tensor.name}s")
    yield replace(tensor, type="tensor(double)")
    yield replace(tensor, shape=[*tensor.shape, 1])
    yield replace(tensor, shape=tensor.shape[:-1])
    for axis, size in enumerate(tensor.shape):
        if (program, tensor.name, axis) != ("encode_rows", "attention", 1):  # any number of heads
            other = size + 1 if isinstance(size, int) else 7
            yield replace(tensor, shape=[*tensor.shape[:axis], other, *tensor.shape[axis + 1 :]])


def test_all_of_a_graph_is_fixed_but_the_names_of_dynamic_axes(any_model: Any) -> None:
    manifest = any_model.ranker.manifest
    passed = []
    for name, program in manifest.programs.items():
        for side in ("inputs", "outputs"):
            tensors = getattr(program, side)
            for place, tensor in enumerate(tensors):
                for other in others(name, tensor):
                    changed = replace(
                        program, **{side: [*tensors[:place], other, *tensors[place + 1 :]]}
                    )
                    wrong = replace(manifest, programs={**manifest.programs, name: changed})
                    with suppress(ValueError):
                        wrong._check_contracts()
                        passed.append((name, other))
            for swapped in (tensors[1:], [*tensors, tensors[0]], tensors[::-1]):
                if swapped != tensors:
                    changed = replace(program, **{side: swapped})
                    with suppress(ValueError):
                        wrong = replace(manifest, programs={**manifest.programs, name: changed})
                        wrong._check_contracts()
                        passed.append((name, swapped))
            renamed = [
                replace(x, shape=[f"{a}x" if isinstance(a, str) else a for a in x.shape])
                for x in tensors
            ]
            other = replace(program, **{side: renamed})
            replace(manifest, programs={**manifest.programs, name: other})._check_contracts()
    assert passed == []


def test_graphs_of_a_model_with_kinds_take_them_and_the_weights_of_each(
    manifest: m.Manifest,
) -> None:
    contracts = replace(manifest, kinds=["buy", "cart"]).contracts
    weights = m.Tensor("objective", "tensor(float)", ["batch", 3])
    for program in ("encode", "encode_long", "encode_rows", "model"):
        kinds = m.Tensor("kind", "tensor(int64)", ["batch", "length"])
        assert contracts[program][0][1:3] == [kinds, weights]
    kinds = m.Tensor("kind", "tensor(int64)", ["batch", 1])
    assert contracts["append"][0][2:4] == [kinds, weights]


def test_the_search_takes_one_user_and_the_number_of_clusters(manifest: m.Manifest) -> None:
    floats, integers = "tensor(float)", "tensor(int64)"
    assert manifest.contracts["search"] == (
        [
            m.Tensor("user", floats, [1, 16]),
            m.Tensor("bias", floats, ["biases", 64]),
            *(m.Tensor(name, integers, [1]) for name in ("k", "pool", "probes")),
        ],
        [
            m.Tensor("pool_scores", floats, [1, "pool"]),
            m.Tensor("items", integers, [1, "k"]),
            m.Tensor("scores", floats, [1, "k"]),
        ],
    )


def test_an_index_is_of_codes_of_8_bits_and_has_a_place_for_every_item(
    manifest: m.Manifest,
) -> None:
    programs = {**manifest.programs, "search": manifest.programs["score"]}

    def check(clusters: int, size: int, probes: int, precision: m.Precision = "int8") -> None:
        index = m.Index(clusters, size, probes, {})
        replace(manifest, programs=programs, precision=precision, index=index)._check_index()

    check(6, 10, 1)  # 60 items
    check(60, 1, 60)
    check(6, 10, 0)
    wrong: list[tuple[int, int, int]] = [(6, 9, 1), (61, 1, 1), (6, 10, 7), (6, 10, -1), (0, 10, 0)]
    for numbers in wrong:
        with pytest.raises(ValueError, match=r"index Index.* of 60 items in int8"):
            check(*numbers)
    with pytest.raises(ValueError, match="of 60 items in int4"):
        check(6, 10, 1, "int4")


def test_the_table_has_16_bits_in_fp16_alone(manifest: m.Manifest) -> None:
    half = replace(manifest, precision="fp16", table=replace(manifest.table, type="<f2"))
    half._check_table()
    for precision in ("int8", "fp32"):
        with pytest.raises(ValueError, match=f"the item table holds '<f2' for {precision}"):
            replace(half, precision=precision)._check_table()


# Numbers of a request


@pytest.fixture
def manifest(tiny_bundle: Path) -> m.Manifest:
    return m.Manifest.read(tiny_bundle)


def test_probes_grow_with_the_items_that_may_not_be_ranked_until_a_scan_is_better(
    manifest: m.Manifest,
) -> None:
    assert replace(manifest, index=None).probes(60, 10) == 0

    def probes(of_all: int, items: list[int]) -> list[int]:
        index = m.Index(clusters=800, size=16, probes=of_all, figures={})
        indexed = replace(manifest, items=3000, index=index)
        return [indexed.probes(left, 10) for left in items]

    assert probes(10, [3000, 2999, 1500, 600, 1, 0]) == [10, 11, 20, 50, 0, 0]
    assert probes(10, [599]) == [0]  # more than a sixteenth of the clusters
    assert probes(200, [3000, 2999, 1500, 1499, 1]) == [200, 201, 400, 0, 0]
    assert probes(800, [2999]) == [800]
    assert probes(0, [3000, 1]) == [0, 0]


def test_probes_grow_with_the_items_before_the_last_of_an_answer(manifest: m.Manifest) -> None:
    index = m.Index(clusters=1600, size=16, probes=10, figures={})
    probes = replace(manifest, items=3000, index=index).probes
    assert [probes(3000, depth) for depth in (1, 10, 11, 60, 100)] == [10, 10, 11, 60, 100]
    assert probes(1500, 40) == 80
    assert probes(3000, 101) == 0  # more than a sixteenth of the clusters


def test_the_objective_is_the_target_or_any_event(manifest: m.Manifest) -> None:
    for target, weights in {"cart": [0, 0, 1], "": [1, 0, 0], "gone": [1, 0, 0]}.items():
        found = replace(manifest, kinds=["buy", "cart"], target=target)
        assert found.objective.tolist() == weights
        assert found.objective.dtype == np.float32


def test_the_error_bound_of_codes_is_that_of_cauchy_and_schwarz() -> None:
    rounding = m.Rounding(row_error=0.5, row_norm=3.0)
    user = np.array([3, 4, 0, 0], dtype=np.float32)
    # |u| = 5; a component is off by half of 4 / 127, so |u - u'| is at most 2 * 2 / 127
    assert rounding.bound(user) == pytest.approx(5 * 0.5 + 4 / 127 * 3.0)


def test_a_pool_has_a_factor_and_a_minimum() -> None:
    assert [m.Pool(3, 100).size(k) for k in (1, 33, 34, 100)] == [100, 100, 102, 300]


# What a manifest says to people

SEEN = {
    "exclude_seen": True,
    "answers": 1234,
    "repeats": 0.125,
    "masked_NDCG@10": 0.5,
    "unmasked_NDCG@10": 0.25,
}
WHY_SEEN = (
    "of 1,234 validation answers 12.5% were repeats, and NDCG@10 was 0.5000 with seen items "
    "excluded, 0.2500 with them included"
)


@pytest.mark.parametrize(
    ("excludes", "seen", "text"),
    [
        (True, SEEN, f"seen items are excluded by default: {WHY_SEEN}"),
        (False, SEEN, f"seen items are included by default, as the export was told: {WHY_SEEN}"),
        (
            False,
            None,
            "seen items are included by default: nothing was held out that could tell what serves "
            "better",
        ),
    ],
)
def test_the_default_for_seen_items_is_said_with_its_reason(
    manifest: m.Manifest, excludes: bool, seen: dict[str, Any] | None, text: str
) -> None:
    assert replace(manifest, exclude_seen=excludes, data={"seen": seen}).seen_text == text


def test_the_price_of_a_precision_is_said(manifest: m.Manifest) -> None:
    gate = {"questions": 2000, "overlap": 0.991, "proven": 0.75}
    drawn = "int8 on 2,000 drawn histories: 99.10% of the best 10 of fp32, 75.00% of answers proven"
    assert replace(manifest, gate=gate).gate_text == drawn
    with_targets = {**gate, "fp32": {"NDCG@10": 0.1}, "drop": 0.0125}
    told = f"{drawn.replace('drawn', 'held-out')}, NDCG@10 lower by 1.25%"
    assert replace(manifest, gate=with_targets).gate_text == told
    assert replace(manifest, gate={}).gate_text == ""


def test_an_index_says_what_it_reads_and_finds(manifest: m.Manifest) -> None:
    text = "the index reads 20 of 1,000 clusters, 2.5% of the items"
    figures: dict[str, Any] = {"share": 1.0}

    def says(probes: int = 20) -> str:
        return replace(manifest, index=m.Index(1000, 16, probes, figures)).index_text

    assert replace(manifest, index=None).index_text == ""
    assert (
        says(probes=0)
        == "the index is not used: points of the bundle lift items (bias.f32), so all are read"
    )
    figures = {"share": 0.025}
    assert says() == f"{text}, which nobody measured: the weights are random"
    figures |= {"questions": 1500, "recall@10": 0.955}
    text += ", and finds 95.50% of the best 10 of a scan on 1,500"
    assert says() == f"{text} drawn histories"
    figures |= {"NDCG@10": 0.999, "HR@10": 1.001}
    text += " held-out histories"
    assert says() == f"{text}, with 99.90% of its NDCG@10 and 100.10% of its HR@10"


def test_new_items_are_said_to_be_ranked_as_was_measured(manifest: m.Manifest) -> None:
    figures = {
        "questions": 3000,
        "cold_questions": 250,
        "held_out_items": 1000,
        "best_bias": -0.5,
        "all_NDCG@10": {"not_shown": 0.1, "shown": 0.11},
        "warm_NDCG@10": {"not_shown": 0.12, "shown": 0.119},
        "cold": {"HR@50": 0.25},
    }
    why = (
        "of 3,000 answers 250 are among 1,000 held-out items, and with a bias of -0.5 NDCG@10 of "
        "all goes from 0.1000 to 0.1100, of the others from 0.1200 to 0.1190; HR@50 of held-out "
        "items 0.2500"
    )
    told = {
        (-0.25, True): "with a bias of -0.25 and count in histories",
        (m.BEHIND, False): "behind all others and do not count in histories",
    }
    for (bias, inside), text in told.items():
        new = m.NewItems(bias, inside, figures)
        expected = f"new items are ranked {text}: {why}"
        assert replace(manifest, new_items=new).new_items_text == expected
    unmeasured = replace(manifest, new_items=m.NewItems(m.BEHIND, False, {})).new_items_text
    assert unmeasured.endswith("behind all others, as nothing was held out to measure them")
    assert replace(manifest, new_items=None).new_items_text == ""


def test_units_of_time_are_those_of_the_reading(manifest: m.Manifest) -> None:
    told = replace(manifest, data={"reading": {"time_unit": "ms", "checked_unit": "us"}})
    assert (told.time_unit, told.checked_unit) == ("ms", "us")
    untold = replace(manifest, data={})
    assert (untold.time_unit, untold.checked_unit) == ("", "")
