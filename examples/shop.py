"""Make the bundle of a small shop, whose items have a title, a colour, a kind and a price.

python shop.py shop

It takes half a minute and needs the extra export. The manual uses this bundle.
"""

import csv
import random
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

COLOURS = ["red", "blue", "green", "black", "white", "grey", "pink", "gold", "brown", "beige"]
KINDS = ["lamp", "desk", "chair", "rug", "sofa", "shelf", "clock", "vase", "mirror", "stool"]
NEW = {"gold-vase", "pink-sofa"}  # nobody has bought them yet


def write_items(path: Path) -> None:
    """Write a row for each item that the log has."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["item_id", "title", "colour", "kind", "price"])
        for c, colour in enumerate(COLOURS):
            for k, kind in enumerate(KINDS):
                item, price = f"{colour}-{kind}", 20 + 30 * k + c
                if item not in NEW:
                    table.writerow([item, f"{colour} {kind}".capitalize(), colour, kind, price])


def write_log(path: Path) -> None:
    """Write purchases of customers who collect one colour or one kind of furniture."""
    random.seed(7)
    with path.open("w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["user_id", "item_id", "timestamp"])
        for customer in range(1000):
            colour, kind = random.choice(COLOURS), random.choice(KINDS)
            wanted = [[f"{colour}-{k}" for k in KINDS], [f"{c}-{kind}" for c in COLOURS]]
            seconds = 1_780_000_000 + random.randrange(8_000_000)
            for item in random.sample(random.choice(wanted), random.randint(3, 9)):
                seconds += random.randrange(60, 1_000_000)
                if item not in NEW:
                    log.writerow([f"c{customer}", item, seconds])


TRAIN = "train events.csv --out run --items items.csv --attributes price:number"
SETTINGS = ["width=64", "epochs=20", "learning_rate=0.01", "dropout=0.2", "targets_per_step=512"]

if __name__ == "__main__":
    bundle = Path(sys.argv[1]).resolve()
    with TemporaryDirectory() as folder:
        write_log(Path(folder) / "events.csv")
        write_items(Path(folder) / "items.csv")
        train = TRAIN.split() + [f"--set={setting}" for setting in SETTINGS]
        for words in (train, ["export", "run", str(bundle)]):
            subprocess.run([sys.executable, "-m", "ranklet_cli", *words], cwd=folder, check=True)
