"""Time ranklet and what others would use instead: same machine, same run, in turn.

    python benchmarks/peers/latency.py [--cases 50,200] [--threads 1,2] [--warm MS] [--json OUT]

* What competes is in contenders.py. Each contender is a process that answers the same random
  histories, and ranklet is there in each of SHAPES, with random weights.
* Ten calls of each in turn, in an order drawn anew every round; fewer where a call takes long.
* A turn of ten short calls finds its caches taken by the others, as in a program that ranks now and
  then. With ``--warm`` calls that are not timed go before them, as in a program that does nothing
  else.
* A ratio is the peer's p50 over ranklet's within a round, and then the median over rounds: noise of
  a shared machine that lasts longer than a round hits both sides. On a busy machine the longer call
  is interrupted more often, so that its ratio is too high: the table says when that happened.
"""

import gc
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import cycle
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import numpy as np
from contenders import (
    BLOCKS,
    BUILDERS,
    EAGER,
    INDICES,
    LENGTH,
    OWN,
    RANKLET,
    RECTOOLS,
    REPLAY,
    SCORERS,
    SEQUENCE,
    WIDTH,
    Calls,
    K,
    Work,
    ranklet_append,
    ranklet_append_index,
    ranklet_indices,
    ranklet_rank,
    replay,
    shape_note,
)

from ranklet.files.atomic import atomic_write
from ranklet.machine import describe_machine
from ranklet_training.judge.plots import new_figure, save_figure

SHAPES = ((1, 1), (2, 4))  # heads, and feed-forward width in widths; the first is RePlay's own
TURN, SETTLE = 10, 3  # calls of a turn that are timed, and those before them that are not
TURN_MS = 300  # a turn longer than this has fewer calls
BUSY = 0.1  # share of interrupted calls (of the median row) from which a table says so
LEAST_ROUNDS, STARTS = 5, 10  # rounds whatever the time; processes of the case "start"
REQUESTS = 16  # different ones, so that no single history stays in the caches
PACKAGES = ("ranklet", "onnxruntime", "torch", "replay-rec", "openvino", "rectools", "faiss-cpu")
FILE = click.Path(path_type=Path, dir_okay=False)

# Where a row's ratios to ours are kept.
OVER = {RANKLET: "over_ranklet", INDICES: "over_indices"}

Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Work that contenders compete in."""

    title: str
    items: int = 12_000
    events: int = 50
    batch: int = 1
    peers: tuple[str, ...] = SEQUENCE
    ours: tuple[Callable[[Work], Calls], ...] = (ranklet_rank, ranklet_indices)


APPENDING = (ranklet_append, ranklet_append_index)
CASES = {
    "10": Case("12k items, 10 events", events=10),
    "50": Case("12k items, 50 events"),
    "200": Case("12k items, 200 events", events=200),
    "append": Case("12k items, one more event on 200", events=200, ours=APPENDING),
    "100k": Case("100k items, 50 events", items=100_000),
    "1M": Case("1M items, 50 events", items=1_000_000),
    "batch": Case("12k items, 50 events, batch 256", batch=256),
    "score-12k": Case("12k items, scoring (ranklet: 1 event)", events=1, peers=SCORERS),
    "score-100k": Case("100k items, scoring (ranklet: 1 event)", 100_000, 1, peers=SCORERS),
    "score-1M": Case("1M items, scoring (ranklet: 1 event)", 1_000_000, 1, peers=SCORERS),
    "start": Case("12k items, 50 events, process start to first answer", peers=(REPLAY,)),
}
# By case, peer and threads: what ranklet must at least be faster by, and the aim.
TARGETS = {
    (case, peer, threads): target
    for threads in (1, 2)
    for case, peer, target in (
        ("10", REPLAY, (3.5, 5)),
        ("50", REPLAY, (2.2, 3)),
        ("200", REPLAY, (1.2, 2)),
        ("append", REPLAY, (5.5, 8)),
        ("100k", REPLAY, (2.8, 4)),
        ("1M", REPLAY, (4, 6) if threads == 1 else (6, 8)),
        ("50", RECTOOLS, (50, 80)),
        ("batch", EAGER, (2, 4)),
    )
}
START_TARGET = "under 200 ms and 75 MB"

START = {  # what a fresh process does; its arguments are bundle or graph, and threads
    RANKLET: """
import sys
from ranklet import Ranker
ranker = Ranker.load(sys.argv[1], provider="cpu", threads=int(sys.argv[2]))
ranker.rank([str(item) for item in range(1, 51)], k=10)
""",
    REPLAY: """
