"""``ranklet catalogue``: each command writes a whole bundle, or says why not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from commands import ask, call, run
from ranklet import Manifest, Ranker
from ranklet.verify import verify

NEW = [
    {"item_id": "new1", "title": "New one", "alike": ["i00003", "i00007"]},
    {"item_id": "new2", "title": "New two", "alike": ["i00009"]},
]


def first_ids(bundle: Path, count: int) -> list[Any]:
    return Ranker.load(bundle).vocabulary.ids(np.arange(1, count + 1))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def new(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Two new items, each like some known ones, and a known one with another title."""
    a, b, c = first_ids(tiny_bundle, 3)
    rows = [{**NEW[0], "alike": [a, b]}, {**NEW[1], "alike": [c]}, {"item_id": a, "title": "A"}]
    return write_lines(tmp_path / "new.jsonl", rows)


def test_items_like_others_are_added_to_a_new_bundle(
    tiny_bundle: Path, new: Path, tmp_path: Path
) -> None:
    report = ask("catalogue", "add", tiny_bundle, new, "--like", "alike", "--out", tmp_path / "out")
    (known,) = first_ids(tiny_bundle, 1)
    assert report == {
        "path": str(tmp_path / "out"),
        "items": 62,
        "added": ["new1", "new2"],
        "updated": [known],
        "removed": [],
        "retitled": [],
        "unknown": [],
        "bias": 0.0,
    }
    assert verify(tmp_path / "out").items == 62
    ranker, old = Ranker.load(tmp_path / "out"), Ranker.load(tiny_bundle)
    assert ranker.titles(["new1", "new2", known]) == ["New one", "New two", "A"]
    # The same as a ranker that has them added.
    rows = [json.loads(line) for line in new.read_text().splitlines()]
    like = {row["item_id"]: row["alike"] for row in rows[:2]}
    old.add_items([{n: v for n, v in row.items() if n != "alike"} for row in rows], like=like)
    for history in ([known], first_ids(tiny_bundle, 9)):
        expected, found = old.rank(history, k=20), ranker.rank(history, k=20)
        assert found.items == expected.items
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert old.manifest.items == 60  # the bundle stays as it was


def test_vectors_place_new_items_of_any_table(tiny_bundle: Path, tmp_path: Path) -> None:
    frame = pl.DataFrame({"item_id": ["x", "y"], "title": ["X", "Y"]})
    frame.write_csv(tmp_path / "new.csv")
    np.save(tmp_path / "v.npy", np.asarray(Ranker.load(tiny_bundle).engine.table[[5, 9]]))
    options = ["--vectors", tmp_path / "v.npy", "--bias", -0.5, "--out", tmp_path / "out"]
    result = run("catalogue", "add", tiny_bundle, tmp_path / "new.csv", *options)
    assert result.stdout.splitlines() == [
        f"{tmp_path / 'out'}: 2 added; 62 items to rank",
        "-0.5 is added to the scores of the new items",
    ]
    ranker = Ranker.load(tmp_path / "out")
    like_x = first_ids(tiny_bundle, 5)[4]
    ranking = ranker.rank([like_x], k=62, exclude_seen=False)
    scores = dict(zip(ranking.items, ranking.scores.tolist(), strict=True))
    table = np.asarray(ranker.engine.table, dtype=np.float64)
    lengths = np.linalg.norm(table[1:], axis=1)
    scaled = scores[like_x] * lengths.mean() / lengths[list(ranker.ids).index(like_x)]
    assert scores["x"] == pytest.approx(scaled - 0.5, abs=1e-3)


