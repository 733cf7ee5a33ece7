"""A ranking is ready for JSON, notebooks and other processes, and names are documented."""

import copy
import inspect
import json
import pickle
import re
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from ranklet import Ranker, Ranking
from ranklet.bundle.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def ranking(tiny_ranker: Ranker) -> Ranking:
    return tiny_ranker.rank(list(tiny_ranker.ids[:3]))


def test_a_dictionary_of_a_ranking_survives_json(any_ranker: Ranker) -> None:
    ranking = any_ranker.rank([any_ranker.ids[0], "no such item"], k=5)
    values = json.loads(json.dumps(ranking.to_dict()))
    assert np.array_equal(np.float32(values.pop("scores")), ranking.scores)
    names = ("items", "unknown", "cold", "exact", "bundle")
    assert values == {name: getattr(ranking, name) for name in names}


def test_a_change_of_the_dictionary_does_not_change_the_ranking(ranking: Ranking) -> None:
    ranking.to_dict()["items"].clear()
    assert len(ranking.items) == 10


def test_the_text_of_a_ranking_shows_ten_items_and_counts_all() -> None:
    items = [f"i{number}" for number in range(1000)]
    text = repr(Ranking(items, np.linspace(1, 0, 1000, dtype=np.float32), 2, cold=False))
    assert text.startswith("<Ranking {'i0': 1.0000, 'i1': 0.9990, ")
    assert text.endswith("'i9': 0.9910, ...}, 1000 items, unknown=2, cold=False>")
    assert "..." not in repr(Ranking(items[:1], np.ones(1, np.float32), 0, cold=True))
    assert repr(Ranking([], np.ones(0, np.float32), 0, cold=True)).startswith("<Ranking {}, 0 ")


def cells(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]


def test_a_notebook_shows_ranks_items_scores_and_titles(tiny_ranker: Ranker) -> None:
    ranking = tiny_ranker.rank(list(tiny_ranker.ids[:3]), k=3)
    head, *rows = cells(ranking._repr_html_())
    assert head == ["rank", "item", "score", "title"]
    assert rows == [
        [str(place), item, f"{score:.4f}", *tiny_ranker.titles([item])]
        for place, (item, score) in enumerate(zip(ranking.items, ranking.scores, strict=True), 1)
    ]
    assert cells(tiny_ranker.rank([])._repr_html_())[0][2] == "popularity"


def test_a_notebook_shows_no_titles_where_there_are_none(exported: Any) -> None:
    made = exported()
    assert cells(made.ranker.rank(made.ranker.ids[:3])._repr_html_())[0][-1] == "score"


def test_a_notebook_shows_ids_as_text_and_fifty_rows() -> None:
    items = ["<script>", *map(str, range(99))]
    html = Ranking(items, np.ones(100, np.float32), 0, cold=False)._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert len(cells(html)) == 51
    assert html.endswith("<p>and 50 more</p>")


@pytest.mark.parametrize(
    "take",
    [copy.copy, copy.deepcopy, lambda ranking: pickle.loads(pickle.dumps(ranking))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_of_a_ranking_has_its_values(ranking: Ranking, take: Any) -> None:
    assert take(ranking).to_dict() == ranking.to_dict()


def test_dataclasses_take_a_ranking_apart(ranking: Ranking) -> None:
    assert asdict(ranking)["items"] == ranking.items


def test_ids_are_the_catalogue_in_index_order(tiny_ranker: Ranker) -> None:
    assert len(tiny_ranker.ids) == len(tiny_ranker)
    everything = tiny_ranker.rank(tiny_ranker.ids[:1], k=len(tiny_ranker))
    assert sorted(everything.items) == list(tiny_ranker.ids)


def test_integer_ids_are_for_reading_only() -> None:
    numbers = np.array([1, 2, 3])
    ids = Vocabulary(numbers).all_ids
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 9  # type: ignore[index]
    numbers[0] = 0  # the array of the caller stays writable


def test_every_name_that_tab_completion_offers_is_documented(tiny_ranker: Ranker) -> None:
    some = list(tiny_ranker.ids[:2])
    user, users = tiny_ranker.user(some), tiny_ranker.users([some])
    for thing in (tiny_ranker, tiny_ranker.rank(some), user, users, tiny_ranker.eligible(some)):
        kind = type(thing)
        attributes = re.findall(r"^    (\w+): ", inspect.getdoc(kind) or "", re.MULTILINE)
        members = {name for name, value in vars(kind).items() if inspect.getdoc(value)}
        public = {name for name in dir(thing) if not name.startswith("_")}
        assert public - members - set(attributes) == set(), kind.__name__
