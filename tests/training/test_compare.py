"""Two models, or two variants online, differ by more than chance, or they do not."""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from ranklet import Ranker
from ranklet.errors import DataError, InputError
from ranklet_training.data.split import Split
from ranklet_training.judge import statistics
from ranklet_training.judge.compare import (
    ModelComparison,
    compare_models,
    metrics_of_ranks,
    plot_comparison,
)
from ranklet_training.judge.evaluate import evaluate
from ranklet_training.judge.metrics import all_metrics
from ranklet_training.judge.outcomes import (
    OUTCOME_METRICS,
    OutcomeComparison,
    compare_outcomes,
    read_outcomes,
    user_outcomes,
)
from ranklet_training.judge.statistics import (
    Bootstrap,
    holm,
    paired_bootstrap,
    sample_ratio,
    unpaired_bootstrap,
)
from ranklet_training.runs.checkpoint import Model, Run

FLOAT = 1e-12  # sums in another order
NORMAL_95 = 1.959964

Values = NDArray[np.float64]
Resampling = Callable[..., Bootstrap]


def ranks_of(seed: int, users: int = 400) -> Values:
    """Return metrics of ranks: few distinct rows, so that groups of users are drawn."""
    random = np.random.default_rng(seed)
    return metrics_of_ranks(random.choice([1, 3, 8, 15, 50], users))


def numbers_of(seed: int, users: int = 400) -> Values:
    """Return values that are all different, so that users are drawn one by one."""
    return np.random.default_rng(seed).normal(size=(users, 3))


each_kind = pytest.mark.parametrize("values_of", [ranks_of, numbers_of], ids=["ranks", "numbers"])
each_test = pytest.mark.parametrize(
    "resample", [paired_bootstrap, unpaired_bootstrap], ids=["paired", "unpaired"]
)


def assert_close(a: Bootstrap, b: Bootstrap) -> None:
    for name, value in asdict(a).items():
        np.testing.assert_allclose(value, getattr(b, name), rtol=0, atol=FLOAT, err_msg=name)


# The bootstrap.


def test_the_paired_interval_of_normal_differences_is_the_textbook_one() -> None:
    random = np.random.default_rng(1)
    a = random.normal(5, 3, (2000, 2))
    gains = random.normal([0.1, -0.4], [1.0, 2.0], (2000, 2))
    result = paired_bootstrap(a, a + gains)
    half = NORMAL_95 * gains.std(axis=0, ddof=1) / np.sqrt(2000)
    np.testing.assert_allclose(result.difference, gains.mean(axis=0), atol=FLOAT)
    # Monte Carlo error of a 2.5 % quantile of 10,000 draws: about 2.7 % of a standard error.
    np.testing.assert_allclose(result.low, gains.mean(axis=0) - half, atol=half.max() * 0.05)
    np.testing.assert_allclose(result.high, gains.mean(axis=0) + half, atol=half.max() * 0.05)


def test_the_paired_interval_of_two_values_is_the_textbook_one() -> None:
    # Groups are drawn here. Gains are 1 with probability 0.3: a binomial.
    gains = np.repeat([[1.0], [0.0]], [600, 1400], axis=0)
    result = paired_bootstrap(np.zeros_like(gains), gains)
    half = NORMAL_95 * math.sqrt(0.3 * 0.7 / 2000)
    assert result.low[0] == pytest.approx(0.3 - half, abs=half * 0.05)
    assert result.high[0] == pytest.approx(0.3 + half, abs=half * 0.05)


def test_the_unpaired_interval_of_normal_groups_is_the_textbook_one() -> None:
    random = np.random.default_rng(2)
    a, b = random.normal(1, 1, (1500, 1)), random.normal(1.2, 2, (800, 1))
    result = unpaired_bootstrap(a, b)
    half = NORMAL_95 * math.sqrt(a.var(ddof=1) / 1500 + b.var(ddof=1) / 800)
    middle = b.mean() - a.mean()
    assert result.difference[0] == pytest.approx(middle, abs=FLOAT)
    assert result.low[0] == pytest.approx(middle - half, abs=half * 0.05)
    assert result.high[0] == pytest.approx(middle + half, abs=half * 0.05)


