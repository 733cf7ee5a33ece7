"""The commands that make a bundle, check it and show it."""

import logging
from pathlib import Path
from typing import Any

import click

from ranklet.cli.common import FOLDER, PATH, cli, json_option, print_json, session_options
from ranklet.cli.quality import format_evaluation


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
        return print_json(report)
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
        return print_json(report)
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
        return print_json(manifest)
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
        lines += ["", format_evaluation(manifest.quality)]
    click.echo("\n".join(lines))
    return None
