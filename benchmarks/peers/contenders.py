"""What competes in latency.py: how each is built, asked, and answers with its best ten items.

* Libraries are imported where they are used: each contender has a process of its own.
* Weights are random (RecTools': after one step), width 64, 2 blocks. Peers keep their own heads and
  feed-forward width; torch and plain onnxruntime run ranklet's model.
* Ids become tensors in ``prepare``, which is not timed; ranklet maps them while it is. Its rows
  "item indices in and out" do what the peers do: no ids, no checks, the graph and what feeds it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

K, WIDTH, BLOCKS, LENGTH = 10, 64, 2, 200

Ints = NDArray[np.int64]
Untyped = Any  # of libraries that are not there when this is checked


class Work(NamedTuple):
    """What a contender must do, and with what."""

    items: int
    events: int
    batch: int
    threads: int
    folder: Path  # for files of this run
    bundle: Path  # of ranklet, in the shape of this contender
    shape: tuple[int, int]

    @property
    def padded(self) -> int:
        """Return the maximum length of models that always pad to it."""
        return 50 if self.events <= 50 else LENGTH

    def histories(self, number: int) -> Ints:
        """Return request ``number``: item indices from 1, (batch, events)."""
        drawn = np.random.default_rng([number, self.batch, self.events])
        return drawn.integers(1, self.items + 1, (self.batch, self.events))


class Calls(NamedTuple):
    """How a contender answers: ``prepare``, not timed, makes a request of item indices."""

    prepare: Callable[[Ints], Any]
    answer: Callable[[Any], Any]  # top K items of each history, in any form
    note: str = ""


def shape_note(heads: int, feed_forward: int) -> str:
    """Return a shape in words."""
    return f"{heads} head{'s' if heads > 1 else ''}, feed-forward x{feed_forward}"


def ranklet_rank(work: Work) -> Calls:
    """Ids in, ids out, by one call of the public interface."""
    from ranklet import Ranker

    ranker = Ranker.load(work.bundle, provider="cpu", threads=work.threads)
    note = f"{shape_note(*work.shape)}, {ranker.manifest.precision}"
    if work.batch == 1:
        return Calls(_first_ids, lambda history: ranker.rank(history, k=K).items, note)

    def answer(histories: list[list[str]]) -> list[list[str] | list[int]]:
        return [ranking.items for ranking in ranker.rank_batch(histories, k=K)]

    return Calls(lambda histories: histories.astype(str).tolist(), answer, note)


def ranklet_append(work: Work) -> Calls:
    """Rank for a user whose state is kept, after one more event, which is not its first."""
    from ranklet import Ranker

    ranker = Ranker.load(work.bundle, provider="cpu", threads=work.threads)

    def prepare(histories: Ints) -> tuple[Any, str]:
        history = _first_ids(histories)
        user = ranker.user(history)
        for item in history[:2]:  # the state is there, however late it is made
            user.rank(k=K)
            user.append(item)
        user.rank(k=K)
        return user, history[2]

    def answer(request: tuple[Any, str]) -> list[str]:
        user, item = request
        user.append(item)
        items: list[str] = user.rank(k=K).items
        return items

    note = f"{shape_note(*work.shape)}, {ranker.manifest.precision}"
    return Calls(prepare, answer, note)


def ranklet_indices(work: Work) -> Calls:
    """Item indices in and out, as the peers: the two runs of ``rank`` below its checks and ids."""
    from ranklet import Ranker
    from ranklet.answer import by_length
    from ranklet.engine.engine import History

    ranker = Ranker.load(work.bundle, provider="cpu", threads=work.threads)
    engine, pool = ranker.engine, ranker.manifest.pool.size(K)
    note = f"{shape_note(*work.shape)}, {ranker.manifest.precision}"

    def answer(histories: Ints) -> Ints:
        rows = [History(row) for row in histories]
        parts = [[rows[i] for i in part] for part in by_length([len(row) for row in histories])]
        users = np.concatenate([engine.encode(part) for part in parts])
        ends = range(0, len(users), engine.most_users)
        best = [engine.score(users[i : i + engine.most_users], K, pool) for i in ends]
        return np.concatenate([part.items for part in best])

    return Calls(lambda histories: histories, answer, note)


def ranklet_append_index(work: Work) -> Calls:
    """The same after one more event, given the state of those before, which rolls."""
    from ranklet import Ranker
    from ranklet.engine.engine import Event, History
    from ranklet.engine.state import State

    ranker = Ranker.load(work.bundle, provider="cpu", threads=work.threads)
    engine, pool = ranker.engine, ranker.manifest.pool.size(K)
    note = f"{shape_note(*work.shape)}, {ranker.manifest.precision}"

    def answer(request: tuple[State, int]) -> Ints:
        user = engine.append(request[0], [Event(request[1], work.events)])
        return engine.score(user, K, pool).items

    def prepare(histories: Ints) -> tuple[State, int]:
        state = engine.empty_state(1)
        state.fill(0, engine.encode_states([History(histories[0])])[1][0], work.events)
        return state, int(histories[0, 2])

    return Calls(prepare, answer, note)


def _first_ids(histories: Ints) -> list[str]:
    ids: list[str] = histories[0].astype(str).tolist()
    return ids


def replay(work: Work, precision: str | None = None) -> Calls:
    """RePlay's compiled SASRec, which gives all scores, and topk.

    RePlay leaves the precision to OpenVINO, which takes bfloat16 where the processor multiplies
    matrices of it.
    """
    import openvino
    import torch
    from replay.data import FeatureHint, FeatureType
    from replay.data.nn import TensorFeatureInfo, TensorSchema
    from replay.models.nn.sequential import SasRec
    from replay.models.nn.sequential.compiled import SasRecCompiled

    if precision is not None:

        class Core(openvino.Core):  # type: ignore[misc]  # no types
            """What RePlay compiles with."""

            def __init__(self) -> None:
                super().__init__()
                self.set_property("CPU", {"INFERENCE_PRECISION_HINT": precision})

        openvino.Core = Core
    torch.set_num_threads(work.threads)
    feature = TensorFeatureInfo(
        "item_id",
        FeatureType.CATEGORICAL,
        is_seq=True,
        feature_hint=FeatureHint.ITEM_ID,
        cardinality=work.items,
        padding_value=work.items,
        embedding_dim=WIDTH,
    )
    schema = TensorSchema([feature])
    net = SasRec(schema, block_count=BLOCKS, hidden_size=WIDTH, max_seq_len=work.padded).eval()
    compiled = SasRecCompiled.compile(
        net,
        mode="one_query" if work.batch == 1 else "batch",
        batch_size=work.batch,
        num_threads=work.threads,
        onnx_path=str(work.folder / "replay.onnx"),
    )

    def prepare(histories: Ints) -> dict[str, Any]:  # anew for each call: predict pads in place
        ids = torch.from_numpy(histories - 1)
        mask = torch.ones_like(ids, dtype=torch.bool)
        return {"feature_tensor": {"item_id": ids}, "padding_mask": mask}

    layer = net._model.sasrec_layers.forward_layers[0].conv1
    runs_in = compiled._model.get_property("INFERENCE_PRECISION_HINT").to_string()
    shape = shape_note(net.hparams["head_count"], layer.out_channels // WIDTH)
    note = f"{shape}, pads to {work.padded}, {runs_in}"
    return Calls(prepare, lambda request: torch.topk(compiled.predict(request), K).indices, note)


def _rectools_model(work: Work) -> Untyped:
    """Fit RecTools' SASRec for one step, on histories that hold every item once."""
    import torch
    from pytorch_lightning import Trainer
    from rectools.models import SASRecModel

    torch.set_num_threads(work.threads)
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    model = SASRecModel(
        n_factors=WIDTH,
        n_blocks=BLOCKS,
        session_max_len=work.padded,
        loss="BCE",  # the cheapest to fit; what is timed does not depend on it
        recommend_torch_device="cpu",
        get_trainer_func=lambda: Trainer(
            accelerator="cpu", devices=1, max_steps=1, **dict.fromkeys(quiet, False)
        ),
    )
    items = np.arange(-(-work.items // 50) * 50) % work.items + 1
    return model.fit(_rectools_dataset(items.reshape(-1, 50)))


def _rectools_dataset(histories: Ints) -> Untyped:
    import pandas as pd
    from rectools.dataset import Dataset

    users, length = histories.shape
    frame = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), length),
            "item_id": histories.ravel(),
            "weight": 1.0,
            "datetime": pd.to_datetime(np.tile(np.arange(length), users)),
        }
    )
    return Dataset.construct(frame)


