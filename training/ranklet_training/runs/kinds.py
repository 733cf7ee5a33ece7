"""The choice whether the model of a run uses the kinds of events.

A run that leaves it open (``kinds=auto``) trains twice with one seed, without and with kinds, each
in a folder of its own. What has the better validation NDCG@10 stays, and the figures of both are
facts of the run.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ranklet.errors import RunError
from ranklet.values import show
from ranklet_training.data.kinds import MOST_KINDS
from ranklet_training.data.split import Split
from ranklet_training.runs.checkpoint import Run, write_config
from ranklet_training.runs.presets import RunConfig

VARIANTS = {"without-kinds": False, "with-kinds": True}  # folder, and whether kinds are used
TRAINED = ("metrics.jsonl", "best.safetensors", "last.safetensors")  # the last says: finished


def plan_kinds(config: RunConfig, split: Split) -> dict[str, Any]:
    """Return the facts of a run on kinds.

    ``counts`` are the events of each kind, ``used`` says whether the model uses kinds, None before
    both trainings, and ``why`` says it in words, "" for a log without kinds.

    RunError: ``kinds=use`` is set and impossible.
    """
    setting, why = config.train.kinds, ""
    if not split.kinds:
        why = "the log has no column of event kinds"
    elif len(split.kinds) == 1:
        why = f"all of them are {show(next(iter(split.kinds)))}"
    elif len(split.kinds) > MOST_KINDS:
        why = f"there are {len(split.kinds):,} of them, and a model takes {MOST_KINDS}"
    elif config.model.kind == "seed" or not config.model.blocks:
        why = "a model without blocks can't ask for a kind"
    if why and setting == "use":
        raise RunError(f"kinds=use needs several kinds of events to tell apart: {why}")
    if not why and setting == "auto" and split.kind == "none":
        why = "nothing is held out to decide by; set kinds=use to use them"
    if not why and setting == "ignore":
        why = "kinds=ignore"
    counts = split.kinds if len(split.kinds) <= MOST_KINDS else {}
    if why:
        text = f"kinds of events are ignored: {why}" if split.kinds else ""
        return {"counts": counts, "used": False, "why": text}
    if setting == "use":
        return {"counts": counts, "used": True, "why": "kinds of events are used: kinds=use"}
    why = "kinds of events: training without and with them decides"
    return {"counts": counts, "used": None, "why": why}


def is_open(run: Run) -> bool:
    """Return whether the run has to train without and with kinds."""
    facts = run.data.get("kinds", {})
    return bool(facts) and facts["used"] is None


def decide_kinds(run: Run, train: Callable[[Run], float]) -> None:
    """Train a run without and with kinds, and keep the better one; go on after a kill.

    ``train`` trains a run to its end and returns its validation NDCG@10.
    """
    if is_open(run):
        without, with_kinds = (train(variant) for variant in _variants(run))
        is_better = with_kinds > without
        run.data["kinds"] |= {
            "used": is_better,
            "why": f"kinds of events are {'used' if is_better else 'ignored'}: validation NDCG@10 "
            f"{with_kinds:.4f} with them, {without:.4f} without",
            "NDCG@10": {"with": with_kinds, "without": without},
        }
        write_config(run)
    for folder, uses_kinds in VARIANTS.items():
        for name in TRAINED if uses_kinds == run.data.get("kinds", {}).get("used") else ():
            if (run.path / folder / name).exists():
                (run.path / folder / name).replace(run.path / name)
    for folder in VARIANTS:
        shutil.rmtree(run.path / folder, ignore_errors=True)


def _variants(run: Run) -> list[Run]:
    """Return the runs without and with kinds."""
    variants = []
    for folder, uses_kinds in VARIANTS.items():
        (run.path / folder).mkdir(exist_ok=True)
        facts = {**run.data["kinds"], "used": uses_kinds}
        variants.append(replace(run, path=run.path / folder, data={**run.data, "kinds": facts}))
    return variants


def trained_files(path: Path) -> set[str]:
    """Return the names of the files that training has written into a run folder."""
    folders = [path, *(path / folder for folder in VARIANTS)]
    return {name for name in TRAINED if any((folder / name).exists() for folder in folders)}
