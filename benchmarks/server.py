"""The example server under an open loop of requests, with reloads and a SIGTERM in between.

python benchmarks/server.py models/ml-latest-small [--rate 200] [--seconds 30]

Requests are sent when they are due, whether or not earlier ones were answered, so waiting counts.
The bundle is reloaded every fifth of the time, and the server is told to stop at the end, while
requests are on their way: these must be answered, too.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from ranklet import Ranker
from ranklet.machine import describe_machine

EXAMPLES = Path(__file__).parents[1] / "examples"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def question(name: str, history: list[str]) -> bytes:
    """Return an HTTP request for the ten best items."""
    shape = [1, len(history)]
    tensor = {"name": "history", "datatype": "BYTES", "shape": shape, "data": history}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = (
        f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def ask(connection: Connection, request: bytes) -> bytes:
    """Return the body of an answer."""
    reader, writer = connection
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    if " 200 " not in head.splitlines()[0]:
        raise ConnectionError(head)
    size = int(head.partition("content-length:")[2].split()[0])
    return await reader.readexactly(size)


async def main() -> None:
    """Print the latencies, and how many answers were wrong or lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rate", type=int, default=200, help="requests a second")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--port", type=int, default=8765)
    arguments = parser.parse_args()
    ranker = Ranker.load(arguments.bundle, provider="cpu")
    rng = np.random.default_rng(0)
    histories = [[ranker.ids[at] for at in rng.integers(0, len(ranker), 50)] for _ in range(100)]
    expected = [list(ranker.rank(history).items) for history in histories]
    requests = [question(arguments.bundle.name, history) for history in histories]

    facts = {"MODELS": str(arguments.bundle.resolve()), "PORT": str(arguments.port)}
    server = await asyncio.create_subprocess_exec(
        sys.executable, "inference_server.py", cwd=EXAMPLES, env={**os.environ, **facts}
    )
    idle: list[Connection] = []
    while len(idle) < 32:
        try:
            idle.append(await asyncio.open_connection("127.0.0.1", arguments.port))
        except ConnectionRefusedError:
            await asyncio.sleep(0.1)
    times, wrong, lost, reloads = [], 0, 0, 0

    async def one(number: int, due: float) -> None:
        nonlocal wrong, lost
        connection = (
            idle.pop() if idle else await asyncio.open_connection("127.0.0.1", arguments.port)
        )
        try:
            answer = json.loads(await ask(connection, requests[number % 100]))
            times.append(time.perf_counter() - due)
            wrong += answer["outputs"][0]["data"] != expected[number % 100]
            idle.append(connection)
        except (ConnectionError, asyncio.IncompleteReadError):
            lost += 1

    async def reload() -> None:
        nonlocal reloads
        connection = await asyncio.open_connection("127.0.0.1", arguments.port)
        path = f"/v2/repository/models/{arguments.bundle.name}/load"
        await ask(
            connection, f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
        )
        reloads += 1

    count, begin = arguments.rate * arguments.seconds, time.perf_counter()
    tasks, loads = [], []
    for number in range(count):
        due = begin + number / arguments.rate
        await asyncio.sleep(max(0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number, due)))
        if number % (count // 5) == count // 10:
            loads.append(asyncio.create_task(reload()))
    await asyncio.gather(*loads)
    tasks += [asyncio.create_task(one(number, time.perf_counter())) for number in range(20)]
    await asyncio.sleep(0)  # they are sent
    server.send_signal(signal.SIGTERM)
    await asyncio.gather(*tasks)
    await server.wait()
    p50, p99, worst = np.percentile(times, [50, 99, 100]) * 1e3
    sys.stdout.write(
        f"{len(times)} requests at {arguments.rate}/s: p50 {p50:.2f} ms, p99 {p99:.2f} ms, worst "
        f"{worst:.1f} ms; {wrong} wrong, {lost} lost, {reloads} reloads, stopped by SIGTERM\n"
        f"{describe_machine()}\n"
    )


if __name__ == "__main__":
    asyncio.run(main())
