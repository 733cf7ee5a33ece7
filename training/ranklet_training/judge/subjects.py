"""Models to judge: how each scores, which items it knows, and the questions that all can answer.

A log has its own items. Their ids are looked up in the catalogue of each model by their text, so
that 12 in a log of text is the item 12 of a catalogue of integers. Models of one catalogue rank
all of it, and a target that it lacks is a miss. Models of different catalogues rank the items that
all of them know, for the cases whose target is such an item.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ranklet.bundle.vocabulary import Vocabulary
from ranklet.errors import RunError
from ranklet.ranker import Ranker
from ranklet.time_gaps import UNKNOWN, gap_buckets
from ranklet.values import show
from ranklet_training.data.sequences import Ints, Mask, pad
from ranklet_training.data.split import Cases, Split
from ranklet_training.runs.checkpoint import Model, Run

# Scores of all items for each case, (B, items + 1); column 0 is padding and ignored.
Scorer = Callable[[Cases], NDArray[np.float32]]
AnyModel = Run | Ranker | Model  # a bare model was trained on the split that it is judged by


@dataclass(frozen=True)
class Subject:
    """A model with its catalogue, default and kinds; ``model`` takes indices of these."""

    model: Ranker | Scorer
    vocabulary: Vocabulary
    exclude_seen: bool
    kinds: Sequence[str] = ()  # of events, that the model uses


@dataclass(frozen=True)
class CommonCases:
    """The questions to some models, in the index space of the split.

    Attributes:
        cases: The cases that every model is asked.
        places: The index in the catalogue of each model of every item of the log, (items + 1,).
        kinds: The index of every kind of the log among those of each model, (kinds + 1,).
        among: The indices of the items to rank in the catalogue of each model, if they differ.
        in_log: The indices in the log of the items that every model knows.
        items: The number of items to rank.
        left_out: The number of cases whose target not every model knows.
        unknown: For each model, the targets and the history events that it does not know.
    """

    cases: Cases
    places: dict[str, Ints]
    kinds: dict[str, Ints]
    among: dict[str, Ints]
    in_log: Ints
    items: int
    left_out: int
    unknown: dict[str, dict[str, int]]

    def cases_of(self, name: str) -> Cases:
        """Return the cases in the indices of a model; a baseline has those of the log."""
        if name not in self.places:
            return self.cases
        return self.cases.translate(self.places[name], self.kinds[name])

    def among_of(self, name: str) -> Ints | None:
        """Return the indices of the items that a model or a baseline ranks; None: all."""
        return self.among.get(name) if name in self.places else self.in_log


def subject_of(name: str, model: AnyModel, split: Split) -> Subject:
    """Return a model as a subject; RunError: a bare model has other items than the split."""
    if isinstance(model, Ranker):
        return Subject(model, model.vocabulary, model.exclude_seen, model.manifest.kinds)
    if isinstance(model, Run):
        counts = np.concatenate([[0], model.catalogue["training_events"].to_numpy()])
        scorer = model_scorer(model.load_model(), counts, model.target)
        return Subject(scorer, model.vocabulary, model.exclude_seen, model.kinds)
    items, size = len(split.vocabulary), model.items.item.shape[0] - 1
    if size != items:
        raise RunError(f"{name} has {size} items and the split {items}: pass its run")
    scorer = model_scorer(model, split.training.counts(items), split.target_kind)
    return Subject(scorer, split.vocabulary, exclude_seen=True, kinds=list(split.kinds))


def common_cases(subjects: Mapping[str, Subject], split: Split, cases: Cases) -> CommonCases:
    """Return the questions that all subjects can answer.

    RunError: a model knows no item of the log, or no target is known to all.
    """
    places = {name: find_items(split.vocabulary, s.vocabulary) for name, s in subjects.items()}
    for name, found in places.items():
        if not found.any():
            own, other = subjects[name].vocabulary.all_ids[0], split.vocabulary.all_ids[0]
            raise RunError(
                f"{name} knows no item of these events: it has ids like {show(own)}, and the "
                f"events have ids like {show(other)}"
            )
    is_common = np.arange(len(split.vocabulary) + 1) > 0
    for found in places.values():
        is_common &= found > 0
    kept, among, items = cases, dict[str, Ints](), len(split.vocabulary)
    if subjects:
        first, *others = (subject.vocabulary for subject in subjects.values())
        items = len(first)
        if not all(_same(first, other) for other in others):
            among = _common(subjects)
            items = len(next(iter(among.values())))
            kept = cases.take(np.flatnonzero(is_common[cases.targets]))
    if not len(kept):
        names = " and ".join(subjects)
        raise RunError(f"{names} have no common item among the {len(cases):,} answers to predict")
    unknown = {
        name: {
            "targets": int((found[cases.targets] == 0).sum()),
            "history_events": int((found[cases.histories.items] == 0).sum()),
        }
        for name, found in places.items()
    }
    kinds = {name: find_kinds(list(split.kinds), s.kinds) for name, s in subjects.items()}
    in_log, left_out = np.flatnonzero(is_common), len(cases) - len(kept)
    return CommonCases(kept, places, kinds, among, in_log, items, left_out, unknown)


def find_items(items: Vocabulary, catalogue: Vocabulary) -> Ints:
    """Return the index in a catalogue of every item, 0 where it lacks the text of its id.

    The result is (items + 1,), where place 0 is padding.
    """
    ids = items.all_ids
    is_number = not items.is_text and not catalogue.is_text
    known = ids if is_number else catalogue.parse(map(str, ids))
    return np.concatenate([[0], catalogue.index(known)])


def find_kinds(kinds: Sequence[str], known: Sequence[str]) -> Ints:
    """Return the index among known kinds of every kind, 0 where it is unknown, (kinds + 1,)."""
    index = {name: place for place, name in enumerate(known, 1)}
    return np.array([0, *(index.get(name, 0) for name in kinds)])


def _same(one: Vocabulary, other: Vocabulary) -> bool:
    """Return whether two catalogues have the same ids, as text, at the same indices."""
    found = find_items(one, other)
    return len(one) == len(other) and bool((found == np.arange(len(found))).all())


def _common(subjects: Mapping[str, Subject]) -> dict[str, Ints]:
    """Return the indices in each catalogue of the items that all have, in one order."""
    (name, first), *others = subjects.items()
    found = {name: np.arange(len(first.vocabulary) + 1)}
    found |= {other: find_items(first.vocabulary, s.vocabulary) for other, s in others}
    is_common: Mask = np.all([places > 0 for places in found.values()], axis=0)
    return {name: places[is_common] for name, places in found.items()}


def model_scorer(model: Model, popularity: Ints, target: int = 0) -> Scorer:
    """Return the scorer of a torch model, which treats histories as the runtime.

    Items outside the catalogue are dropped; ``popularity``, the training events of each item
    (items + 1,), scores histories without known items. A model that uses the kinds of events is
    asked for the kind of index ``target``, 0 for any.
    """
    with torch.no_grad():
        table = model.table()
    length, place = model.config.max_length, table.device

    def score(cases: Cases) -> NDArray[np.float32]:
        known = cases.drop_unknown()
        is_cold = known.histories.lengths == 0
        any_item = np.ones(1, dtype=np.int64)  # for cold histories, whose scores are replaced
        filled = [history if len(history) else any_item for history in known.histories]
        gaps = _gaps(known, length, place) if model.config.time_gaps else None
        kinds = _kinds(known, length, model.kinds, target, place) if model.kinds else None
        with torch.no_grad():
            history = torch.from_numpy(pad(filled, length)).to(place)
            user = model.serve(history, table, gaps, kinds)
            scores: NDArray[np.float32] = (user @ table.T).cpu().numpy()
        scores[is_cold] = popularity
        return scores

    return score


def _gaps(cases: Cases, length: int, place: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return buckets before each event (B, T) and between the last event and the target (B,)."""
    histories = cases.histories
    assert histories.times is not None
    assert cases.target_times is not None
    since = pad(np.split(histories.gaps, histories.offsets[1:-1]), length)
    until = np.full(len(cases), UNKNOWN, dtype=np.int64)
    rows = np.flatnonzero(histories.lengths)
    last_times = histories.times[histories.offsets[rows + 1] - 1]
    until[rows] = gap_buckets(cases.target_times[rows] - last_times)
    return torch.from_numpy(since).to(place), torch.from_numpy(until).to(place)


def _kinds(
    cases: Cases, length: int, count: int, target: int, place: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the kind of each event, unknown in a log without kinds, and the weights asked for."""
    histories, weights = cases.histories, torch.zeros(len(cases), count + 1)
    of_events = np.zeros_like(histories.items) if histories.kinds is None else histories.kinds
    weights[:, target] = 1
    padded = torch.from_numpy(pad(np.split(of_events, histories.offsets[1:-1]), length))
    return padded.to(place), weights.to(place)
