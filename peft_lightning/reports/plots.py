"""Plots as SVG for a page: their text and axes have the colour of the page's text, light or dark.

What distinguishes two curves is never colour alone: dashes and markers differ too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from peft_lightning.reports.chart import BOTTOM, TOP, chart, legend_entries, short_number
from peft_lightning.reports.curves import shortened, usable_points
from peft_lightning.reports.svg import color_of, dash_of, marker_of

MANY = 12  # curves, from which on they are thinner
WIDTH, HEIGHT = 520, 300  # in the units of an SVG: pixels, unless the page scales it


@dataclass(frozen=True)
class Series:
    """A curve.

    Args:
        name: Its name, shown under the mouse, and in the legend unless it has a group.
        x: (n,) Where it is known; what is not finite is left out.
        y: (n,) Its values; a gap where one is not finite.
        group: Curves of a group look alike and have one entry in the legend, the group's name.
        low: (n,) The lower edge of a band around it.
        high: (n,) The upper edge.
        kind: line; faint for what lies behind a line, such as raw values behind smoothed ones; or
            points for a line with a marker at each value.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    group: str | None = None
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    kind: Literal["line", "faint", "points"] = "line"


@dataclass(frozen=True)
class Point:
    """A point with its uncertainty.

    Args:
        name: Its name, shown under the mouse, and in the legend unless it has a group.
        x: Where it is.
        y: Its value.
        x_err: Half the length of its horizontal error bar, or its two sides (below, above).
        y_err: The same, vertically.
        group: Points of a group look alike and have one entry in the legend.
    """

    name: str
    x: float
    y: float
    x_err: float | tuple[float, float] | None = None
    y_err: float | tuple[float, float] | None = None
    group: str | None = None


def line_plot(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> str:
    """Return curves as an inline SVG.

    Args:
        series: The curves. Those without a finite value are named in the legend all the same.
        x_label: What x is, with its unit.
        y_label: What y is, with its unit.
        log_x: Whether x is on a logarithmic scale; what is not above 0 is left out.
        log_y: The same for y.
        width: In pixels, unless the page scales the plot.
        height: The same, without the legend.
    """
    looks = legend_entries([s.group or s.name for s in series])

    def draw(axes: Any) -> None:
        for i, one in enumerate(series):
            look = looks[one.group or one.name]
            bands = [np.asarray(v, float) for v in (one.low, one.high) if v is not None]
            columns = [np.asarray(one.x, float), np.asarray(one.y, float), *bands]
            shown = usable_points(columns, log_x, log_y)
            _draw_series(axes, one, look, shown, len(series), f"series-{i}")

    title = f"{y_label} by {x_label}"
    names = {f"series-{i}": s.name for i, s in enumerate(series)}
    labels = (x_label, y_label, title)
    return chart(draw, looks, names, labels, (log_x, log_y), (width, height), True)


def scatter_plot(
    points: Sequence[Point],
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> str:
    """Return points with error bars as an inline SVG; the arguments are those of ``line_plot``."""
    looks = legend_entries([p.group or p.name for p in points])

    def draw(axes: Any) -> None:
        for i, point in enumerate(points):
            look = looks[point.group or point.name]
            is_shown = all(map(math.isfinite, (point.x, point.y)))
            if is_shown and (point.x > 0 or not log_x) and (point.y > 0 or not log_y):
                _draw_point(axes, point, look, f"series-{i}")

    names = {f"series-{i}": _said(p, x_label, y_label) for i, p in enumerate(points)}
    labels = (x_label, y_label, f"{y_label} against {x_label}")
    return chart(draw, looks, names, labels, (log_x, log_y), (width, height), False)


def heat_map(
    values: Sequence[Sequence[float]],
    x_label: str,
    y_label: str,
    value_label: str,
    x_range: tuple[float, float] = (0, 1),
    width: int = WIDTH,
    height: int = HEIGHT,
) -> str:
    """Return a table of numbers as a map of colours whose order is that of their lightness too.

    Args:
        values: (rows, columns) The numbers; the first row is at the bottom.
        x_label: What the columns are, with their unit.
        y_label: What the rows are.
        value_label: What the numbers are.
        x_range: x at the left and right edge.
        width: In pixels, unless the page scales the map.
        height: The same.
    """
    numbers = np.asarray(values, float)

    def draw(axes: Any) -> None:
        extent = (*x_range, -0.5, len(numbers) - 0.5)
        image = axes.imshow(
            numbers, "cividis", aspect="auto", origin="lower", extent=extent, interpolation="none"
        )
        place = (1 - 86 / width, BOTTOM / height, 12 / width, 1 - (BOTTOM + TOP) / height)
        bar = axes.figure.colorbar(image, cax=axes.figure.add_axes(place))
        bar.ax.yaxis.set_major_formatter(lambda value, _: short_number(value))
        bar.set_label(value_label)
        bar.outline.set_visible(False)
        axes.grid(False)

    labels = (x_label, y_label, f"{value_label} by {x_label} and {y_label}")
    return chart(draw, {}, {}, labels, (False, False), (width, height), False, right=96)


def _draw_series(
    axes: Any,
    series: Series,
    look: int,
    columns: Sequence[np.ndarray],
    of: int,
    gid: str,
) -> None:
    color = color_of(look)
    x, y, *band = shortened(columns)
    if not np.isfinite(y).any():
        return
    if len(band) == 2:
        axes.fill_between(x, band[0], band[1], color=color, alpha=0.18, linewidth=0)
    if series.kind == "faint":
        axes.plot(x, y, color=color, linewidth=0.8, alpha=0.3, gid=gid)
        return
    is_short = len(x) == 1 or series.kind == "points"
    is_marked = is_short or of > 1
    is_one_of_many = of > MANY
    axes.plot(
        x,
        y,
        color=color,
        linewidth=1.1 if is_one_of_many else 1.8,
        linestyle=dash_of(look),
        marker=marker_of(look) if is_marked else None,
        markersize=3.5 if is_one_of_many else 5,
        markeredgewidth=0,
        markevery=1 if is_short else (0.04 + 0.03 * (look % 4), 0.17),
        gid=gid,
    )


def _draw_point(axes: Any, point: Point, look: int, gid: str) -> None:
    color = color_of(look)
    for error, along in ((point.x_err, "x"), (point.y_err, "y")):
        if error is None:
            continue
        below, above = error if isinstance(error, tuple) else (error, error)
        x, y = [point.x, point.x], [point.y, point.y]
        ends = x if along == "x" else y
        ends[0], ends[1] = ends[0] - below, ends[1] + above
        axes.plot(x, y, color=color, linewidth=1.4, alpha=0.8)
    axes.plot([point.x], [point.y], color=color, marker=marker_of(look), markersize=8, gid=gid)


def _said(point: Point, x_label: str, y_label: str) -> str:
    def side(label: str, value: float, error: float | tuple[float, float] | None) -> str:
        if error is None:
            return f"{label} {value:,.4g}"
        if isinstance(error, tuple):
            return f"{label} {value:,.4g} ({value - error[0]:,.4g} to {value + error[1]:,.4g})"
        return f"{label} {value:,.4g} ± {error:.2g}"

    x, y = side(x_label, point.x, point.x_err), side(y_label, point.y, point.y_err)
    return f"{point.name}: {y}, {x}"
