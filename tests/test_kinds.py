"""Models that know the kinds of events, and are asked for one, from the log to the bundle."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from commands import ask, call, run
from ranklet import Ranker
from ranklet.engine.engine import History
from ranklet.errors import DataError, RunError
from ranklet.files.atomic import sha256
from ranklet.verify import verify
from ranklet_export.export import export_bundle
from ranklet_export.gate import check_ranking
from ranklet_training.data.events import Events, read_events
from ranklet_training.data.sequences import epoch_batches
from ranklet_training.data.split import Cases, Split, split_events
from ranklet_training.judge.compare import compare_models
from ranklet_training.judge.evaluate import evaluate, rank_targets
from ranklet_training.judge.new_items import measure_new_items, read_catalogue
from ranklet_training.judge.subjects import subject_of
from ranklet_training.runs import kinds as choice
from ranklet_training.runs import train as training
from ranklet_training.runs.checkpoint import Run, read_run
from ranklet_training.runs.presets import configure
from ranklet_training.runs.start import check_new, final_settings, start_run
from ranklet_training.runs.train import train

PLACES = 18
ITEMS = 2 * PLACES  # those to buy, then those to view
TINY = {"width": 16, "max_length": 12, "epochs": 8, "targets_per_step": 64, "dropout": 0.0}
TINY |= {"blocks": 1, "learning_rate": 0.01}
TRAIN = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def kinds_log() -> pl.DataFrame:
    """A world of places in a circle, each with an item to view and one to buy.

    Everyone goes from place to place; the kind of the next event alone tells which item follows.
    """
    random = np.random.default_rng(0)
    rows = []
    for user in range(200):
        begin = int(random.integers(PLACES))
        for time, kind in enumerate(random.integers(2, size=12)):
            place = (begin + time) % PLACES
            rows.append((f"u{user:03}", f"{'bv'[kind]}{place:02}", time, ("buy", "view")[kind]))
    return pl.DataFrame(rows, ["user_id", "item_id", "timestamp", "event"], orient="row")


@pytest.fixture(scope="module")
def kinds_events(kinds_log: pl.DataFrame) -> Events:
    return read_events(kinds_log)


@pytest.fixture(scope="module")
def kinds_split(kinds_events: Events) -> Split:
    return split_events(kinds_events.frame, target="buy")


def start(path: Path, events: Events, split: Split, /, **settings: Any) -> Run:
    return start_run(path, configure({**TINY, "target": "buy", **settings}), events, split)


@pytest.fixture(scope="module")
def kinds_run(kinds_events: Events, kinds_split: Split, build_once: Callable[..., Path]) -> Run:
    def make(path: Path) -> None:
        train(start(path, kinds_events, kinds_split), kinds_split, show_progress=False)

    return read_run(build_once("kinds-run", make))


@pytest.fixture(scope="module")
def kinds_bundle(kinds_run: Run, build_once: Callable[..., Path]) -> Path:
    return build_once("kinds-bundle", lambda path: export_bundle(kinds_run.path, path))


def top_hits(run: Run, split: Split) -> float:
    scorer = subject_of("run", run, split).model
    return float((rank_targets(scorer, split.test, mask_seen=False).ranks == 1).mean())


# What is asked


def of_letters(letters: str, **options: Any) -> Split:
    """Split the log of one user, an event a letter; upper case is bought, "1" and "2" are no kind.

    Other users fill what a split needs: two cases, and all letters before any of them.
    """
    kinds = {True: "buy", False: "view"}
    rows = [
        (user, letter.lower(), time, None if letter.isdigit() else kinds[letter.isupper()])
        for user, word in (("a", letters), ("b", "abCdEfG"), ("c", "abCdEfG"))
        for time, letter in enumerate(word)
    ]
    rows += [("z", letter, 0, "view") for letter in "abcdefghijk"]
    frame = pl.DataFrame(rows, ["user_id", "item_id", "timestamp", "event"], orient="row")
    return split_events(read_events(frame).frame, target="buy", **options)


def case_of(split: Split, cases: Cases) -> tuple[str, str, list[int]] | None:
    """Return history, target and kinds of user a, None if it is no case."""
    ids = ["?", *map(str, split.vocabulary.all_ids)]
    if len(cases) < 3:
        return None
    assert cases.histories.kinds is not None
    kinds = np.split(cases.histories.kinds, cases.histories.offsets[1:-1])[0]
    return "".join(ids[item] for item in cases.histories[0]), ids[cases.targets[0]], kinds.tolist()


@pytest.mark.parametrize(
    ("letters", "training", "validation", "test"),
    [
        ("aBcDeFg", "abc", ("abc", "d", [2, 1, 2]), ("abcde", "f", [2, 1, 2, 1, 2])),
        ("aBC", "a", ("a", "b", [2]), ("ab", "c", [2, 1])),
        ("1BC", "1", ("1", "b", [0]), ("1b", "c", [0, 1])),
        ("ABc", "abc", None, None),  # nothing is before the first of two
        ("abcD", "abcd", None, None),
        ("abcd", "abcd", None, None),
    ],
)
def test_leave_one_out_asks_about_the_last_two_of_a_kind(
    letters: str, training: str, validation: object, test: object
) -> None:
    split = of_letters(letters)
    ids = ["?", *map(str, split.vocabulary.all_ids)]
    assert "".join(ids[item] for item in split.training[0]) == training
    assert case_of(split, split.validation) == validation
    assert case_of(split, split.test) == test
    assert split.kinds == {"buy": sum(map(str.isupper, letters)) + 6, "view": split.kinds["view"]}
    assert "asked about 'buy' alone" in split.notes


def test_a_split_by_time_asks_about_the_first_of_a_kind_in_each_period() -> None:
    split = of_letters("abCdEFGhIJk", kind="time", instants=(3, 6))
    assert case_of(split, split.validation) == ("abcd", "e", [2, 2, 1, 2])
    assert case_of(split, split.test) == ("abcdef", "g", [2, 2, 1, 2, 1, 1])
    assert len(split.training[0]) == 3


def test_folds_ask_about_the_last_of_a_kind() -> None:
    letters = {0: "abCdEf", 1: "gHi"}
    rows = [
        (user, letter.lower(), time, "buy" if letter.isupper() else "view")
        for user in range(30)
        for time, letter in enumerate(letters[user % 2])
    ]
    frame = pl.DataFrame(rows, ["user_id", "item_id", "timestamp", "event"], orient="row")
    events = read_events(frame).frame
    found = []
    for fold in range(3):
        split = split_events(events, "k-fold", folds=3, fold=fold, target="buy")
        ids = ["?", *map(str, split.vocabulary.all_ids)]
        found += [
            ("".join(ids[item] for item in history), ids[target])
            for history, target in zip(split.test.histories, split.test.targets, strict=True)
        ]
    assert sorted(found) == [("abcd", "e")] * 15 + [("g", "h")] * 15


def test_an_unknown_target_names_the_kinds_there_are(kinds_events: Events) -> None:
    counts = kinds_events.frame["event"].value_counts()
    of = dict(counts.iter_rows())
    with pytest.raises(DataError, match=rf"target kind 'bye': .*buy \({of['buy']:,}\)"):
        split_events(kinds_events.frame, target="bye")
    with pytest.raises(DataError, match="the log has no event kinds"):
        split_events(kinds_events.frame.drop("event"), target="buy")


def test_a_split_that_has_no_two_of_a_kind_says_so() -> None:
    frame = pl.DataFrame(
        [("u", letter, time, letter) for time, letter in enumerate("abcd")],
        ["user_id", "item_id", "timestamp", "event"],
        orient="row",
    )
    with pytest.raises(DataError, match="a target of kind 'a': it needs users with two such"):
        split_events(read_events(frame).frame, target="a")


# Batches


def test_batches_hold_the_kinds_of_their_events_and_targets(kinds_split: Split) -> None:
    sequences = kinds_split.training
    assert sequences.kinds is not None
    batches = list(
        epoch_batches(
            sequences, windows="last", length=20, targets=50, seed=0, epoch=0, with_kinds=True
        )
    )
    assert sum(len(batch.users) for batch in batches) == (sequences.lengths > 1).sum()
    for batch in batches:
        assert batch.kinds is not None
        assert batch.target_kinds is not None
        for row, user in enumerate(batch.users):
            of_user = sequences.kinds[sequences.offsets[user] : sequences.offsets[user + 1]]
            count = len(of_user) - 1
            assert batch.kinds[row, :count].tolist() == of_user[:-1].tolist()
            assert batch.target_kinds[row, :count].tolist() == of_user[1:].tolist()
            assert not batch.kinds[row, count:].any()
            assert not batch.target_kinds[row, count:].any()


# Training


def test_kinds_tell_what_order_cannot(
    kinds_run: Run, kinds_events: Events, kinds_split: Split, tmp_path: Path
) -> None:
    facts = kinds_run.data["kinds"]
    assert facts["used"] is True
    assert kinds_run.kinds == ["buy", "view"]
    assert facts["NDCG@10"]["with"] > 1.2 * facts["NDCG@10"]["without"]
    assert facts["NDCG@10"]["with"] == kinds_run.best_metrics()["NDCG@10"]
    blind = start(tmp_path / "run", kinds_events, kinds_split, kinds="ignore")
    result = train(blind, kinds_split, show_progress=False)
    assert result.validation["NDCG@10"] == facts["NDCG@10"]["without"]
    # Without kinds a model can be right in half of the cases.
    assert top_hits(blind, kinds_split) < 0.65
    assert top_hits(kinds_run, kinds_split) > 0.85
    told = compare_models(blind, kinds_run, kinds_split)
    differences = {row.metric: row.difference for row in told.rows}
    assert differences["NDCG@10"] > 0.15
    assert "targets of kind 'buy'" in told.protocol


def test_use_trains_the_weights_that_auto_chose(
    kinds_run: Run, kinds_events: Events, kinds_split: Split, tmp_path: Path
) -> None:
    used = start(tmp_path / "run", kinds_events, kinds_split, kinds="use")
    train(used, kinds_split, show_progress=False)
    assert sha256(used.path / "best.safetensors") == sha256(kinds_run.path / "best.safetensors")


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the package catches it."""


