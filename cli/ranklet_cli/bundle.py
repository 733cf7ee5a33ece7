"""``ranklet export``, ``onnx``, ``verify``, ``inspect``: make, check and show a bundle."""

import logging
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from ranklet.bundle.manifest import Attribute, Manifest
from ranklet.errors import BundleError
from ranklet.values import show
from ranklet_cli.evaluate import format_evaluation
from ranklet_cli.options import FILE, FOLDER, PATH, choice, json_flag, print_json, session
from ranklet_cli.signature import check_signature

# What facts of another form than ranklet writes lead to.
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError)
TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # of a second


@click.command()
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="[RUN] BUNDLE")
@click.option(
    "--random",
    "shape",
    metavar="items=N,width=N,...",
    help="Export random weights of this shape instead of a RUN, to try out hardware.",
)
@choice(
    "--precision",
    "auto|int8|int4|fp16|fp32",
    help="Precision of item scores; auto is int8 if --allow-drop permits it.",
)
@click.option(
    "--allow-drop",
    default=0.005,
    help="Fail if NDCG@10 drops by more than this share. Without held-out events, the ten best "
    "items are compared.",
)
@click.option("--compact", is_flag=True, help="Make the bundle smaller and its encoder slower.")
@click.option(
    "--exclude-seen/--include-seen",
    default=None,
    help="Rank without or with the items of the history by default.  [default: what served the "
    "validation answers of the run better]",
)
@choice(
    "--index",
    "none|clusters",
    help="An index for large catalogues: score only the items of the clusters that are nearest to "
    "a user. A request over 100,000 items then takes less than half the time.",
)
@click.option("--replace", is_flag=True, help="Replace BUNDLE if it exists.")
@json_flag
def export(paths: tuple[Path, ...], shape: str | None, as_json: bool, **settings: Any) -> None:
    """Export the best weights of a RUN as a BUNDLE, and check that both rank alike.

    \b
    Examples:
      ranklet export run bundle
      ranklet export --random items=12000,width=64,blocks=2,heads=1,length=200 bundle
    """
    from ranklet_export.export import Settings, export_bundle, export_random

    if len(paths) != (2 if shape is None else 1):
        raise click.UsageError("pass a RUN and a BUNDLE, or --random and a BUNDLE")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # warns about torchvision
    *run, bundle = paths
    options = Settings(**settings)
    if shape is None:
        report = export_bundle(run[0], bundle, options)
    else:
        report = export_random(shape, bundle, options)
    if as_json:
        return print_json(report)
    parity = report.parity
    click.echo(
        f"{bundle}: {report.bytes / 1e6:.2f} MB, {sum(report.nodes.values())} nodes, "
        f"{report.precision}, {report.seconds:.1f} s\n"
        f"parity at {len(parity.points)} points: scores differ by at most "
        f"{parity.max_score_difference:.1e}"
    )
    manifest = Manifest.read(bundle, check_digests=False)
    facts = manifest.gate_text, manifest.index_text, manifest.seen_text, manifest.new_items_text
    for fact in filter(None, facts):
        click.echo(fact)
    click.echo(f"next: ranklet verify {bundle}; ranklet rank {bundle} --history ...")


@click.command()
@click.argument("bundle", type=FOLDER)
@click.argument("file", type=PATH)
@json_flag
def onnx(bundle: Path, file: Path, as_json: bool) -> None:
    """Write a BUNDLE as one self-contained ONNX FILE, for use without ranklet.

    The model in the FILE maps histories of item indices to the best items and their scores.

    Example: ranklet onnx models/ml-latest-small films.onnx
    """
    from ranklet_export.single import write_single_file

    size = write_single_file(bundle, file)
    if as_json:
        return print_json({"path": file, "bytes": size})
    click.echo(f"{file}: {size / 1e6:.2f} MB, see docs/bundle.md")