import sys, torch
from replay.data import FeatureHint, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorSchema
from replay.models.nn.sequential.compiled import SasRecCompiled
from replay.models.nn.sequential.compiled.base_compiled_model import _compile_openvino
schema = TensorSchema([TensorFeatureInfo("item_id", FeatureType.CATEGORICAL, is_seq=True,
    feature_hint=FeatureHint.ITEM_ID, cardinality=12000, padding_value=12000, embedding_dim=64)])
compiled = SasRecCompiled(_compile_openvino(sys.argv[1], 1, 50, None, int(sys.argv[2])), schema)
ids = torch.arange(50)[None]
request = {"feature_tensor": {"item_id": ids}, "padding_mask": torch.ones_like(ids).bool()}
torch.topk(compiled.predict(request), 10)
""",
}
# Its own peak: that of getrusage would start at the peak of the parent.
START_END = "print(flush=True)\nprint(open('/proc/self/status').read())"


class Contender:
    """A process that answers requests when told to, and what each of its turns took."""

    def __init__(self, name: str, build: Callable[[Work], Calls], work: Work) -> None:
        self.name, self.work, self.calls = name, work, TURN
        self.rounds: list[list[float]] = []  # ms
        self.interrupted = 0  # calls in which another program took the processor
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, build, work), daemon=True)
        self.process.start()
        theirs.close()
        self.note = self._receive()

    def warm_up(self) -> None:
        """Take a turn that does not count, and see how many calls fit into one."""
        median = statistics.median(self.take_turn())
        self.calls = max(1, min(TURN, int(TURN_MS / median)))
        self.rounds.clear()
        self.interrupted = 0

    def take_turn(self, warm: float = 0.0) -> list[float]:
        """Time a block of calls, after calls that go on for so many milliseconds."""
        self.connection.send((self.calls, warm))
        times, interrupted = self._receive()
        self.rounds.append(times)
        self.interrupted += interrupted
        return self.rounds[-1]

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join()

    def _receive(self) -> Any:  # noqa: ANN401  # what _serve sends
        try:
            return self.connection.recv()
        except EOFError:
            raise click.ClickException(f"{self.name} failed, as told above") from None


def _serve(connection: Connection, build: Callable[[Work], Calls], work: Work) -> None:
    """Be a contender until the other end closes."""
    import logging
    import warnings

    os.dup2(2, 1)  # what libraries print is not a result
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    calls = build(work)
    histories = [work.histories(number) for number in range(REQUESTS)]
    found = np.asarray(calls.answer(calls.prepare(histories[0]))).size
    if found != work.batch * K:
        raise RuntimeError(f"{build.__name__} answered {found} items, not {work.batch} times {K}")
    gc.freeze()  # so that collecting before a turn is quick
    connection.send(calls.note)
    number = 0
    while True:
        try:
            count, warm = connection.recv()
        except EOFError:
            return
        settle = min(SETTLE, count)
        places = range(number, number + settle + count)
        requests = [calls.prepare(histories[place % REQUESTS]) for place in places]
        others = [calls.prepare(history) for history in histories] if warm else []
        number, times, switches = places.stop, [], []
        gc.collect()
        gc.disable()
        warm_until = time.perf_counter() + warm / 1e3
        for request in cycle(others):
            calls.answer(request)
            if time.perf_counter() >= warm_until:
                break
        for request in requests:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            start = time.perf_counter()
            calls.answer(request)
            times.append((time.perf_counter() - start) * 1e3)
            switches.append(resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - before)
        gc.enable()
        connection.send((times[settle:], sum(map(bool, switches[settle:]))))


def run_case(key: str, works: Sequence[Work], runs: int, seconds: float, warm: float) -> Result:
    """Let the contenders of a case take turns.

    Args:
        key: Of ``CASES``.
        works: What to do, for each of ``SHAPES``.
        runs: Timed calls of a contender, if all its turns are of ten.
        seconds: After so long no new round starts, but for the first few.
        warm: Milliseconds of a turn before what is timed.
    """
    case = CASES[key]
    contenders: list[Contender] = []
    builders = BUILDERS | dict(zip((RANKLET, INDICES), case.ours, strict=True))
    for name in (RANKLET, INDICES, *case.peers):
        build = builders[name]
        for work in works if name in OWN else works[:1]:
            click.echo(f"{case.title}: starting {name}", err=True)
            contenders.append(Contender(name, build, work))
    for contender in contenders:
        contender.warm_up()
    begin, order = time.monotonic(), random.Random(0)
    for number in range(-(-runs // TURN)):
        if number >= LEAST_ROUNDS and time.monotonic() - begin > seconds:
            break
        for contender in order.sample(contenders, len(contenders)):
            contender.take_turn(warm)
    for contender in contenders:
        contender.close()
    rows = [_row(c.name, c.work.shape, c.note, c.rounds, c.interrupted) for c in contenders]
    return _case_result(key, works[0].threads, rows)


def run_start(works: Sequence[Work]) -> Result:
    """Time fresh processes in turn, from their start to the first answer."""
    Contender(REPLAY, replay, works[0]).close()  # leaves its graph in the folder
    commands = [(RANKLET, work, str(work.bundle)) for work in works]
    commands.append((REPLAY, works[0], str(works[0].folder / "replay.onnx")))
    rounds: list[list[list[float]]] = [[] for _ in commands]
    peaks = [0.0 for _ in commands]
    for number in range(STARTS):
        click.echo(f"fresh processes, round {number + 1} of {STARTS}", err=True)
        for place, (name, work, path) in enumerate(commands):
            milliseconds, peak = _start(START[name], path, str(work.threads))
            rounds[place].append([milliseconds])
            peaks[place] = max(peaks[place], peak)
    rows = []
    for (name, work, _), taken, peak in zip(commands, rounds, peaks, strict=True):
        shape = f"{shape_note(*work.shape)}, " if name == RANKLET else ""
        rows.append(_row(name, work.shape, f"{shape}peak {peak:.0f} MB", taken))
    return _case_result("start", works[0].threads, rows)


def _start(code: str, *arguments: str) -> tuple[float, float]:
    """Return milliseconds to the answer and peak megabytes of a fresh process."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code + START_END, *arguments],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        answered = child.stdout.readline()
        milliseconds = (time.perf_counter() - start) * 1e3
        status = child.stdout.read()
    if not answered:
        raise click.ClickException("a fresh process failed, as told above")
    return milliseconds, int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def _row(
    name: str,
    shape: tuple[int, int],
    note: str,
    rounds: list[list[float]],
    interrupted: int = 0,
) -> Result:
    times = [value for turn in rounds for value in turn]
    p50, p95 = np.percentile(times, [50, 95]).tolist()
    return {
        "name": name,
        "shape": shape_text(shape) if name in OWN else "",
        "note": note,
        "calls": len(times),
        "p50_ms": p50,
        "p95_ms": p95,
        "interrupted": interrupted,
        "round_p50_ms": [round(statistics.median(turn), 5) for turn in rounds],
    }