def rectools_recommend(work: Work) -> Calls:
    """What RecTools documents; the request's Dataset is made outside of the timed region."""
    model = _rectools_model(work)
    users = np.arange(work.batch)

    def answer(request: Untyped) -> Untyped:
        return model.recommend(users, request, k=K, filter_viewed=False)["item_id"]

    return Calls(_rectools_dataset, answer, _rectools_note(work, model))


def rectools_core(work: Work) -> Calls:
    """The tensors of RecTools alone, the table of items computed once."""
    import torch

    model = _rectools_model(work)
    net = model.torch_model.eval()
    with torch.inference_mode():
        table = net.item_model.get_all_embeddings()

    def prepare(histories: Ints) -> torch.Tensor:
        padded = np.zeros((work.batch, work.padded), dtype=np.int64)
        padded[:, -work.events :] = histories
        return torch.from_numpy(padded)

    def answer(ids: torch.Tensor) -> Untyped:
        with torch.inference_mode():
            users = net.encode_sessions({"x": ids}, table)[:, -1]
            return (users @ table[1:].T).topk(K).indices

    return Calls(prepare, answer, _rectools_note(work, model))


def _rectools_note(work: Work, model: Untyped) -> str:
    return f"{shape_note(model.n_heads, 1)}, pads to {work.padded}"


def _own_model(work: Work) -> Untyped:
    """Return ranklet's model with random weights."""
    import torch

    from ranklet_training.model.model import ModelConfig, SequenceModel

    torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    heads, feed_forward = work.shape
    config = ModelConfig(
        width=WIDTH, blocks=BLOCKS, heads=heads, feed_forward=feed_forward, max_length=LENGTH
    )
    model = SequenceModel(config, work.items)
    model.init_weights()
    return model.eval().requires_grad_(False)


