"""Train and judge every row of docs/quality.md, one command line for all data sets.

    python benchmarks/quality.py DATA [--only ml-1m,beauty]

DATA holds a folder for each data set with interactions.parquet or events.parquet. Each job is the
commands ``ranklet train`` and ``ranklet evaluate`` (and ``export``, for the first seed) as a user
types them; what they print is kept in docs/quality/*.json, and a job whose file is there is not run
again: a stopped benchmark goes on. The page and its plot are drawn from these files alone.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from ranklet.files.atomic import atomic_write
from ranklet.machine import describe_machine
from ranklet_training.judge.evaluate import AGAIN
from ranklet_training.judge.plots import new_figure, save_figure

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "quality"
RATINGS = RESULTS / "others" / "ratings-ml-100k.json"
SPEED = RESULTS / "others" / "speed-beauty.json"
PAGE, PLOT = ROOT / "docs" / "quality.md", ROOT / "docs" / "quality.png"
SEEDS = (0, 1, 2)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)

# NDCG@10 / HR@10 as published under this protocol, and where: leave-one-out, all items ranked,
# seen ones masked, order only. Plain SASRec with BCE is there to show that the harness is right.
PUBLISHED = {
    "ml-1m": (0.1857, 0.3159, "SASRec+ with 3000 negatives, Klenitskiy and Vasilev, RecSys 2023"),
    "beauty": (0.0610, 0.1002, "BSARec, AAAI 2024, 5 seeds of RecBoard"),
    "ml-100k": (0.065, 0.1304, "FEARec by RecBole's harness, unrefereed: a weak anchor"),
}
PUBLISHED_BCE = {"ml-1m": 0.1341, "beauty": 0.0354, "ml-100k": 0.0594}

# Options of train, by row.
ROWS = {
    "default": [],
    "0 blocks": ["--preset", "zero-block"],
    "SASRec, BCE": ["--preset", "sasrec-bce", "--set", "epochs=200", "--set", "patience=20"],
    "seed": ["--preset", "seed"],
    # Not order only, and so not to be compared with the published rows.
    "with times": ["--set", "time_gaps=true"],
    "small": ["--preset", "small"],
}
PEERS = {"sasrec": "SASRec", "esasrec": "eSASRec"}
UNANCHORED = ("ml-latest-small", "amazon18-office")
ONLY_FOR = {"seed": ("ml-100k",), "with times": ("ml-100k", "ml-latest-small")}
SMALL = ("default", "0 blocks", "with times")  # rows of data sets without a published figure


RATINGS_TEXT = """\
RMSE on a random fifth of the ratings of ml-100k (`benchmarks/ratings.py`): the seed model, where
this project began, beside what it must beat. Its ranking is in the table of ml-100k. Learning rates
and decay were set on the held-out errors of the first seed.
"""
SPEED_TEXT = """\
Targets (events to predict) a second in training, beauty, width 128, 2 blocks, length 50, both
cores, run in turn (`quality.py DATA --speed PYTHON_OF_THE_PEERS`): ranklet with 2,048 shared
negatives, RecTools SASRec with the whole softmax, eSASRec with 256 negatives.
"""


@dataclass(frozen=True)
class Job:
    """One training and what judges it."""

    data: str
    row: str
    seed: int

    @property
    def path(self) -> Path:
        """Return where its result is kept."""
        slug = self.row.lower().replace(", ", "-").replace(" ", "-")
        return RESULTS / f"{self.data}-{slug}-{self.seed}.json"


def jobs(only: set[str]) -> Iterator[Job]:
    """Yield what is to be run, the rows that matter most first."""
    for row in ROWS:
        for seed in SEEDS if row in ("default", "with times") else SEEDS[:1]:
            for data in ONLY_FOR.get(row, (*PUBLISHED, *UNANCHORED)):
                fits = data in PUBLISHED or row in SMALL
                if fits and (not only or data in only):
                    yield Job(data, row, seed)


def run_job(job: Job, events: Path, folder: Path) -> dict[str, Any]:
    """Train, evaluate and (first seed of the default) export and evaluate the bundle."""
    run, bundle = folder / "run", folder / "bundle"
    options = [*ROWS[job.row], "--set", f"seed={job.seed}"]
    commands = [["train", str(events), "--out", str(run), *options, "--json"]]
    commands.append(["evaluate", str(run), str(events), "--json"])
    if job.seed == 0 and job.row == "default":
        commands.append(["export", str(run), str(bundle), "--json"])
        commands.append(["evaluate", str(bundle), str(events), "--json"])
    printed = []
    for command in commands:
        click.echo(f"$ ranklet {' '.join(command)}", err=True)
        done = subprocess.run(["ranklet", *command], stdout=subprocess.PIPE, check=True, text=True)
        printed.append(json.loads(done.stdout))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {
        **asdict(job),
        "commands": [_public(command, events, folder) for command in commands],
        "train": {**printed[0], "run": "RUN"},
        "epochs": [json.loads(line) for line in lines],
        "evaluate": printed[1],
        "bundle": {"export": {**printed[2], "path": "BUNDLE"}, "evaluate": printed[3]}
        if len(printed) > 2
        else None,
        "machine": describe_machine(),
        "python": platform.python_version(),
        "commit": _git("rev-parse", "--short", "HEAD")
        + ("+" if _git("status", "-s", "-uno", "--", "runtime", "training", "export") else ""),
        "date": time.strftime("%Y-%m-%d"),
    }


def _public(command: list[str], events: Path, folder: Path) -> str:
    text = "ranklet " + " ".join(command)
    return (
        text.replace(str(events), "EVENTS")
        .replace(f"{folder}/run", "RUN")
        .replace(f"{folder}/bundle", "BUNDLE")
    )


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    return done.stdout.strip()


def find_events(data: Path, name: str) -> Path | None:
    """Return the event log of a data set, if it is there."""
    names = ("interactions.parquet", "events.parquet")
    return next((p for n in names if (p := data / name / n).exists()), None)


def rate(events: Path) -> list[dict[str, float]]:
    """Return the errors of predicted ratings for every seed."""
    from ratings import rating_errors

    from ranklet_training.data.events import read_events

    return [rating_errors(read_events(events), seed=seed) for seed in SEEDS]


def write_page(results: list[dict[str, Any]], peers: list[dict[str, Any]]) -> str:
    """Return docs/quality.md."""
    text = """# Quality

