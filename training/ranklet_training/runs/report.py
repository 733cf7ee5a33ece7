"""Progress on stderr: a bar on a terminal, lines elsewhere, nothing where there is no stderr."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from ranklet_training.runs.checkpoint import Progress

LINE_SECONDS = 60.0  # without a line, until one says how far the epoch is


def is_terminal() -> bool:
    """Return whether stderr can show a bar."""
    return sys.stderr is not None and sys.stderr.isatty()


class Lines:
    """Lines on stderr, unless that is a terminal."""

    def __init__(self, *, show: bool) -> None:
        """Write lines, or none of them."""
        self._show = show and sys.stderr is not None and not is_terminal()
        self._latest = time.monotonic()

    def write(self, text: str) -> None:
        """Write a line."""
        if self._show:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
            self._latest = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Return whether the last line is a minute old."""
        return self._show and time.monotonic() - self._latest > LINE_SECONDS


class Report:
    """Progress of one training."""

    def __init__(
        self, total: int, epochs: int, progress: Progress, *, show: bool, name: str = ""
    ) -> None:
        """Start at a progress; an epoch has ``total`` targets. ``name`` tells trainings apart."""
        self._total, self._epochs = total, epochs
        self._name = f"{name}, " if name else ""
        self._lines = Lines(show=show)
        self._bar = tqdm(
            total=total * epochs,
            desc=name or None,
            initial=progress.epoch * total + progress.targets_seen,
            unit=" events",
            unit_scale=True,
            disable=not (show and is_terminal()),
        )

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def step(self, progress: Progress, count: int) -> None:
        """Show a step of ``count`` targets."""
        self._bar.update(count)
        if self._lines.is_due:
            self._lines.write(
                f"{self._name}epoch {progress.epoch + 1} of {self._epochs}: "
                f"{progress.targets_seen / self._total:.0%}, "
                f"loss {progress.loss_sum / progress.targets_seen:.3f}"
            )

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Show the metric line of an epoch, which lacks metrics where nothing is held out."""
        figures = {"loss": f"{line['loss']:.3f}"}
        if "validation_NDCG@10" in line:
            figures["validation NDCG@10"] = f"{line['validation_NDCG@10']:.4f}"
        self._bar.set_postfix(figures)
        shown = ", ".join(f"{name} {figure}" for name, figure in figures.items())
        self._lines.write(
            f"{self._name}epoch {line['epoch'] + 1} of {self._epochs}: {shown}, "
            f"{line['targets_per_second']:,} targets/s, {line['seconds']:.0f} s"
        )
