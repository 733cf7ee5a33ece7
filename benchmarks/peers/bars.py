"""Draw how many times as long as ranklet others take for one ranking.

    python benchmarks/peers/bars.py RESULT.json ... --out docs/latency.svg

The results are those of ``latency.py --json``. A bar beyond the edge is cut, and says its length.
"""

import json
from pathlib import Path
from typing import Any

import click

from ranklet_training.judge.plots import new_figure, save_figure

CASES = {
    "10": "10 events",
    "50": "50 events",
    "200": "200 events",
    "append": "one more event\nafter 200",
    "100k": "50 events,\n100,000 items",
}
SHAPE = "heads=1,feed_forward=1"
PEERS = {
    "torch.compile": "torch.compile, the same model",
    "RePlay SasRecCompiled + topk": "RePlay, compiled by OpenVINO",
    "RecTools recommend": "RecTools, recommend()",
}
COLOURS = ("#0b6e4f", "#8d99ae", "#5c677d", "#bfc5d2")
EDGE = 8.0  # times as long as ranklet
HEIGHT = 0.2


def bars_of(cases: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return for each case the milliseconds of ranklet and the ratio of each peer."""
    bars = {}
    for case in cases:
        if case["case"] in CASES and case["threads"] == 1:
            rows = [row for row in case["rows"] if row["shape"] in ("", SHAPE)]
            own = next(row["p50_ms"] for row in rows if row["name"] == "ranklet")
            ratios = {r["name"]: r["over_ranklet"][SHAPE] for r in rows if r["name"] in PEERS}
            bars[case["case"]] = {"ranklet": own, **ratios}
    return {key: bars[key] for key in CASES if key in bars}


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The picture, .svg.")
def main(results: tuple[Path, ...], out: Path) -> None:
    """Draw the medians of RESULTS as bars."""
    bars = bars_of([case for path in results for case in json.loads(path.read_text())["cases"]])
    figure, axes = new_figure(out)
    figure.set_size_inches(8, 0.95 * len(bars) + 1.2)
    for place, name in enumerate(("ranklet", *PEERS)):
        for row, figures in enumerate(bars.values()):
            length = 1.0 if name == "ranklet" else figures[name]
            label = {"label": {"ranklet": "ranklet", **PEERS}[name]} if row == 0 else {}
            height = row + (place - 1.5) * HEIGHT
            shown = min(length, EDGE)
            axes.barh(height, shown, HEIGHT * 0.9, color=COLOURS[place], **label)
            text = (
                f"{figures['ranklet']:.2f} ms"
                if name == "ranklet"
                else f"{length:.1f}x"
                if length < EDGE
                else f"{length:.0f}x"
            )
            text += " \N{RIGHTWARDS ARROW}" if length > EDGE else ""
            bold = "bold" if name == "ranklet" else "normal"
            axes.text(shown + 0.06, height, text, va="center", fontsize=8, fontweight=bold)
    axes.set_yticks(range(len(bars)), [CASES[key] for key in bars])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, EDGE + 1)
    axes.set_xlabel(
        "times as long as ranklet for the ten best items, of 12,000 where no number is given"
    )
    axes.grid(visible=False, axis="y")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.42, 1.1), ncols=4, fontsize=8)
    save_figure(figure, out)


if __name__ == "__main__":
    main()
