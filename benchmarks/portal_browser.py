"""Measure how long pages of the portal take in a slow browser: `python -m benchmarks.portal_browser [PATH ...]`.

Chromium runs with a processor that is four times slower, a round trip of 150 ms and 1.6 Mbit/s, like a cheap phone on a mobile
network. Each visit starts with an empty browser cache. The table shows the median of several visits of each page:

- FCP: the time until the first text is visible. LCP: the time until the largest element is visible.
- CLS: the sum of the layout shifts. TBT: the sum of the time above 50 ms of all tasks that block the page for longer than 50 ms.
- kB: the bytes that the page and its files transfer. Nodes: the number of HTML elements.

The pages are those of a demo installation with three weeks of traffic. The first run creates this installation, which takes a
minute.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from shortener.cli.demo_traffic import fill_installation
from tests.acceptance.portal.browser import Chromium, accept_invitation, browser_path, chromium
from tests.acceptance.portal.shots import start

DATA = Path("/tmp/shortener-portal-shots")
PATHS = ("/portal/1/", "/portal/1/messages", "/portal/1/clicks?metric=clicks", "/portal/1/campaigns", "/portal/1/live")
CPU_SLOWDOWN = 4
ROUND_TRIP_MS = 150
BYTES_PER_SECOND = 1_600_000 // 8

# JavaScript that collects the values of a page. With the option `buffered`, it also gets the entries from before its start.
_OBSERVE = """
window.measured = {lcp: 0, cls: 0, tbt: 0};
const watch = (type, each) => new PerformanceObserver(list => list.getEntries().forEach(each)).observe({type, buffered: true});
watch('largest-contentful-paint', e => measured.lcp = e.startTime);
watch('layout-shift', e => { if (!e.hadRecentInput) measured.cls += e.value });
watch('longtask', e => measured.tbt += Math.max(0, e.duration - 50));
"""
_READ = """({...measured, fcp: performance.getEntriesByName('first-contentful-paint')[0].startTime,
  kb: [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
    .reduce((sum, e) => sum + e.transferSize, 0) / 1000,
  nodes: document.querySelectorAll('*').length})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", default=PATHS)
    parser.add_argument("--visits", type=int, default=5)
    parser.add_argument("--width", type=int, default=390)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the demo installation")
    options = parser.parse_args()
    if browser_path() is None:
        sys.exit("Chromium is not installed: apt-get install chromium-headless-shell")
    if not (options.data / "shortener.db").exists():
        asyncio.run(fill_installation(options.data))
    server = start(options.data)
    try:
        with chromium() as browser:
            state = accept_invitation(browser, server, "benchmark")
            print(f"load average {os.getloadavg()[0]:.1f}")
            print(f"{'page':<40}{'FCP ms':>9}{'LCP ms':>9}{'CLS':>8}{'TBT ms':>9}{'kB':>8}{'nodes':>8}")
            for path in options.paths:
                visits = [_visit(browser, server.base + path, state, options.width) for _ in range(options.visits)]
                one = {name: statistics.median(visit[name] for visit in visits) for name in visits[0]}
                print(
                    f"{path:<40}{one['fcp']:>9.0f}{one['lcp']:>9.0f}{one['cls']:>8.3f}{one['tbt']:>9.0f}{one['kb']:>8.1f}"
                    f"{one['nodes']:>8.0f}"
                )
    finally:
        server.kill()


def _visit(browser: Chromium, url: str, state: Any, width: int) -> dict[str, float]:
    """Open a page with an empty cache in the slow browser, and return its values by name."""
    with browser.page(state=state, width=width) as visit:
        session = visit.page.context.new_cdp_session(visit.page)
        session.send("Emulation.setCPUThrottlingRate", {"rate": CPU_SLOWDOWN})
        session.send("Network.enable")
        session.send(
            "Network.emulateNetworkConditions",
            {
                "offline": False,
                "latency": ROUND_TRIP_MS,
                "downloadThroughput": BYTES_PER_SECOND,
                "uploadThroughput": BYTES_PER_SECOND,
            },
        )
        visit.page.add_init_script(_OBSERVE)
        visit.open(url)
        visit.page.wait_for_timeout(1000)  # the values also include the tasks of the first second after the page was loaded
        values: dict[str, float] = visit.page.evaluate(_READ)
        return values


if __name__ == "__main__":
    main()
