"""What training, export and runtime must agree on about the places of events.

* Blocks before the last rotate queries and keys (rotary positions): a graph knows so many places.
* The last block adds a bias to the score of an event for how many others came after it. It is a
  Fourier series: training needs no matrix of biases then
  (``ranklet_training.model.attention.RelativeBias``), and a manifest only a few numbers.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WAVES = 8
# From a wave of 6 events to one of 2,650: longer than most histories, nearly a straight line.
FREQUENCIES: NDArray[np.float64] = 1000.0 ** (-np.arange(WAVES) / WAVES)
SHORTEST = 16  # events that a graph takes even if the model keeps fewer: tracing needs room


def known_positions(max_length: int) -> int:
    """Return the size of the table of rotations: twice the window, so that it rolls for a while."""
    return 2 * max(max_length, SHORTEST)


def relative_bias(
    cosines: Sequence[Sequence[float]], sines: Sequence[Sequence[float]], distances: int
) -> NDArray[np.float32]:
    """Return sum_f a_f cos(w_f n) + b_f sin(w_f n) for the distances n from 0 on, (H, distances).

    Args:
        cosines: a, of each head (H) and wave (``WAVES``).
        sines: b, the same.
        distances: How many.
    """
    angles = FREQUENCIES[:, None] * np.arange(distances)
    bias: NDArray[np.float64] = np.asarray(cosines) @ np.cos(angles)
    bias += np.asarray(sines) @ np.sin(angles)
    return bias.astype(np.float32)
