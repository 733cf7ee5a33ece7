"""Odd command lines, and commands on damaged runs: a documented exit status, and one line why."""

import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
import numpy as np
from click.testing import CliRunner

from faults import world
from faults.campaign import Campaign, Tally

STATUSES = range(8)  # documented in docs/cli.md; 130 and more are of signals
LONGEST = 6_000  # characters of what goes to stderr, without the help of click
SECONDS = 120  # of one command
# What a command may get instead of a right value. Numbers of work that would only take long, such
# as 10**9 runs, are not among them.
TEXTS = (
    *(
        "",
        " ",
        "0",
        "-1",
        "1",
        "2",
        "x",
        "nan",
        "inf",
        "-inf",
        "1e308",
        "1e-300",
        "-1e308",
        "1e999",
    ),
    *("9" * 23, "-" + "9" * 23, "9" * 5_000, "0x10", "1_0", "１", "1.5", "true", "none", "auto"),  # noqa: RUF001
    *(
        "=",
        "a=b",
        "a=b=c",
        "x=1,x=2",
        "price=..",
        "price=1..x",
        "!",
        "!x",
        ":",
        "1:1",
        "1e308:1e308",
    ),
    *(
        ",",
        ",,",
        "a,b",
        "50,181",
        "1|2",
        "é",
        "e\u0301",
        "\u202e",
        "\ud800",
        "\udcff",
        "'",
        '"',
        "[[",
    ),
    *("--", "-", "--json", "%s", "{}", "$HOME", "..", "\t", "\n", "x" * 300, "x" * 5_000),
)
SETTINGS = (
    *("l1", "l2", "learning_rate", "clip", "temperature", "rotary_base", "dropout", "calibration"),
    *("width", "heads", "seed", "folds", "fold", "warmup_steps", "stop_after", "attention_window"),
    *("loss", "block", "scoring", "split", "target", "kinds", "features", "windows", "negatives"),
)


