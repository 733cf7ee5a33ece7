"""Buckets of time: a closed form at their edges, and one for what is not known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranklet.time_gaps import BUCKETS, UNKNOWN, bucket_until, buckets_before, gap_buckets


@pytest.mark.parametrize("power", range(46))
def test_a_bucket_holds_one_power_of_two(power: int) -> None:
    first, last = 2**power - 1, 2 ** (power + 1) - 2
    assert gap_buckets(np.array([first, last])).tolist() == [power + 1, power + 1]


def test_gaps_beyond_the_last_edge_share_the_last_bucket() -> None:
    assert gap_buckets(np.array([2**47, 2**62])).tolist() == [BUCKETS - 1] * 2


def test_a_negative_gap_counts_as_none() -> None:
    assert gap_buckets(np.array([-5])).tolist() == gap_buckets(np.array([0])).tolist() == [1]


@given(st.lists(st.integers(0, 2**50), max_size=20).map(sorted))
def test_only_the_first_event_has_no_gap(times: list[int]) -> None:
    found = buckets_before(np.array(times, dtype=np.int64))
    assert len(found) == len(times)
    assert found.tolist()[:1] == [UNKNOWN][: len(times)]
    assert all(bucket > UNKNOWN for bucket in found[1:])


@given(st.integers(-(2**62), 2**62), st.integers(0, 2**62))
def test_a_question_has_the_bucket_of_its_gap(last: int, gap: int) -> None:
    assert bucket_until(last + gap, last) == gap_buckets(np.array([gap]))[0]


def test_a_gap_beyond_int64_is_the_longest() -> None:
    assert bucket_until(2**63 - 1, -(2**63)) == BUCKETS - 1


def test_gaps_beyond_int64_are_long() -> None:
    times = np.array([-(2**62) - 5, 2**62 + 5, 2**62 + 6])
    assert buckets_before(times).tolist() == [UNKNOWN, BUCKETS - 1, 2]


def test_a_gap_below_none_is_none() -> None:
    assert bucket_until(-(2**63), 2**63 - 1) == bucket_until(0, 0)
