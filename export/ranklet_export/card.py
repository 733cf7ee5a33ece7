"""Model card of a bundle: facts of the manifest, and latency on the exporting machine."""

import statistics
import time

import numpy as np

from ranklet.bundle.manifest import Manifest
from ranklet.machine import describe_machine
from ranklet.ranker import Ranker
from ranklet.values import show
from ranklet_training.data.kinds import describe_counts

TIMED_RUNS = 200


def model_card(manifest: Manifest, ranker: Ranker) -> str:
    """Return the card as Markdown."""
    data = manifest.data
    settings = manifest.training["model"]
    size = sum(file.size for file in manifest.files.values()) / 1e6
    parts = [
        "# Model card",
        "",
        f"A ranklet bundle: ranks {manifest.items:,} items for a history of up to "
        f"{manifest.max_length} events.",
        "",
        f"* Model: {settings['kind']}, width {manifest.width}, {settings['blocks']} blocks, "
        f"{settings['heads']} head(s), {manifest.precision}, "
        f"{size:.2f} MB.",
        f"* Data: {data['events']:,} events of {data['users']:,} users over {data['items']:,} "
        f"items, digest `{data['digest'][:16]}`.",
        *([f"* Times: in {unit} since 1970."] if (unit := ranker.time_unit) else []),
        f"* Split: {data['split']}.",
        *([f"* {why[0].upper()}{why[1:]}."] if (why := data.get("kinds", {}).get("why")) else []),
        *(
            [f"* Kinds of events: {describe_counts(data['kinds']['counts'])}."]
            if manifest.kinds
            else []
        ),
        *([f"* Asks for events of kind {show(target)}."] if (target := manifest.target) else []),
        f"* Rankings leave seen items {'out' if manifest.exclude_seen else 'in'} by default.",
        f"* Made with {', '.join(f'{name} {v}' for name, v in manifest.versions.items())}.",
        "",
        "## Quality",
        "",
        *_quality(manifest),
        "",
        *([manifest.gate_text + ".", ""] if manifest.gate else []),
        "## Latency",
        "",
        *_latency(manifest, ranker),
        "",
        "## Limits",
        "",
        "* It knows only the items that it was trained with; other ids are skipped and counted.",
        "* A history without a known item is answered by popularity and flagged as cold.",
        "* It repeats the tastes and the gaps of its data; nothing else was measured.",
    ]
    if data.get("source"):
        parts += ["", "## Source and terms of the data", "", data["source"].strip()]
    return "\n".join(parts) + "\n"


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
    """Return the table of an evaluation, empty without one, and the repeats of validation."""
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
    lines += ["", f"{quality['advice']}."]
    if seen := manifest.data.get("seen"):
        lines += [
            "",
            f"Of {seen['answers']:,} validation answers {seen['repeats']:.1%} were repeats: "
            f"NDCG@10 {seen['masked_NDCG@10']:.4f} with seen items excluded and "
            f"{seen['unmasked_NDCG@10']:.4f} with them included.",
        ]
    return lines


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
