"""Odd bundles drawn from a seed: one value of the manifest, or some of a graph, is another."""

import random
from copy import deepcopy
from typing import Any

import onnx

from attacks.bundle import Bundle, Make

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 63, 64, 2**24, 2**31, 2**62, 2**63, 2**70, -(2**63), 10**400),
    *(0.5, -0.0, 1e308, 1e-308, float("nan"), float("inf"), -3e38),
    *("", "x", "batch", "items", "tensor(int64)", "tensor(float)", "../x", "\0", "\ud800", "é" * 9),
    *("x" * 5_000, "<f4", "|u1", "weights.bin", "encode.onnx", "1970-01-01", "%s{0}"),
    *([], [[]], [None], [1], [0, 0], [1, 200], ["batch", "length"], ["a"] * 1_000, [[[1]]]),
    *({}, {"a": 1}, {"": None}, {"name": "x", "type": "tensor(int64)", "shape": []}),
]
GONE = object()


def change(document: Any, draw: random.Random) -> None:  # noqa: ANN401
    """Change, remove, add or copy a value somewhere in a JSON document."""
    places = [*_places(document)]
    (holder, key), (other, place), action = (
        draw.choice(places),
        draw.choice(places),
        draw.randrange(8),
    )
    if action == 0 and isinstance(holder, dict):
        del holder[key]
    elif action == 1:
        holder[key] = deepcopy(other[place])
    elif action == 2 and isinstance(holder, list):
        holder.insert(0, draw.choice(VALUES))
    else:
        holder[key] = deepcopy(draw.choice(VALUES))


def odd_manifest(seed: int, number: int) -> tuple[str, Make]:
    """Return a name and an attack that changes a value of the manifest."""
    draw = random.Random(f"manifest {seed} {number}")

    def make(bundle: Bundle) -> None:
        for _ in range(draw.choice((1, 1, 1, 2))):
            change(bundle.manifest, draw)
        bundle.sign()

    return f"odd manifest {number} of seed {seed}", make


def odd_graph(seed: int, number: int) -> tuple[str, Make]:
    """Return a name and an attack that changes a graph in one to three places."""
    draw = random.Random(f"graph {seed} {number}")

    def make(bundle: Bundle) -> None:
        name = draw.choice([*bundle.manifest["programs"]])
        with bundle.graph(name) as model:
            for _ in range(draw.choice((1, 1, 2, 3))):
                draw.choice(GRAPH_CHANGES)(model.graph, draw)
        bundle.sign()

    return f"odd graph {number} of seed {seed}", make


def odd_bits(seed: int, number: int) -> tuple[str, Make]:
    """Return a name and an attack that flips some bits of a file, which is signed anew."""
    draw = random.Random(f"bits {seed} {number}")

    def make(bundle: Bundle) -> None:
        names = sorted({*bundle.manifest["files"]} - {"README.md"})
        data = bytearray((bundle.folder / (name := draw.choice(names))).read_bytes())
        for _ in range(draw.choice((1, 1, 4, 16))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        if draw.random() < 0.2:
            del data[draw.randrange(len(data)) :]
        bundle.write(name, bytes(data))
        bundle.sign()

    return f"odd bits {number} of seed {seed}", make


def odd_bundle(seed: int, number: int) -> tuple[str, Make]:
    """Return a name and an attack of a kind: half of them by the manifest."""
    kinds = (odd_manifest, odd_graph, odd_manifest, odd_bits)
    return kinds[number % 4](seed, number)


def _places(value: Any) -> Any:  # noqa: ANN401
    """Yield every container of a document with every key of it."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _operator(graph: onnx.GraphProto, draw: random.Random) -> None:
    draw.choice(graph.node).op_type = draw.choice(graph.node).op_type


def _wire(graph: onnx.GraphProto, draw: random.Random) -> None:
    node, other = draw.choice(graph.node), draw.choice(graph.node)
    if node.input:
        node.input[draw.randrange(len(node.input))] = draw.choice([*other.input, *other.output, ""])


def _swap_outputs(graph: onnx.GraphProto, draw: random.Random) -> None:
    one, other = draw.choice(graph.node), draw.choice(graph.node)
    one.output[0], other.output[0] = other.output[0], one.output[0]


def _attribute(graph: onnx.GraphProto, draw: random.Random) -> None:
    attributes = [each for node in graph.node for each in node.attribute]
    if attributes:
        chosen = draw.choice(attributes)
        odd = draw.choice((-1, 0, 1, 2, 3, 7, 16, 64, 2**31 - 1, 2**31, 2**62, -(2**63)))
        if chosen.type == onnx.AttributeProto.INT:
            chosen.i = odd
        elif chosen.type == onnx.AttributeProto.INTS:
            chosen.ints[:] = [odd] * draw.randrange(4)
        elif chosen.type == onnx.AttributeProto.FLOAT:
            chosen.f = draw.choice((0.0, -1.0, float("nan"), float("inf"), 1e38))
        else:
            chosen.s = draw.choice((b"", b"x" * 1_000, b"\xff", b"none"))


def _number(graph: onnx.GraphProto, draw: random.Random) -> None:
    """Change an integer that is stored in the graph: axes, shapes, indices, limits."""
    whole = [t for t in graph.initializer if t.data_type == 7 and t.raw_data]
    if whole:
        chosen, odd = draw.choice(whole), draw.choice((-1, 0, 1, 5, 2**20, 2**31, 2**40, 2**63 - 1))
        at = 8 * draw.randrange(len(chosen.raw_data) // 8)
        number = odd.to_bytes(8, "little", signed=True)
        chosen.raw_data = chosen.raw_data[:at] + number + chosen.raw_data[at + 8 :]


def _shape(graph: onnx.GraphProto, draw: random.Random) -> None:
    """Give a tensor the shape of as many numbers."""
    chosen = draw.choice([t for t in graph.initializer if len(t.dims) > 1])
    chosen.dims[:] = draw.choice(
        ([*chosen.dims][::-1], [chosen.dims[0] * chosen.dims[1]], [1, *chosen.dims])
    )


def _place(graph: onnx.GraphProto, draw: random.Random) -> None:
    """Give a stored tensor the place of another one."""
    stored = [t for t in graph.initializer if t.external_data]
    if stored:
        one, other = draw.choice(stored), draw.choice(stored)
        places = {entry.key: entry.value for entry in other.external_data}
        for entry in one.external_data:
            entry.value = places[entry.key] if entry.key != "length" else entry.value


def _remove(graph: onnx.GraphProto, draw: random.Random) -> None:
    del graph.node[draw.randrange(len(graph.node))]


def _repeat(graph: onnx.GraphProto, draw: random.Random) -> None:
    graph.node.append(draw.choice(graph.node))


GRAPH_CHANGES = (_operator, _wire, _swap_outputs, _attribute, _attribute, _number, _number, _shape)
GRAPH_CHANGES += (_place, _remove, _repeat)
