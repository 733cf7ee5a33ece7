"""``ranklet catalogue``: items of a bundle are added, removed and renamed without training.

Each command makes a whole new bundle, in a folder of its own or in place of the old one.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from ranklet.bundle.vocabulary import ItemId, Vocabulary
from ranklet.errors import InputError
from ranklet.files.json_lines import read_json_lines
from ranklet.item_table import ItemTable, read_item_table
from ranklet.new_items import add_items, remove_items, retitle
from ranklet.serving import Serving
from ranklet.values import show
from ranklet_cli.ids import exact_ids, read_ids
from ranklet_cli.options import EXISTING, FILE, FOLDER, NEW_FOLDER, combine, json_flag, print_json

JSON_LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
BETWEEN = "|"  # ids of --like in one text


@dataclass
class CatalogueReport:
    """What a command did, by ids."""

    path: Path
    items: int = 0  # that can be ranked
    added: list[ItemId] = field(default_factory=list)
    updated: list[ItemId] = field(default_factory=list)  # known items of ITEMS
    removed: list[ItemId] = field(default_factory=list)
    retitled: list[ItemId] = field(default_factory=list)
    unknown: list[ItemId] = field(default_factory=list)  # to remove or retitle, skipped
    bias: float | None = None  # of the added ones


adding = combine(
    click.option(
        "--vectors",
        type=FILE,
        metavar="FILE.npy",
        help="One vector for each row of ITEMS, as wide as the model; only directions count.  "
        "[default: made from attributes]",
    ),
    click.option(
        "--like",
        metavar="COLUMN",
        help="Column of ITEMS with the ids of known items that a new one is like: a list, or text "
        f"with {BETWEEN} between them.",
    ),
    click.option(
        "--bias",
        type=float,
        help="Points added to the scores of new items.  [default: as training measured, else 0]",
    ),
)
columns = combine(
    click.option("--item-column", help="Column of ids.  [default: as in training, or item_id]"),
    click.option("--title-column", help="Column of titles.  [default: as in training, or title]"),
)
target = combine(
    click.option("--out", type=NEW_FOLDER, help="Folder of the new bundle."),
    click.option("--replace", is_flag=True, help="Replace what is there: --out, or BUNDLE."),
    json_flag,
)


@click.group()
def catalogue() -> None:
    """Add, remove and rename items of a bundle, without training and without torch."""


@catalogue.command()
@click.argument("bundle", type=FOLDER)
@click.argument("items", type=EXISTING)
@adding
@columns
@target
def add(bundle: Path, items: Path, out: Path | None, replace: bool, **options: Any) -> None:
    """Add the new ITEMS of a file, and take titles and attributes of known ones from it.

    Training measured whether items that are placed by attributes count as events of histories;
    inspect shows it. Others do not count.

    Example: ranklet catalogue add bundle new.csv --out newer
    """
    _change(bundle, _target(bundle, out, replace), replace, add=items, **options)


@catalogue.command()
@click.argument("bundle", type=FOLDER)
@click.argument("ids")
@target
def remove(bundle: Path, ids: str, out: Path | None, replace: bool, **options: Any) -> None:
    """Never rank items again: IDS are ID,ID,... or a file with one id a line.

    They still count as events of histories, and ``add`` brings them back.

    Example: ranklet catalogue remove bundle 50,181 --replace
    """
    _change(bundle, _target(bundle, out, replace), replace, remove=ids, **options)


@catalogue.command(name="retitle")
@click.argument("bundle", type=FOLDER)
@click.argument("titles", type=EXISTING)
@columns
@target
def new_titles(bundle: Path, titles: Path, out: Path | None, replace: bool, **options: Any) -> None:
    """Give items the TITLES of a file; an empty title is none.

    Example: ranklet catalogue retitle bundle titles.csv --replace
    """
    _change(bundle, _target(bundle, out, replace), replace, retitled=titles, **options)


@catalogue.command()
@click.argument("bundle", type=FOLDER)
@click.argument("new", type=NEW_FOLDER)
@click.option("--add", type=EXISTING, metavar="ITEMS", help="Add items, as catalogue add.")
@click.option("--remove", metavar="IDS", help="Remove items, as catalogue remove.")
@click.option(
    "--retitle", "retitled", type=EXISTING, metavar="TITLES", help="As catalogue retitle."
)
@adding
@columns
@click.option("--replace", is_flag=True, help="Replace NEW if it exists.")
@json_flag
def save(bundle: Path, new: Path, replace: bool, **options: Any) -> None:
    """Write a NEW bundle with several changes at once: added, then removed, then renamed items.

    Example: ranklet catalogue save bundle newer --add new.csv --remove sold.txt
    """
    _change(bundle, new, replace, **options)


def _target(bundle: Path, out: Path | None, replace: bool) -> Path:
    if out is None and not replace:
        raise click.UsageError("say --out NEW for a new bundle, or --replace to change this one")
    return out or bundle


def _change(
    bundle: Path,
    target: Path,
    replace: bool,
    *,
    as_json: bool,
    add: Path | None = None,
    remove: str | None = None,
    retitled: Path | None = None,
    vectors: Path | None = None,
    like: str | None = None,
    bias: float | None = None,
    item_column: str | None = None,
    title_column: str | None = None,
) -> None:
    """Change the catalogue of a bundle, write it, and say what was done."""
    from ranklet_export.catalogue import changes_of, save_catalogue
    from ranklet_export.target import check_target

    check_target(target, replace=replace)
    serving, report = (
        Serving.open(bundle, "cpu", 1, owner=None, check_digests=True),
        CatalogueReport(target),
    )
    names, changed = (item_column, title_column), serving.catalogue
    if add is not None:
        table = _read_items(add, serving, *names)
        changed, addition = add_items(
            serving,
            {
                "item_id": table.ids,
                "title": table.titles or [None] * len(table.ids),
                **table.columns,
            },
            vectors=None if vectors is None else _read_vectors(vectors),
            like=None if like is None else _alike(table, changed.vocabulary, like, add),
            bias=bias,
        )
        report.added, report.updated, report.bias = addition.added, addition.updated, addition.bias
    elif vectors or like or bias is not None:
        raise click.UsageError("--vectors, --like and --bias are for added items: say --add ITEMS")
    if remove is not None:
        known, is_file = changed.vocabulary, Path(remove).is_file()
        ids = (
            read_ids(known, Path(remove)) if is_file else exact_ids(known, remove.split(","), "IDS")
        )
        report.removed, unknown = _split(known, ids)
        changed, report.unknown = remove_items(changed, report.removed), unknown
    if retitled is not None:
        table = _read_items(retitled, serving, *names)
        if table.titles is None:
            raise InputError(f"{retitled} has no column of titles: name it with --title-column")
        report.retitled, unknown = _split(changed.vocabulary, table.ids)
        titles = dict(zip(table.ids, [title or "" for title in table.titles], strict=True))
        changed = retitle(changed, {item: titles[item] for item in report.retitled})
        report.unknown += unknown
    if not (report.added or report.updated or report.removed or report.retitled):
        first = f", first {show(report.unknown[0])}" if report.unknown else ""
        raise InputError(
            f"nothing changes: {len(report.unknown)} ids are not in the catalogue{first}"
        )
    changes = changes_of(serving.changed(changed))
    save_catalogue(bundle, changes, target, replace_target=replace)
    report.items = changed.own.items + changed.own.others
    if as_json:
        return print_json(report)
    click.echo(_describe(report))


def _describe(report: CatalogueReport) -> str:
    kinds = ("added", "updated", "removed", "retitled")
    counts = [f"{len(ids):,} {kind}" for kind in kinds if (ids := getattr(report, kind))]
    lines = [f"{report.path}: {', '.join(counts)}; {report.items:,} items to rank"]
    if report.added:
        lines.append(f"{report.bias:g} is added to the scores of the new items")
    if report.unknown:
        lines.append(
            f"{len(report.unknown):,} ids are not in the catalogue, first {show(report.unknown[0])}"
        )
    return "\n".join(lines)


def _read_items(
    path: Path, serving: Serving, item_column: str | None, title_column: str | None
) -> ItemTable:
    """Read items of a file in any format of training; JSON lines need no polars."""
    reading = serving.manifest.data.get("reading", {})
    item_column = item_column or reading.get("item_column", "item_id")
    title_column = title_column or reading.get("title_column", "title")
    known = serving.catalogue.vocabulary
    if path.is_file() and path.name.lower().endswith(JSON_LINES):
        rows = [row for _, row in read_json_lines(path)]
        if rows and not any(item_column in row for row in rows):
            item_column = "item_id"
        return read_item_table(rows, known, item_column=item_column, title_column=title_column)
    from ranklet_training.data.items import read_items

    frame = read_items(
        path,
        item_column=item_column,
        title_column=title_column,
        id_type="string" if known.is_text else "int64",
    )
    return read_item_table(frame, known)


def _read_vectors(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is no array of numpy (.npy): {error}") from error


def _alike(
    table: ItemTable, known: Vocabulary, column: str, path: Path
) -> dict[ItemId, list[ItemId]]:
    """Return the known items that new ones are like, by the id of the new one."""
    if column not in table.columns:
        raise InputError(
            f"{path} has no column {show(column)}: --like names one of {[*table.columns]}"
        )
    new = known.index(table.ids, "item_id") == 0
    alike: dict[ItemId, list[ItemId]] = {}
    for item, is_new, cell in zip(table.ids, new.tolist(), table.columns.pop(column), strict=True):
        if is_new and cell is not None:
            ids = cell.split(BETWEEN) if isinstance(cell, str) else cell
            ids = ids if isinstance(ids, list) else [ids]
            alike[item] = [*(known.parse(ids) if all(isinstance(i, str) for i in ids) else ids)]
    return alike


def _split(known: Vocabulary, ids: list[Any]) -> tuple[list[ItemId], list[ItemId]]:
    """Return the ids that a catalogue has, none twice, and those that it lacks."""
    places = known.index(ids, "ids").tolist()
    found = [item for item, place in zip(ids, places, strict=True) if place]
    lacking = [item for item, place in zip(ids, places, strict=True) if not place]
    return list(dict.fromkeys(found)), list(dict.fromkeys(lacking))
