"""Make hostile bundles, open each, and print a line of JSON before and after each.

python -m attacks                      all attacks
python -m attacks loop external_data   some of them
python -m attacks --odd 100 --seed 1   bundles with odd values, drawn from a seed
"""

import argparse
import json
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from attacks import contents, files, graphs, indexes, manifests  # noqa: F401 (they register)
from attacks.bundle import ATTACKS, SHIPPED, Bundle, Make
from attacks.odd import odd_bundle
from attacks.opening import answers, open_bundle
from ranklet import Ranker

MEMORY = 1 << 33  # bytes of addresses; a graph that wants more is refused by the allocator
SLOW = 5.0  # seconds
HANGS = 60  # seconds, after which the process is ended
LONGEST_LINE = 300


class Watch:
    """An audit hook: what Python opens, removes or starts outside of the folder."""

    def __init__(self) -> None:
        self.outside, self.seen = "", list[str]()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        is_start = event.startswith(("subprocess.", "os.exec", "os.posix_spawn", "socket.connect"))
        is_path = self.outside and any(self.outside in str(part) for part in arguments[:2])
        if self.outside and (
            is_start or (event.startswith(("open", "os.", "shutil.")) and is_path)
        ):
            self.seen.append(f"{event} {arguments[:1]}")


def main() -> int:
    """Run attacks; the exit status is 1 where one succeeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*ATTACKS, []], metavar="ATTACK")
    parser.add_argument("--odd", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    watch, failed = Watch(), 0
    expected = answers(Ranker.load(SHIPPED, provider="cpu"))
    for name, make in _chosen(options):
        print(json.dumps({"start": name}), flush=True)
        with TemporaryDirectory(prefix="attack-", dir=options.folder) as folder:
            ended = _ended(Path(folder), make, watch, expected)
        failed += ended.startswith("WRONG")
        print(json.dumps({"end": ended[:LONGEST_LINE]}), flush=True)
    return bool(failed)


def _chosen(options: argparse.Namespace) -> Iterator[tuple[str, Make]]:
    if options.odd:
        yield from (odd_bundle(options.seed, n) for n in range(options.first, options.odd))
    else:
        yield from ((name, ATTACKS[name]) for name in (options.names or ATTACKS))


def _ended(folder: Path, make: Make, watch: Watch, expected: list[Any]) -> str:
    bundle = Bundle(folder)
    make(bundle)
    bundle.watch()
    watch.outside, watch.seen = str(bundle.outside), []
    signal.alarm(HANGS)
    begin = time.process_time()
    try:
        ended = open_bundle(bundle.folder, expected)
    except Exception as error:
        ended = f"WRONG {type(error).__name__}: {error}"
    seconds, watch.outside = time.process_time() - begin, ""
    if touched := [*watch.seen, *bundle.touched()]:
        return f"WRONG: it touched {touched[:3]}"
    return ended if seconds < SLOW else f"WRONG: {seconds:.0f} s, {ended}"


if __name__ == "__main__":
    sys.exit(main())