def test_the_p_value_of_normal_differences_is_the_textbook_one() -> None:
    random = np.random.default_rng(3)
    gains = random.normal(size=(2000, 1))
    gains += 1.5 * gains.std(ddof=1) / math.sqrt(2000) - gains.mean()  # 1.5 standard errors
    expected = math.erfc(1.5 / math.sqrt(2))  # 0.134
    error = 4 * math.sqrt(expected * (1 - expected) / 10_000)
    assert paired_bootstrap(np.zeros_like(gains), gains).p[0] == pytest.approx(expected, abs=error)


@each_kind
@pytest.mark.slow
def test_intervals_are_those_of_scipy(values_of: Callable[[int], Values]) -> None:
    a, b = values_of(13), values_of(14)
    options: dict[str, Any] = {"method": "percentile", "n_resamples": 10_000, "rng": 1}
    pairs = [
        (paired_bootstrap(a, b), stats.bootstrap((b - a,), np.mean, **options)),
        (
            unpaired_bootstrap(a, b),
            stats.bootstrap((b, a), lambda x, y, axis: x.mean(axis) - y.mean(axis), **options),
        ),
    ]
    for ours, theirs in pairs:
        width = (ours.high - ours.low).max()
        interval = theirs.confidence_interval
        np.testing.assert_allclose(ours.low, interval.low, atol=width * 0.05)
        np.testing.assert_allclose(ours.high, interval.high, atol=width * 0.05)


def test_pairing_narrows_the_interval_when_users_differ_more_than_models() -> None:
    random = np.random.default_rng(4)
    a = random.normal(0, 10, (500, 1))
    b = a + random.normal(0.2, 0.5, (500, 1))
    assert paired_bootstrap(a, b).p[0] < 0.001
    assert paired_bootstrap(a, a + 10, resamples=1000).p[0] == 1 / 1001  # the smallest
    assert unpaired_bootstrap(a, b).p[0] > 0.5


@each_kind
@each_test
@pytest.mark.slow
def test_p_values_are_uniform_where_nothing_differs(
    resample: Resampling, values_of: Callable[..., Values]
) -> None:
    found = []
    for seed in range(200):
        a, b = (values_of(2 * seed + model, 150)[:, 2:3] for model in (0, 1))
        found.append(resample(a, b, resamples=1000, seed=seed).p[0])
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.09
    assert 0.4 <= np.mean(np.array(found) < 0.5) <= 0.6


@each_kind
def test_equal_models_have_difference_0_and_p_1(values_of: Callable[[int], Values]) -> None:
    result = paired_bootstrap(values_of(6), values_of(6))
    for part in (result.difference, result.low, result.high):
        assert not part.any()
    assert (result.p == 1).all()


@each_kind
def test_swapping_the_models_mirrors_everything(values_of: Callable[[int], Values]) -> None:
    a, b = values_of(7), values_of(8)
    there, back = paired_bootstrap(a, b), paired_bootstrap(b, a)
    mirrored = Bootstrap(there.b, there.a, -there.difference, -there.high, -there.low, there.p)
    assert_close(back, mirrored)


