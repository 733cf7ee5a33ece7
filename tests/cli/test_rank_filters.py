"""``ranklet rank``, ``similar``, ``popular``: each option asks what Python asks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import ask, call, run
from ranklet import Manifest, Ranker
from ranklet.attributes import Attributes
from ranklet.bundle.folder import describe_files, read_vocabulary, write_catalogue
from ranklet.item_features import learn
from ranklet_cli.filters import read_list, read_objective

ITEMS = 60
BRANDS = ["acme", "a, b", "x:y", 'the "best"', "acme=1"]
KINDS = {"brand": "category", "tags": "categories", "price": "number"}


@pytest.fixture(scope="module")
def shop(exported: Callable[..., Any], build_once: Callable[..., Path]) -> Path:
    """Random weights for items with titles, trends, a brand, tags and a price."""

    def make(path: Path) -> None:
        shutil.copytree(exported().ranker.path, path)
        manifest = Manifest.read(path)
        shares = np.arange(ITEMS, dtype=np.float32) / ITEMS
        titles = [f"Title {number}" for number in range(ITEMS)]
        write_catalogue(path, read_vocabulary(path, manifest), titles, shares, shares[::-1].copy())
        table = {
            "brand": [BRANDS[number % len(BRANDS)] for number in range(ITEMS)],
            "tags": [["new", "sale"][: number % 3] for number in range(ITEMS)],
            "price": [float(number) for number in range(ITEMS)],
        }
        places = np.arange(1, ITEMS + 1)
        attributes = Attributes.empty(KINDS).with_items(table, places, ITEMS)  # type: ignore[arg-type]
        attributes = learn(attributes, {})
        changes = {"attributes": attributes.write(path), "files": describe_files(path)}
        Manifest(**{**vars(manifest), **changes}).write(path)

    return build_once("shop-with-attributes", make)


@pytest.fixture(scope="module")
def ranker(shop: Path) -> Ranker:
    return Ranker.load(shop, provider="cpu")


@pytest.fixture(scope="module")
def stock(ranker: Ranker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every second id, one a line."""
    path = tmp_path_factory.mktemp("stock") / "stock=today.txt"
    path.write_text("\n".join(map(str, ranker.ids[::2])))
    ranker.define("in_stock", ranker.ids[::2])
    return path


ASKED: dict[str, tuple[list[str], dict[str, Any]]] = {
    "a value": (["--where", "brand=acme"], {"where": {"brand": "acme"}}),
    "some values": (["--where", "brand=acme,x:y"], {"where": {"brand": ["acme", "x:y"]}}),
    "a comma": (["--where", 'brand=x:y,"a, b"'], {"where": {"brand": ["a, b", "x:y"]}}),
    "a quote": (["--where", 'brand="the ""best"""'], {"where": {"brand": 'the "best"'}}),
    "an equal sign": (["--where", "brand=acme=1"], {"where": {"brand": "acme=1"}}),
    "other values": (["--where", "!brand=acme,x:y"], {"where": {"!brand": ["acme", "x:y"]}}),
    "a list": (["--where", "tags=sale"], {"where": {"tags": "sale"}}),
    "no item": (["--where", "tags=other"], {"where": {"tags": "other"}}),
    "a number": (["--where", "price=7"], {"where": {"price": 7}}),
    "some numbers": (["--where", "price=7,9.0"], {"where": {"price": [7, 9]}}),
    "up to": (["--where", "price=..20"], {"where": {"price": (None, 20)}}),
    "from": (["--where", "price=40.."], {"where": {"price": (40, None)}}),
    "from to": (["--where", "price=-1..5.5"], {"where": {"price": (-1, 5.5)}}),
    "a name": (["--where", "in_stock"], {"where": "in_stock"}),
    "not a name": (["--where", "!in_stock"], {"where": "!in_stock"}),
    "two": (
        ["--where", "in_stock", "--where", "price=..20"],
        {"where": ["in_stock", {"price": (None, 20)}]},
    ),
    "boosts": (
        ["--boost", "in_stock:2.5", "--boost", "brand=x:y:-1"],
        {"boost": [("in_stock", 2.5), ({"brand": "x:y"}, -1)]},
    ),
    "a boost of others": (["--boost", "!price=..20:9"], {"boost": [({"!price": (None, 20)}, 9)]}),
    "limits": (
        ["--at-most", "brand=1", "--at-most", "tags=2"],
        {"at_most": {"brand": 1, "tags": 2}},
    ),
    "a page": (["--skip", "5"], {"skip": 5}),
    "diversity": (["--diversity", ".5"], {"diversity": 0.5}),
    "a least score": (["--min-score", "0.5"], {"min_score": 0.5}),
}


