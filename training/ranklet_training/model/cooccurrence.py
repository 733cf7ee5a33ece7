"""Initial item embeddings from co-occurrence (PPMI): a second of work that saves epochs."""

import numpy as np
import torch
from torch import Tensor

from ranklet_training.data.sequences import Sequences

WINDOW = 5
CONTEXT_POWER = 0.75


def cooccurrence_table(sequences: Sequences, items: int, width: int, seed: int) -> Tensor:
    """Return an item table whose dot products follow PPMI, float32 (items + 1, width); row 0 is 0.

    PPMI is positive pointwise mutual information. Pairs within 5 events count 1 / distance;
    contexts are smoothed by the power 0.75 (Levy, Goldberg and Dagan, "Improving Distributional
    Similarity", 2015). The rows of the truncated SVD get the norm of the usual random start, 0.02
    sqrt(width), and a random rotation, so that no channel is empty. Items without a pair are drawn
    from N(0, 0.02).
    """
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(items + 1, width, generator=generator) * 0.02
    table[0] = 0
    information = _positive_mutual_information(sequences, items)
    rank = min(width, items)
    with torch.random.fork_rng(devices=[]):  # svd_lowrank draws from the global generator
        torch.manual_seed(seed)
        left, singular, _ = torch.svd_lowrank(information, q=min(rank + 16, items), niter=4)
    rows = torch.zeros(items, width)
    rows[:, :rank] = (left * singular.sqrt())[:, :rank]
    rotation, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    rows = torch.nn.functional.normalize(rows @ rotation, dim=1) * (0.02 * width**0.5)
    seen = torch.zeros(items, dtype=torch.bool)  # not norm > 0: the SVD leaves rounding noise
    seen[information.indices()[0]] = True
    table[1:][seen] = rows[seen]
    return table


def _positive_mutual_information(sequences: Sequences, items: int) -> Tensor:
    users = np.repeat(np.arange(len(sequences)), sequences.lengths)
    keys, weights = [], []
    for distance in range(1, WINDOW + 1):
        same_user = users[distance:] == users[:-distance]
        earlier = sequences.items[:-distance][same_user] - 1
        later = sequences.items[distance:][same_user] - 1
        for row, column in ((earlier, later), (later, earlier)):
            keys.append(row * items + column)
            weights.append(np.full(len(row), 1 / distance))
    pairs, place = np.unique(np.concatenate(keys), return_inverse=True)
    count = np.bincount(place, np.concatenate(weights))
    row, column = pairs // items, pairs % items
    occurrences = np.bincount(row, count, minlength=items)
    context = occurrences**CONTEXT_POWER
    context /= context.sum()
    information = np.log(count / (occurrences[row] * context[column]))
    kept = information > 0
    return torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([row[kept], column[kept]])),
        torch.from_numpy(information[kept]).float(),
        (items, items),
        check_invariants=False,
    ).coalesce()