@each_kind
@each_test
@pytest.mark.parametrize("chunk", [1, 50_000])
def test_the_result_does_not_depend_on_the_chunk(
    resample: Resampling,
    values_of: Callable[[int], Values],
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = values_of(9), values_of(10)
    whole = resample(a, b, resamples=1001)
    monkeypatch.setattr(statistics, "CHUNK", chunk)
    assert_close(resample(a, b, resamples=1001), whole)


@each_kind
@each_test
def test_the_seed_decides_the_result(
    resample: Resampling, values_of: Callable[[int], Values]
) -> None:
    a, b = values_of(11), values_of(12)
    first, again, other = (resample(a, b, resamples=1000, seed=seed) for seed in (3, 3, 4))
    for name, value in asdict(first).items():
        np.testing.assert_array_equal(value, getattr(again, name))
    assert (first.low != other.low).any()


def damaged(bad: float) -> Values:
    values = numbers_of(0)
    values[7, 2] = bad
    return values


@each_test
@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (numbers_of(0), numbers_of(1), {"resamples": 999}, "resamples .* least 1,000, got 999"),
        (numbers_of(0), numbers_of(1), {"resamples": 10**23}, "resamples .* most 1,000,000, got 1"),
        (numbers_of(0), numbers_of(1), {"seed": -1}, "seed must be at least 0, got -1"),
        (numbers_of(0), numbers_of(1, 19), {}, "b has 19 users; a bootstrap needs at least 20"),
        (damaged(math.nan), numbers_of(1), {}, "a is nan for user 7, metric 2"),
        (damaged(math.inf), numbers_of(1), {}, "a is inf for user 7, metric 2"),
        (numbers_of(0)[:, 0], numbers_of(1), {}, r"a must be \(users, metrics\), got .*\(400,\)"),
        (numbers_of(0), numbers_of(1)[:, :2], {}, r"\(400, 2\): pair|a has 3 .* and b has 2"),
    ],
)
def test_wrong_values_and_options_are_named(
    resample: Resampling, a: Values, b: Values, options: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        resample(a, b, **options)


# Corrections and checks.


def test_holm_is_what_a_hand_computes() -> None:
    # Sorted .005 .01 .03 .04 by 4 3 2 1: .02 .03 .06 .04, and none may lie below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2]).tolist() == [0.2]
    assert holm([0.9, 0.8, 0.7]).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("control", "treatment", "ratio"), [(880, 120, (9, 1)), (5164, 4836, (1, 1)), (3, 9, (1, 2))]
)
def test_the_sample_ratio_is_the_chi_square_test(
    control: int, treatment: int, ratio: tuple[float, float]
) -> None:
    share = ratio[0] / sum(ratio)
    users = control + treatment
    expected = stats.chisquare([control, treatment], [users * share, users * (1 - share)])
    checked = sample_ratio(control, treatment, ratio)
    assert checked.control_share == pytest.approx(share)
    assert (checked.chi_square, checked.p) == pytest.approx((expected.statistic, expected.pvalue))


def test_a_mismatch_begins_below_one_in_a_thousand_and_ratios_are_positive() -> None:
    assert not sample_ratio(5164, 4836).mismatch  # chi-square 10.758; 10.828 is one in a thousand
    assert sample_ratio(5166, 4834).mismatch  # 11.022
    for a, b in ((0.0, 1.0), (1.0, -2.0), (math.inf, 1.0), (math.nan, 1.0)):
        with pytest.raises(InputError, match=f"two positive numbers, got {a:g}:{b:g}"):
            sample_ratio(1, 1, (a, b))


# Models.


@pytest.fixture(scope="module")
def other(tiny_run: Run) -> Model:
    """The tiny model with other weights."""
    torch.manual_seed(1)
    model = tiny_run.build_model()
    model.init_weights()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def models(tiny_run: Run, other: Model, split: Split) -> ModelComparison:
    return compare_models(tiny_run.load_model(), other, split)


def test_values_of_users_average_to_the_metrics() -> None:
    ranks = np.array([1, 2, 5, 6, 10, 11, 20, 21, 22, 1000])
    expected = all_metrics(ranks)
    means = dict(zip(expected, metrics_of_ranks(ranks).mean(axis=0).tolist(), strict=True))
    assert means == pytest.approx(expected)


def test_the_means_are_those_of_evaluate(
    models: ModelComparison, tiny_run: Run, other: Model, split: Split
) -> None:
    table = evaluate({"a": tiny_run.load_model(), "b": other}, split)
    a, b = (row["masked"] for row in table["rows"][:2])
    assert {row.metric: row.a for row in models.rows} == pytest.approx(a)
    assert {row.metric: row.b for row in models.rows} == pytest.approx(b)
    assert models.users == table["users"]
    assert models.protocol.startswith("leave-one-out, test, full ranking of 60 items")