def _own_top(work: Work) -> Callable[[Any], Any]:
    """Return what ranks tensors of indices as the export does."""
    model = _own_model(work)
    table = model.table()

    def top(ids: Untyped) -> Untyped:
        return (model.serve(ids, table) @ table[1:].T).topk(K).indices + 1

    return top


def torch_eager(work: Work) -> Calls:
    """Run ranklet's model in torch."""
    import torch

    top = torch.inference_mode()(_own_top(work))
    return Calls(torch.from_numpy, top, _own_note(work))


def torch_compiled(work: Work) -> Calls:
    """The same, compiled for the one shape that is asked."""
    import torch

    top = _own_top(work)
    compiled = torch.inference_mode()(torch.compile(top, dynamic=False))
    _check_same(top, compiled, torch.from_numpy(work.histories(0)))
    return Calls(torch.from_numpy, compiled, _own_note(work))


def naive_onnxruntime(work: Work) -> Calls:
    """Export every position through all blocks, fp32, opset 18: what a first attempt gives."""
    import onnxruntime
    import torch

    model = _own_model(work)

    class Naive(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.table = model, torch.nn.Parameter(model.table(), requires_grad=False)

        def forward(self, history: torch.Tensor) -> Untyped:
            users = self.model.encode(history, self.table)[:, -1]
            return (users @ self.table[1:].T).topk(K).indices + 1

    naive, path = Naive().eval(), work.folder / "naive.onnx"
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=LENGTH)}
    traced = torch.ones(3, 7, dtype=torch.int64)
    program = torch.onnx.export(
        naive,
        (traced,),
        dynamo=True,
        dynamic_shapes=(axes,),
        input_names=["history"],
        opset_version=18,
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = work.threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def answer(histories: Ints) -> Ints:
        items: Ints = session.run(None, {"history": histories})[0]
        return items

    _check_same(naive, lambda ids: answer(ids.numpy()), torch.from_numpy(work.histories(0)))
    return Calls(lambda histories: histories, answer, _own_note(work))


def _own_note(work: Work) -> str:
    return f"ranklet's model, {shape_note(*work.shape)}"


def _check_same(right: Callable[[Any], Any], other: Callable[[Any], Any], request: Untyped) -> None:
    """Raise where more than one item in ten differs: near ties may fall either way."""
    pairs = zip(np.asarray(right(request)), np.asarray(other(request)), strict=True)
    if (least := min(len(np.intersect1d(*pair)) for pair in pairs)) < K - 1:
        raise RuntimeError(f"only {least} of {K} items are those of the torch model")


def _random_users(work: Work) -> tuple[NDArray[np.float32], Callable[[Ints], Any]]:
    """Return a table of items, and what makes one user vector of a request."""
    table = np.random.default_rng(0).standard_normal((work.items, WIDTH), dtype=np.float32)
    return table, lambda histories: table[histories[0, :1] - 1] + table[0]


def faiss_flat(work: Work) -> Calls:
    """Score one user vector that is there already."""
    import faiss

    faiss.omp_set_num_threads(work.threads)
    table, prepare = _random_users(work)
    index = faiss.IndexFlatIP(WIDTH)
    index.add(table)
    return Calls(prepare, lambda user: index.search(user, K)[1], "scoring alone, fp32")


def numpy_scores(work: Work) -> Calls:
    """Score one user vector that is there already, as written by hand."""
    table, prepare = _random_users(work)

    def answer(user: NDArray[np.float32]) -> Ints:
        scores = (user @ table.T)[0]
        best = np.argpartition(scores, -K)[-K:]
        return best[np.argsort(-scores[best])]

    return Calls(prepare, answer, "scoring alone, fp32")


def replay_f32(work: Work) -> Calls:
    """The same in the precision of ranklet's scores."""
    return replay(work, "f32")


RANKLET, INDICES = "ranklet", "ranklet, item indices in and out"
REPLAY, RECTOOLS = "RePlay SasRecCompiled + topk", "RecTools recommend"
EAGER = "torch eager"
BUILDERS: dict[str, Callable[[Work], Calls]] = {
    RANKLET: ranklet_rank,
    INDICES: ranklet_indices,
    REPLAY: replay,
    "RePlay, in float32": replay_f32,
    RECTOOLS: rectools_recommend,
    "RecTools, its tensors alone": rectools_core,
    EAGER: torch_eager,
    "torch.compile": torch_compiled,
    "onnxruntime, naive export": naive_onnxruntime,
    "faiss IndexFlatIP": faiss_flat,
    "numpy, matmul and argpartition": numpy_scores,
}
SCORERS = ("faiss IndexFlatIP", "numpy, matmul and argpartition")
SEQUENCE = tuple(name for name in BUILDERS if name not in (RANKLET, INDICES, *SCORERS))
OWN = (RANKLET, INDICES, EAGER, "torch.compile", "onnxruntime, naive export")  # in ranklet's shape