def _case_result(key: str, threads: int, rows: list[Result]) -> Result:
    """Add what each peer takes over ranklet; ranklet's own model compares within its shape."""
    for name, over in OVER.items():
        ours = [row for row in rows if row["name"] == name]
        for row in rows:
            rivals = [mine for mine in ours if row["shape"] in ("", mine["shape"])]
            is_peer = row["name"] not in OVER
            row[over] = {mine["shape"]: _ratio(row, mine) for mine in rivals if is_peer}
    return {"case": key, "threads": threads, "rows": rows}


def _ratio(row: Result, ours: Result) -> float:
    pairs = zip(row["round_p50_ms"], ours["round_p50_ms"], strict=True)
    return float(np.median([theirs / mine for theirs, mine in pairs]))


def shape_text(shape: tuple[int, int]) -> str:
    """Return a shape as in the options of ``ranklet export --random``."""
    return f"heads={shape[0]},feed_forward={shape[1]}"


def format_table(result: Result) -> str:
    """Return a result as Markdown, a table for each case and number of threads."""
    shapes = [shape_text(shape) for shape in SHAPES]
    header = ["", "p50 ms", "p95 ms", "users/s", "calls"]
    header += [f"over ranklet, {shape}" for shape in shapes]
    header += [*(f"over its indices, {shape}" for shape in shapes), "asked of ranklet"]
    lines = []
    for found in result["cases"]:
        case, threads = CASES[found["case"]], found["threads"]
        lines += [f"### {case.title}, {threads} thread{'s' if threads > 1 else ''}", ""]
        lines += [_line(header), _line(["---"] * len(header))]
        for row in found["rows"]:
            target = TARGETS.get((found["case"], row["name"], threads))
            asked = f"at least {target[0]:g}x, aim {target[1]:g}x" if target else ""
            if found["case"] == "start" and row["name"] == RANKLET:
                asked = START_TARGET
            cells = [f"{row['name']} ({row['note']})", f"{row['p50_ms']:.3f}"]
            cells += [f"{row['p95_ms']:.3f}", f"{1e3 * case.batch / row['p50_ms']:,.0f}"]
            cells += [str(row["calls"])]
            for key in OVER.values():
                cells += [_ratio_text(row[key].get(shape), target) for shape in shapes]
            lines.append(_line([*cells, asked]))
        share = statistics.median(row["interrupted"] / row["calls"] for row in found["rows"])
        if share >= BUSY:
            lines += ["", f"Busy machine: {share:.0%} of a row's calls were interrupted (median)."]
        lines.append("")
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio_text(ratio: float | None, target: tuple[float, float] | None) -> str:
    if ratio is None:
        return ""
    text = f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"
    verdict = " **ranklet is slower**" if ratio < 1 else ""
    return text + verdict + (" (missed)" if target and ratio < target[0] else "")