@pytest.mark.parametrize(("options", "arguments"), ASKED.values(), ids=ASKED)
def test_an_option_asks_what_python_asks(
    options: list[str], arguments: dict[str, Any], shop: Path, ranker: Ranker, stock: Path
) -> None:
    history = list(ranker.ids[3:8])
    how = ["--history", ",".join(history), "--define", f"in_stock={stock}", *options]
    expected = ranker.rank(history, **arguments)
    assert ask("rank", shop, *how)["items"] == expected.items
    assert expected.items != ranker.rank(history).items or "min_score" in arguments


def test_recently_seen_items_lose_the_penalty(shop: Path, ranker: Ranker, stock: Path) -> None:
    history = list(ranker.ids[3:8])
    how = ["--history", ",".join(history), "--seen-recently", stock]
    for options, penalty in (([], 1.0), (["--penalty", "100"], 100.0)):
        expected = ranker.rank(history, seen_recently=ranker.ids[::2], penalty=penalty)
        assert ask("rank", shop, *how, *options)["items"] == expected.items


def test_a_cold_user_may_be_shown_what_is_trending(shop: Path, ranker: Ranker) -> None:
    first = ask("rank", shop, "--history", "", "--cold", "trending")["items"][0]
    assert first == ranker.ids[0]
    assert ask("rank", shop, "--history", "")["items"][0] == ranker.ids[-1]
    printed = run("rank", shop, "--history", "", "--cold", "trending").stdout
    assert "no known item, so these are the most popular lately" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--where", "stock"], "'stock' is not defined: add --define stock=FILE, or write ATTR"),
        (["--where", "!stock"], "'!stock' is not defined: add --define stock=FILE"),
        (["--where", ""], "items have brand, tags, price"),
        (["--where", "colour=red"], "no attribute is called 'colour'; there are 'brand', 'tags'"),
        (["--where", "price=cheap"], "'price=cheap' asks for no number: write 5, 5,7 or 5..7"),
        (["--where", "price=5..7..9"], "'price=5..7..9' asks for no number"),
        (["--where", "brand="], "'brand=' has no value: write ATTRIBUTE=VALUE"),
        (["--where", "brand=acme,"], "pass a value, or a list of values"),
        (["--where", 'brand="acme'], "can't be read"),
        (["--boost", "brand=acme"], "write --boost WHERE:POINTS, like new:1.2"),
        (["--boost", "brand=acme:much"], "not 'brand=acme:much'"),
        (["--boost", "brand=acme:nan"], "must be a number from -1e+06 to 1e+06, got nan"),
        (["--at-most", "brand"], "write --at-most ATTRIBUTE=NUMBER, like brand=2, not 'brand'"),
        (["--at-most", "brand=0"], "must be a whole number from 1 on, got 0"),
        (["--at-most", "price=1"], "'price' holds numbers, not categories"),
        (["--at-most", "brand=1", "--at-most", "brand=2"], "--at-most has 'brand' twice"),
        (["--define", "stock"], "write --define NAME=FILE, not 'stock'"),
        (["--define", f"!a={__file__}"], "a filter has a name, without '!' before it"),
        (["--objective", "buy=much"], "write --objective KIND=WEIGHT,..., like buy=1,view=.2"),
        (["--objective", "buy"], "this bundle does not use kinds of events"),
        (["--objective", "buy=1,buy=2"], "--objective has 'buy' twice"),
        (["--skip", "-1"], "skip must be a whole number from 0 on"),
        (["--diversity", "2"], "diversity must be a number from 0 to 1"),
        (["--min-score", "nan"], "min_score must be a number"),
        (["--seen-recently", __file__, "--penalty", "-1"], "penalty must be a number from 0"),
    ],
)
def test_an_option_that_can_not_be_used_is_named(
    options: list[str], message: str, shop: Path, tmp_path: Path
) -> None:
    (tmp_path / "h.jsonl").write_text('{"history": []}\n')
    how = ["--history", "i00003", *options]
    result = call("rank", shop, *how)
    assert result.exit_code == 4
    assert result.stderr.startswith("Error: ") or "catalogue lacks" in result.stderr
    assert message in result.stderr
    if "--seen-recently" not in options:  # a key of the rows
        of_file = call("rank", shop, "--input", tmp_path / "h.jsonl", *options)
        assert of_file.exit_code == 4
        assert message in of_file.stderr
        assert "history 1" not in of_file.stderr  # no row is to blame


def test_a_file_of_ids_that_is_not_there_is_named(shop: Path, tmp_path: Path) -> None:
    path = tmp_path / "none"
    result = call("rank", shop, "--history", "", "--define", f"a={path}")
    assert result.exit_code == 1
    assert result.stderr == f"Error: {path}: No such file or directory\n"


def test_an_objective_is_read_as_numbers() -> None:
    assert read_objective('buy=1,view=-.2,"a,b=3"') == {"buy": 1, "view": -0.2, "a,b": 3}
    assert read_objective("buy") == {"buy": 1}
    assert read_list('view, "buy, twice"') == ["view", "buy, twice"]
    assert read_list("") == []


