"""Chromium for tests of the portal. Its pages record every error, every blocked content, and every request to another host.

The tests use the Chromium of the Linux distribution (`apt-get install chromium-headless-shell` or `chromium`), and not a browser
that a Python package downloads. The headless shell has the same engine, but no windows, so it takes less processor time. If
Chromium is not installed, the tests of this folder are skipped with a message.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.acceptance.process import Server
from tests.servers import PATIENCE

PASSWORD = "seven quiet harbour lamps"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser")  # commands, the best first
WIDTHS = (320, 390, 768, 1280)

# This script writes violations of the Content-Security-Policy to the console, from which `Visitor` collects them.
_WATCH = "addEventListener('securitypolicyviolation', e => console.error('CSP: ' + e.violatedDirective + ' ' + e.blockedURI))"


@dataclass
class Visitor:
    """A page in the browser. `problems` collects errors in the console, blocked content and requests to other hosts."""

    page: Any
    problems: list[str] = field(default_factory=list)

    def open(self, url: str) -> None:
        self.page.goto(url, wait_until="load")

    def overflow(self) -> int:
        """Return the number of pixels by which the page is wider than the window."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return width

    def figures(self) -> list[tuple[str, int, str]]:
        """Return the name, the value and the URL of every figure on the page. A figure is a number that links to the rows that it
        counts."""
        script = "[...document.querySelectorAll('a[data-figure]')].map(a => [a.dataset.figure, +a.dataset.value, a.href])"
        return [(name, value, href) for name, value, href in self.page.evaluate(script)]


@dataclass
class Chromium:
    """A running browser."""

    browser: Any

    @contextlib.contextmanager
    def page(self, *, state: Any = None, width: int = 1280, theme: str = "light", scripts: bool = True) -> Iterator[Visitor]:
        """Open a page in a new profile. `state` contains the cookies that `Visitor.page.context.storage_state()` returned."""
        context = self.browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=theme,
            reduced_motion="reduce",  # turn off CSS transitions, because axe would measure wrong contrasts during them
            storage_state=state,
            java_script_enabled=scripts,
            timezone_id="Europe/Berlin",
            locale="en-GB",
        )
        context.set_default_timeout(1000 * PATIENCE)
        page = context.new_page()
        visitor = Visitor(page)
        if scripts:
            page.add_init_script(_WATCH)
        page.on("console", lambda message: _check_console(visitor, message))
        page.on("pageerror", lambda error: visitor.problems.append(str(error)))
        page.on("request", lambda request: _check_host(visitor, request.url))
        try:
            yield visitor
        finally:
            context.close()


def _check_console(visitor: Visitor, message: Any) -> None:
    if message.type in ("error", "warning"):
        visitor.problems.append(message.text)


def _check_host(visitor: Visitor, url: str) -> None:
    if urlsplit(url).hostname not in ("127.0.0.1", None):
        visitor.problems.append(f"request to another host: {url}")


def browser_path() -> str | None:
    """Return the path of the browser, or None if none is installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextlib.contextmanager
def chromium() -> Iterator[Chromium]:
    """Start Chromium without a window. Yield the running browser."""
    from playwright.sync_api import sync_playwright

    path = browser_path()
    assert path is not None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield Chromium(browser)
        finally:
            browser.close()


def accept_invitation(browser: Chromium, server: Server, name: str, role: str = "admin", application: int | None = None) -> Any:
    """Invite an operator on the command line, and accept the invitation in the browser. Return the cookies of the operator."""
    existing = {row["operator"] for row in server.command("operators", "list")}
    options = ["--role", role] + (["--application", str(application)] if application else [])
    command = ["operators", "reset", name] if name in existing else ["operators", "invite", name, *options]
    invitation = server.command(*command)
    url = invitation["url"].replace(invitation["url"].split("/portal")[0], server.base)
    with browser.page() as visit:
        visit.open(url)
        visit.page.fill("[name=password]", PASSWORD)
        visit.page.fill("[name=again]", PASSWORD)
        visit.page.click("button.main")
        visit.page.wait_for_selector("nav")
        return visit.page.context.storage_state()
