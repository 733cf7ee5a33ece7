"""Keep a loaded catalogue up to date: what is sold out, what is new, and why it is shown.

python shop.py shop
python living_catalogue.py shop
"""

import sys

from ranklet import Ranker

NEW = {  # of today; the bundle is of last week
    "item_id": ["gold-vase", "pink-sofa"],
    "title": ["Gold vase", "Pink sofa"],
    "colour": ["gold", "pink"],
    "kind": ["vase", "sofa"],
    "price": [237, 146],
}

if __name__ == "__main__":
    ranker = Ranker.load(sys.argv[1], provider="cpu")
    ranker.define("sold_out", ["gold-rug", "gold-clock"])
    addition = ranker.add_items(NEW)
    ranker.define("new", addition.added)
    print("new:", *addition.added)

    ranking = ranker.rank(
        ["gold-lamp", "gold-desk", "gold-mirror", "gold-chair"],
        k=5,
        where=["!sold_out", {"price": (50, None)}],
        boost={"new": 2.0},
        explain=True,
    )
    assert ranking.explanation is not None
    for place, title in enumerate(ranker.titles(ranking.items)):
        reason = ranking.explanation.reasons(place)[0]
        print(f"{title}, mostly because of {ranker.titles([reason.event])[0].lower()}")
