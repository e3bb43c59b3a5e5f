"""Draws the plots of the report: accuracy against latency, the ladder, and curves. Each is an SVG element of 800 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from simmim_export.benchmarks.html import style
from simmim_export.benchmarks.html.series import MOST_NINES, Curve, Ladder, Panel, Scatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

# Pixels between two labels, and from a point to its label.
GAP, NEAR = 5.0, 9.0
# The most points with a label of their own; with more, only ours and the frontier have one.
MOST_LABELS = 24


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawn plot: ``name`` is that of its SVG file, ``svg`` the element, ``caption`` what to see in it."""

    name: str
    title: str
    caption: str
    svg: str


def accuracy(scatter: Scatter, *, name: str) -> Plot:
    """Accuracy against latency, with the frontier: the contestants that no other beats in both."""
    from matplotlib.ticker import FixedLocator, NullLocator

    frontier = scatter.frontier()
    title = f"{scatter.target}: accuracy against latency"
    notes = {}
    with style.drawing(430) as figure:
        axes = figure.add_axes((0.1, 0.12, 0.87, 0.79))
        xs = [1000 * x for point in scatter.points for x in (point.low, point.high)]
        floor = None if scatter.floor is None else 1000 * scatter.floor
        near = floor if floor is not None and floor > min(xs) / 4 else min(xs)
        axes.set_xscale("log")
        axes.set_xlim(min(near, min(xs)) / 1.12, max(xs) * 1.45)
        least = min(point.nines for point in scatter.points)
        axes.set_ylim(max(0.0, least - 0.5), MOST_NINES + 0.45)
        axes.yaxis.set_major_locator(FixedLocator([k for k in range(8) if k >= least - 0.5]))
        axes.yaxis.set_major_formatter(lambda value, _: _cosine_tick(round(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        _round_ticks(axes, low=axes.get_xlim()[0], high=axes.get_xlim()[1])
        axes.set_xlabel("milliseconds, logarithmic")
        axes.set_title("mean cosine to the exact embeddings; better is up and left")
        steps = [(1000 * point.seconds, point.nines) for point in frontier]
        axes.step(*zip(*steps, strict=True), where="post", color=style.GRID, linewidth=2.5, zorder=1.5)
        if floor is not None and floor >= axes.get_xlim()[0]:
            axes.axvline(floor, color=style.MUTED, linewidth=1.2, linestyle=(0, (2, 3)), zorder=1)
        for index, point in enumerate(scatter.points):
            color = style.engine_color(point.engine)
            place = (1000 * point.seconds, point.nines)
            axes.plot((1000 * point.low, 1000 * point.high), (point.nines,) * 2, color=color, linewidth=1, alpha=0.45)
            fill, marker = (color, "o") if point.ours else (style.PAPER, "D")
            size = 9 if point.ours else 6.5
            axes.plot(
                *place,
                marker,
                markersize=size,
                color=color,
                markerfacecolor=fill,
                mew=1.6,
                zorder=3,
                gid=f"point{index}",
            )
            notes[f"point{index}"] = f"{point.name}: {1000 * point.seconds:.3g} ms, cosine {point.cosine:.6f}"
        hidden = _label_points(axes, scatter, frontier=steps, floor=floor)
        caption = (
            "Filled circles are this project's plans, hollow diamonds are PyTorch and the peers. The gray line joins those that "
            "no other beats in both. Thin lines reach from the fastest round to the slowest."
        )
        if floor is not None:
            caption += f" The dotted line is the least time that this host needs: {floor:.3g} ms."
        if hidden:
            caption += f" {hidden} points have no label; the table has them."
        best = ", ".join(f"{p.name} with {1000 * p.seconds:.3g} ms at cosine {p.cosine:.5f}" for p in frontier[:8])
        svg = style.as_svg(figure, key=name, title=title, description=f"On the frontier: {best}.", notes=notes)
    return Plot(name=name, title=title, caption=caption, svg=svg)


def ladder(figures: Ladder, *, name: str) -> Plot:
    """Stacked bars: what each stage adds to the one before, for each engine."""
    title = f"{figures.target}: where the time goes"
    bars = sorted(figures.bars, key=lambda bar: sum(bar[1]))
    height = 84 + 34 * len(bars)
    with style.drawing(height) as figure:
        axes = figure.add_axes((0.0, 44 / height, 0.92, 1 - 84 / height))
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        longest = max(sum(seconds) for _, seconds in bars) * 1000
        axes.set_xlim(0, longest * 1.1)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_yticks(range(len(bars)), [label for label, _ in bars])
        axes.tick_params(axis="y", length=0, labelcolor=style.INK)
        axes.set_xlabel("milliseconds")
        figure.canvas.draw()
        # The labels take the width that they need.
        left = max(text.get_window_extent().width for text in axes.get_yticklabels()) + 14
        axes.set_position((left / style.WIDTH, 44 / height, 1 - (left + 24) / style.WIDTH, 1 - 84 / height))
        for row, (_, seconds) in enumerate(bars):
            start = 0.0
            for number, each in enumerate(seconds):
                fill, ink = style.STAGES[number % len(style.STAGES)]
                axes.barh(row, 1000 * each, left=start, height=0.66, color=fill, gid=f"bar-{row}-{number}")
                text = axes.text(
                    start + 500 * each, row, f"{1000 * each:.3g}", color=ink, ha="center", va="center", size=11
                )
                text.set_gid(f"bar-text-{row}-{number}")
                if text.get_window_extent().width + 6 > 1000 * each / longest / 1.1 * (style.WIDTH - left - 24):
                    text.remove()
                start += 1000 * each
            end = start + 8 * longest * 1.1 / (style.WIDTH - left - 24)
            axes.text(end, row, f"{start:.3g} ms", va="center", weight="bold", size=12)
        _legend(axes, figures.stages, height=height)
        fastest, slowest = bars[0], bars[-1]
        description = (
            f"{fastest[0]} takes {1000 * sum(fastest[1]):.3g} ms in all, {slowest[0]} {1000 * sum(slowest[1]):.3g} ms."
        )
        svg = style.as_svg(figure, key=name, title=title, description=description)
    caption = "Medians of one image or text. Each color is what that stage adds to the one on its left."
    return Plot(name=name, title=title, caption=caption, svg=svg)


def curves(panels: Sequence[Panel], *, name: str, title: str, caption: str) -> Plot:
    """Small plots, two in a row, each with a line for each contestant and its name at the end."""
    rows = (len(panels) + 1) // 2
    columns = 1 if len(panels) == 1 else 2
    height = 290 * rows
    with style.drawing(height) as figure:
        for index, panel in enumerate(panels):
            row, column = divmod(index, 2)
            width = style.WIDTH / columns
            box = (column * width + 52, height - 290 * row - 240, width - 60, 200)
            _panel(figure.add_axes((0, 0, 1, 1)), panel, box=box, height=height)
        description = "; ".join(f"{p.title} by {p.across}: {', '.join(c.name for c in p.curves[:6])}" for p in panels)
        svg = style.as_svg(figure, key=name, title=title, description=f"Curves of {description}.")
    return Plot(name=name, title=title, caption=caption, svg=svg)


def _panel(axes: Axes, panel: Panel, *, box: tuple[float, float, float, float], height: float) -> None:
    """Draw ``panel`` into ``box``: left, bottom, width and height in pixels. Its labels get a margin inside at the right."""
    from matplotlib.ticker import NullLocator

    left, bottom, width, tall = box
    ends = [curve for curve in panel.curves if curve.x]
    labels = [
        axes.text(0, 0, _end(curve), size=11.5, color=style.engine_color(curve.engine), va="center") for curve in ends
    ]
    margin = max(label.get_window_extent().width for label in labels) + 16
    axes.set_position((left / style.WIDTH, bottom / height, (width - margin) / style.WIDTH, tall / height))
    xs = [x for curve in ends for x in curve.x]
    ys = [y for curve in ends for y in curve.y]
    if panel.logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(min(ys) / 1.25, max(ys) * 1.25)
        if max(xs) > min(xs):
            axes.set_xlim(min(xs) / 1.06, max(xs) * 1.06)
        ticks = sorted(set(xs))
        axes.set_xticks(ticks[:: max(1, (len(ticks) + 6) // 7)], minor=False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        _round_ticks(axes, low=axes.get_ylim()[0], high=axes.get_ylim()[1], axis="y")
    else:
        axes.set_ylim(0, max(ys) * 1.15)
        axes.set_xlim(0, max(xs) or 1)
    axes.set_title(panel.title, color=style.INK, weight="bold", pad=22)
    axes.text(0, 1.035, panel.up, transform=axes.transAxes, color=style.MUTED, size=11.5)
    axes.set_xlabel(panel.across)
    for curve in ends:
        dashes = style.DASHES.get(curve.precision, style.DASHES["planned"])
        color = style.engine_color(curve.engine)
        mark = "o" if len(curve.x) < 12 else ""
        axes.plot(curve.x, curve.y, color=color, linestyle=dashes, marker=mark, markersize=4.5, clip_on=False)
    # Both ends of an axis in pixels, and where each curve ends.
    axes.figure.canvas.draw()
    tip = [axes.transData.transform((curve.x[-1], curve.y[-1])) for curve in ends]
    frame = axes.get_window_extent()
    places = style.spread_out([y for _, y in tip], gap=16, low=frame.y0, high=frame.y1)
    for label, (x, y), place in zip(labels, tip, places, strict=True):
        label.set_transform(None)
        label.set_position((frame.x1 + 12, place))
        if abs(place - y) > 3 or x < frame.x1 - 14:
            line = axes.plot(
                (x + 4, frame.x1 + 10), (y, place), color=style.GRID, linewidth=1, clip_on=False, zorder=0.5
            )
            line[0].set_transform(None)


def _end(curve: Curve) -> str:
    return f"{curve.name} {curve.note}".rstrip()


def _label_points(axes: Axes, scatter: Scatter, *, frontier: Sequence[tuple[float, float]], floor: float | None) -> int:
    """Write the name beside each point where it covers no other name, point or line; return how many found no place.

    ``frontier``: the corners of its line, in milliseconds and nines.
    """
    figure = axes.figure
    figure.canvas.draw()
    frame = axes.get_window_extent()
    places = [axes.transData.transform((1000 * p.seconds, p.nines)) for p in scatter.points]
    taken = [_around(x, y, 7, 7) for x, y in places]
    corners = [axes.transData.transform(corner) for corner in frontier]
    for (x, y), (next_x, next_y) in pairwise(corners):
        taken += [
            _around((x + next_x) / 2, y, (next_x - x) / 2, 1),
            _around(next_x, (y + next_y) / 2, 1, (next_y - y) / 2),
        ]
    if floor is not None and floor >= axes.get_xlim()[0]:
        foot = (floor, axes.get_ylim()[0])
        words = axes.annotate(
            "limit of this host", foot, (6, 3), textcoords="offset points", color=style.MUTED, size=11, va="bottom"
        )
        taken.append(words.get_window_extent().padded(GAP))
    hidden = 0
    order = sorted(range(len(places)), key=lambda i: (not scatter.points[i].ours, scatter.points[i].seconds))
    crowded = len(places) > MOST_LABELS
    for index in order:
        point, (x, y) = scatter.points[index], places[index]
        if crowded and not point.ours and (1000 * point.seconds, point.nines) not in frontier:
            hidden += 1
            continue
        color = style.engine_color(point.engine)
        label = axes.text(0, 0, point.name, color=color, size=12, weight="bold" if point.ours else "normal")
        label.set_transform(None)
        if not _placed(label, x, y, taken=taken, frame=frame):
            label.remove()
            hidden += 1
            continue
        own = label.get_window_extent()
        near_x, near_y = min(max(x, own.x0), own.x1), min(max(y, own.y0), own.y1)
        if ((near_x - x) ** 2 + (near_y - y) ** 2) ** 0.5 > 2 * NEAR:
            line = axes.plot((x, near_x), (y, near_y), color=color, linewidth=0.8, alpha=0.6, zorder=1.2)
            line[0].set_transform(None)
        taken.append(own.padded(GAP))
    return hidden


def _placed(label: Text, x: float, y: float, *, taken: Sequence[Bbox], frame: Bbox) -> bool:
    """Move ``label`` to the first free place around the point: beside it, above and below, then farther away."""
    size = label.get_window_extent()
    for ring in range(9):
        away = NEAR + 14 * ring
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8)):
            left = x + away * dx - size.width * (0.5 - 0.5 * (dx > 0) + 0.5 * (dx < 0))
            bottom = y + away * dy - size.height * (0.5 - 0.5 * (dy > 0) + 0.5 * (dy < 0))
            box = _around(left + size.width / 2, bottom + size.height / 2, size.width / 2, size.height / 2)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 + 20 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                now = label.get_window_extent()
                at = label.get_position()
                label.set_position((at[0] + box.x0 - now.x0, at[1] + box.y0 - now.y0))
                return True
    return False


def _around(x: float, y: float, half_width: float, half_height: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(x - half_width, y - half_height, x + half_width, y + half_height)


def _legend(axes: Axes, stages: Sequence[str], *, height: float) -> None:
    """The stages in a row above the bars, each beside a square of its color."""
    frame = axes.get_position()
    x = frame.x0 * style.WIDTH
    for number, stage in enumerate(stages):
        fill, _ = style.STAGES[number % len(style.STAGES)]
        square = axes.text(x, height - 22, "■", color=fill, size=14, va="center", transform=None)
        square.set_gid(f"bar-key-{number}")
        words = axes.text(x + 16, height - 22, stage, size=12, va="center", color=style.INK, transform=None)
        x += 16 + words.get_window_extent().width + 22


def _round_ticks(axes: Axes, *, low: float, high: float, axis: str = "x") -> None:
    """Ticks at 1, 2 and 5 times powers of ten on a logarithmic axis, and at the powers alone if those are many."""
    from matplotlib.ticker import FixedLocator, NullLocator

    candidates = [factor * 10.0**power for power in range(-9, 13) for factor in (1, 2, 5)]
    ticks = [value for value in candidates if low <= value <= high]
    ticks = ticks if len(ticks) <= 7 else [value for value in ticks if f"{value:e}".startswith("1")]
    chosen = axes.xaxis if axis == "x" else axes.yaxis
    chosen.set_major_locator(FixedLocator(ticks))
    chosen.set_minor_locator(NullLocator())
    chosen.set_major_formatter(lambda value, _: f"{value:g}" if value < 1e5 else f"{value:.0e}")


def _cosine_tick(nines: int) -> str:
    return "0" if nines == 0 else "0." + "9" * nines
