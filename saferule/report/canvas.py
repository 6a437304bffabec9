"""The common look of the figures: style, panels, zero on the axes, title and legend, PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

UNITS = {"cost": "cost per episode", "return": "return per episode"}
LIMIT = {"color": "#555555", "linewidth": 1.0, "linestyle": (0, (4, 3)), "zorder": 1}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
DPI = 150


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Everything that the function creates takes its look from STYLE; the caller's settings stay as they are."""

    @wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def png(figure: Figure) -> bytes:
    """The figure as a PNG of 128 colours, a third of the size: executed notebooks are committed with their figures."""
    drawn, small = BytesIO(), BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(drawn, format="png", dpi=DPI)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def panels(rows: int, columns: int, width: float, height: float, **shared: object) -> tuple[Figure, np.ndarray]:
    """A grid of axes, `width` by `height` inches each."""
    figure = Figure(figsize=(width * columns, height * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def with_zero(axes: Axes, axis: str) -> None:
    """Keep zero on the axis, with a little air so that dots at zero are not cut."""
    get, put = getattr(axes, f"get_{axis}lim"), getattr(axes, f"set_{axis}lim")
    low, high = sorted(get())
    low, high = min(low, 0.0), max(high, 0.0)
    air = 0.03 * (high - low)
    put(low - (air if low == 0 else 0), high + (air if high == 0 else 0))


def head(figure: Figure, title: str, handles: Sequence[Line2D]) -> Figure:
    """Title and legend above the panels; the title is also the figure's label, for a text alternative."""
    figure.set_label(title)
    if not handles:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
        return figure
    legend = figure.legend(
        handles=list(handles),
        title=title,
        alignment="left",
        loc="outside upper left",
        ncols=min(len(handles), 4),
        title_fontsize=10.5,
        fontsize=9,
        borderpad=0.0,
    )
    legend.get_title().set_ha("left")
    return figure


def dot(colour: str, label: str, marker: str = "o") -> Line2D:
    """A legend's entry for dots."""
    return Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=5, label=label)


def limit_handle(limit: float) -> Line2D:
    """A legend's entry for the line at the cost limit."""
    return Line2D([], [], label=f"cost limit {limit:g}", **LIMIT)