def test_every_row_is_consistent(models: ModelComparison) -> None:
    for row in models.rows:
        assert row.difference == pytest.approx(row.b - row.a)
        assert row.low <= row.difference <= row.high
        assert row.a_wins + row.b_wins + row.ties == models.users
        assert row.p <= row.p_holm <= 1
        assert row.significant == (row.p_holm <= 0.05)
        if row.metric.startswith("HR"):
            assert (row.b_wins - row.a_wins) / models.users == pytest.approx(row.difference)
    corrected = holm([row.p for row in models.rows]).tolist()
    assert [row.p_holm for row in models.rows] == corrected


@pytest.mark.parametrize("on", ["test", "validation"])
def test_a_run_and_its_bundle_do_not_differ(
    on: str, tiny_run: Run, tiny_ranker: Ranker, split: Split
) -> None:
    result = compare_models(tiny_run.load_model(), tiny_ranker, split, on=on, resamples=1000)
    assert f", {on}," in result.protocol
    for row in result.rows:
        assert (row.difference, row.low, row.high, row.p) == (0, 0, 0, 1)
        assert (row.ties, row.significant) == (result.users, False)


# Outcomes.


def log_of(users: int = 60, *, gain: float = 0.0, seed: int = 0) -> pl.DataFrame:
    """Return a log: new users are odd, old ones even, each with one to four requests."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for _ in range(random.integers(1, 5)):
            shown = random.permutation(np.arange(1, 30))[: random.integers(3, 8)].tolist()
            rate = 0.2 + gain * (user % 2)
            clicked = [item for item in reversed(shown) if random.random() < rate]
            variant = "new" if user % 2 else "old"
            rows.append({"user_id": user, "variant": variant, "shown": shown, "clicked": clicked})
    return pl.DataFrame(rows)


LOG = log_of()
REQUEST = {"user_id": 1, "variant": "old", "shown": [5, 7], "clicked": [7]}


def slow_metrics(rows: list[dict[str, Any]]) -> dict[tuple[str, int], list[float]]:
    """Return requests and the four metrics of each variant and user, one request at a time."""
    requests: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        requests[row["variant"], row["user_id"]].append(row)
    found = {}
    for key, own in requests.items():
        clicks = [len(row["clicked"]) for row in own]
        places = [[row["shown"].index(item) + 1 for item in row["clicked"]] for row in own]
        found[key] = [
            len(own),
            sum(clicks) / sum(len(row["shown"]) for row in own),
            sum(count > 0 for count in clicks) / len(own),
            sum(clicks) / len(own),
            sum(1 / min(place) if place else 0 for place in places) / len(own),
        ]
    return found


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    shown = draw(st.lists(st.integers(-3, 12), min_size=1, max_size=6, unique=True))
    clicked = draw(st.lists(st.sampled_from(shown), max_size=len(shown), unique=True))
    return {
        "user_id": draw(st.integers(0, 4)),
        "variant": draw(st.sampled_from(["a", "b"])),
        "shown": shown,
        "clicked": clicked,
    }


@settings(deadline=None, max_examples=30)
@given(st.lists(requests(), min_size=1, max_size=25))
def test_metrics_of_users_are_what_slow_python_computes(rows: list[dict[str, Any]]) -> None:
    lists = {"shown": pl.List(pl.Int64), "clicked": pl.List(pl.Int64)}
    table = user_outcomes(read_outcomes(pl.DataFrame(rows, schema_overrides=lists)))
    expected = slow_metrics(rows)
    assert len(table) == len(expected)
    for row in table.iter_rows(named=True):
        values = [row["requests"], *(row[metric] for metric in OUTCOME_METRICS)]
        assert values == pytest.approx(expected[row["variant"], row["user_id"]])


def test_the_table_holds_means_over_users() -> None:
    result = compare_outcomes(LOG, control="old", resamples=1000)
    by_user = slow_metrics(LOG.to_dicts())
    for name, variant in (("control", result.control), ("treatment", result.treatment)):
        own = [values for (kind, _), values in by_user.items() if kind == variant.name]
        means = np.mean(own, axis=0)
        assert [getattr(row, name) for row in result.rows] == pytest.approx(means[1:].tolist())
        assert (variant.users, variant.requests) == (30, sum(values[0] for values in own))
    for row in result.rows:
        assert row.difference == pytest.approx(row.treatment - row.control)
        assert row.relative_difference == pytest.approx(row.difference / row.control)


def test_a_real_gain_is_significant_and_none_is_not() -> None:
    gained = compare_outcomes(log_of(300, gain=0.2), control="old")
    assert all(row.significant and row.low > 0 for row in gained.rows)
    assert not any(row.significant for row in compare_outcomes(log_of(300)).rows)


def test_the_control_is_first_by_name_and_another_turns_the_differences_round() -> None:
    old, new = (compare_outcomes(LOG, control=name) for name in ("old", None))
    assert (old.control.name, new.control.name) == ("old", "new")
    for row, back in zip(old.rows, new.rows, strict=True):
        assert back.difference == -row.difference
        width = row.high - row.low
        assert back.low == pytest.approx(-row.high, abs=width * 0.05)
        assert back.high == pytest.approx(-row.low, abs=width * 0.05)


def test_users_who_saw_both_variants_are_left_out_and_counted() -> None:
    both = [{**REQUEST, "user_id": user, "variant": "new"} for user in (0, 2, 2)]
    result = compare_outcomes(pl.concat([LOG, pl.DataFrame(both)]), resamples=1000)
    without = LOG.filter(~pl.col("user_id").is_in([0, 2]))
    assert result == replace(compare_outcomes(without, resamples=1000), users_in_both=2)


def test_a_sample_ratio_mismatch_is_a_field_and_follows_the_ratio() -> None:
    fewer = LOG.filter((pl.col("variant") == "old") | (pl.col("user_id") < 41))
    many = pl.concat(
        [LOG.with_columns(user_id=pl.col("user_id") + 100 * place) for place in range(1, 4)]
    ).filter(pl.col("variant") == "old")
    uneven = pl.concat([fewer, many])  # 120 old, 20 new
    assert compare_outcomes(uneven, control="old", resamples=1000).sample_ratio.mismatch
    planned = compare_outcomes(uneven, control="old", ratio=(6, 1), resamples=1000)
    assert planned.sample_ratio.p == pytest.approx(1)
    assert not planned.sample_ratio.mismatch


def test_a_control_without_clicks_has_no_relative_difference(tmp_path: Path) -> None:
    rows = [{**row, "clicked": []} for row in LOG.to_dicts()]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = compare_outcomes(tmp_path / "log.jsonl", resamples=1000)
    assert [(row.difference, row.p) for row in result.rows] == [(0, 1)] * 4
    none = pl.lit([], dtype=pl.List(pl.Int64))
    clicked = pl.when(pl.col("variant") == "old").then(none).otherwise("clicked")
    frame = LOG.with_columns(clicked=clicked)
    result = compare_outcomes(frame, control="old", resamples=1000)
    assert [row.relative_difference for row in result.rows] == [None] * 4
    assert all(row.significant for row in result.rows)


def write_log(frame: pl.DataFrame, path: Path) -> Path:
    """Write a log in the type that the name says."""
    kind = path.name.partition(".")[2]
    if kind == "parquet":
        frame.write_parquet(path)
    elif kind == "jsonl":
        frame.write_ndjson(path)
    else:
        joined = pl.col("shown", "clicked").cast(pl.List(pl.String)).list.join("|")
        frame.with_columns(joined).write_csv(path)
    return path


@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.jsonl"])
@pytest.mark.parametrize("ids", [pl.Int64, pl.String])
def test_every_file_type_gives_the_same_result(
    name: str, ids: type[pl.DataType], tmp_path: Path
) -> None:
    frame = LOG.with_columns(pl.col("shown", "clicked").cast(pl.List(ids)))
    as_text = LOG.with_columns(pl.col("user_id").cast(pl.String)) if "csv" in name else LOG
    result = compare_outcomes(write_log(frame, tmp_path / name), resamples=1000)
    assert result == compare_outcomes(as_text, resamples=1000)


def test_other_types_that_mean_the_same_are_read() -> None:
    frame = LOG.with_columns(
        pl.col("variant").cast(pl.Categorical),
        pl.col("user_id").cast(pl.UInt16),
        pl.col("shown").cast(pl.List(pl.Int32)),
        pl.col("clicked").cast(pl.List(pl.UInt8)),
    )
    assert compare_outcomes(frame, resamples=1000) == compare_outcomes(LOG, resamples=1000)
    frame = LOG.with_columns(variant=(pl.col("variant") == "new").cast(pl.Int8))
    result = compare_outcomes(frame, control="1", resamples=1000)
    assert (result.control.name, result.treatment.name) == ("1", "0")
    arrays = LOG.select("user_id", "variant").with_columns(
        pl.Series("shown", [[1, 2]] * len(LOG), dtype=pl.Array(pl.Int64, 2)),
        pl.Series("clicked", [[2]] * len(LOG), dtype=pl.Array(pl.Int64, 1)),
    )
    assert compare_outcomes(arrays, resamples=1000).rows[0].control == 0.5


def test_a_word_for_missing_in_a_csv_file_is_no_click(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,variant,shown,clicked\n1,a,5|7,NULL\n2,b,5|7,5\n")
    assert read_outcomes(path)["clicked"].to_list() == [[], ["5"]]


LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("shown", "clicked"),
    [([LONG], [[1]]), ([["a"]], [[LONG]]), ([{f"field {k}": k for k in range(2000)}], [[1]])],
    ids=["text", "click", "struct"],
)
def test_an_error_is_short_whatever_the_log_holds(shown: list[Any], clicked: list[Any]) -> None:
    log = pl.DataFrame({"user_id": [1], "variant": ["a"], "shown": shown, "clicked": clicked})
    with pytest.raises(DataError, match="shown") as caught:
        read_outcomes(log)
    assert len(str(caught.value)) < 500


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"clicked": [9, 5, 8]}, r"clicked items were not shown in row 2: \[8, 9\]"),
    ({"clicked": [7, 7]}, r"'clicked' holds an id twice in row 2: \[7, 7\]"),
    ({"shown": [5, 5, 7]}, r"'shown' holds an id twice in row 2: \[5, 5, 7\]"),
    ({"shown": [], "clicked": []}, r"'shown' is empty in row 2: \[\]"),
    ({"shown": [7, None]}, r"'shown' holds a missing id in row 2: \[7, None\]"),
    ({"shown": None}, "'shown' has no value in row 2"),
    ({"clicked": None}, "'clicked' has no value in row 2: None; write an empty list"),
    ({"variant": None}, "'variant' has no value in row 2"),
    ({"variant": ""}, "'variant' has no value in row 2"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ROWS, ids=[m[:30] for _, m in BAD_ROWS])
def test_a_bad_request_is_named_with_its_row(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    rows = [REQUEST, {**REQUEST, **change}, REQUEST]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for source in (pl.DataFrame(rows), tmp_path / "log.jsonl"):
        with pytest.raises(DataError, match=message):
            read_outcomes(source)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,a,5||7,", r"'shown' holds a missing id in row 2: \['5', '', '7'\]"),
        ("1,a,5|NULL,5", r"'shown' holds a missing id in row 2: \['5', 'NULL'\]"),
        ("1,a,NULL,NULL", "'shown' has no value in row 2"),
        (
            '1,a,"[5, 7]","[5, 7]"',
            r"'shown' is in brackets in row 2: '\[5, 7\]'; write the ids with",
        ),
        ('1,a,5|7,"[]"', r"'clicked' is in brackets in row 2: '\[\]'"),
        ("1,a,,", "'shown' has no value in row 2"),
        ("\n1,a,5|7,5;7", r"not shown in row 2: \['5;7'\]"),  # blank lines do not count
        ("1,a,5|7,5,7", "has 5 fields in row 2, and the header names 4"),
    ],
)
def test_a_bad_line_of_a_csv_file_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"user_id,variant,shown,clicked\n1,a,5,5\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_outcomes(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"shown": "5|7"}, "'shown' holds in row 2 '5|7', which is not a list of ids"),
        ({"shown": ["5", "7"]}, "'shown' or 'clicked' mixes types: 5 in row 1 and '5' in row 2"),
        ({"shown": [2**70, 7]}, "'shown' holds an id that exceeds int64"),
    ],
)
def test_a_wrong_type_in_json_lines_is_named(
    line: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f"{json.dumps(REQUEST)}\n\n{json.dumps({**REQUEST, **line})}\n")
    with pytest.raises(DataError, match=message.replace("|", r"\|")):
        read_outcomes(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.col("shown").list.get(0), "'shown' holds Int64, such as .* in row 1; use lists of"),
        (pl.col("shown").cast(pl.List(pl.Float64)), "'shown' holds lists of Float64; ids are"),
        (pl.col("shown").cast(pl.List(pl.String)), r"shown is List\(String\) and clicked List\(I"),
        (pl.col("user_id") + 0.5, "'user_id' is no integer in row 1: 0.5"),
    ],
)
def test_a_wrong_type_of_a_column_is_named(change: pl.Expr, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_outcomes(LOG.with_columns(change))


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (["a"], "needs two variants, got 1: 'a' 3 rows"),
        ([f"{name:02}" for name in range(13)], "'09' 1 rows and 3 more"),
    ],
)
def test_a_log_needs_two_variants(variants: list[str], message: str) -> None:
    names = variants * 3 if len(variants) == 1 else variants
    with pytest.raises(DataError, match=message):
        compare_outcomes(pl.DataFrame([{**REQUEST, "variant": name} for name in names]))


def test_an_unknown_control_and_a_variant_of_few_users_are_refused() -> None:
    with pytest.raises(InputError, match="control 'odl' is not among the variants: 'new' "):
        compare_outcomes(LOG, control="odl")
    with pytest.raises(DataError, match=r"variant 'new' has 19 users \(0 saw both"):
        compare_outcomes(LOG.filter((pl.col("user_id") < 38) | (pl.col("variant") == "old")))


# Plots.


@pytest.fixture(scope="module")
def outcomes() -> OutcomeComparison:
    return compare_outcomes(log_of(gain=0.3), control="old", resamples=1000)


def test_plots_are_pictures(
    models: ModelComparison, outcomes: OutcomeComparison, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="plots are an extra")
    nothing = [replace(row, control=0.0) for row in outcomes.rows]
    mismatch = sample_ratio(100, 10)
    doubtful = replace(outcomes, rows=nothing, sample_ratio=mismatch)
    drawn: list[ModelComparison | OutcomeComparison] = [models, outcomes, doubtful]
    for place, comparison in enumerate(drawn):
        path = tmp_path / f"{place}.png"
        plot_comparison(comparison, path)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_says_what_to_install(
    outcomes: OutcomeComparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install '\.\[plots\]' in "):
        plot_comparison(outcomes, tmp_path / "a.png")


@pytest.mark.parametrize("ratio", [(1e308, 1e308), (3e-308, 3e-308)], ids=str)
def test_a_ratio_of_extreme_numbers_counts_as_their_quotient(ratio: tuple[float, float]) -> None:
    assert sample_ratio(60, 40, ratio) == sample_ratio(60, 40)


@pytest.mark.parametrize("ratio", [(1e308, 1.0), (1.0, 1e308), (5e-324, 1e308)], ids=str)
def test_a_ratio_that_leaves_a_variant_without_users_is_refused(
    ratio: tuple[float, float],
) -> None:
    with pytest.raises(InputError, match="below a millionth of all users"):
        sample_ratio(60, 40, ratio)
