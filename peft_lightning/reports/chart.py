"""Axes with labels and a legend around what a plot draws, by matplotlib.

Its objects are used without pyplot. Its settings are global: they are set, under a lock, for the
milliseconds of a drawing.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from peft_lightning.data.tokens.marked_tokens import printable
from peft_lightning.reports.svg import INK, SETTINGS, color_of, dash_of, marker_of, svg_text

LEGEND_LINE = 19  # pixels, as are the others
TOP, BOTTOM = 10, 45
DIGIT = 7.8  # the widest a digit is at the size of the text
_LOCK = threading.Lock()  # matplotlib's settings are global


def chart(
    draw: Callable[[Any], None],
    looks: dict[str, int],
    names: dict[str, str],
    labels: tuple[str, str, str],
    logarithmic: tuple[bool, bool],
    size: tuple[int, int],
    lines: bool,
    right: int = 20,
) -> str:
    """Return what ``draw`` puts on axes as SVG, with its legend below.

    Args:
        draw: Draws on the axes it is given.
        looks: The entries of the legend, each with its number.
        names: Of artists by their ``gid``: what is shown when the mouse is over one.
        labels: Of x, of y and of the whole.
        logarithmic: Whether x is on a logarithmic scale, and whether y is.
        size: Width and height without the legend, in pixels.
        lines: Whether the legend shows lines, not markers alone.
        right: Room beside the axes, in pixels.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    lines_below = math.ceil(len(looks) / _legend_columns(list(looks), size[0]))
    columns = math.ceil(len(looks) / max(1, lines_below))
    lines_below *= len(looks) > 1
    width, height = size[0], size[1] + LEGEND_LINE * lines_below
    settings: dict[Any, Any] = {k: v for k, v in mpl.rcParamsDefault.items() if k != "backend"}
    with _LOCK, mpl.rc_context(settings | SETTINGS):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")
        axes = figure.add_axes((0, 0, 1, 1), facecolor="none")
        draw(axes)
        _scale(axes, *logarithmic)
        if not axes.has_data():
            axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color=INK)
        _arrange(axes, labels[:2], (width, height), LEGEND_LINE * lines_below, right)
        if lines_below:
            _legend(figure, looks, columns, lines)
        scales = _scales(axes, labels[0], (width, height)) if lines else None
        return svg_text(figure, names, labels[2], scales)


def _scales(axes: Any, label: str, size: tuple[int, int]) -> dict[str, str]:
    """Return where the axes are, in pixels, and what their ends stand for."""
    left, bottom, width, height = axes.get_position().bounds
    box = [left * size[0], (1 - bottom - height) * size[1], width * size[0], height * size[1]]
    ends = [[*axes.get_xlim(), axes.get_xscale()], [*axes.get_ylim(), axes.get_yscale()]]
    found = {"box": [round(value, 1) for value in box], "x": ends[0], "y": ends[1], "label": label}
    return {name: json.dumps(value) for name, value in found.items()}


def _arrange(
    axes: Any, labels: Sequence[str], size: tuple[int, int], below: int, right: int
) -> None:
    """Place axes and labels; matplotlib's own layouts draw everything twice to do so."""
    width, height = size
    low, high = sorted(axes.get_ylim())
    shown = [short_number(tick) for tick in axes.get_yticks() if low <= tick <= high]
    left = 34 + DIGIT * max(map(len, shown), default=1)
    bottom = BOTTOM + below
    box = (left, bottom, width - left - right, height - bottom - TOP)
    axes.set_position([box[0] / width, box[1] / height, box[2] / width, box[3] / height])
    pixels = axes.figure.dpi_scale_trans  # in inches
    axes.set_xlabel(printable(labels[0]), va="bottom")
    axes.set_ylabel(printable(labels[1]), va="top")
    axes.xaxis.set_label_coords((left + box[2] / 2) / 72, (below + 4) / 72, transform=pixels)
    axes.yaxis.set_label_coords(4 / 72, (bottom + box[3] / 2) / 72, transform=pixels)


def _scale(axes: Any, log_x: bool, log_y: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    for axis, is_log in ((axes.xaxis, log_x), (axes.yaxis, log_y)):
        if is_log and axes.has_data():
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            low, high = axis.get_view_interval()
            wide = high / max(low, 1e-300) >= 30
            axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 3, 5)))
            axis.set_minor_formatter(NullFormatter())
        else:
            axis.set_major_locator(MaxNLocator(6 if axis is axes.xaxis else 5))
        axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def short_number(value: float) -> str:
    """Return a number as an axis shows it: 0.25, 2e-4, 15k, 1.2M."""
    size = abs(value)
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= 10 * factor or (size >= factor and factor > 1e3):
            return f"{value / factor:.4g}{letter}"
    if 0 < size < 0.001:
        digits, exponent = f"{value:.3e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.5g}"


def legend_entries(names: Sequence[str]) -> dict[str, int]:
    """Return the entries of the legend, numbered in their order."""
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


def _legend_columns(names: list[str], width: int) -> int:
    """Return how many columns of the longest name fit."""
    longest = max(map(len, names), default=1)
    return max(1, min(len(names), int(width // (48 + 7.2 * longest)), 4))


def _legend(figure: Any, looks: dict[str, int], columns: int, lines: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=color_of(look),
            linestyle=dash_of(look) if lines else "none",
            linewidth=1.8,
            marker=marker_of(look),
            markersize=5,
            markeredgewidth=0,
        )
        for look in looks.values()
    ]
    figure.legend(
        handles, [*map(printable, looks)], loc="lower left", ncols=columns, borderaxespad=0.1
    )
