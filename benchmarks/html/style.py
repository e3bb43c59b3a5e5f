"""How the plots look, and how a matplotlib figure becomes an SVG for a light and a dark page.

An SVG has its colors for a light page; rules in :func:`dark_rules` replace them on a dark one. Texts stay texts, so they can be
searched, selected and read aloud. Names come from files of strangers: nothing in them is parsed as math, and ElementTree escapes
them.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A user unit of the SVG is a pixel at this width.
WIDTH = 800
# Each color on a light page, and on a dark one. None is pure black: matplotlib leaves black out of its SVG.
DARK = {
    "#1f2328": "#e6edf3",  # ink
    "#59636e": "#9aa4af",  # muted
    "#d8dee4": "#30363d",  # grid
    "#0067b8": "#58b0f5",  # blue
    "#c2500a": "#ff9c5a",  # orange
    "#00795c": "#3ecf9f",  # green
    "#a3337f": "#f08cc8",  # purple
    "#7a6a00": "#dcc63c",  # olive
    "#fdfdfe": "#0d1117",  # paper, inside of hollow markers
}
INK, MUTED, GRID, BLUE, ORANGE, GREEN, PURPLE, OLIVE, PAPER = DARK
# Engines have their color in every plot. The hues differ in lightness too, so that color-blind readers tell them apart.
_ENGINES = {"ort": BLUE, "openvino": ORANGE, "trt": GREEN, "torch": MUTED}
# The line of each precision; plans that mix precisions have that of "planned".
DASHES: dict[str, Any] = {
    "fp32": "-",
    "bf16": (0, (5, 2)),
    "fp16": (0, (5, 2)),
    "int8": (0, (1.5, 1.5)),
    "planned": (0, (6, 2, 1.5, 2)),
}
# The stages of a ladder, from the graph outwards, and white or dark text on them.
STAGES = (("#0067b8", "#fdfdfe"), ("#5aa5dc", "#1f2328"), ("#a9d0ee", "#1f2328"), ("#d7e3ec", "#1f2328"))
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


def engine_color(engine: str) -> str:
    """The color of an engine, with or without its device. Other engines share purple."""
    return _ENGINES.get(re.split(r"[@:\-]", engine)[0], PURPLE)


def dark_rules() -> str:
    """CSS that gives an SVG its dark colors where the reader prefers a dark page. The bars of a ladder keep theirs."""
    fixed = {color for pair in STAGES for color in pair} - {INK, BLUE}
    rules = [
        f'svg.plot g:not(.bar)>*[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in DARK.items()
        if light not in fixed
        for kind in ("fill", "stroke")
    ]
    rules.append(f'svg.plot [style*="fill: {PAPER}"][style*="stroke"]{{fill:{DARK[PAPER]}!important}}')
    return "@media (prefers-color-scheme: dark){" + "".join(rules) + "}"


@contextmanager
def drawing(height: float) -> Iterator[Figure]:
    """Yield an empty figure of :data:`WIDTH` by ``height`` pixels, in the style of the report."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "simmim-bench",
        "font.family": "DejaVu Sans",
        "font.size": 12.5,
        "text.color": INK,
        "axes.edgecolor": GRID,
        "axes.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "axes.titlesize": 12.5,
        "axes.titlecolor": MUTED,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": GRID,
        "ytick.color": GRID,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.minor.visible": False,
        "ytick.minor.visible": False,
        "lines.linewidth": 2,
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Readers have their own fonts; matplotlib's is only for measuring.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        # Its renderer measures texts.
        FigureCanvasAgg(figure)
        yield figure


def as_svg(figure: Figure, *, key: str, title: str, description: str, notes: Mapping[str, str] | None = None) -> str:
    """``figure`` as an SVG element.

    ``key`` becomes part of each id, so that several plots fit on one page. ``title`` and ``description`` are read aloud in place
    of the picture. ``notes``: for the gid of an artist, the text that appears when the pointer rests on it.
    """
    stream = io.StringIO()
    # Without a date, the same figures give the same file.
    figure.savefig(
        stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    root = ElementTree.fromstring(stream.getvalue())
    for part in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}defs"):
        for child in root.findall(part):
            if part.endswith("metadata") or child.find(f"{{{_SVG}}}style") is not None:
                root.remove(child)
    for element in root.iter():
        if (identity := element.get("id")) is not None:
            if identity.startswith("bar"):
                element.set("class", "bar")
            if notes and identity in notes:
                ElementTree.SubElement(element, f"{{{_SVG}}}title").text = notes[identity]
            element.set("id", f"{key}-{identity}")
        for name in (f"{{{_XLINK}}}href", "clip-path", "style"):
            if (value := element.get(name)) is not None:
                value = (
                    re.sub(r"^#", f"#{key}-", value)
                    if name.endswith("href")
                    else value.replace("url(#", f"url(#{key}-")
                )
                element.set(name, value.replace("'DejaVu Sans'", _FONT.replace('"', "'")))
    root.attrib.clear()
    root.attrib |= {"viewBox": f"0 0 {WIDTH} {round(figure.get_figheight() * 72)}", "class": "plot", "role": "img"}
    root.attrib |= {
        "aria-labelledby": f"{key}-title {key}-description",
        "style": "stroke-linejoin:round;stroke-linecap:butt",
    }
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(
            f"{{{_SVG}}}{tag}", {"id": f"{key}-{'title' if tag == 'title' else 'description'}"}
        )
        element.text = text
        root.insert(place, element)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def as_file(svg: str) -> str:
    """An SVG element of :func:`as_svg` as a file of its own, with its width and its dark colors."""
    head, _, rest = svg.partition(">")
    size = re.search(r'viewBox="0 0 (\d+) (\d+)"', head)
    assert size is not None
    return f'{head} width="{size[1]}" height="{size[2]}"><style>{dark_rules()}</style>{rest}\n'


def spread_out(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Places as near as possible to the ``wanted`` ones, at least ``gap`` apart, between ``low`` and ``high``, in the same order.

    If they do not fit, they are evenly spaced, closer than ``gap``.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    if len(order) > 1:
        gap = min(gap, (high - low) / (len(order) - 1))
    # Blocks of places that touch: each block lies where the mean of its members wants it.
    blocks: list[list[float]] = []
    for rank, index in enumerate(order):
        blocks.append([min(max(wanted[index], low + rank * gap), high - (len(order) - 1 - rank) * gap) - rank * gap])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    places = [0.0] * len(wanted)
    settled = [_mean(block) for block in blocks for _ in block]
    for rank, (index, place) in enumerate(zip(order, settled, strict=True)):
        places[index] = place + rank * gap
    return places


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
