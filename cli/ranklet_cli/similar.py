"""``ranklet similar``, ``ranklet popular``: rankings that need no history."""

from pathlib import Path
from typing import Any

import click

from ranklet.errors import InputError
from ranklet.ranker import Ranker
from ranklet.ranking import Ranking
from ranklet_cli.answers import print_ranking, ranking_row
from ranklet_cli.filters import read_filters, wheres
from ranklet_cli.ids import exact_ids
from ranklet_cli.options import FOLDER, HeadedCommand, json_flag, print_json, session


@click.command(cls=HeadedCommand)
@click.argument("bundle", type=FOLDER)
@click.argument("item")
@click.option("-k", default=10, help="Number of items to return.")
@click.option("--exact", is_flag=True, help="Scan all items, though the bundle has an index.")
@wheres
@session
@json_flag
def similar(
    bundle: Path,
    item: str,
    k: int,
    exact: bool,
    provider: Any,
    threads: int,
    as_json: bool,
    **filters: Any,
) -> None:
    """Rank the items that are most like an ITEM, given by its id.

    Example: ranklet similar models/ml-latest-small 1 -k 5
    """
    ranker = Ranker.load(bundle, provider=provider, threads=threads)
    ids = exact_ids(ranker.vocabulary, [item], "ITEM")
    if not ids:
        raise InputError("ITEM is empty; pass the id of an item")
    ranking = ranker.similar(ids[0], k, exact=exact, **read_where(ranker, **filters))
    _print(ranker, ranking, f"like {ranker.titles(ids)[0]}", as_json=as_json)


@click.command(cls=HeadedCommand)
@click.argument("bundle", type=FOLDER)
@click.option("-k", default=10, help="Number of items to return.")
@click.option("--trending", is_flag=True, help="Count only the latest days of the training log.")
@wheres
@json_flag
def popular(bundle: Path, k: int, trending: bool, as_json: bool, **filters: Any) -> None:
    """Rank by popularity: the share of each item of the training events.

    Example: ranklet popular models/ml-latest-small -k 5
    """
    ranker = Ranker.load(bundle, provider="cpu")
    ranking = ranker.popular(k, trending=trending, **read_where(ranker, **filters))
    _print(ranker, ranking, "popular lately" if trending else "popular", as_json=as_json)


def read_where(ranker: Ranker, **filters: Any) -> dict[str, Any]:
    """Return the filter of a ranking, without limits and boosts."""
    return {"where": read_filters(ranker, **filters)["where"]}


def _print(ranker: Ranker, ranking: Ranking, heading: str, *, as_json: bool) -> None:
    if as_json:
        return print_json({**ranking_row(ranking), "titles": ranker.titles(ranking.items)})
    click.echo(heading)
    print_ranking(ranker, ranking)
