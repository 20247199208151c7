"""Pages in a real browser: sorting, filtering, opening, the keyboard, phones, dark and light."""

import pytest

from browser import Opened, open_browser
from peft_lightning.reports.page import Page, code, details, figure, figures, paragraph
from peft_lightning.reports.plots import Point, Series, line_plot, scatter_plot
from peft_lightning.reports.tables import Cell, table

pytestmark = pytest.mark.browser
PHONE = {"width": 375, "height": 700}
ROWS = [  # in no order
    ["run c", 0.25, Cell("2 KiB", 2048), "lora"],
    ["run a", 10, Cell("1 MiB", 2**20), "full"],
    ["run b", None, Cell("3 B", 3), "lora"],
    ["run d", -1.5, None, "prompt"],
    ["run e", 2e-05, Cell("9 B", 9), "prompt"],
    ["run f", 1234567, Cell("1 B", 1), "lora"],
]
EVIL = "<img src=http://x.invalid/ onerror='window.hacked=1'><script>window.hacked=1</script>"


@pytest.fixture(scope="module")
def browser():
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The page of one table."""
    page = Page("Runs")
    opened = [code(f"configuration of {row[0]}, secret{i}") for i, row in enumerate(ROWS)]
    page.section("Runs", table(["run", "loss", "size", "method"], ROWS, opened=opened))
    file = tmp_path_factory.mktemp("small") / "page.html"
    file.write_text(page.html())
    return file


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The page of a table of 5,000 rows."""
    page = Page("Many rows")
    page.section(
        "Rows", table(["row", "n"], [[f"row {i}", (i * 7919) % 5000] for i in range(5000)])
    )
    file = tmp_path_factory.mktemp("large") / "page.html"
    file.write_text(page.html())
    return file


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The page of 50 runs, in which all texts are long or evil."""
    page = Page("Fifty runs", f"{EVIL} {'x' * 300}")
    curves = [Series(f"run {i} {EVIL}", [1, 2, 3], [i, i + 1, i - 1]) for i in range(50)]
    points = [Point(f"run {i}", i + 1, i, y_err=0.5, group=f"r={i % 5}") for i in range(50)]
    drawn = [line_plot(curves, EVIL, "loss"), scatter_plot(points, "size", "loss", log_x=True)]
    page.section("Plots", figures(*map(figure, drawn), figure(drawn[0], EVIL)))
    page.section("Wide", figure(line_plot(curves, "x", "y", width=1000)))
    rows = [[f"row {i}", EVIL, "word " * 9, *range(9)] for i in range(50)]
    page.section("Table", table(["row", EVIL, "text", *"abcdefghi"], rows))
    page.section("Text", paragraph("y" * 500), code("z" * 500), details(EVIL, code(EVIL)))
    file = tmp_path_factory.mktemp("runs") / "page.html"
    file.write_text(page.html())
    return file


def heads(opened):
    return opened.page.locator("thead th")


def test_a_head_sorts_numbers_as_numbers_and_what_is_missing_last(browser, small):
    opened = Opened(browser, small)
    loss = heads(opened).nth(1)
    loss.locator("button").click()
    assert opened.column(0) == [f"run {x}" for x in "decafb"]
    assert loss.get_attribute("aria-sort") == "ascending"
    loss.locator("button").click()
    assert opened.column(0) == [f"run {x}" for x in "facedb"]
    assert loss.get_attribute("aria-sort") == "descending"
    heads(opened).nth(2).locator("button").click()  # by bytes, not by what is shown
    assert opened.column(2) == ["1 B", "3 B", "9 B", "2 KiB", "1 MiB", "\N{EN DASH}"]
    assert loss.get_attribute("aria-sort") == "none"
    assert not opened.complaints


def test_the_keyboard_sorts_opens_and_filters(browser, small):
    opened = Opened(browser, small)
    keyboard = opened.page.keyboard
    opened.page.locator("input[type=search]").focus()
    keyboard.type("lora secret")
    assert opened.column(0) == ["run c", "run b", "run f"]
    assert opened.page.get_by_role("status").inner_text() == "3 of 6 rows"
    keyboard.press("Tab")  # "Open all"
    keyboard.press("Tab")  # the table, which arrows scroll
    keyboard.press("Tab")
    keyboard.press("Enter")
    assert opened.column(0) == ["run b", "run c", "run f"]
    for _ in range(4):  # past the other heads, to the first row
        keyboard.press("Tab")
    keyboard.press("Space")
    assert opened.page.locator("tr.more:visible").inner_text().startswith("configuration of run b")
    button = opened.page.locator("button.open:visible").first
    assert button.get_attribute("aria-expanded") == "true"
    keyboard.press("Space")
    assert opened.page.locator("tr.more:visible").count() == 0


def test_rows_open_together_and_stay_below_theirs_when_sorted(browser, small):
    opened = Opened(browser, small)
    opened.page.get_by_role("button", name="Open all").click()
    heads(opened).nth(0).locator("button").click()
    lines = opened.page.locator("tbody tr").all_inner_texts()
    assert [line.strip()[:5] for line in lines[::2]] == [f"run {x}" for x in "abcdef"]
    assert all(
        f"configuration of run {x}" in line for x, line in zip("abcdef", lines[1::2], strict=True)
    )
    opened.page.locator("input[type=search]").fill("full")
    assert opened.page.locator("tr.more:visible").count() == 1
    opened.page.get_by_role("button", name="Close all").click()
    assert opened.page.locator("tr.more:visible").count() == 0


def test_without_scripts_everything_is_shown(browser, small):
    opened = Opened(browser, small, java_script_enabled=False)
    assert opened.page.locator("tbody tr:visible").count() == 12
    assert opened.page.locator("button, input").count() == 0


def test_thousands_of_rows_are_sorted_and_filtered(browser, large):
    opened = Opened(browser, large)
    heads(opened).nth(1).locator("button").click()
    script = "[...document.querySelectorAll('tbody td:nth-child(2)')].map(c => c.textContent)"
    assert opened.page.evaluate(script) == [f"{i:,}" for i in range(5000)]
    opened.page.locator("input[type=search]").fill("row 4999")
    assert opened.column(0) == ["row 4999"]
    assert opened.page.get_by_role("status").inner_text() == "1 of 5,000 rows"


def test_nothing_is_asked_for_and_no_text_acts(browser, runs):
    opened = Opened(browser, runs)
    assert opened.requests == [runs.as_uri()]
    assert not opened.complaints
    assert opened.page.evaluate("window.hacked") is None
    assert EVIL in opened.page.locator(".lead").inner_text()


@pytest.mark.parametrize("viewport", [PHONE, {"width": 1280, "height": 900}], ids=["375", "1280"])
def test_no_page_is_wider_than_its_window(browser, runs, viewport):
    opened = Opened(browser, runs, viewport=viewport)
    assert opened.width() <= viewport["width"]
    box = opened.page.locator("h1").bounding_box()
    assert box["x"] >= 0
    svg = opened.page.locator("figure > svg").first.bounding_box()
    assert svg["x"] + svg["width"] <= viewport["width"]


def test_page_and_plots_are_dark_or_light_as_the_reader_has_it(browser, runs):
    def brightness(selector, what):
        script = "([s, w]) => getComputedStyle(document.querySelector(s))[w]"
        text = opened.page.evaluate(script, [selector, what])
        return sum(map(int, text[text.index("(") + 1 : -1].split(",")[:3])) / 3

    for scheme in ("light", "dark"):
        opened = Opened(browser, runs, color_scheme=scheme)
        page = brightness("body", "backgroundColor")
        texts = [brightness("body", "color"), brightness("svg text", "fill")]
        texts += [brightness("svg [style*=currentColor]", "stroke")]
        assert (page > 200) is (scheme == "light")
        assert all((text < 80) is (scheme == "light") for text in texts)
        assert all(abs(text - page) > 120 for text in texts)


def test_on_paper_there_are_no_controls_and_all_rows(browser, small):
    opened = Opened(browser, small)
    opened.page.emulate_media(media="print")
    assert opened.page.locator("input:visible").count() == 0
    assert len(opened.column(0)) == 6


def test_values_are_read_off_the_curves_under_the_mouse(browser, tmp_path):
    curves = [
        Series("first", [1, 10, 100], [1.0, 2.0, 3.0]),
        Series("second <b>", [1, 10, 100], [3.0, 2.5, 1.5]),
    ]
    page = Page("t")
    page.section("s", figure(line_plot(curves, "tokens", "loss", log_x=True)))
    (tmp_path / "page.html").write_text(page.html())
    opened = Opened(browser, tmp_path / "page.html")
    frame = opened.page.locator("svg.plot").bounding_box()
    opened.page.mouse.move(frame["x"] + frame["width"] * 0.55, frame["y"] + frame["height"] / 2)
    lines = opened.page.locator(".tip").inner_text().split()
    assert lines[::1][0] == "tokens"
    found = {"tokens": 10, "first": 2.0, "second": 2.5}
    text = " ".join(lines)
    for name, value in found.items():
        number = float(text.split(f"{name} ")[1].replace("<b> ", "").split()[0])
        assert abs(number - value) <= 0.02 * value, name  # a pixel
    opened.page.mouse.move(5, 5)
    assert opened.page.locator(".tip:visible").count() == 0
    assert not opened.complaints


def test_a_page_that_reloads_itself_keeps_what_is_open_and_its_place(browser, tmp_path):
    page = Page("t", refresh_seconds=1)
    blocks = [details(f"summary {i}", code("text " * 900)) for i in range(4)]
    page.section("s", *blocks, paragraph("x " * 9000))
    file = tmp_path / "page.html"
    file.write_text(page.html())
    opened = Opened(browser, file)
    opened.page.get_by_text("summary 2").click()
    opened.page.evaluate("scrollTo(0, 400)")
    with opened.page.expect_navigation():
        file.write_text(page.html().replace("summary", "written anew"))
    opened.page.wait_for_load_state()
    script = "[...document.querySelectorAll('details')].map(d => d.open)"
    assert opened.page.evaluate(script) == [False, False, True, False]
    assert opened.page.get_by_text("written anew 2").count() == 1
    assert abs(opened.page.evaluate("scrollY") - 400) < 100  # the same text, whatever its lines
    assert not opened.complaints
