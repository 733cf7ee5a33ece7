"""Ratings become kinds of events by bounds, and texts become kinds as they are."""

import re

import polars as pl
import pytest

from ranklet.errors import DataError, InputError
from ranklet_training.data.events import read_events
from ranklet_training.data.kinds import count_kinds, read_rating_kinds
from ranklet_training.data.rows import Columns

LOG = pl.DataFrame(
    {
        "user_id": ["u"] * 7,
        "item_id": list("abcdefg"),
        "timestamp": range(7),
        "rating": [5.0, 4.0, 3.9, 3.0, 0.5, -1.0, None],
    }
)


def test_ratings_get_the_first_kind_whose_bound_they_reach() -> None:
    events = read_events(LOG, rating_kinds="like=4, ok=3,low=0")
    expected = ["like", "like", "ok", "ok", "low", None, None]
    assert events.frame["event"].to_list() == expected
    assert count_kinds([events.frame]) == {"like": 2, "low": 1, "ok": 2}
    assert "kinds of events: like (2), ok (2), low (1)" in events.notes
    assert events.frame["rating"].to_list() == LOG["rating"].to_list()


def test_kinds_are_part_of_what_a_log_is() -> None:
    digests = {read_events(LOG, rating_kinds=kinds).digest for kinds in ("", "a=4", "a=3", "b=3")}
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("like", "got 'like' in 'like'"),
        ("like=", "got 'like='"),
        ("=4", "got '=4'"),
        ("like=much", "got 'like=much'"),
        ("like=nan", "got 'like=nan'"),
        ("like=4,like=3", "got 'like=3'"),
        ("like=4,", "got ''"),
        ("low=0,like=4", "best first, so that bounds fall"),
        ("like=4,fine=4", "best first, so that bounds fall"),
    ],
)
def test_rating_kinds_of_another_form_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        read_rating_kinds(text)


def test_ratings_make_no_kinds_beside_an_event_column_or_without_a_rating() -> None:
    with pytest.raises(DataError, match=r'kinds of events, .* pass --event-column ""'):
        read_events(LOG.with_columns(event=pl.lit("view")), rating_kinds="like=4")
    with pytest.raises(DataError, match="the log has no rating column"):
        read_events(LOG.drop("rating"), rating_kinds="like=4")
    other = LOG.with_columns(event=pl.lit("view"))
    assert read_events(other, Columns(event=""), rating_kinds="like=4").frame["event"][0] == "like"
