"""Inputs of the encoders beside the items: times and kinds of events, and what is asked for."""

from typing import NamedTuple

from onnx import TensorProto

from ranklet_export.layers import ServedModel
from ranklet_export.writer import Axes, GraphWriter

INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT


class Context(NamedTuple):
    """Inputs beside the items; None of a model that does not use them."""

    since: str | None = None  # bucket of the gap before each event, (B, T)
    until: str | None = None  # bucket of the gap from the last event to now, (B,)
    kind: str | None = None  # of each event, (B, T)
    objective: str | None = None  # weight of each kind that is asked for, (B, kinds + 1)

    @classmethod
    def declare(cls, writer: GraphWriter, served: ServedModel, of_events: Axes) -> "Context":
        """Add the inputs that a model uses, where events have these axes."""
        context = cls()
        if served.config.time_gaps:
            writer.input("since", INT64, of_events)
            writer.input("until", INT64, ["batch"])
            context = context._replace(since="since", until="until")
        if served.objectives is not None:
            writer.input("kind", INT64, of_events)
            writer.input("objective", FLOAT, ["batch", len(served.objectives)])
            context = context._replace(kind="kind", objective="objective")
        return context
