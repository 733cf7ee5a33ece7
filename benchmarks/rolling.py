"""Whether a kept state that rolls ranks as well as encoding the latest events again.

    python benchmarks/rolling.py BUNDLE EVENTS

Asked are the users of the test with more events than the bundle takes at once: their state is kept
from the first ``max_length`` events on, and every later event is appended to it.
"""

import json
import time
from pathlib import Path

import click
import numpy as np

from ranklet import Ranker, Ranking
from ranklet.machine import describe_machine
from ranklet_training.data.events import read_events
from ranklet_training.data.split import split_events
from ranklet_training.judge.metrics import hit_rate, ndcg

TOP = 10


def rank_of(target: str | int, ranking: Ranking) -> int:
    """Return the rank of an item among those shown, one more than these where it is not."""
    return ranking.items.index(target) + 1 if target in ranking.items else TOP + 1


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("events", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(bundle: Path, events: Path) -> None:
    """Print one JSON document."""
    ranker = Ranker.load(bundle)
    split = split_events(read_events(events).frame)
    window, ids = ranker.manifest.max_length, split.vocabulary.ids
    ranks: dict[str, list[int]] = {"rolling": [], "encoded again": []}
    appended, seconds = 0, 0.0
    for history, target in zip(split.test.histories, split.test.targets, strict=True):
        if len(history) <= window or not target:
            continue
        names, answer = ids(history), ids(np.array([target]))[0]
        user = ranker.user(names[:window])
        user.rank()
        begin = time.perf_counter()
        user.extend(names[window:])
        rolled = user.rank(TOP, exclude_seen=True)
        seconds += time.perf_counter() - begin
        appended += len(names) - window
        ranks["rolling"].append(rank_of(answer, rolled))
        again = ranker.rank(names, k=TOP, exclude_seen=True)
        ranks["encoded again"].append(rank_of(answer, again))
    figures = {
        name: {"NDCG@10": ndcg(np.array(found), TOP), "HR@10": hit_rate(np.array(found), TOP)}
        for name, found in ranks.items()
    }
    document = {
        "users": len(ranks["rolling"]),
        "appended events": appended,
        "microseconds an event": 1e6 * seconds / appended,
        **figures,
        "machine": describe_machine(),
    }
    click.echo(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