@click.command()
@click.argument("bundle", type=FOLDER)
@session
@click.option("--key", type=FILE, help="Public key, PEM: check the signature of ranklet sign, too.")
@json_flag
def verify(bundle: Path, provider: Any, threads: int, key: Path | None, as_json: bool) -> None:
    """Check the digests, graph contract and golden answers of a BUNDLE on this machine.

    Example: ranklet verify models/ml-latest-small
    """
    from ranklet.verify import verify as verify_bundle

    if key:
        check_signature(bundle, key)
    report = verify_bundle(bundle, provider=provider, threads=threads)
    if as_json:
        return print_json(report)
    click.echo(
        f"{bundle} is intact and gives the golden answers on {report.provider}: "
        f"{report.files} files, {report.bytes / 1e6:.2f} MB, {report.items:,} items, "
        f"{report.golden} answers, scores differ by at most {report.max_score_difference:.1e}"
    )
    if key:
        click.echo(f"signed by the owner of {key}")


@click.command()
@click.argument("bundle", type=FOLDER)
@json_flag
def inspect(bundle: Path, as_json: bool) -> None:
    """Show the model, data, quality, graph contract and files of a BUNDLE.

    Example: ranklet inspect models/ml-latest-small
    """
    manifest = Manifest.read(bundle)
    if as_json:
        return print_json(manifest)
    try:
        lines = _describe(bundle, manifest)
    except MALFORMED as error:
        raise BundleError(
            f"{bundle} says of itself what ranklet does not write ({show(error)}); --json shows "
            "all of it"
        ) from error
    click.echo("\n".join(lines))


def _describe(bundle: Path, manifest: Manifest) -> list[str]:
    """Return what the manifest says, for people; its facts may be of any form."""
    settings, facts = manifest.training["model"], manifest.data
    lines = [
        f"{bundle}: format {manifest.format}, {manifest.precision}",
        f"model    {settings['kind']}, width {manifest.width}, {settings['blocks']} blocks, "
        f"{settings['heads']} head(s), histories of up to {manifest.max_length} events",
        f"items    {manifest.items:,}, {manifest.id_type} ids",
        f"columns  {', '.join(map(_describe_attribute, manifest.attributes)) or 'none'}",
        f"serves   {manifest.seen_text}",
        f"data     {facts['events']:,} events of {facts['users']:,} users, {facts['digest'][:16]}",
        f"times    {_describe_times(manifest)}",
        f"trends   {_describe_recent(manifest)}",
        f"kinds    {_describe_kinds(manifest)}",
        f"made by  {', '.join(f'{name} {value}' for name, value in manifest.versions.items())}",
    ]
    for name, program in manifest.programs.items():
        lines.append(f"program  {name}: {program.purpose}")
        for title, tensors in (("takes", program.inputs), ("gives", program.outputs)):
            lines += [f"  {title:6} {t.name} {t.type} {t.shape}" for t in tensors]
    lines += [f"file     {n} {f.size:,} bytes {f.sha256[:16]}" for n, f in manifest.files.items()]
    for text in filter(None, (manifest.gate_text, manifest.index_text, manifest.new_items_text)):
        lines += ["", text]
    if manifest.quality:
        lines += ["", format_evaluation(manifest.quality)]
    return lines


def _describe_kinds(manifest: Manifest) -> str:
    used = f"{', '.join(manifest.kinds)}, and the model uses them" if manifest.kinds else "not used"
    about = f"events of kind {show(manifest.target)}" if manifest.target else "the next event"
    return f"{used}; figures are about {about}"


def _describe_times(manifest: Manifest) -> str:
    use = "the model uses them" if manifest.uses_times else "the model uses their order alone"
    unit = manifest.time_unit
    return f"{f'in {unit} since 1970' if unit else 'in an unknown unit'}; {use}"


def _describe_attribute(attribute: Attribute) -> str:
    values = attribute.arrays.get("value_ends")
    count = f" of {values.count:,} values" if values else ""
    return f"{attribute.name} ({attribute.kind}{count})"


def _describe_recent(manifest: Manifest) -> str:
    """Return the latest part of the training events, which ``popular --trending`` counts."""
    recent, scale = manifest.data.get("recent"), TICKS.get(manifest.time_unit)
    if not recent:
        return "unknown: an older bundle"
    ends = [recent["from"], recent["to"]]
    if scale:
        ends = [datetime.fromtimestamp(end / scale, timezone.utc).date() for end in ends]
    return f"{recent['events']:,} events from {ends[0]} to {ends[1]}"
