"""Study on disk: trials of optuna, and the queue of a killed process."""

import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DatabaseError

from ranklet.errors import RunError
from ranklet_training.judge.space import Space
from ranklet_training.runs.presets import RunConfig, configure, setting_differences

logger = logging.getLogger(__name__)

LOCKED_SECONDS = 60.0  # to wait for another program
ATTEMPTS = 3  # a trial that dies each time, as for memory, must not block the study


@dataclass(frozen=True)
class Study:
    """Optuna study of a space, whose first trial is the base configuration."""

    handle: optuna.Study
    path: Path
    base: RunConfig
    space: Space

    def check_facts(self, facts: Mapping[str, Any]) -> None:
        """Record data, base and space of a new study; refuse others for an existing study."""
        known = self.handle.user_attrs
        differences = []
        for name, new in facts.items():
            if name not in known:
                self.handle.set_user_attr(name, new)
                continue
            old: Any = configure(known[name]).flat() if name == "base" else known[name]
            if isinstance(new, str):
                label = f"digest of the {name}"
                old, new = {label: old[:12]}, {label: new[:12]}
            differences += setting_differences(old, new)
        if differences:
            raise RunError(
                f"the study {self.path} was started with something else "
                f"({'; '.join(differences)}): go on with the same, or choose another folder"
            )

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in one of these states, in order of their numbers."""
        return self.handle.get_trials(deepcopy=False, states=states)

    def finished(self) -> list[FrozenTrial]:
        """Return the complete and the pruned trials."""
        return self.trials(TrialState.COMPLETE, TrialState.PRUNED)

    def best(self) -> FrozenTrial | None:
        """Return the complete trial of the highest value, the earliest of equal values."""
        complete = self.trials(TrialState.COMPLETE)
        return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)

    def enqueue_unfinished(self) -> None:
        """Enqueue the unfinished trials of a killed process, or the base of a new study."""
        for trial in self.trials(TrialState.RUNNING):
            is_base, attempt = trial.user_attrs.get("is_base"), trial.user_attrs.get("attempt", 1)
            if attempt >= ATTEMPTS and not is_base:
                reason = f"it was killed {attempt} times"
                logger.warning("trial %d is left out: %s", trial.number, reason)
                self.handle.tell(trial.number, state=TrialState.PRUNED)
                continue
            # A trial killed during its draw lacks settings and is drawn again.
            if is_base or trial.params.keys() == self.space.keys():
                self.enqueue_again(trial, attempt + 1)
            self.handle.tell(trial.number, state=TrialState.FAIL)
        if not self.finished() and not self.trials(TrialState.WAITING):
            self._enqueue_base()

    def enqueue_again(self, trial: optuna.Trial | FrozenTrial, attempt: int) -> None:
        """Enqueue the settings of a trial once more."""
        if trial.user_attrs.get("is_base"):
            self._enqueue_base(attempt)
        else:
            self.handle.enqueue_trial(trial.params, user_attrs={"attempt": attempt})

    def _enqueue_base(self, attempt: int = 1) -> None:
        settings = {name: self.base.flat()[name] for name in self.space}
        self.handle.enqueue_trial(settings, user_attrs={"is_base": True, "attempt": attempt})


@contextmanager
def open_study(path: Path, base: RunConfig, space: Space) -> Iterator[Study]:
    """Open or create the study of a folder.

    RunError: it is damaged, or another program locks it for ``LOCKED_SECONDS``.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    database = path / "study.db"

    def connect() -> sqlite3.Connection:  # any path, unlike an URL
        return sqlite3.connect(database, timeout=LOCKED_SECONDS, check_same_thread=False)

    try:
        storage = optuna.storages.RDBStorage("sqlite:///study.db", {"creator": connect})
    except (DatabaseError, RuntimeError, StorageInternalError) as error:
        raise _unusable(database, error) from error
    try:
        study = optuna.create_study(
            storage=storage, study_name="ranklet", direction="maximize", load_if_exists=True
        )
        yield Study(study, path, base, space)
    except (DatabaseError, StorageInternalError) as error:
        raise _unusable(database, error) from error
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _unusable(database: Path, error: Exception) -> RunError:
    reason = str(error.__cause__ or error)
    if "locked" in reason:
        return RunError(
            f"{database} is locked by another program: close it and run the same command again; "
            "finished trials are kept"
        )
    if "disk" in reason:  # full, or failing
        return RunError(f"{database} can't be written: {reason.splitlines()[0]}")
    return RunError(f"{database} is damaged, or of another optuna: {reason.splitlines()[0]}")
