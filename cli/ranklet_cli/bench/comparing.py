"""A report beside an older one: which calls got slower, and by how much, noise told apart.

A p50 here is the median of the medians of blocks, and its interval comes from drawing blocks again
(bootstrap). That is the noise inside a run. Runs differ by more: in six runs of one bundle on two
busy cores, half of 90 ratios were off by up to 2 %, one in ten by 6 % to 10 %, and 36 intervals
left 1 out. So a call is faster or slower where the whole interval lies beyond ``SAME``: 3 of 90.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ranklet_cli.bench.report import BenchReport, BundleFacts, Change, Comparison

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percentiles
SAME = 0.05  # by which runs may differ


def compare(new: BenchReport, old: BenchReport, path: str | Path) -> Comparison:
    """Compare the calls that two reports share; ``path`` is where the older one lies.

    An appended event is named if it is in both; it lacks where its ranking does.
    """
    now, then = _blocks(new), _blocks(old)
    return Comparison(
        path=str(path),
        ranklet=old.ranklet,
        warnings=_warnings(new, old),
        changes=[_change(case, now[case], then[case]) for case in now if case in then],
        only_new=[row.name for row in new.measurements if row.name not in then],
        only_old=[row.name for row in old.measurements if row.name not in now],
    )


def ratio_interval(new: list[float], old: list[float]) -> tuple[float, float, float]:
    """Return new / old of the median of some blocks' medians, and its 95 % interval."""
    random = np.random.default_rng(0)
    ratios = _resample(new, random) / _resample(old, random)
    low, high = np.percentile(ratios, INTERVAL).tolist()
    return float(np.median(new) / np.median(old)), low, high


def verdict(low: float, high: float) -> str:
    """Say in a word what an interval of a ratio means."""
    if high < 1 / (1 + SAME):
        return "faster"
    return "slower" if low > 1 + SAME else "no difference"


def _resample(blocks: list[float], random: np.random.Generator) -> NDArray[np.float64]:
    medians: NDArray[np.float64] = np.median(
        random.choice(blocks, (RESAMPLES, len(blocks))), axis=1
    )
    return medians


def _blocks(report: BenchReport) -> dict[str, list[float]]:
    """Return the medians of blocks of every call, by its name."""
    ranks = {row.name: row.blocks_ms for row in report.measurements}
    return ranks | {f"{row.name}, appended": row.blocks_ms for row in report.appends}


def _change(case: str, new: list[float], old: list[float]) -> Change:
    ratio, low, high = ratio_interval(new, old)
    p50 = float(np.median(old)), float(np.median(new))
    return Change(case, *p50, ratio, low, high, verdict(low, high))


def _warnings(new: BenchReport, old: BenchReport) -> list[str]:
    """Say where the reports are not about the same."""
    found = []
    facts = [
        f"{name} {old.machine.get(name)}, now {new.machine.get(name)}"
        for name in {**old.machine, **new.machine}
        if old.machine.get(name) != new.machine.get(name)
    ]
    if facts:
        found.append(f"another machine: {'; '.join(facts)}")
    then, now = _shape(old.bundles[0]), _shape(new.bundles[0])
    if then != now:
        found.append(f"another BUNDLE: {then}, now {now}")
    return found


def _shape(bundle: BundleFacts) -> str:
    return f"{bundle.items:,} items {bundle.precision} of format {bundle.format}"
