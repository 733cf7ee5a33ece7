"""Model card of a bundle: facts of the manifest, and latency on the exporting machine."""

import json
import statistics
import time
from typing import Any

import numpy as np

from ranklet.bundle.manifest import Manifest
from ranklet.explanation import EXAMINED
from ranklet.machine import describe_machine
from ranklet.ranker import Ranker
from ranklet.values import show
from ranklet_export.explanations import LARGEST, TOP

TIMED_RUNS = 200


def model_card(manifest: Manifest, ranker: Ranker) -> str:
    """Return the card as Markdown."""
    data = manifest.data
    settings = manifest.training["model"]
    size = sum(file.size for file in manifest.files.values()) / 1e6
    parts = [
        *_front_matter(manifest),
        "# Model card",
        "",
        f"A ranklet bundle: ranks {len(ranker):,} items for a history of up to "
        f"{manifest.max_length} events.",
        "",
        f"* Model: {settings['kind']}, width {manifest.width}, {settings['blocks']} blocks, "
        f"{settings['heads']} head(s), {manifest.precision}, "
        f"{size:.2f} MB.",
        f"* Data: {data['events']:,} events of {data['users']:,} users over {data['items']:,} "
        f"items, digest `{data['digest'][:16]}`.",
        *_changes(data.get("changes", [])),
        *([f"* Times: in {unit} since 1970."] if (unit := ranker.time_unit) else []),
        f"* Split: {data['split']}.",
        *_kinds(manifest),
        f"* Defaults: {manifest.seen_text}.",
        f"* Made with {', '.join(f'{name} {v}' for name, v in manifest.versions.items())}.",
        "",
        "## Quality",
        "",
        *_quality(manifest),
        "",
        *([manifest.gate_text + ".", ""] if manifest.gate else []),
        *([f"{text[0].upper()}{text[1:]}.", ""] if (text := manifest.index_text) else []),
        *([*_explanation(manifest.explanation), ""] if manifest.explanation else []),
        *_new_items(manifest),
        "## Latency",
        "",
        *_latency(manifest, ranker),
        "",
        "## Limits",
        "",
        *_limits(manifest),
        "* A history without a known item is answered by popularity and flagged as cold.",
        "* It repeats the tastes and the gaps of its data; nothing else was measured.",
    ]
    if data.get("source"):
        parts += ["", "## Source and terms of the data", "", data["source"].strip()]
    return "\n".join(parts) + "\n"


def _front_matter(manifest: Manifest) -> list[str]:
    """Return what the Hugging Face Hub reads of a card: one key and JSON value a line, in YAML."""
    facts: dict[str, Any] = {
        "library_name": "ranklet",
        "tags": ["ranklet", "onnx", "recommendation", "sequential-recommendation"],
    }
    if quality := manifest.quality:
        row = quality["rows"][0]
        data = {"type": "events", "name": manifest.data["digest"][:16]}
        task = {"type": "recommendation", "name": quality["protocol"]}
        metrics = [{"type": name, "value": value} for name, value in row["served"].items()]
        result = {"task": task, "dataset": data, "metrics": metrics}
        facts["model-index"] = [{"name": row["model"], "results": [result]}]
    return ["---", *(f"{key}: {json.dumps(value)}" for key, value in facts.items()), "---", ""]


def _kinds(manifest: Manifest) -> list[str]:
    """Return lines on the kinds of events, and on the one that is asked for."""
    facts, lines = manifest.data.get("kinds", {}), list[str]()
    if why := facts.get("why"):
        lines.append(f"* {why[0].upper()}{why[1:]}.")
    if manifest.kinds:
        by_count = sorted(facts["counts"].items(), key=lambda pair: -pair[1])
        counts = ", ".join(f"{name} ({count:,})" for name, count in by_count)
        lines.append(f"* Kinds of events: {counts}.")
    if manifest.target:
        lines.append(f"* Asks for events of kind {show(manifest.target)}.")
    return lines


def _changes(changes: list[dict[str, Any]]) -> list[str]:
    """Return a line on changes of the catalogue since the training."""
    if not changes:
        return []
    kinds = ("added", "removed", "retitled")
    counts = ", ".join(f"{sum(change[kind] for change in changes):,} {kind}" for kind in kinds)
    return [
        f"* Changed without training, last on {changes[-1]['when'][:10]}: {counts} items. The "
        "figures of quality are those of the export, before these changes."
    ]


