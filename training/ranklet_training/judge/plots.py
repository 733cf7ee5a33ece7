"""Figures in a common style, by matplotlib if it is installed, written atomically."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ranklet.errors import InputError
from ranklet.extras import pip_install
from ranklet.files.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def check_plot(path: str | Path) -> None:
    """Raise InputError if matplotlib is missing or can't write a file of this name."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(f"a plot needs matplotlib ({error}): {pip_install('plots')}") from error
    types = sorted(Figure().canvas.get_supported_filetypes())
    if (end := Path(path).suffix[1:].lower()) not in types:
        raise InputError(f"plot {str(path)!r} must end in one of {', '.join(types)}, got {end!r}")
    if not Path(path).parent.is_dir():
        raise InputError(f"plot {str(path)!r}: the folder {Path(path).parent} does not exist")


def new_figure(path: str | Path) -> "tuple[Figure, Axes]":
    """Return a figure with one pair of axes, for a path that passes ``check_plot``."""
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure atomically."""
    data = BytesIO()
    figure.savefig(data, format=Path(path).suffix[1:].lower())
    atomic_write(Path(path), data.getvalue())