Held-out ranking quality beside published figures and baselines. All rows come from one command:
`ranklet train EVENTS --out RUN --set seed=S`. `make quality` runs it and writes this page.

* The split is leave-one-out. All items are ranked. Items of the history are left out. Ties are
  pessimistic. The model knows the order of events, not their times.
* The epoch is chosen on validation. The test events are read once.
* Figures are the mean and the standard deviation over seeds.
* Seconds are those of a training on both cores of the named processor, with a validation after each
  epoch.
* "0 blocks" is a model without attention, the preset `zero-block`. "L" is the number of events that
  count. "window" is the number of events that blocks before the last see.
* The seconds at 49510b0, 514465b and 972e623 include waiting for other programs.
* "measured at" names the commit and the processor. "+" means that files differed from the commit.
* Where no window is named, these blocks saw the whole history. Before 2d876c3 the last block had
  rotary positions, too.

`docs/quality/` holds one JSON file a job, with its commands, settings, epochs and metrics.
[Concepts](concepts.md#evaluation) explains the metrics.

![NDCG@10 of every row as a share of the best published](quality.png)
"""
    parts = [text.rstrip()]
    for data in (d for d in (*PUBLISHED, *UNANCHORED) if any(r["data"] == d for r in results)):
        parts += ["", f"## {data}", "", *_data_table(data, results, peers)]
    if RATINGS.exists():
        parts += ["", "## Ratings", "", *_ratings_table(json.loads(RATINGS.read_bytes()))]
    if SPEED.exists():
        parts += ["", "## Speed of training", "", *_speed_table(json.loads(SPEED.read_bytes()))]
    return "\n".join(parts) + "\n"


def _data_table(data: str, results: list[dict[str, Any]], peers: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| model | seeds | NDCG@10 | HR@10 | coverage | training s | measured at |",
        "|---|---|---|---|---|---|---|",
    ]
    if data in PUBLISHED:
        ndcg, hit, where = PUBLISHED[data]
        lines.append(f"| *best published* ({where}) | | {ndcg:.4f} | {hit:.4f} | | | |")
    for row in ROWS:
        found = [r for r in results if r["data"] == data and r["row"] == row]
        if not found:
            continue
        seconds = statistics.median(r["train"]["seconds"] for r in found)
        shape = _shape(found[0]["train"]["settings"]["model"])
        model = f"**ranklet** ({shape})" if row == "default" else f"{row} ({shape})"
        coverage = statistics.mean(_own_row(r)["coverage"] for r in found)
        lines.append(
            f"| {model} | {len(found)} | {_spread(found, 'NDCG@10')} | {_spread(found, 'HR@10')} "
            f"| {coverage:.0%} | {seconds:.0f} | {_origin(found)} |"
        )
        if row == "SASRec, BCE" and data in PUBLISHED_BCE:
            lines.append(f"| *the same, published* | | {PUBLISHED_BCE[data]:.4f} | | | | |")
    for peer in peers:
        asked = peer["arguments"]
        if asked["events"].split("/")[0] == data:
            epochs = f"{len(peer['training']['epochs'])} epochs in {asked['minutes']:.0f} min"
            lines.append(
                f"| RecTools {PEERS[asked['model']]} (width {asked['width']}, {asked['blocks']} "
                f"blocks, L {asked['length']}; {epochs}, its budget, {peer['cpu']}) | 1 "
                f"| {peer['test']['NDCG@10']:.4f} | {peer['test']['HR@10']:.4f} | "
                f"| {peer['training']['seconds']:.0f} | |"
            )
    evaluated = next(r for r in results if r["data"] == data)["evaluate"]
    for baseline in evaluated["rows"][1:]:
        if baseline["model"] == AGAIN:  # with seen items masked it is popularity
            continue
        figures = baseline["masked"]
        lines.append(
            f"| {baseline['model']} | | {figures['NDCG@10']:.4f} | {figures['HR@10']:.4f} "
            f"| {baseline['coverage']:.0%} | | |"
        )
    for result in (r for r in results if r["data"] == data and r["bundle"]):
        of_run, of_bundle = _own_row(result), result["bundle"]["evaluate"]["rows"][0]
        names = of_run["masked"]
        largest = max(
            abs(of_run[part][name] - of_bundle[part][name])
            for part in ("masked", "unmasked")
            for name in names
        )
        lines += [
            "",
            f"Exported bundle against torch: the {2 * len(names)} metrics differ by at most "
            f"{largest:.1e} ({result['evaluate']['users']:,} users).",
        ]
    return lines


def _ratings_table(errors: list[dict[str, float]]) -> list[str]:
    lines = [RATINGS_TEXT, "| model | RMSE |", "|---|---|"]
    for name in errors[0]:
        values = [one[name] for one in errors]
        lines.append(f"| {name} | {statistics.mean(values):.4f} ± {statistics.stdev(values):.4f} |")
    return lines


def measure_speed(events: Path, peer_python: Path) -> dict[str, list[float]]:
    """Return targets a second of ours and of RecTools' training, run in turn, two times each."""
    shape = {"width": 128, "blocks": 2, "heads": 1}
    options = [part for name, value in shape.items() for part in ("--set", f"{name}={value}")]
    found: dict[str, list[float]] = {"ranklet": [], **{name: [] for name in PEERS.values()}}
    script = str(ROOT / "benchmarks" / "peers" / "train_rectools.py")
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            run, out = Path(folder) / "run", Path(folder) / "peer.json"
            train = ["ranklet", "train", str(events), "--out", str(run), *options]
            subprocess.run([*train, "--set", "epochs=2", "--json"], check=True, capture_output=True)
            last = (run / "metrics.jsonl").read_text().splitlines()[-1]
            found["ranklet"].append(json.loads(last)["targets_per_second"])
            for model, name in PEERS.items():
                sizes = [part for key, size in shape.items() for part in (f"--{key}", str(size))]
                command = [str(peer_python), script, str(events), "--model", model, *sizes]
                command += ["--length", "50", "--minutes", "0.8", "--throughput", "--out", str(out)]
                subprocess.run(command, check=True, capture_output=True)
                found[name].append(json.loads(out.read_bytes())["training"]["targets_per_second"])
    return found


def _speed_table(speed: dict[str, list[float]]) -> list[str]:
    ours = statistics.mean(speed["ranklet"])
    lines = [SPEED_TEXT, "| | targets/s | ranklet is faster by |", "|---|---|---|"]
    for name, values in speed.items():
        mean = statistics.mean(values)
        label = name if name == "ranklet" else f"RecTools {name}"
        times = "" if name == "ranklet" else f"{ours / mean:.0f}x"
        lines.append(
            f"| {label} | {mean:,.0f} ({min(values):,.0f} to {max(values):,.0f}) | {times} |"
        )
    return lines


def _shape(model: dict[str, Any]) -> str:
    if model["kind"] == "seed":
        return f"width {model['width']}"
    block = "gated " if model["block"] == "gated" else ""
    seen = model.get("attention_window", 0) if model["blocks"] > 1 else 0
    window = f", window {seen}" if seen else ""
    length = f"L {model['max_length']}{window}"
    return f"width {model['width']}, {model['blocks']} {block}blocks, {length}"


def _own_row(result: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = result["evaluate"]["rows"][0]
    return row


def _origin(results: list[dict[str, Any]]) -> str:
    """Return commits and processors of a row."""
    commits = sorted({result["commit"] for result in results})
    processors = sorted({result["machine"].split(",")[0] for result in results})
    return f"{', '.join(commits)} ({', '.join(processors)})"


def _spread(results: list[dict[str, Any]], metric: str) -> str:
    values = [_own_row(result)["masked"][metric] for result in results]
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def draw(results: list[dict[str, Any]]) -> None:
    """Draw each row of each data set as a share of the best published NDCG@10."""
    figure, axes = new_figure(PLOT)
    names = [data for data in PUBLISHED if any(r["data"] == data for r in results)]
    rows = [row for row in ROWS if any(r["row"] == row for r in results) and row != "with times"]
    width = 0.8 / len(rows)
    for place, row in enumerate(rows):
        values = []
        for data in names:
            found = [r for r in results if r["data"] == data and r["row"] == row]
            mean = statistics.mean([_own_row(r)["masked"]["NDCG@10"] for r in found] or [0.0])
            values.append(mean / PUBLISHED[data][0])
        left = [x + (place - (len(rows) - 1) / 2) * width for x in range(len(names))]
        bars = axes.bar(left, values, width, label=row)
        pairs = zip(values, names, strict=True)
        texts = [f"{v * PUBLISHED[data][0]:.4f}"[1:] if v else "" for v, data in pairs]
        axes.bar_label(bars, texts, fontsize=7, padding=1)
    axes.axhline(1, color="0.3", linewidth=1, linestyle="--")
    axes.set_xticks(range(len(names)), names)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("NDCG@10 over the best published (dashed)")
    axes.legend(frameon=False)
    save_figure(figure, PLOT)


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--only", default="", help="Data sets, separated by commas.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the runs in this folder.")
@click.option("--speed", type=FILE, help="Measure speed beside this Python of the peers.")
@click.option("--page-only", is_flag=True, help="Run nothing, write the page.")
def main(data: Path, only: str, keep: Path | None, speed: Path | None, page_only: bool) -> None:
    """Run every job whose result is missing, then write docs/quality.md."""
    RATINGS.parent.mkdir(parents=True, exist_ok=True)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for job in () if page_only else jobs({name for name in only.split(",") if name}):
        if job.path.exists():
            continue
        events = find_events(data, job.data)
        if events is None:
            click.echo(f"skipped {job.path.stem}: {data / job.data} has no events", err=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            where = Path(folder) if keep is None else keep / job.path.stem
            result = run_job(job, events, where)
        atomic_write(job.path, (json.dumps(result, indent=1) + "\n").encode())
    if not page_only and not RATINGS.exists() and (events := find_events(data, "ml-100k")):
        atomic_write(RATINGS, (json.dumps(rate(events), indent=1) + "\n").encode())
    if speed is not None and (events := find_events(data, "beauty")):
        atomic_write(SPEED, (json.dumps(measure_speed(events, speed), indent=1) + "\n").encode())
    results = [json.loads(path.read_bytes()) for path in sorted(RESULTS.glob("*.json"))]
    peers = [json.loads(path.read_bytes()) for path in sorted(RESULTS.glob("peers/*.json"))]
    atomic_write(PAGE, write_page(results, peers).encode())
    draw(results)
    click.echo(f"wrote {PAGE.relative_to(ROOT)} from {len(results)} results")


if __name__ == "__main__":
    main()
