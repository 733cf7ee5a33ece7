"""Rank in an asyncio service: JSON lines over TCP, one request and one answer a line.

python asyncio_service.py models/ml-latest-small 8765
python asyncio_service.py models/ml-latest-small measure

The coroutine calls the ranker directly: a ranking takes about as long as the way to a thread and
back, and ``measure`` prints both. Use ``await asyncio.to_thread(ranker.rank, ...)`` where a ranking
takes more than a millisecond, as with a million items or in batches: onnxruntime releases the GIL.
"""

import asyncio
import json
import statistics
import sys
import time

from ranklet import Ranker


async def serve(ranker: Ranker, port: int) -> None:
    """Answer ``{"history": [...], "k": 5}``; all keys are arguments of ``Ranker.rank``."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            try:
                reply = ranker.rank(**json.loads(line)).to_dict()
            except (TypeError, ValueError) as error:  # no JSON, unknown key, unusable value
                reply = {"error": str(error)}
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    print("listening on port", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def measure(ranker: Ranker, runs: int = 2000) -> None:
    """Print the median of a direct call and of one in a thread, in turn."""
    history, direct, threaded = list(ranker.ids[:20]), [], []
    for _ in range(runs):
        begin = time.perf_counter()
        ranker.rank(history)
        middle = time.perf_counter()
        await asyncio.to_thread(ranker.rank, history)
        direct.append(middle - begin)
        threaded.append(time.perf_counter() - middle)
    for name, seconds in (("direct", direct), ("to_thread", threaded)):
        print(f"{name:9} {statistics.median(seconds) * 1e3:.3f} ms")


if __name__ == "__main__":
    loaded, what = Ranker.load(sys.argv[1], provider="cpu", warm_up=True), sys.argv[2]
    asyncio.run(measure(loaded) if what == "measure" else serve(loaded, int(what)))
