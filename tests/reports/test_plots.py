"""Plots: curves that can be told apart, in the colours of the page."""

import itertools
import math
import re
import threading
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from peft_lightning.reports import svg
from peft_lightning.reports.chart import short_number
from peft_lightning.reports.page import resource
from peft_lightning.reports.plots import (
    Point,
    Series,
    heat_map,
    line_plot,
    scatter_plot,
)

NAMESPACE = "{http://www.w3.org/2000/svg}"
SRGB_TO_XYZ = np.array(  # IEC 61966-2-1, white point D65
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)
SIGHT = {  # Machado, Oliveira and Fernandes 2009, severity 1, in linear RGB
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
TOLD_APART = 14  # CIE 1976 distance; 2.3 is just noticeable side by side (Mahy et al. 1994)


def linear(color):
    parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    scaled = SRGB_TO_XYZ @ rgb.clip(0, 1) / (SRGB_TO_XYZ @ np.ones(3))
    x, y, z = np.where(scaled > (6 / 29) ** 3, np.cbrt(scaled), scaled * 841 / 108 + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one, other):
    """The contrast of WCAG 2.2: 3 is its least for graphics."""
    low, high = sorted(float(SRGB_TO_XYZ[1] @ linear(c)) for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def root(text):
    return ElementTree.fromstring(text)


def titles(text):
    return [found.text for found in root(text).iter(f"{NAMESPACE}title")]


def curve(name, **options):
    return Series(name, [1, 2, 3], [3.0, 1.0, 2.0], **options)


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("colors", [svg.LIGHT, svg.DARK], ids=["light", "dark"])
def test_the_colours_are_told_apart_by_every_kind_of_sight(colors, sight):
    seen = [lab(SIGHT[sight] @ linear(color)) for color in colors]
    assert len(seen) == 8
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
    assert nearest > TOLD_APART


def test_the_page_has_these_colours_and_they_stand_out_from_it():
    light, dark = resource("page.css").split("@media (prefers-color-scheme: dark)")
    for style, colors in ((light, svg.LIGHT), (dark, svg.DARK)):
        found = [re.search(rf"--c{i}: (#\w+)", style)[1] for i in range(1, 9)]
        assert found == list(colors)
        page = re.search(r"--page: (#\w+)", style)[1]
        page = page if len(page) == 7 else "#" + "".join(2 * c for c in page[1:])
        assert min(contrast(color, page) for color in colors) >= 3


def test_no_two_of_fifty_curves_look_the_same():
    looks = {(svg.color_of(i), str(svg.dash_of(i)), svg.marker_of(i)) for i in range(50)}
    assert len(looks) == 50
    assert all(svg.dash_of(i) != svg.dash_of(i + 1) for i in range(50))
    assert all(svg.marker_of(i) != svg.marker_of(i + 1) for i in range(50))


def test_the_same_curves_give_the_same_text_and_no_two_plots_share_an_id():
    one = line_plot([curve("a"), curve("b")], "x", "y")
    assert one == line_plot([curve("a"), curve("b")], "x", "y")
    other = line_plot([curve("a"), curve("c")], "x", "y")
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', one)) == ids[0]


def test_text_is_text_in_the_colour_and_font_of_the_page():
    text = line_plot([curve("a"), curve("b")], "tokens", "loss")
    found = [t.text for t in root(text).iter(f"{NAMESPACE}text")]
    assert {"tokens", "loss", "a", "b"} <= set(found)
    assert svg.INK not in text
    assert "currentColor" in text
    assert "DejaVu" not in text
    assert "<style" not in text  # it would hold for the whole page
    used = set(re.findall(r"#[0-9a-f]{6}\b", re.sub(r"var\([^)]*\)", "", text)))
    assert not used


@pytest.mark.parametrize("name", ["</title><script>", "a & b", "$x$ $$", "名前"])
def test_a_name_is_shown_as_it_is(name):
    text = line_plot([curve(name), curve("b")], name, name)
    assert titles(text) == [name, "b"]
    assert [t.text for t in root(text).iter(f"{NAMESPACE}text")].count(name) == 3


def test_curves_have_markers_where_there_is_more_than_one_and_are_thin_where_there_are_many():
    def drawn(count):
        text = line_plot([Series(f"{i}", range(40), range(40)) for i in range(count)], "x", "y")
        curves = re.findall(
            r'<g class="series">.*?</g>\n</g>|<g class="series">.*?</g>', text, re.S
        )
        assert len(curves) == count
        widths = {float(re.search(r"stroke-width: ([\d.]+)", curve)[1]) for curve in curves}
        return [curve.count("<use") for curve in curves], widths

    assert drawn(1) == ([0], {1.8})
    marks, widths = drawn(3)
    assert min(marks) >= 4
    assert widths == {1.8}
    assert drawn(20)[1] == {1.1}


def test_curves_of_a_group_have_one_entry_in_the_legend():
    series = [curve(f"run {i}", group=f"r={i % 5}") for i in range(50)]
    text = line_plot(series, "x", "y")
    labels = [t.text for t in root(text).iter(f"{NAMESPACE}text")]
    assert [label for label in labels if label.startswith("r=")] == [f"r={i}" for i in range(5)]
    assert titles(text) == [f"run {i}" for i in range(50)]


def test_values_that_are_not_finite_leave_a_gap_and_no_values_say_so():
    nan = math.nan
    text = line_plot([Series("a", [1, 2, nan, 4, 5], [1, nan, 2, math.inf, 3])], "x", "y")
    root(text)
    assert "nan" not in text.lower()
    assert "inf" not in text.lower()
    for series in ([], [Series("a", [], [])], [Series("a", [1], [nan])]):
        assert "no values" in line_plot(series, "x", "y", log_x=True, log_y=True)


def test_a_logarithmic_scale_leaves_out_what_has_no_logarithm():
    text = line_plot([Series("a", [0, 10, 1000], [1, 2, 3])], "x", "y", log_x=True)
    found = {t.text for t in root(text).iter(f"{NAMESPACE}text")}
    assert {"10", "100", "1000"} <= found
    assert "0" not in found


def test_a_long_curve_keeps_its_extremes():
    y = np.ones(50_000)
    y[12_345], y[23_456] = 9, -9
    text = line_plot([Series("a", range(50_000), y)], "x", "y")
    assert len(text) < 60_000
    spiked = line_plot([Series("a", [0, 12_345, 23_456, 49_999], [1, 9, -9, 1])], "x", "y")

    def heights(plot):
        path = re.search(r"<title>a</title>.*? d=\"([^\"]*)\"", plot, re.DOTALL)[1]
        found = [float(y) for y in re.findall(r"[ML] \S+ (\S+?)(?=L|$)", path)]
        return min(found), max(found)

    assert heights(text) == heights(spiked)


def test_a_point_says_its_values_and_errors():
    points = [Point("a", 1000, 0.5, y_err=0.25), Point("b", 10, 2, x_err=(1, 2)), Point("c", 0, 1)]
    said = titles(scatter_plot(points, "size", "loss", log_x=True))
    assert said == ["a: loss 0.5 ± 0.25, size 1,000", "b: loss 2, size 10 (9 to 12)"]


def test_a_heat_map_is_a_picture_inside_the_svg():
    found = root(heat_map([[1, 2], [3, math.nan]], "step", "token", "norm", (0, 100)))
    (image, _) = found.iter(f"{NAMESPACE}image")  # the map and its scale
    assert image.get("href").startswith("data:image/png;base64,")


def test_plots_from_several_threads_are_those_of_one():
    expected = [line_plot([curve(f"{i}")], "x", "y") for i in range(4)]
    found = [None] * 4

    def draw(i):
        found[i] = line_plot([curve(f"{i}")], "x", "y")

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_matplotlibs_settings_are_neither_used_nor_changed():
    import matplotlib as mpl

    expected = line_plot([curve("a")], "x", "y")
    with mpl.rc_context({"axes.grid": False, "font.size": 30, "svg.fonttype": "path"}):
        mpl.rcParams["backend"] = "pdf"
        before = dict(mpl.rcParams)
        assert line_plot([curve("a")], "x", "y") == expected
        assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(0, "0"), (0.25, "0.25"), (2e-4, "2e-4"), (1.5e-5, "1.5e-5"), (1500, "1500")],
        *[(15_000, "15k"), (1_200_000, "1.2M"), (3e9, "3G"), (-20_000, "-20k")],
    ],
)
def test_an_axis_has_short_numbers(value, text):
    assert short_number(value) == text
