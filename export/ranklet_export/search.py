"""search.onnx: the best items of the clusters that are nearest to a user.

    user -> clusters -> their codes -> scores by codes -> pool -> scores by rows, as in score.onnx

It has the codes of the items once more, cluster by cluster, and reads them from the mapped file.
The runtime says how many clusters are read, ``probes``. Fewer items than the pool may be open in
them: the last of ``pool_scores`` tells.
"""

import numpy as np

from ranklet_export.clusters import Clusters
from ranklet_export.scorer import FLOAT, INT64, SMALLEST_STEP, ZERO, Codes, Scorer


class Search(Scorer):
    """Writer of search.onnx, for one user."""

    def write_search(self, codes: Codes, clusters: Clusters) -> None:
        """Write the graph; ``codes`` are of 8 bits."""
        writer, node, constant, weight = self.writer, self.node, self.constant, self.writer.weight
        writer.input("user", FLOAT, [1, self.width])
        writer.input("bias", FLOAT, ["biases", self.rows])
        for name in ("k", "pool", "probes"):
            writer.input(name, INT64, [1])
        centroids = np.ascontiguousarray(clusters.centroids.T)
        near = node("MatMul", "user", weight("centroids", centroids))
        _, chosen = writer.nodes("TopK", [near, "probes"], 2)
        members = clusters.members
        numbers = codes.codes.reshape(len(codes.codes), -1)[:, : self.width]
        of_items = node("Gather", weight("cluster_codes", numbers[members]), chosen)  # (1, P, S, D)
        every = [
            node("Reshape", value, constant([1, -1]))  # (1, P * S)
            for value in (
                self.products(of_items),
                node("Gather", weight("cluster_scales", codes.scales[members, 0]), chosen),
                node("Gather", weight("members", members), chosen),
            )
        ]
        sums, scales, items = every
        scores = node("Mul", node("Mul", sums, scales), "step")
        # Gather takes three times as long for single numbers.
        added = node("GatherElements", "bias", items, axis=1)
        writer.top(node("Add", scores, added), "pool", "pool_scores", "places")
        found = node("GatherElements", items, "places", axis=1)
        node("Cast", found, dtype=INT64, to="picked")
        self.score_again()
        writer.output("pool_scores", FLOAT, [1, "pool"])
        writer.output("items", INT64, [1, "k"])
        writer.output("scores", FLOAT, [1, "k"])

    def products(self, of_items: str) -> str:
        """Return products of codes with a rounded user, in units of its ``step``, (1, P, S, 1)."""
        node, constant = self.node, self.constant
        size = node("ReduceMax", node("Abs", "user"), constant([1]), keepdims=1)
        largest = node("Max", size, constant(np.array(SMALLEST_STEP)))  # not 0, for a user of zeros
        node("Mul", largest, constant(np.array(1 / 127, dtype=np.float32)), to="step")
        whole = np.array(1, dtype=np.float32), np.array(0, dtype=np.int8)
        rounded = node("QuantizeLinear", node("Div", "user", "step"), *map(constant, whole))
        column = node("Unsqueeze", rounded, constant([2]))  # (1, D, 1)
        center = constant(np.array(ZERO, dtype=np.uint8))
        return node("Cast", node("MatMulInteger", of_items, column, center), dtype=FLOAT)
