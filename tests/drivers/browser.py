"""The Chromium of the system, driven by playwright: what a page looks like and does."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """Yield the browser; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"there is no {NAMES[0]} on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page in the browser, with what it said and asked for.

    Args:
        browser: The browser.
        file: The page's file.
        options: Of the browser's context: ``viewport``, ``color_scheme``, ``java_script_enabled``.
    """

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(**options)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def width(self) -> int:
        """Return the pixels that the page is wide, of which a window may show a part."""
        return int(self.page.evaluate("document.documentElement.scrollWidth"))

    def column(self, number: int, table: str = "table") -> list[str]:
        """Return the texts of a column of a table, top to bottom, as far as they are visible."""
        cells = self.page.locator(f"{table} > tbody > tr:not(.more):visible")
        return [row.locator("td").nth(number).inner_text().strip() for row in cells.all()]
