"""item.onnx: the features of items to rows of the item table, for items that training never saw.

codes (batch, features), weights (batch, features) -> row (batch, D): the mean and the weighted rows
of the map (``ranklet_training.model.ridge``), added up and brought to the length of trained rows.
The map is stored in 16 bits; its sums are fp32.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from ranklet.attributes import Attributes
from ranklet.bundle.manifest import BEHIND, ITEM, NewItems
from ranklet.engine.engine import Engine
from ranklet.engine.sessions import ORT_ERRORS
from ranklet.errors import ParityError
from ranklet.item_features import Ragged
from ranklet_export.writer import GraphWriter
from ranklet_training.judge.new_items import read_catalogue, scale_of
from ranklet_training.model.ridge import ItemMap
from ranklet_training.runs.checkpoint import Model, Run

EPSILON = 1e-20  # keeps the length of a row of zeros from being 0
# Of a row of length 1. The sums are fp32, in another order than those of torch.
ROW_TOLERANCE = 1e-5
FEATURES = 64  # of each compared row
UNMEASURED = NewItems(bias=BEHIND, in_histories=False, figures={})


@dataclass(frozen=True)
class ItemSource:
    """The attributes of a catalogue, and the map from their features to its rows."""

    attributes: Attributes
    item_map: ItemMap
    length: float  # of a row of ``Model.table()``
    new_items: NewItems


def read_item_source(run: Run, model: Model) -> ItemSource | None:
    """Return the attributes of a run and fit their map, None if its items have no attributes."""
    if not run.attribute_kinds:
        return None
    catalogue, table = read_catalogue(run, model), model.table().detach()
    events = run.catalogue["training_events"].to_numpy()
    item_map = catalogue.fit(table, events)
    stored = ItemMap(item_map.mean, item_map.weights.half().float())
    measured: Any = run.data.get("new_items")
    new_items = NewItems(**measured) if measured else UNMEASURED
    return ItemSource(catalogue.attributes, stored, scale_of(table, events), new_items)


def write_items(writer: GraphWriter, source: ItemSource, scale: float) -> None:
    """Write the graph; rows of ``Model.table()`` are served times ``scale``."""
    width = len(source.item_map.mean)
    codes = writer.input("codes", TensorProto.INT64, ["batch", "features"])
    weights = writer.input("weights", TensorProto.FLOAT, ["batch", "features"])
    of_code = writer.weight("item_map", source.item_map.weights.numpy().astype(np.float16))
    rows = writer.node("Gather", of_code, codes)  # (B, F, D)
    row = writer.node("Unsqueeze", weights, writer.constant([1]))  # (B, 1, F)
    added = writer.node("MatMul", row, rows)
    summed = writer.node("Add", added, writer.constant(source.item_map.mean))
    # Divides by the length over the root of D.
    length = np.full(width, source.length * scale / width**0.5, np.float32)
    unit = writer.node("RMSNormalization", summed, writer.constant(length), epsilon=EPSILON)
    writer.node("Squeeze", unit, writer.constant([1]), to="row")
    writer.output("row", TensorProto.FLOAT, ["batch", width])


def check_items(engine: Engine, source: ItemSource, scale: float) -> str:
    """Compare item.onnx with the map, and return a line on the compared points.

    Every code is a feature of an item; the last item has no known value.

    Raises:
        ParityError: They differ.
    """
    draw, count = np.random.default_rng(0), len(source.item_map.weights)
    items = count // FEATURES + 2
    codes = np.zeros((items, FEATURES), dtype=np.int64)
    codes.flat[:count] = draw.permutation(count)
    weights = draw.normal(size=codes.shape).astype(np.float32)
    weights[-1] = 0
    ends = np.arange(1, items + 1) * FEATURES
    directions = source.item_map.directions(Ragged(codes.ravel(), weights.ravel(), ends))
    expected = (directions * source.length * scale).numpy()
    try:
        inputs = {"codes": codes, "weights": weights}
        rows = engine.programs.session(ITEM).run(["row"], inputs)[0]
    except ORT_ERRORS as error:
        raise ParityError(f"{ITEM} can't be run: {error}") from error
    difference = float(np.abs(rows - expected).max()) / (source.length * scale)
    if not difference <= ROW_TOLERANCE:
        raise ParityError(f"{ITEM}: rows differ by {difference:.2e} of their length")
    return f"{ITEM}: {items} items of {FEATURES} features"