class TooLongError(BaseException):
    """A command did not end."""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Stop what takes longer."""

    def stop(_: int, __: FrameType | None) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ended(words: list[str]) -> str:
    """Run a command in this process; return how it ended, with "!" before what must not be."""
    from ranklet_cli.group import cli

    try:
        with at_most(SECONDS):
            result = CliRunner().invoke(cli, words, input="")
    except TooLongError:
        return f"!no end after {SECONDS} s"
    error = result.exception
    if isinstance(error, TooLongError):
        return f"!no end after {SECONDS} s"
    if error is not None and not isinstance(error, SystemExit):
        return f"!{type(error).__name__}: {str(error)[:300]}"
    if result.exit_code not in STATUSES:
        return f"!status {result.exit_code}: {result.stderr[-300:]}"
    if len(result.stderr) > LONGEST:
        return f"!{len(result.stderr):,} characters: {result.stderr[:200]}"
    if result.exit_code and not result.stderr.strip():
        return f"!status {result.exit_code} without a word"
    return f"status {result.exit_code}"


def odd_files(folder: Path) -> list[Path]:
    """Write files that no command can use, in a folder."""
    folder.mkdir()
    texts = {
        "empty.csv": "",
        "deep.json": "[" * 100_000,
        "deep.toml": "x=" + "[" * 100_000,
        "digits.toml": "epochs=" + "9" * 5_000,
        "deep.jsonl": '{"history":' + "[" * 100_000,
        "infinite.jsonl": '{"history":["50"],"user_id":1e999}\n',
        "number.jsonl": '{"history":["50"],"user_id":' + "9" * 5_000 + "}\n",
        "types.jsonl": '{"history":[{}],"now":[],"times":"x","candidates":{"a":1}}\n',
        "null.json": "null",
        "list.json": "[]",
        "header.csv": "user_id,item_id,timestamp\n",
        "one.csv": "user_id,item_id,timestamp\n1,2,3\n",
        "nul.csv": "user_id,item_id,timestamp\n\0,\0,\0\n",
        "report.json": '{"report_format": 9, "bundles": [{}]}',
        "outcomes.csv": "user_id,variant,shown,clicked\n1,A,1|2,1\n2,B,,\n",
        "settings.toml": "width=1e308\nl1=inf\nepochs=-1",
        "pairs.txt": "a\nb\n\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "bytes.parquet").write_bytes(bytes(range(256)) * 4)
    (folder / "gzip.csv.gz").write_bytes(b"\x1f\x8b\x08\0")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "nothing").symlink_to(folder / "missing")
    (folder / "folder.csv").mkdir()
    os.mkdir(os.fsencode(folder) + b"/\xff.csv")
    return [*folder.iterdir(), folder / "missing.csv", Path("/dev/null")]


# Right command lines; those of SLOW take seconds, and come up once in a while.
QUICK = """
data synthetic NEW
compare --log OUTCOMES --control A --ratio 1:1 --resamples 1000 --seed 1
catalogue remove BUNDLE 1,50 --out NEW
catalogue retitle BUNDLE TITLES --out NEW
catalogue add BUNDLE TITLES --like new=1 --bias 1 --out NEW
catalogue save BUNDLE NEW --remove 1 --retitle TITLES
onnx BUNDLE NEW
verify BUNDLE --threads 1
inspect BUNDLE --json
rank BUNDLE --history 1,50 -k 3 --skip 1 --diversity 0.5 --min-score 1 --penalty 1 --threads 1
rank BUNDLE --history 1,50 --candidates IDS --exclude IDS --seen-recently IDS
rank BUNDLE --history 1,50 --boost a:1 --define a=IDS --where a --explain
rank BUNDLE --input ROWS --output NEW -k 2
rank BUNDLE --input LOG -k 2
similar BUNDLE 50 -k 3
popular BUNDLE -k 3 --define a=IDS --where a
bench BUNDLE --length 5 --runs 100 --load none --batch 1 -k 2 --compare REPORT
"""  # the report of the last one is none, or it would be slow
SLOW = """
train LOG --out NEW TINY
train LOG --out NEW TINY --config TOML --preset small --duplicates exact
tune LOG --out NEW TINY --trials 2 --seed 1 --search learning_rate=1e-3:1e-2:log
evaluate RUN LOG
evaluate BUNDLE LOG --on validation
compare RUN BUNDLE LOG --resamples 1000 --seed 1
export RUN NEW --precision fp32
export --random items=20,width=8,blocks=1,heads=1 NEW
"""
SLOW_EACH = 12  # lines


class Lines:
    """Right command lines of which one word or two are odd."""

    def __init__(self, rng: np.random.Generator, folder: Path) -> None:
        """Write what commands can be given."""
        self.rng, self.folder, self.count = rng, folder, 0
        self.files = list(map(str, odd_files(folder / "odd")))
        texts = {
            "TOML": "epochs = 1\nwidth = 8\n",
            "OUTCOMES": "user_id,variant,shown,clicked\n"
            + "".join(f"{u},{'AB'[u % 2]},1|2|3,{'1' * (u % 3 > 0)}\n" for u in range(60)),
            "TITLES": "item_id,title\n1,One\n50,Fifty\n",
            "IDS": "1\n50\n318\n",
            "ROWS": '{"history":["50"],"user_id":1}\n',
            "REPORT": "{}",
        }
        suffixes = {"TOML": "toml", "IDS": "txt", "ROWS": "jsonl", "REPORT": "json"}
        self.names = {"BUNDLE": str(world.SHIPPED)}
        self.names["LOG"] = str(world.write_log(folder / "log.csv"))
        for name, text in texts.items():
            path = folder / f"{name.lower()}.{suffixes.get(name, 'csv')}"
            path.write_text(text)
            self.names[name] = str(path)

    def line(self) -> list[str]:
        """Return the words of a command line."""
        is_slow = self.rng.integers(SLOW_EACH) == 0
        lines = (SLOW if is_slow else QUICK).strip().splitlines()
        words = [part for word in str(self.rng.choice(lines)).split() for part in self.right(word)]
        first = 1 + (words[0] == "catalogue")
        for _ in range(self.rng.integers(1, 3)):
            places = [n for n in range(first, len(words)) if not words[n].startswith("--")]
            kind = self.rng.integers(6)
            if kind < 3 and places:
                place = places[self.rng.integers(len(places))]
                name, sign, _ = words[place].partition("=")
                is_part = sign and self.rng.integers(2)
                words[place] = f"{name}={self.text()}" if is_part else self.odd()
            elif kind == 3 and words[0] in ("train", "tune"):
                words += ["--set", f"{self.rng.choice(SETTINGS)}={self.text()}"]
            elif kind < 5:
                words += self.option(words)
            elif places:
                del words[places[self.rng.integers(len(places))]]
        return words

    def right(self, word: str) -> list[str]:
        """Return what a word of a right line stands for."""
        if word == "RUN":
            return [str(world.trained())]
        if word == "TINY":
            return [*world.TINY]
        if word == "NEW":
            self.count += 1
            return [str(self.folder / f"new-{self.count}.jsonl")]
        return [self.names.get(word, word).replace("=IDS", f"={self.names['IDS']}")]

    def option(self, words: list[str]) -> list[str]:
        """Return an option of a command, with an odd value if it takes one."""
        from ranklet_cli.group import cli

        command: Any = cli
        for word in words:
            command = command.commands[word]
            if not isinstance(command, click.Group):
                break
        options = [p for p in command.params if isinstance(p, click.Option)]
        option = options[self.rng.integers(len(options))]
        return [option.opts[-1]] if option.is_flag else [option.opts[-1], self.odd()]

    def odd(self) -> str:
        """Return an odd file or text."""
        if self.rng.integers(2):
            return self.files[self.rng.integers(len(self.files))]
        return self.text()

    def text(self) -> str:
        """Return an odd text."""
        return TEXTS[self.rng.integers(len(TEXTS))]


def run_lines(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Run generated command lines."""
    tally, lines = Tally(), Lines(rng, folder)
    here = Path.cwd()
    os.chdir(folder)  # relative names of outputs
    try:
        for _ in range(count):
            words = lines.line()
            end = ended(words)
            if end.startswith("!"):
                tally.failed(f"{[word[:200] for word in words]}: {end[1:]}")
            else:
                tally.ended(end)
    finally:
        os.chdir(here)
    return tally