def test_an_explanation_names_events_by_title(shop: Path, ranker: Ranker) -> None:
    history = list(ranker.ids[3:8])
    how = ["rank", shop, "--history", ",".join(history), "-k", 2, "--explain"]
    explanation = ranker.rank(history, k=2, explain=True).explanation
    assert explanation is not None
    lines = run(*how).stdout.splitlines()
    assert len(lines) == 1 + 2 * 4 + 1
    for place in range(2):
        for reason, line in zip(
            explanation.reasons(place)[:3], lines[2 + 4 * place :], strict=False
        ):
            (title,) = ranker.titles([reason.event])
            assert line.strip() == f"{reason.drop:+.4f} by {title}"
    assert ask(*how)["explanation"] == explanation.to_dict()


def test_options_hold_for_all_rows_of_a_file_and_rows_have_keys_of_their_own(
    shop: Path, ranker: Ranker, tmp_path: Path
) -> None:
    history, seen = list(ranker.ids[3:8]), list(ranker.ids[::2])
    rows = [{"history": history}, {"history": history, "seen_recently": seen}, {"history": []}]
    (tmp_path / "h.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--where", "price=..40", "--penalty", 5, "--explain", "--at-most", "brand=1"]
    printed = run("rank", shop, "--input", tmp_path / "h.jsonl", *options).stdout
    found = [json.loads(line) for line in printed.splitlines()]
    arguments: dict[str, Any] = {"where": {"price": (None, 40)}, "at_most": {"brand": 1}}
    expected = [
        ranker.rank(row["history"], seen_recently=row.get("seen_recently"), penalty=5, **arguments)
        for row in rows
    ]
    assert [row["items"] for row in found] == [ranking.items for ranking in expected]
    assert [item["item"] for item in found[0]["explanation"]["items"]] == expected[0].items
    assert "explanation" not in found[2]  # nothing led to it


@pytest.mark.parametrize("name", ["out.csv", "out.CSV.gz", "out.parquet"])
def test_a_table_has_no_column_for_explanations(name: str, shop: Path, tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_text('{"history": [], "user_id": 1}')
    how = ["--input", tmp_path / "h.jsonl", "--output", tmp_path / name]
    result = call("rank", shop, *how, "--explain")
    assert result.exit_code == 2
    assert f"--explain needs JSON lines, and {name} has columns" in result.stderr
    assert not (tmp_path / name).exists()


def test_similar_items_are_those_of_python(shop: Path, ranker: Ranker) -> None:
    found = ask("similar", shop, ranker.ids[5], "-k", 4, "--where", "price=..30")
    expected = ranker.similar(ranker.ids[5], 4, where={"price": (None, 30)})
    assert found["items"] == expected.items
    assert found["titles"] == ranker.titles(expected.items)
    lines = run("similar", shop, ranker.ids[5], "-k", 4).stdout.splitlines()
    assert lines[0] == "like Title 5"
    assert len(lines) == 5
    for item, message in (("none", "item[0] is 'none'"), (" ", "ITEM is empty")):
        result = call("similar", shop, item)
        assert result.exit_code == 4
        assert message in result.stderr


def test_popular_items_are_those_of_python(shop: Path, ranker: Ranker, stock: Path) -> None:
    in_stock = ["--define", f"in_stock={stock}", "--where", "in_stock"]
    for options, trending in (([], False), (["--trending"], True)):
        found = ask("popular", shop, "-k", 4, *options, *in_stock)
        expected = ranker.popular(4, trending=trending, where="in_stock")
        assert found["items"] == expected.items
        assert found["scores"] == pytest.approx(expected.scores.tolist(), abs=1e-6)
    assert run("popular", shop, "-k", 4).stdout.splitlines()[0] == "popular"


def test_the_help_of_rank_has_headings() -> None:
    lines = run("rank", "--help").stdout.splitlines()
    assert [line for line in lines if line.endswith(":") and line[:1].isalpha()] == [
        *("Histories:", "Filters:", "Answers:", "Options:")
    ]


def test_inspect_lists_attributes_and_the_latest_events(shop: Path, tmp_path: Path) -> None:
    shown = run("inspect", shop).stdout
    columns = "brand (category of 5 values), tags (categories of 2 values), price (number)"
    assert f"columns  {columns}\n" in shown
    assert "trends   unknown: an older bundle\n" in shown
    manifest = Manifest.read(shop)
    week = {"from": 1_700_000_000, "to": 1_700_604_800, "events": 4321}
    for unit, words in (("s", "2023-11-14 to 2023-11-21"), ("", "1700000000 to 1700604800")):
        data = {**manifest.data, "recent": week, "reading": {"time_unit": unit}}
        bundle = shutil.copytree(shop, tmp_path / f"unit-{unit}")
        Manifest(**{**vars(manifest), "data": data}).write(bundle)
        assert f"trends   4,321 events from {words}\n" in run("inspect", bundle).stdout
