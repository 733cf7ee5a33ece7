"""Show what comes next after every event: the loop of a kiosk or a set-top box.

python kiosk.py models/ml-latest-small

Each line of stdin is the id of an item that the visitor looked at. An empty line starts the next
visitor, who is shown the most popular items.
"""

import sys

from ranklet import Ranker

ranker = Ranker.load(sys.argv[1], provider="cpu", warm_up=True)
visitor = ranker.user()

for line in sys.stdin:
    item = line.rstrip("\r\n")
    if item:
        visitor.append(*ranker.vocabulary.parse([item]))  # one event costs one event
    else:
        visitor = ranker.user()
    ranking = visitor.rank(k=3, exclude_seen=True)
    print("\t".join(ranker.titles(ranking.items)), flush=True)
