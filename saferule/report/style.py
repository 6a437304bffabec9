"""One look for everything that is shown: names, order and colours, and the frame of every figure.

Labels and colours of methods and backbones are those of their declarations (`saferule.unlearn.METHODS`, a backbone's
LABEL). The colours are those of Okabe and Ito (2008) and Tol (2021), which people with the common colour vision
deficiencies can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image, PngImagePlugin

from saferule.agents import BACKBONES, get_backbone
from saferule.unlearn import METHODS, Method

ATTACKS = {"clean": "clean", "max_cost": "Max Cost", "max_reward": "Max Reward", "min_reward": "Min Reward"}
ATTACK_COLOURS = {"clean": "#009E73", "max_cost": "#D55E00", "max_reward": "#E69F00", "min_reward": "#CC79A7"}
METRICS = {"cost": "cost per episode", "return": "return per episode"}
OTHER = "#444444"  # what has no colour of its own
LIMIT = {"color": "#555555", "linewidth": 1.0, "linestyle": (0, (4, 3)), "zorder": 1}
TOLD = ("Title", "Description", "Comment")  # what is written into a PNG
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


def in_order(methods: Iterable[str]) -> list[str]:
    """The given methods as they are declared; ones without a declaration come last."""
    known = list(METHODS)
    return sorted(set(methods), key=lambda m: (known.index(m) if m in known else len(known), m))


def look(method: str) -> Method:
    """Label, colour and line style of a method, the same everywhere; one without a declaration has its name."""
    return METHODS.get(method, Method(method, method, OTHER, family="", part=""))


def backbone_label(backbone: str) -> str:
    """How a backbone is called in figures and tables."""
    return get_backbone(backbone).LABEL if backbone in BACKBONES else backbone


NAMES: dict[str, Callable[[str], str]] = {  # how the values of these columns are shown
    "task": str,
    "backbone": backbone_label,
    "attack": lambda attack: ATTACKS.get(attack, attack),
    "method": lambda method: look(method).label,
}


def condition(attack: str, ratio: float) -> str:
    """An attack with its ratio, such as "Max Cost 15 %"."""
    return ATTACKS[attack] if attack == "clean" else f"{ATTACKS[attack]} {100 * ratio:g} %"


def with_zero(axes: Axes, axis: str, *also: float) -> None:
    """Keep zero (and other values) on the axis, with a little air so that dots there are not cut."""
    low, high = sorted(getattr(axes, f"get_{axis}lim")())
    low, high, kept = min(low, 0.0, *also), max(high, 0.0, *also), (0.0, *also)
    air = 0.03 * (high - low)
    getattr(axes, f"set_{axis}lim")(low - (air if low in kept else 0), high + (air if high in kept else 0))


def line(label: str, colour: str = OTHER, style: str = "-", **look: object) -> Line2D:
    """A legend's entry for lines."""
    return Line2D([], [], color=colour, linestyle=style, label=label, **look)


def dot(label: str, colour: str = OTHER, marker: str = "o", *, hollow: bool = False) -> Line2D:
    """A legend's entry for dots."""
    face = "white" if hollow else colour
    return line(label, colour, "none", marker=marker, markersize=5, markerfacecolor=face)


def head(figure: Figure, title: str, handles: Sequence[Line2D]) -> Figure:
    """Title and legend above the panels; the figure's label is the title."""
    figure.set_layout_engine("constrained")
    figure.set_label(title)
    if handles:
        columns = max(1, min(len(handles), int(figure.get_figwidth() / 2.1)))
        figure.set_figheight(figure.get_figheight() + 0.19 * math.ceil(len(handles) / columns))  # not from the panels
        size = {"ncols": columns, "fontsize": 9, "borderpad": 0.0}
        place = {"loc": "outside upper left", "alignment": "left", "title": title, "title_fontsize": 10.5}
        figure.legend(handles=list(handles), **size, **place)
    else:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
    return figure


def png(figure: Figure, provenance: str = "") -> bytes:
    """The figure as a PNG of 256 colours, a third of the size: executed notebooks are committed with their figures.

    The lines of its label go into the file as its title and its description, and what it was made with as its comment.
    """
    drawn, small, about = BytesIO(), BytesIO(), PngImagePlugin.PngInfo()
    title, _, reads = str(figure.get_label()).partition("\n")
    for name, told in zip(TOLD, (title, reads, provenance), strict=True):
        about.add_itxt(name, told)
    with matplotlib.rc_context(STYLE):
        figure.savefig(drawn, format="png", dpi=150)
    with Image.open(drawn) as image:
        # An octree keeps the few colours that methods have; a median cut merges those of small dots.
        palette = {"method": Image.Quantize.FASTOCTREE, "dither": Image.Dither.NONE}
        image.convert("RGB").quantize(256, **palette).save(small, format="png", optimize=True, pnginfo=about)
    return small.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as an SVG, the same bytes for the same figure."""
    drawn = BytesIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "saferule"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()
