"""Rank over HTTP with FastAPI.

BUNDLE=models/ml-latest-small uvicorn fastapi_handler:app --workers 2
curl localhost:8000/rank -H 'content-type: application/json' -d '{"history": [ID, ID], "k": 3}'
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from ranklet import InputError, Ranker


@asynccontextmanager
async def load(app: FastAPI) -> AsyncIterator[None]:
    """Load the bundle once, in each worker, before the first request."""
    app.state.ranker = Ranker.load(os.environ["BUNDLE"], warm_up=True)
    yield


app = FastAPI(lifespan=load)


class Request(BaseModel):
    """What a client asks for; ids have the type of the bundle."""

    history: list[int | str]  # oldest event first
    k: int = Field(default=10, ge=1, le=100)
    exclude: list[int | str] | None = None
    exclude_seen: bool | None = None


# A ranking takes less time than the way to a thread and back, so this is no plain ``def``.
@app.post("/rank")
async def rank(request: Request) -> dict[str, Any]:
    """Return the best items for a history."""
    ranker: Ranker = app.state.ranker
    try:
        ranking = ranker.rank(**request.model_dump(exclude_none=True))
    except InputError as error:  # such as an id of the wrong type
        raise HTTPException(422, str(error)) from error
    return {**ranking.to_dict(), "titles": ranker.titles(ranking.items)}
