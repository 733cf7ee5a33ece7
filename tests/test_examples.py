"""The examples run and rank as the ranker does; the plain one knows nothing of ranklet."""

import ast
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import polars as pl
import pytest

from ranklet import Ranker

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
EXAMPLE = EXAMPLES / "plain_onnxruntime.py"
PYTHON = [sys.executable, "-W", "error"]
SCORE_TOLERANCE = 1e-4


@pytest.fixture(scope="session", params=["tiny", "shipped"])
def any_bundle(request: pytest.FixtureRequest, tiny_bundle: Path, shipped_bundle: Path) -> Path:
    return tiny_bundle if request.param == "tiny" else shipped_bundle


def test_the_example_gives_the_golden_answers_and_cuts_long_histories(
    any_bundle: Path, run_example: Any
) -> None:
    for answer in json.loads((any_bundle / "golden.json").read_text()):
        items, scores = run_example(any_bundle, answer["history"])
        assert items == [str(item) for item in answer["items"]]
        assert scores == pytest.approx(answer["scores"], abs=SCORE_TOLERANCE)
    ranker = Ranker.load(any_bundle, provider="cpu")
    size = ranker.manifest.max_length + 7
    history = ranker.vocabulary.ids(np.random.default_rng(0).integers(1, len(ranker) + 1, size))
    items, scores = run_example(any_bundle, ["no such item", *history])
    ranking = ranker.rank(history, exclude_seen=False)
    assert items == [str(item) for item in ranking.items]
    assert scores == pytest.approx(ranking.scores.tolist(), abs=SCORE_TOLERANCE)


def test_the_example_is_short_and_imports_numpy_and_onnxruntime_alone() -> None:
    text = EXAMPLE.read_text()
    assert len([line for line in text.splitlines() if line.strip()]) <= 32
    tree = ast.walk(ast.parse(text))
    modules = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in tree
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert modules == {"json", "sys", "pathlib", "numpy", "onnxruntime"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") < (125 if path.stem == "inference_server" else 60)
    assert path.stem in (ast.get_docstring(ast.parse(text)) or "")


@contextmanager
def serving(words: list[Any], announced: str, **variables: str) -> Iterator[int]:
    """Run a server and yield its port, which it announces on stdout or stderr."""
    with subprocess.Popen(
        [*PYTHON, *words],
        cwd=EXAMPLES,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        assert server.stdout is not None
        printed = ""
        try:
            for line in server.stdout:
                printed += line
                if port := re.search(announced, line):
                    yield int(port[1])
                    return
            pytest.fail(printed)
        finally:
            server.terminate()


def post(port: int, value: Any) -> Any:
    data, kind = json.dumps(value).encode(), {"content-type": "application/json"}
    with urlopen(Request(f"http://127.0.0.1:{port}/rank", data, kind), timeout=60) as answer:
        return json.load(answer)


def test_the_web_handler_answers_as_the_ranker_and_refuses_by_name(
    tiny_bundle: Path, tiny_ranker: Ranker
) -> None:
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            pytest.skip("the web handler needs the extra examples: pip install 'ranklet[examples]'")
    history = list(tiny_ranker.ids[:3])
    words = ["-m", "uvicorn", "fastapi_handler:app", "--port", "0"]
    with serving(words, r"running on http://127.0.0.1:(\d+)", BUNDLE=str(tiny_bundle)) as port:
        answer = post(port, {"history": history, "k": 4, "exclude_seen": True})
        expected = tiny_ranker.rank(history, k=4, exclude_seen=True)
        assert answer.pop("titles") == tiny_ranker.titles(expected.items)
        assert answer == expected.to_dict()
        with pytest.raises(HTTPError, match="422") as refusal:
            post(port, {"history": [1.5]})
        refusal.value.close()
        with pytest.raises(HTTPError, match="422") as refusal:
            post(port, {"history": [7]})
        assert "history[0] is 7" in json.load(refusal.value)["detail"]
        refusal.value.close()


def test_the_asyncio_service_answers_each_line_and_goes_on_after_an_error(
    tiny_bundle: Path, tiny_ranker: Ranker
) -> None:
    history = list(tiny_ranker.ids[:3])
    words = ["asyncio_service.py", tiny_bundle, "0"]
    with (
        serving(words, r"listening on port (\d+)") as port,
        socket.create_connection(("127.0.0.1", port), timeout=60) as connection,
        connection.makefile("rw") as lines,
    ):
        for request in ("no JSON", '{"wrong": 1}', json.dumps({"history": history, "k": 4})):
            lines.write(request + "\n")
        lines.flush()
        assert "Expecting value" in json.loads(lines.readline())["error"]
        assert "'wrong'" in json.loads(lines.readline())["error"]
        answer = json.loads(lines.readline())
    expected = tiny_ranker.rank(history, k=4).to_dict()
    assert answer == expected


def run(*words: Any, **options: Any) -> str:
    return subprocess.run(
        [*PYTHON, *words], cwd=EXAMPLES, capture_output=True, text=True, check=True, **options
    ).stdout


def test_the_asyncio_service_measures_a_direct_call_and_one_in_a_thread(tiny_bundle: Path) -> None:
    printed = run("asyncio_service.py", tiny_bundle, "measure")
    assert re.fullmatch(r"direct +\d\.\d{3} ms\nto_thread +\d\.\d{3} ms\n", printed)


def test_the_batch_job_ranks_for_every_user_of_a_log(
    tiny_bundle: Path, tiny_ranker: Ranker, tmp_path: Path
) -> None:
    random, users = np.random.default_rng(0), 1100  # more than a chunk
    events = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), 3),
            "item_id": random.choice(list(tiny_ranker.ids), 3 * users),
            "timestamp": random.permutation(3 * users),
        }
    )
    events.write_parquet(tmp_path / "events.parquet")
    run("batch_parquet.py", tiny_bundle, tmp_path / "events.parquet", tmp_path / "out.parquet", "4")
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert found.columns == ["user_id", "rank", "item_id", "score"]
    assert len(found) == 4 * users
    for user in (0, users - 1):
        own = found.filter(user_id=user)
        history = events.filter(user_id=user).sort("timestamp")["item_id"].to_list()
        assert own["rank"].to_list() == [1, 2, 3, 4]
        assert own["item_id"].to_list() == tiny_ranker.rank(history, k=4).items


def test_the_kiosk_ranks_after_every_event_and_forgets_the_last_visitor(
    tiny_bundle: Path, tiny_ranker: Ranker
) -> None:
    first, second = tiny_ranker.ids[:2]
    lines = run("kiosk.py", tiny_bundle, input=f"{first}\n{second}\n\n{second}\n").splitlines()
    histories: list[list[Any]] = [[first], [first, second], [], [second]]
    expected = [tiny_ranker.rank(history, k=3, exclude_seen=True).items for history in histories]
    assert lines == ["\t".join(tiny_ranker.titles(items)) for items in expected]


@pytest.mark.slow
def test_the_living_catalogue_shows_a_new_item_none_that_is_sold_out_and_why(
    shop_bundle: Path,
) -> None:
    first, *rows = run("living_catalogue.py", shop_bundle).splitlines()
    assert first == "new: gold-vase pink-sofa"
    titles, reasons = zip(*(row.split(", mostly because of ") for row in rows), strict=True)
    assert "Gold vase" in titles
    assert not {"Gold rug", "Gold clock"} & {*titles}
    assert {*reasons} <= {"gold lamp", "gold desk", "gold mirror", "gold chair"}
