"""One ranking as JSON values and as lines of a terminal."""

from typing import Any

import click

from ranklet.ranker import Ranker
from ranklet.ranking import Ranking

SHOWN_REASONS = 3  # events for each item


def ranking_row(ranking: Ranking) -> dict[str, Any]:
    """Return the JSON values of a ranking, scores with six digits.

    The digest of the bundle is left out: the command line named the bundle, for all rows.
    """
    row = ranking.to_dict()
    del row["bundle"]
    return row | {"scores": [round(score, 6) for score in row["scores"]]}


def print_ranking(ranker: Ranker, ranking: Ranking) -> None:
    """Print place, score, title and id of each item, and what events led to it if that is known."""
    titles, scores = ranker.titles(ranking.items), ranking.scores.tolist()
    rows = zip(ranking.items, titles, scores, strict=True)
    for place, (item, title, score) in enumerate(rows, 1):
        name = title if title == str(item) else f"{title}  ({item})"
        click.echo(f"{place:3}  {score:8.4f}  {name}")
        if ranking.explanation is not None:
            for reason in ranking.explanation.reasons(place - 1)[:SHOWN_REASONS]:
                (event,) = ranker.titles([reason.event])
                click.echo(f"{'':13}  {reason.drop:+.4f} by {event}")