@pytest.mark.parametrize(
    ("module", "name", "moment"),
    [
        (training, "append", 1),  # in the training without kinds
        (training, "append", 3),  # in that with kinds
        (choice, "write_config", 1),  # before both figures are kept
        (choice.shutil, "rmtree", 1),  # after the files were moved
        (training, "_measure_seen", 1),
    ],
)
def test_a_choice_that_was_killed_goes_on_to_the_same_bits(
    module: Any,
    name: str,
    moment: int,
    kinds_events: Events,
    kinds_split: Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def finish(run: Run) -> tuple[str, str, Any]:
        train(run, kinds_split, show_progress=False)
        assert not any(path.is_dir() for path in run.path.iterdir())
        files = (run.path / file for file in ("best.safetensors", "last.safetensors"))
        return *map(sha256, files), run.data  # type: ignore[return-value]

    def new(folder: str) -> Run:
        return start(tmp_path / folder, kinds_events, kinds_split, epochs=2)

    expected, run, original, calls = finish(new("whole")), new("killed"), getattr(module, name), []

    def dying(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == moment:
            raise Killed
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, dying)
        with pytest.raises(Killed):
            train(run, kinds_split, show_progress=False)
    with pytest.raises(RunError, match="already holds a run"):
        check_new(run.path)
    assert finish(read_run(run.path)) == expected


def test_files_that_were_moved_in_part_are_moved_when_resumed(
    kinds_run: Run, kinds_split: Split, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(kinds_run.path, path)
    for folder in choice.FOLDERS.values():
        (path / folder).mkdir()
    for name in ("best.safetensors", "last.safetensors"):
        (path / name).rename(path / "with-kinds" / name)
    train(read_run(path), kinds_split, show_progress=False)
    for name in ("best.safetensors", "last.safetensors", "metrics.jsonl"):
        assert (path / name).read_bytes() == (kinds_run.path / name).read_bytes()
    assert not (path / "with-kinds").exists()


ONE = pl.lit("view").alias("event")
MANY = pl.int_range(pl.len()).cast(pl.String).alias("event")


@pytest.mark.parametrize(
    ("column", "settings", "why"),
    [
        (ONE, {}, "kinds of events are ignored: all of them are 'view'"),
        (MANY, {}, "kinds of events are ignored: there are 2,400 of them, and a model takes 100"),
        (None, {"kinds": "ignore"}, "kinds of events are ignored: kinds=ignore"),
        (None, {"blocks": 0}, "kinds of events are ignored: a model without blocks can't ask"),
        (None, {"split": "none"}, "kinds of events are ignored: nothing is held out to decide by"),
    ],
)
def test_kinds_are_never_ignored_without_a_word(
    column: pl.Expr | None,
    settings: dict[str, Any],
    why: str,
    kinds_log: pl.DataFrame,
    tmp_path: Path,
) -> None:
    events = read_events(kinds_log if column is None else kinds_log.with_columns(column))
    split = split_events(events.frame, settings.get("split", "leave-one-out"))
    run = start(tmp_path / "run", events, split, target="", **settings)
    assert run.data["kinds"]["why"].startswith(why)
    assert (run.kinds, run.target) == ([], 0)
    if settings.get("kinds") != "ignore" and "split" not in settings:
        with pytest.raises(RunError, match="kinds=use needs several kinds"):
            start(tmp_path / "use", events, split, target="", **{**settings, "kinds": "use"})


def test_a_log_without_kinds_needs_no_word(kinds_log: pl.DataFrame, tmp_path: Path) -> None:
    events = read_events(kinds_log.drop("event"))
    split = split_events(events.frame)
    run = start(tmp_path / "run", events, split, target="")
    assert run.data["kinds"] == {"counts": {}, "used": False, "why": ""}


def test_a_training_on_all_events_uses_kinds_as_the_run_does(kinds_run: Run) -> None:
    assert final_settings(kinds_run).train.kinds == "use"
    blind = replace(kinds_run, data={**kinds_run.data, "kinds": {"counts": {}, "used": False}})
    assert final_settings(blind).train.kinds == "ignore"


def test_a_search_compares_trials_that_choose_for_themselves(
    kinds_log: pl.DataFrame, tmp_path: Path
) -> None:
    log, study = tmp_path / "log.parquet", tmp_path / "study"
    kinds_log.write_parquet(log)
    options = ["--target", "buy", "--trials", "2", "--search", "width=16,32", "--sampler", "random"]
    run("tune", log, "--out", study, *TRAIN, "--set", "epochs=2", *options)
    for number in range(2):
        assert json.loads((study / f"trials/{number}/config.json").read_text())["data"]["kinds"]


def test_new_items_are_measured_for_the_kind_that_is_asked_for(kinds_run: Run) -> None:
    places = kinds_run.catalogue.with_columns(place=pl.col("item_id").str.slice(1))
    facts = {**kinds_run.data, "attributes": {"place": "category"}}
    run, model = replace(kinds_run, data=facts, catalogue=places), kinds_run.load_model()
    asking = copy.deepcopy(model)
    asking.objective[0] = model.objective[run.target]
    questions, events = run.read_questions(), places["training_events"].to_numpy().astype(np.int64)
    assert questions is not None
    found, expected, other = (
        measure_new_items(
            each, read_catalogue(run, model), events, questions, masked=False, target=target
        )
        for each, target in ((model, run.target), (asking, 0), (model, 0))
    )
    assert found == expected
    assert found != other


# Bundles


def test_the_bundle_answers_as_the_model_for_any_kinds_and_weights(
    kinds_run: Run, kinds_bundle: Path
) -> None:
    ranker, model = Ranker.load(kinds_bundle, provider="cpu"), kinds_run.load_model()
    manifest = ranker.manifest
    assert (manifest.kinds, manifest.target) == (["buy", "view"], "buy")
    assert manifest.objective.tolist() == [0, 1, 0]
    assert verify(kinds_bundle, provider="cpu").golden > 0
    random, table = np.random.default_rng(0), model.table()
    for length in (1, 5, 12):
        items, kinds = random.integers(1, ITEMS + 1, length), random.integers(0, 3, length)
        weights = random.uniform(-1, 1, 3).astype(np.float32)
        for history, asked in (
            (History(items, kinds=kinds, objective=weights), weights),
            (History(items, kinds=kinds), np.array([0, 1, 0], np.float32)),
        ):
            vector = ranker.engine.encode([history])
            best = ranker.engine.score(vector, ITEMS, ITEMS)
            given = torch.from_numpy(kinds)[None], torch.from_numpy(asked)[None]
            user = model.serve(torch.from_numpy(items)[None], table, None, given)
            expected = (user @ table[1:].T)[0].numpy()
            np.testing.assert_allclose(best.scores[0], np.sort(expected)[::-1], atol=1e-4)


def test_a_bundle_with_kinds_ranks_without_them(kinds_bundle: Path, run_example: Any) -> None:
    ranker = Ranker.load(kinds_bundle, provider="cpu")
    items, _ = run_example(kinds_bundle, ["b03", "v04"])
    assert items == ranker.rank(["b03", "v04"], exclude_seen=False).items


def test_a_larger_weight_moves_a_kind_forward(kinds_bundle: Path) -> None:
    ranker = Ranker.load(kinds_bundle, provider="cpu")
    assert (ranker.kinds, ranker.objective) == (["buy", "view"], {"buy": 1})
    user, differences = ranker.user(["b04"], kinds=["buy"]), []
    for weight in (0, 0.25, 0.5, 1, 2, 4):
        asked = {"buy": 1, "view": weight}
        best = ranker.rank(["b04"], kinds=["buy"], objective=asked, k=ITEMS)
        assert user.rank(ITEMS, objective=asked).items == best.items
        score = dict(zip(best.items, best.scores.tolist(), strict=True))
        differences.append(score["v05"] - score["b05"])  # at the next place
    assert differences == sorted(differences)
    assert differences[0] < -1
    assert differences[-1] > 1
    assert ranker.rank(["b04"], kinds=["buy"]).items[0] == "b05"
    assert user.rank(1, objective="view").items == ["v05"]


def test_run_and_bundle_agree_with_kinds(
    kinds_run: Run, kinds_bundle: Path, kinds_split: Split
) -> None:
    ranker = Ranker.load(kinds_bundle, provider="cpu")
    of_run, of_bundle = evaluate({"run": kinds_run, "bundle": ranker}, kinds_split)["rows"][:2]
    for part in ("masked", "unmasked"):
        assert of_run[part] == pytest.approx(of_bundle[part], abs=5e-5)


def test_the_gate_asks_with_the_kinds_of_held_out_events(
    kinds_run: Run, kinds_bundle: Path
) -> None:
    ranker, model = Ranker.load(kinds_bundle, provider="cpu"), kinds_run.load_model()
    questions = kinds_run.read_questions()
    assert questions is not None
    told, untold = (
        check_ranking(ranker, model, model.table(), replace(questions, kinds=kinds), 1)
        for kinds in (questions.kinds, None)
    )
    assert told == ranker.manifest.gate
    assert (told["overlap"], untold["overlap"]) == pytest.approx((1, 1), abs=0.01)
    assert told["fp32"] != untold["fp32"]


def test_kinds_of_another_log_are_found_by_name(
    kinds_run: Run, kinds_log: pl.DataFrame, kinds_split: Split
) -> None:
    other = kinds_log.head(1).with_columns(user_id=pl.lit("v"), event=pl.lit("ask"))
    newer = read_events(pl.concat([kinds_log, other]))
    split = split_events(newer.frame, target="buy", for_training=False)
    assert list(split.kinds) == ["ask", "buy", "view"]
    rows = [evaluate({"run": kinds_run}, which)["rows"][0] for which in (split, kinds_split)]
    assert rows[0]["unmasked"] == rows[1]["unmasked"]


# The command line


def test_ratings_become_kinds_that_every_command_reads_alike(
    kinds_log: pl.DataFrame, tmp_path: Path
) -> None:
    log, path = tmp_path / "log.parquet", tmp_path / "run"
    rating = pl.when(pl.col("event") == "buy").then(4.5).otherwise(2.0).alias("rating")
    kinds_log.with_columns(rating).drop("event").write_parquet(log)
    options = ["--rating-kinds", "like=4,low=0", "--target", "like", *TRAIN]
    result = run("train", log, "--out", path, *options, "--set", "epochs=6")
    buys = kinds_log.filter(pl.col("event") == "buy").height
    counts = sorted({"like": buys, "low": 2400 - buys}.items(), key=lambda pair: -pair[1])
    told = ", ".join(f"{name} ({count:,})" for name, count in counts)
    assert f"kinds of events: {told}\n" in result.stderr
    assert "kinds of events: a training without and one with them decide" in result.stderr
    assert "with kinds, epoch 1 of 6: loss" in result.stderr
    facts = read_run(path).data["kinds"]
    assert f"{facts['why']}\n" in result.stdout
    assert facts["used"]
    table = ask("evaluate", path, log)
    assert "leave-one-out, test, targets of kind 'like', full ranking" in table["protocol"]
    run("train", log, "--out", path, "--resume")
    run("train", log, "--out", tmp_path / "final", "--final", path)
    assert read_run(tmp_path / "final").kinds == ["like", "low"]
    run("export", tmp_path / "final", tmp_path / "bundle")
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert f"* Kinds of events: {told}.\n" in card
    assert "* Asks for events of kind 'like'.\n" in card
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["target"] == "like"
    other = call("train", log, "--out", tmp_path / "no", "--target", "like")
    assert "no event is of the target kind 'like': the log has no event kinds" in other.stderr


def test_models_of_different_targets_are_not_compared(
    kinds_log: pl.DataFrame, kinds_run: Run, tmp_path: Path
) -> None:
    log, path = tmp_path / "log.parquet", tmp_path / "run"
    kinds_log.write_parquet(log)
    run("train", log, "--out", path, *TRAIN, "--set", "epochs=1", "--set", "kinds=use")
    result = call("compare", path, kinds_run.path, log)
    assert "the leave-one-out split" in result.stderr
    assert "the leave-one-out (buy) split" in result.stderr


def test_a_table_of_two_models_says_what_was_asked(kinds_run: Run, kinds_split: Split) -> None:
    table = evaluate({"run": kinds_run}, kinds_split)
    assert table["protocol"].startswith("leave-one-out, test, targets of kind 'buy', full ranking")
