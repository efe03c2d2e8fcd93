"""matplotlib, set up for pages: figures whose text is text and whose colours are the page's.

A figure is drawn in the light palette. As SVG, every colour of the palette becomes the CSS variable of its name, so the
page decides (light, dark, printed); as PNG it stays what it is. Figures are as wide as a telephone and are laid side by
side where there is room, so that their letters never get too small.

Names of nodes come from strangers: they are plain text here (no ``$...$``), without unprintable characters.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

WIDTH = 4.0
"""Inches; 288 points, which a page shows as 340 to 560 pixels."""

PALETTE = {
    "ink": ("#1c2126", "#e6e9ec"),
    "muted": ("#59636e", "#a3adb8"),
    "grid": ("#d8dde3", "#3a424b"),
    "paper": ("#fefefe", "#171b1f"),
    "ann": ("#6e7781", "#9aa5b1"),
    "plain": ("#b35900", "#f0a04b"),
    "calibrated": ("#0b62b8", "#62b0f5"),
    "bad": ("#b4232f", "#ff7b84"),
}
"""Name of a colour: in light, in dark. Each is at least 4.5:1 against its paper, but for grid lines."""

LIGHT = {name: light for name, (light, _) in PALETTE.items()}

GAPS = "viridis"
"""Colour map of the heat map: even steps of lightness, fit for colour-blind readers and for grey prints."""

_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ftbc-onnx",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
}

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"

Draw = Callable[[Figure], None]


@contextmanager
def _drawing(draw: Draw, height: float, dpi: float = 72) -> Iterator[Figure]:
    """An open figure that was drawn on; letters that the font has not got are the reader's own matter."""
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(WIDTH, height), dpi=dpi, layout="constrained")
        draw(figure)
        yield figure


def to_svg(draw: Draw, height: float, name: str, label: str) -> str:
    """A figure as an SVG element for a page.

    Args:
        draw: draws on an empty figure.
        height: in inches.
        name: put before every id, so that the figures of a page do not meet.
        label: what a screen reader says.
    """
    text = io.StringIO()
    with _drawing(draw, height) as figure:
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    root = ElementTree.fromstring(text.getvalue())
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        for key, value in element.attrib.items():
            element.set(key, _attribute(key, value, name))
        if element.tag == f"{{{_SVG}}}text":  # the page's own letters
            element.set("style", re.sub(r"font:([^;]*?)([\d.]+px)[^;]*", _font, element.get("style", "")))
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", label)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def to_png(draw: Draw, height: float, path: Any) -> None:
    """A figure as a PNG file, on light paper."""
    with _drawing(draw, height, dpi=200) as figure:
        figure.set_facecolor(LIGHT["paper"])
        FigureCanvasAgg(figure).print_png(path)


def _font(found: re.Match[str]) -> str:
    """Weight and size without the family, of CSS's short form."""
    weight = "; font-weight: bold" if found[1].split() and found[1].split()[0] in ("bold", "700") else ""
    return f"font-size: {found[2]}{weight}"


def _attribute(key: str, value: str, name: str) -> str:
    """An attribute of the SVG with the page's colours and ids of its own."""
    if key in ("style", "fill", "stroke"):
        for colour, light in LIGHT.items():
            value = value.replace(light, f"var(--{colour})")
    if key == "id":
        return f"{name}-{value}"
    if key == f"{{{_XLINK}}}href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    return value.replace("url(#", f"url(#{name}-")


def plain(name: str, most: int | None = None) -> str:
    """A name of a node as one printable line; its end, if it is longer than `most`."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return text if most is None or len(text) <= most else f"…{text[1 - most :]}"


def numbered(names: Sequence[str], most: int = 15) -> list[str]:
    """Labels of sites: their number, as in the table, and the end of their name."""
    return [f"{i} {plain(name, most)}" for i, name in enumerate(names, 1)]