def replace_file(path: Path, rng: np.random.Generator) -> str:
    """Put something else in the place of a file of a run; return what."""
    before = path.read_bytes() if path.is_file() else b""
    path.unlink(missing_ok=True)
    others: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a loop": lambda: path.symlink_to(path),
        "an empty file": path.touch,
        "noise": lambda: path.write_bytes(rng.bytes(1000)),
    }
    kind, place = rng.integers(5), int(rng.integers(max(1, len(before))))
    if path.suffix == ".json" and before and kind < 2:
        what, document = change_json(json.loads(before), rng)
        path.write_text(json.dumps(document))
        return what
    if kind == 2 and before:
        flipped = before[place] ^ 1 << int(rng.integers(8))
        path.write_bytes(before[:place] + bytes([flipped]) + before[place + 1 :])
        return f"a flipped bit of byte {place}"
    if kind == 3:
        texts = ("[" * 100_000, "null", "[]", "{}", "1e999", "NaN", '"x"', "9" * 5000, "\ufeff{}")
        path.write_text(text := texts[rng.integers(len(texts))])
        return text[:20]
    if kind == 4:
        path.write_bytes(before[:place])
        return f"{place} bytes of it"
    name = str(rng.choice([*others]))
    others[name]()
    return name


ODD_JSON: tuple[Any, ...] = (None, True, -1, 0, 1.5, 1e308, 2**70, "", "x", [], [[]], {}, {"x": 1})


def change_json(document: Any, rng: np.random.Generator) -> tuple[str, Any]:
    """Replace, drop or add one value of a document, somewhere; return what and the document."""
    path, value = list[str](), document
    holders = [(document, name) for name in document] if document else []
    while holders:
        value, name = holders[rng.integers(len(holders))]
        path.append(str(name))
        inner = value[name]
        keys: list[Any] = [*inner] if isinstance(inner, dict) else []
        if isinstance(inner, list):
            keys = [*range(len(inner))]
        if not keys or rng.integers(3) == 0:
            if rng.integers(5) == 0 and isinstance(value, dict):
                del value[name]
                return f"without {'.'.join(path)}", document
            odd = ODD_JSON[rng.integers(len(ODD_JSON))]
            value[name] = odd
            return f"{'.'.join(path)} = {odd!r}", document
        holders = [(inner, key) for key in keys]
    return "unchanged", document