def _quality(manifest: Manifest) -> list[str]:
    """Return the figures and what they are of: this training, or the one before it."""
    data = manifest.data
    figures = _figures(manifest)
    if earlier := data.get("earlier"):
        origin = (
            f"of the training on the earlier split ({earlier['split']}; {earlier['events']:,} "
            f"events, digest `{earlier['digest'][:16]}`)"
        )
        if not figures:
            return [f"No held-out figures {origin}: it had not been evaluated."]
        what = f"Held-out figures {origin}; this bundle was trained on all events afterwards."
        return [what, "", *figures]
    if manifest.training["train"]["split"] == "none" or not data["events"]:
        return ["No held-out figures."]
    return [
        *(figures or ["Not evaluated: `ranklet evaluate` had not been run at the export."]),
        "",
        "The held-out events are not in this bundle. For production, train on all events: "
        "`ranklet train EVENTS --out FINAL --final RUN`, and export FINAL.",
    ]


def _figures(manifest: Manifest) -> list[str]:
    """Return the table of an evaluation, empty without one."""
    quality = manifest.quality
    if not quality:
        return []
    names, protocols = ["HR@10", "NDCG@10", "MRR@10"], quality["protocols"]
    lines = [
        f"{quality['protocol']}; {quality['users']:,} answers in every column.",
        "",
        f"The first three columns are {protocols['served']}.",
        "",
        f"| model | {' | '.join(names)} | NDCG@10, {protocols['masked']} "
        f"| NDCG@10, {protocols['unmasked']} |",
        "|---|---|---|---|---|---|",
    ]
    for row in quality["rows"]:
        figures = [row["served"][name] for name in names]
        figures += [row["masked"]["NDCG@10"], row["unmasked"]["NDCG@10"]]
        lines.append(f"| {row['model']} | {' | '.join(f'{value:.4f}' for value in figures)} |")
    return [*lines, "", f"{quality['advice']}."]


def _explanation(figures: dict[str, Any]) -> list[str]:
    """Return how far the events of most attention are those that move the scores."""
    fewest, median, most = (figures[f"{name}_events"] for name in ("fewest", "median", "most"))
    kind = "held-out" if figures["held_out"] else "drawn"
    return [
        "## Explanations",
        "",
        f"An explanation leaves out the {EXAMINED} events of most attention, each in turn, and "
        f"gives the drop of each score. On {figures['questions']} {kind} histories of {fewest} to "
        f"{most} events (median {median:g}) {figures['found']:.0%} of the {LARGEST} largest drops, "
        f"means of the {TOP} best items, are by these {EXAMINED} events "
        f"({figures['by_chance']:.0%} by chance). The rank correlation of attention is "
        f"{figures['rank_correlation']:.2f} with the drop and {figures['size_correlation']:.2f} "
        "with its size: attention does not say whether an event speaks for an item or against it.",
    ]


def _new_items(manifest: Manifest) -> list[str]:
    """Return the section on items that training never saw, empty if none can be placed."""
    if manifest.new_items is None:
        return []
    kinds = ", ".join(f"{attribute.name} ({attribute.kind})" for attribute in manifest.attributes)
    text = manifest.new_items_text
    return [
        "## New items",
        "",
        f"Items that training never saw can be placed by their attributes: {kinds}.",
        f"By default {text}.",
        "",
    ]


def _limits(manifest: Manifest) -> list[str]:
    """Return what the bundle knows of items."""
    changed = manifest.data.get("changes")
    known = "its items" if changed else "the items that it was trained with"
    added = "" if manifest.new_items is None else ", and those that are added by their attributes"
    return [f"* It knows {known}{added}; other ids are skipped and counted."]


def _latency(manifest: Manifest, ranker: Ranker) -> list[str]:
    """Time requests through the public interface as an estimate; ``ranklet bench`` measures."""
    random = np.random.default_rng(0)
    lines = [
        f"Median of {TIMED_RUNS} calls of `Ranker.rank`, 1 thread, {describe_machine()}.",
        "",
        "| events | ms |",
        "|---|---|",
    ]
    for length in sorted({min(n, manifest.max_length) for n in (10, 50, manifest.max_length)}):
        indices = random.integers(1, manifest.items + 1, length)
        history = ranker.vocabulary.ids(indices)
        times = []
        for _ in range(TIMED_RUNS):
            begin = time.perf_counter()
            ranker.rank(history)
            times.append(time.perf_counter() - begin)
        lines.append(f"| {length} | {statistics.median(times) * 1e3:.3f} |")
    return lines