def plot(result: Result, path: Path) -> None:
    """Draw the latency of 50 events at batch 1 against the catalogue, on the fewest threads."""
    figure, axes = new_figure(path)
    threads = min(found["threads"] for found in result["cases"])
    lines: dict[str, list[tuple[int, float]]] = {}
    for found in result["cases"]:
        if found["case"] in ("50", "100k", "1M") and found["threads"] == threads:
            for row in found["rows"]:
                if row["shape"] in ("", shape_text(SHAPES[0])):
                    point = (CASES[found["case"]].items, row["p50_ms"])
                    lines.setdefault(row["name"], []).append(point)
    for name, points in lines.items():
        items, milliseconds = zip(*sorted(points), strict=True)
        width = 3.0 if name == RANKLET else 1.5
        axes.plot(items, milliseconds, marker="o", linewidth=width, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("items in the catalogue")
    axes.set_ylabel("median latency of one ranking (ms)")
    title = f"Top {K} after 50 events, batch 1, {threads} thread{'s' if threads > 1 else ''}"
    axes.set_title(title, loc="left", fontweight="bold", pad=30)
    where = result["machine"].replace(", Python", "\nPython")
    axes.text(0, 1.02, where, transform=axes.transAxes, fontsize=8, color="0.35")
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def bundle_of(folder: Path, items: int, shape: tuple[int, int], precision: str) -> Path:
    """Return a bundle with random weights, made by the command unless it is there already."""
    bundle = folder / f"{items}-{shape[0]}-{shape[1]}-{precision}"
    if not bundle.exists():
        option = f"items={items},width={WIDTH},blocks={BLOCKS},length={LENGTH},{shape_text(shape)}"
        arguments = ["export", "--random", option, str(bundle), "--precision", precision]
        click.echo(f"$ ranklet {' '.join(arguments)}", err=True)
        command = [sys.executable, "-m", "ranklet_cli", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return bundle


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@click.command()
@click.option("--cases", default=",".join(CASES), show_default=True, help="Separated by commas.")
@click.option("--threads", default="1,2", show_default=True, help="Alike on all sides.")
@click.option("--runs", default=300, show_default=True, help="Timed calls of a contender.")
@click.option("--warm", default=0.0, show_default=True, help="ms of a turn before timed calls.")
@click.option("--seconds", default=120.0, show_default=True, help="The most that a case is timed.")
@click.option("--precision", default="int8", show_default=True, help="Of ranklet's bundles.")
@click.option("--bundles", type=click.Path(path_type=Path), help="Keep the bundles in this folder.")
@click.option("--json", "json_path", type=FILE, help="Write the result there.")
@click.option("--plot", "plot_path", type=FILE, help="Draw latency against the catalogue.")
def main(
    cases: str,
    threads: str,
    runs: int,
    warm: float,
    seconds: float,
    precision: str,
    bundles: Path | None,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Compare ranklet's latency with that of its peers; print tables in Markdown."""
    keys, counts = cases.split(","), [int(count) for count in threads.split(",")]
    if unknown := [key for key in keys if key not in CASES]:
        raise click.BadParameter(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
    found: list[Result] = []
    with tempfile.TemporaryDirectory() as temporary:
        kept = bundles or Path(temporary, "bundles")
        kept.mkdir(parents=True, exist_ok=True)
        for key, count in ((key, count) for key in keys for count in counts):
            for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
                os.environ[variable] = str(count)
            case, works = CASES[key], []
            for shape in SHAPES:
                bundle = bundle_of(kept, case.items, shape, precision)
                folder = Path(tempfile.mkdtemp(dir=temporary))
                sizes = (case.items, case.events, case.batch)
                works.append(Work(*sizes, count, folder, bundle, shape))
            is_start = key == "start"
            found.append(
                run_start(works) if is_start else run_case(key, works, runs, seconds, warm)
            )
            click.echo(format_table({"cases": found[-1:]}), err=True)
    result = {
        "command": f"latency.py --cases {cases} --threads {threads} --runs {runs} "
        f"--warm {warm:g} --seconds {seconds:g} --precision {precision}",
        "machine": describe_machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "--short", "HEAD")
        + ("+" if _git("status", "-s", "-uno") else ""),
        "date": time.strftime("%Y-%m-%d"),
        "cases": found,
    }
    if json_path:
        atomic_write(json_path, (json.dumps(result, indent=1) + "\n").encode())
    if plot_path:
        plot(result, plot_path)
    click.echo(format_table(result))


if __name__ == "__main__":
    main()