Line = Callable[[Path, Path, Path], list[object]]
# Commands on a run, of a run, a log and a new path.
ON_RUNS: tuple[Line, ...] = (
    lambda run, log, new: ["evaluate", run, log],
    lambda run, log, new: ["export", run, new],
    lambda run, log, new: ["train", log, "--out", run, "--resume"],
    lambda run, log, new: ["train", log, "--out", new, "--final", run],
    lambda run, log, new: ["compare", run, world.trained(), log, "--resamples", "10"],
)
FILES = ("config.json", "config.json", "config.json", "catalogue.parquet", "metrics.jsonl")
FILES += ("last.safetensors", "best.safetensors", "questions.safetensors", "evaluation.json")
FILES += ("run.lock",)


def run_on_runs(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Run commands on runs of which one file is another."""
    tally, log = Tally(), world.write_log(folder / "log.csv")
    if not count:
        return tally
    whole = Path(shutil.copytree(world.trained(), folder / "whole"))
    assert ended(["evaluate", str(whole), str(log)]) == "status 0"
    for number in range(count):
        run = Path(shutil.copytree(whole, folder / f"run-{number}"))
        name = FILES[rng.integers(len(FILES))]
        what = replace_file(run / name, rng)
        line = ON_RUNS[rng.integers(len(ON_RUNS))]
        words = list(map(str, line(run, log, folder / f"new-{number}")))
        end = ended(words)
        if end.startswith("!"):
            tally.failed(f"{words[0]} {words[-1][:10]} with {name}: {what}: {end[1:]}")
        else:
            tally.ended(end)
        shutil.rmtree(run)
        shutil.rmtree(folder / f"new-{number}", ignore_errors=True)
    return tally


STREAMS = ("<&-", ">&-", "2>&-", "</dev/null", ">/dev/full", "2>/dev/full")
OF_STREAMS = (
    *("rank BUNDLE --history 50", "rank BUNDLE --input ROWS", "rank BUNDLE --input -"),
    *(
        "popular BUNDLE",
        "inspect BUNDLE --json",
        "similar BUNDLE 50 --json",
        "rank --help",
        "--help",
    ),
    *(
        "verify BUNDLE",
        "rank BUNDLE --input ROWS --output BYTES",
        "inspect BYTES",
        "x",
        "rank BYTES",
    ),
    *("data synthetic BYTES", "rank BUNDLE --input BYTES", "rank BUNDLE --history BYTES"),
)


def run_streams(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Run commands in processes whose streams are closed or full, also with names of any bytes."""
    tally, rows = Tally(), folder / "h.jsonl"
    rows.write_text('{"history":["50"]}\n')
    names = {"BUNDLE": world.SHIPPED, "ROWS": rows, "BYTES": str(folder / "a\udcff\udc80")}
    streams = [each for each in STREAMS if "full" not in each or Path("/dev/full").is_char_device()]
    for number in range(count):
        line = OF_STREAMS[number % len(OF_STREAMS)]
        words = [shlex.quote(str(names.get(word, word))) for word in line.split()]
        others = rng.permutation(streams)[: rng.integers(3)].tolist()
        shell = " ".join([*world.COMMAND, *words, *others])
        result = subprocess.run(
            ["sh", "-c", os.fsencode(shell)], capture_output=True, timeout=SECONDS, cwd=folder
        )
        if b"Traceback" in result.stderr or result.returncode not in STATUSES:
            tally.failed(f"{line} {others}: {result.returncode} {result.stderr[-300:]!r}")
        else:
            tally.ended(f"status {result.returncode}")
    return tally


CAMPAIGNS = [
    Campaign(
        "output stream closed or full, or file name that is not UTF-8",
        "a documented exit status and no traceback",
        run_streams,
        short=1,
        middle=8,
        long=60,
    ),
    Campaign(
        "odd command line",
        "a documented exit status, and a reason in a few words",
        run_lines,
        short=4,
        middle=25,
        long=300,
    ),
    Campaign(
        "run folder with one file replaced, and the commands that read it",
        "a documented exit status, and a reason in a few words",
        run_on_runs,
        short=0,  # the tests of training have some
        middle=4,
        long=60,
    ),
]