def test_items_are_removed_in_place_and_brought_back(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    a, b = first_ids(bundle, 2)
    result = run("catalogue", "remove", bundle, f"{a},{b},nobody", "--replace")
    assert result.stdout == (
        f"{bundle}: 2 removed; 58 items to rank\n1 ids are not in the catalogue, first 'nobody'\n"
    )
    assert not {a, b} & set(Ranker.load(bundle).rank([a], k=60, exclude_seen=False).items)
    (tmp_path / "back.csv").write_text(f"item_id\n{a}\n")
    assert ask("catalogue", "add", bundle, tmp_path / "back.csv", "--replace")["updated"] == [a]
    back = set(Ranker.load(bundle).rank([a], k=60, exclude_seen=False).items)
    assert a in back
    assert b not in back
    changes = Manifest.read(bundle).data["changes"]
    assert [(c["removed"], c["returned"]) for c in changes] == [(2, 0), (0, 1)]


def test_ids_to_remove_may_stand_in_a_file(tiny_bundle: Path, tmp_path: Path) -> None:
    ids = first_ids(tiny_bundle, 3)
    (tmp_path / "sold.txt").write_text("\n".join([*ids, ids[0]]))
    report = ask("catalogue", "remove", tiny_bundle, tmp_path / "sold.txt", "--out", tmp_path / "o")
    assert report["removed"] == ids


def test_titles_change_and_everything_else_stays(tiny_bundle: Path, tmp_path: Path) -> None:
    a, b = first_ids(tiny_bundle, 2)
    (tmp_path / "t.tsv").write_text(f"sku\tname\n{a}\tÄ\n{b}\t\nnobody\tN\n")
    columns = ["--item-column", "sku", "--title-column", "name", "--out", tmp_path / "out"]
    report = ask("catalogue", "retitle", tiny_bundle, tmp_path / "t.tsv", *columns)
    assert (report["retitled"], report["unknown"]) == ([a, b], ["nobody"])
    old, ranker = Ranker.load(tiny_bundle), Ranker.load(tmp_path / "out")
    assert ranker.titles([a, b]) == ["Ä", b]
    assert ranker.titles(list(ranker.ids)[2:]) == old.titles(list(old.ids)[2:])
    np.testing.assert_array_equal(ranker.rank([a]).scores, old.rank([a]).scores)


def test_all_changes_can_be_saved_at_once(tiny_bundle: Path, new: Path, tmp_path: Path) -> None:
    a, b = first_ids(tiny_bundle, 2)
    titles = write_lines(tmp_path / "t.jsonl", [{"item_id": "new2", "title": "Two"}])
    options = ["--add", new, "--like", "alike", "--remove", f"{b},new1", "--retitle", titles]
    report = ask("catalogue", "save", tiny_bundle, tmp_path / "out", *options)
    assert report["added"] == ["new1", "new2"]
    assert report["removed"] == [b, "new1"]
    assert report["retitled"] == ["new2"]
    ranker = Ranker.load(tmp_path / "out")
    assert ranker.titles(["new2"]) == ["Two"]
    assert not {b, "new1"} & set(ranker.rank([a], k=60, exclude_seen=False).items)
    assert call("catalogue", "save", tiny_bundle, tmp_path / "out", *options).exit_code == 3
    run("catalogue", "save", tiny_bundle, tmp_path / "out", *options, "--replace")


REFUSED: dict[str, tuple[list[str], int, str]] = {
    "no target": (["remove", "BUNDLE", "a"], 2, "say --out NEW for a new bundle, or --replace"),
    "nobody": (
        ["remove", "BUNDLE", "a,b", "--out", "OUT"],
        4,
        "nothing changes: 2 ids are not in the catalogue, first 'a'",
    ),
    "nothing": (["save", "BUNDLE", "OUT"], 4, "nothing changes: 0 ids are not in the catalogue"),
    "bias of nothing": (
        ["save", "BUNDLE", "OUT", "--remove", "a", "--bias", "-1"],
        2,
        "are for added items: say --add ITEMS",
    ),
    "no such column": (
        ["add", "BUNDLE", "NEW", "--like", "similar", "--out", "OUT"],
        4,
        "has no column 'similar': --like names one of ['alike']",
    ),
    "no array": (
        ["add", "BUNDLE", "NEW", "--vectors", "NEW", "--out", "OUT"],
        4,
        "is no array of numpy (.npy)",
    ),
    "no bundle there": (
        ["remove", "BUNDLE", "a", "--out", "FOLDER", "--replace"],
        3,
        "is not a bundle, so it is not replaced",
    ),
}


@pytest.mark.parametrize(("words", "status", "message"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_done_is_said_and_nothing_is_written(
    words: list[str], status: int, message: str, tiny_bundle: Path, new: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    paths = {"BUNDLE": tiny_bundle, "OUT": tmp_path / "out", "NEW": new}
    paths["FOLDER"] = tmp_path / "folder"
    result = call("catalogue", *(paths.get(word, word) for word in words))
    assert result.exit_code == status
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_json_lines_are_added_without_torch_and_polars(
    tiny_bundle: Path, new: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, ranklet_cli.group\n"
        f"words = ['catalogue', 'add', {str(tiny_bundle)!r}, {str(new)!r}, '--like', 'alike', "
        f"'--out', {str(tmp_path / 'out')!r}]\n"
        "ranklet_cli.group.cli(words, standalone_mode=False)\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "polars"} & set(printed.splitlines()[-1].split())
    assert verify(tmp_path / "out").items == 62
