"""The example server under real clients on the loopback."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ranklet import Ranker

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDED = ("fastapi", "uvicorn", "prometheus_client")
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED),
    reason="the server needs the extra examples: pip install 'ranklet[examples]'",
)


class Server:
    """A server process and the port that it announces."""

    def __init__(self, bundle: Path, log: Path) -> None:
        environment = {**os.environ, "MODELS": str(bundle), "PORT": "0"}
        self.name, self.log = bundle.name, log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "inference_server.py"],
                cwd=EXAMPLES,
                env=environment,
                stderr=file,
                stdout=file,
            )
        while "running on http://127.0.0.1:" not in (text := log.read_text()):
            assert self.process.poll() is None, text
            time.sleep(0.05)
        self.port = int(text.partition("127.0.0.1:")[2].split()[0])

    def ask(self, path: str, document: Any = None) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = None if document is None else json.dumps(document)
        connection.request(
            "GET" if body is None else "POST", path, body, {"content-type": "application/json"}
        )
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        is_json = answer.headers["content-type"] == "application/json"
        return answer.status, json.loads(text) if is_json else text

    def infer(self, histories: list[list[str]], k: int = 5) -> tuple[int, Any]:
        width = max(map(len, histories))
        padded = [item for row in histories for item in [*row, *[""] * (width - len(row))]]
        tensors = [
            tensor("history", "BYTES", [len(histories), width], padded),
            tensor("length", "INT64", [len(histories)], [len(row) for row in histories]),
            tensor("k", "INT64", [1], [k]),
        ]
        return self.ask(f"/v2/models/{self.name}/infer", {"inputs": tensors})


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


@pytest.fixture
def server(shipped_bundle: Path, tmp_path: Path) -> Iterator[Server]:
    bundle = Path(shutil.copytree(shipped_bundle, tmp_path / "films"))
    started = Server(bundle, tmp_path / "log")
    yield started
    started.process.kill()
    started.process.wait()


@pytest.fixture(scope="module")
def histories(shipped_bundle: Path) -> list[list[str]]:
    ids = Ranker.load(shipped_bundle, provider="cpu").ids
    rng = np.random.default_rng(0)
    return [[ids[at] for at in rng.integers(0, len(ids), rng.integers(1, 60))] for _ in range(50)]


@pytest.fixture(scope="module")
def expected(shipped_bundle: Path, histories: list[list[str]]) -> list[list[str]]:
    ranker = Ranker.load(shipped_bundle, provider="cpu")
    return [list(ranker.rank(history, k=5).items) for history in histories]


def items_of(answer: Any) -> list[list[str]]:
    (rows, k), data = answer["outputs"][0]["shape"], answer["outputs"][0]["data"]
    return [data[row * k : (row + 1) * k] for row in range(rows)]


def test_the_protocol_is_spoken(server: Server, histories: Any, expected: Any) -> None:
    assert server.ask("/v2/health/ready")[0] == 200
    status, description = server.ask(f"/v2/models/{server.name}")
    assert status == 200
    assert [each["name"] for each in description["inputs"]] == ["history", "length", "k"]
    status, answer = server.infer(histories[:7])
    assert status == 200
    assert answer["model_version"] == description["versions"][0]
    assert items_of(answer) == expected[:7]
    assert server.ask("/v2/models/nothing")[0] == 404
    status, refusal = server.infer([["1"]], k=0)
    assert status == 400
    assert "k must be" in refusal["error"]
    wrong = {"inputs": [tensor("history", "BYTES", [10**12, 3], ["1"])]}
    assert server.ask(f"/v2/models/{server.name}/infer", wrong)[0] == 400
    metrics = server.ask("/metrics/")[1]
    assert f'ranklet_seconds_count{{model="{server.name}"}} 3.0' in metrics
    assert f'ranklet_refused_total{{model="{server.name}"}} 2.0' in metrics


def test_a_client_of_triton_is_answered(server: Server, histories: Any, expected: Any) -> None:
    pytest.importorskip("geventhttpclient", reason="tritonclient[http] is not installed")
    from tritonclient import http

    client = http.InferenceServerClient(f"localhost:{server.port}")
    assert client.is_server_ready()
    assert client.is_model_ready(server.name)
    history = http.InferInput("history", [1, len(histories[0])], "BYTES")
    history.set_data_from_numpy(np.array([histories[0]], dtype=object), binary_data=False)
    k = http.InferInput("k", [1], "INT64")
    k.set_data_from_numpy(np.array([5]), binary_data=False)
    outputs = [http.InferRequestedOutput("items", binary_data=False)]
    answer = client.infer(server.name, [history, k], outputs=outputs)
    assert answer.as_numpy("items").tolist() == [expected[0]]
    client.close()


def test_a_thousand_requests_are_right_while_the_bundle_is_reloaded(
    server: Server, histories: Any, expected: Any
) -> None:
    def ask(turn: int) -> bool:
        if turn % 100 == 50:
            return server.ask(f"/v2/repository/models/{server.name}/load", {})[0] == 200
        row = turn % len(histories)
        status, answer = server.infer([histories[row]])
        return status == 200 and items_of(answer) == [expected[row]]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(1000)))


def test_a_request_that_came_before_sigterm_is_answered(
    server: Server, histories: Any, expected: Any
) -> None:
    batch = histories * 40

    def stop() -> None:
        time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)

    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(server.infer, batch)
        pool.submit(stop)
        status, answer = asked.result()
    assert status == 200
    assert items_of(answer) == expected * 40
    assert server.process.wait(timeout=20) in (0, -signal.SIGTERM)  # by the version of uvicorn
    assert "Traceback" not in server.log.read_text()
