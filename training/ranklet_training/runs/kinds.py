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
from ranklet_training import processes
from ranklet_training.data.kinds import MOST_KINDS
from ranklet_training.data.split import Split
from ranklet_training.runs.checkpoint import Run, write_config
from ranklet_training.runs.presets import RunConfig

VARIANTS = {"without": False, "with": True}  # name, and whether kinds are used
FOLDERS = {name: f"{name}-kinds" for name in VARIANTS}
TRAINED = ("metrics.jsonl", "best.safetensors", "last.safetensors")  # the last says: finished


def plan_kinds(config: RunConfig, split: Split) -> dict[str, Any]:
    """Return the facts of a run on kinds.

    ``counts`` are the events of each kind, ``used`` says whether the model uses kinds, None before
    both trainings, and ``why`` says it in words, "" for a log without kinds.

    RunError: ``kinds=use`` is set and impossible.
    """
    setting, why = config.train.kinds, _impossible(config, split)
    if why and setting == "use":
        raise RunError(f"kinds=use needs several kinds of events to tell apart: {why}")
    if not why and setting == "ignore":
        why = "kinds=ignore"
    if not why and setting == "auto" and split.kind == "none":
        why = "nothing is held out to decide by; set kinds=use to use them"
    used = False if why else True if setting == "use" else None
    texts = {
        False: f"kinds of events are ignored: {why}" if split.kinds else "",
        True: "kinds of events are used: kinds=use",
        None: "kinds of events: a training without and one with them decide (kinds=use or "
        "kinds=ignore trains once)",
    }
    counts = split.kinds if len(split.kinds) <= MOST_KINDS else {}
    return {"counts": counts, "used": used, "why": texts[used]}


def _impossible(config: RunConfig, split: Split) -> str:
    """Return why a model can't use kinds, "" if it can."""
    if not split.kinds:
        return "the log has no column of event kinds"
    if len(split.kinds) == 1:
        return f"all of them are {show(next(iter(split.kinds)))}"
    if len(split.kinds) > MOST_KINDS:
        return f"there are {len(split.kinds):,} of them, and a model takes {MOST_KINDS}"
    if config.model.kind == "seed" or not config.model.blocks:
        return "a model without blocks can't ask for a kind"
    return ""


def is_open(run: Run) -> bool:
    """Return whether the run has to train without and with kinds."""
    facts = run.data.get("kinds", {})
    return bool(facts) and facts["used"] is None


def decide_kinds(run: Run, train: Callable[[Run, str], float]) -> None:
    """Train a run without and with kinds, and keep the better one; go on after a kill.

    ``train`` trains a run to its end and returns its validation NDCG@10; the text is the name of
    the variant.
    """
    if is_open(run):
        found = {name: train(_variant(run, name), name) for name in VARIANTS}
        is_better = found["with"] > found["without"]
        run.data["kinds"] |= {
            "used": is_better,
            "why": f"kinds of events are {'used' if is_better else 'ignored'}: validation NDCG@10 "
            f"{found['with']:.4f} with them, {found['without']:.4f} without",
            "NDCG@10": found,
        }
        if processes.is_first():
            write_config(run)
    if processes.is_first():
        _keep_chosen(run)
    processes.wait_for_all()


def _keep_chosen(run: Run) -> None:
    for name, uses_kinds in VARIANTS.items():
        folder = run.path / FOLDERS[name]
        for file in TRAINED if uses_kinds == run.data.get("kinds", {}).get("used") else ():
            if (folder / file).exists():
                (folder / file).replace(run.path / file)
    for name in VARIANTS:
        shutil.rmtree(run.path / FOLDERS[name], ignore_errors=True)


def _variant(run: Run, name: str) -> Run:
    path = run.path / FOLDERS[name]
    path.mkdir(exist_ok=True)
    facts = {**run.data["kinds"], "used": VARIANTS[name]}
    return replace(run, path=path, data={**run.data, "kinds": facts})


def trained_files(path: Path) -> set[str]:
    """Return the names of the files that training has written into a run folder."""
    folders = [path, *(path / folder for folder in FOLDERS.values())]
    return {name for name in TRAINED if any((folder / name).exists() for folder in folders)}
