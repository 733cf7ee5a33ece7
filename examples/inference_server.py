"""An Open Inference Protocol (v2) server, for clients of KServe and Triton.

MODELS=models/ml-latest-small PORT=8000 python inference_server.py
curl localhost:8000/v2/models/ml-latest-small/infer -H 'content-type: application/json' -d \
  '{"inputs": [{"name": "history", "datatype": "BYTES", "shape": [1, 2], "data": ["1", "2571"]}]}'
"""

import asyncio
import os
import sys
from itertools import chain
from pathlib import Path
from threading import Timer
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from prometheus_client import Counter, Histogram, make_asgi_app

from ranklet import InputError, Ranker, RankletError

PATHS = {path.name: path for path in map(Path, os.environ["MODELS"].split(os.pathsep))}
rankers = {name: Ranker.load(path, warm_up=True) for name, path in PATHS.items()}
# While a bundle is reloaded, its thread gives way to requests after 1 ms; by default it takes 5.
sys.setswitchinterval(0.001)
SECONDS = Histogram("ranklet_seconds", "time of a call", ["model"], buckets=[1e-3, 3e-3, 1e-2, 1])
REFUSED = Counter("ranklet_refused", "calls that were not answered", ["model"])
app = FastAPI(title="ranklet")
app.mount("/metrics", make_asgi_app())


@app.exception_handler(HTTPException)
async def refuse(_: Request, error: HTTPException) -> JSONResponse:
    """Say what is wrong as the protocol does."""
    return JSONResponse({"error": error.detail}, error.status_code)


def model(name: str) -> Ranker:
    """Return the ranker of a model."""
    if name not in rankers:
        raise HTTPException(404, f"no model is called {name!r}")
    return rankers[name]


@app.get("/v2/health/live")
@app.get("/v2/health/ready")
@app.get("/v2/models/{name}/ready")
async def ready(name: str = next(iter(PATHS))) -> dict[str, bool]:
    """Return whether requests are answered."""
    return {"live": True, "ready": len(model(name)) > 0}


@app.get("/v2/models/{name}")
async def describe(name: str) -> dict[str, Any]:
    """Return the tensors of a model; ``length`` says how many events of a row are no padding."""
    ids = "BYTES" if model(name).manifest.id_type == "string" else "INT64"
    inputs = [("history", ids, [-1, -1]), ("length", "INT64", [-1]), ("k", "INT64", [1])]
    outputs = [("items", ids, [-1, -1]), ("scores", "FP32", [-1, -1])]
    keys = ("name", "datatype", "shape")
    tensors = [[dict(zip(keys, each, strict=True)) for each in some] for some in (inputs, outputs)]
    version = [model(name).manifest.digest]
    return {"name": name, "versions": version, "inputs": tensors[0], "outputs": tensors[1]}


@app.post("/v2/models/{name}/infer")
async def infer(name: str, body: Request) -> dict[str, Any]:
    """Rank items for one history or more."""
    ranker = model(name)
    with SECONDS.labels(name).time(), REFUSED.labels(name).count_exceptions(HTTPException):
        try:
            request = await body.json()  # whatever its content type
            given = {tensor["name"]: tensor for tensor in request["inputs"]}
            batch, width = given["history"]["shape"]
            events, k = given["history"]["data"], given.get("k", {"data": [10]})["data"][0]
            if batch * width != len(events):
                raise ValueError(f"{len(events)} events are no batch of {batch} times {width}")
            lengths = given.get("length", {"data": [width] * batch})["data"]
            rows = [events[row * width :][: lengths[row]] for row in range(batch)]
            rankings = ranker.rank_batch(rows, k=k)
        except (KeyError, TypeError, IndexError, ValueError, InputError) as error:
            raise HTTPException(400, f"no such request: {error!r}") from error
    best = min(
        (len(ranking.items) for ranking in rankings), default=0
    )  # a tensor is no ragged list
    items = list(chain.from_iterable(ranking.items[:best] for ranking in rankings))
    scores = [score for ranking in rankings for score in ranking.scores[:best].tolist()]
    kind, shape = given["history"]["datatype"], [len(rankings), best]
    outputs = [
        {"name": "items", "datatype": kind, "shape": shape, "data": items},
        {"name": "scores", "datatype": "FP32", "shape": shape, "data": scores},
    ]
    version = ranker.manifest.digest if not rankings else rankings[0].bundle
    return {
        "model_name": name,
        "model_version": version,
        "id": request.get("id", ""),
        "outputs": outputs,
    }


@app.post("/v2/repository/models/{name}/load")
async def reload(name: str) -> dict[str, str]:
    """Take the bundle that lies at the path of a model now; a bad one is refused."""
    try:
        await asyncio.to_thread(model(name).reload, PATHS[name])
    except RankletError as error:
        raise HTTPException(400, str(error)) from error
    return {"name": name, "version": model(name).manifest.digest}


class Server(uvicorn.Server):
    """A server that stops a second after SIGTERM, so that requests on their way still arrive."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop later."""
        Timer(1, super().handle_exit, (sig, frame)).start()


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8000"))
    limits = {"timeout_keep_alive": 75, "timeout_graceful_shutdown": 10}  # seconds
    Server(uvicorn.Config(app, port=port, access_log=False, **limits)).run()
