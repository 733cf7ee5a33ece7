"""What a graph answers is checked: items of the catalogue, and finite numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from ranklet import BundleError, Manifest, Ranker

HISTORY = ["i00001", "i00005"]
Ask = Callable[[Ranker], object]
REQUESTS: dict[str, Ask] = {
    "rank": lambda ranker: ranker.rank(HISTORY),
    "batch": lambda ranker: ranker.rank_batch([HISTORY] * 9),
    "boost": lambda ranker: ranker.rank(HISTORY, boost=np.linspace(0, 1, 60)),
    "diversity": lambda ranker: ranker.rank(HISTORY, diversity=0.5),
    "kept user": lambda ranker: ranker.user(HISTORY).rank(),
    "similar": lambda ranker: ranker.similar("i00001"),
}


@pytest.fixture
def altered(bundle: Path, sign: Any) -> Callable[..., Ranker]:
    """Load the tiny bundle with an operator and a constant behind an output of some graphs."""

    def alter(output: str, operator: str, number: Any, *names: str) -> Ranker:
        manifest = Manifest.read(bundle)
        for name in names:
            model = onnx.load(bundle / f"{name}.onnx", load_external_data=False)
            for node in model.graph.node:
                node.output[:] = [f"{n}_raw" if n == output else n for n in node.output]
                node.input[:] = [f"{n}_raw" if n == output else n for n in node.input]
            model.graph.initializer.append(numpy_helper.from_array(np.array(number), "by"))
            model.graph.node.append(helper.make_node(operator, [f"{output}_raw", "by"], [output]))
            (bundle / f"{name}.onnx").write_bytes(model.SerializeToString())
        sign(bundle, manifest)
        return Ranker.load(bundle, provider="cpu")

    return alter


@pytest.mark.parametrize("ask", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize(
    ("operator", "number", "message"),
    [("Mul", 0, "item 0"), ("Mul", -1, "item -[0-9]+"), ("Add", 10**6, "item 10000[0-9]+")],
)
def test_an_item_outside_of_the_catalogue_is_no_answer(
    altered: Callable[..., Ranker], ask: Ask, operator: str, number: int, message: str
) -> None:
    ranker = altered("items", operator, number, "score", "score_many")
    with pytest.raises(
        BundleError, match=f"a graph of the bundle answers {message}, which is none"
    ):
        ask(ranker)


def test_numbers_are_checked_like_texts(number_bundle: Path) -> None:
    vocabulary = Ranker.load(number_bundle, provider="cpu").vocabulary
    for index in (0, -1, 61, 2**62):
        with pytest.raises(BundleError, match=f"answers item {index}, which is none"):
            vocabulary.ids(np.array([3, index]))


@pytest.mark.parametrize("ask", REQUESTS.values(), ids=REQUESTS)
def test_a_score_that_is_infinite_is_no_answer(altered: Callable[..., Ranker], ask: Ask) -> None:
    ranker = altered("scores", "Div", np.float32(0), "score", "score_many")
    with pytest.raises(BundleError, match=r"a graph of the bundle gives NaN or infinity"):
        ask(ranker)


@pytest.mark.parametrize(
    "ask",
    [
        lambda ranker: ranker.rank(HISTORY),
        lambda ranker: ranker.rank(HISTORY, candidates=["i00007", "i00009"]),
        lambda ranker: ranker.user_vector(HISTORY),
    ],
    ids=["rank", "candidates", "user vector"],
)
def test_a_user_vector_that_is_infinite_is_no_answer(
    altered: Callable[..., Ranker], ask: Ask
) -> None:
    ranker = altered("user", "Mul", np.float32(np.finfo(np.float32).max), "encode")
    with pytest.raises(BundleError, match=r"a graph of the bundle gives NaN or infinity"):
        ask(ranker)


def test_a_state_of_too_few_events_is_refused(altered: Callable[..., Ranker]) -> None:
    ranker = altered("key_0", "Pad", np.array([0, -1, 0, 0, 0, 0]), "encode")
    with pytest.raises(BundleError, match="gives the state of too few events"):
        ranker.user(HISTORY).rank()
