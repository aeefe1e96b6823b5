"""This program saves screenshots of portal pages: `python -m tests.acceptance.portal.shots FOLDER PATH...`, for example with the
paths `/portal/1/ /portal/me`.

Each page is saved at widths of 390 and 1280 pixels in both themes (`--widths 320,768` selects other widths). The pages belong to
a demo installation in a folder of /tmp, which the first run creates. `--fresh` creates it again.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
from pathlib import Path

from shortener.cli.demo_traffic import fill_installation
from tests.acceptance.portal.browser import Chromium, accept_invitation, browser_path, chromium
from tests.acceptance.process import Server
from tests.servers import free_port

DATA = Path("/tmp/shortener-portal-shots")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--widths", default="390,1280")
    parser.add_argument("--themes", default="light,dark")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    if options.fresh:
        shutil.rmtree(options.data, ignore_errors=True)
    if not (options.data / "shortener.db").exists():
        asyncio.run(fill_installation(options.data))
    server = start(options.data)
    try:
        with chromium() as browser:
            state = accept_invitation(browser, server, "shots")
            options.folder.mkdir(parents=True, exist_ok=True)
            for path in options.paths:
                for width in map(int, options.widths.split(",")):
                    for theme in options.themes.split(","):
                        shoot(browser, server.base + path, state, width, theme, options.folder)
    finally:
        server.kill()


def start(folder: Path) -> Server:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHORTENER_")}
    environment |= {"SHORTENER_DATA_DIR": str(folder), "SHORTENER_ALLOW_PRIVATE_TARGETS": "true"}
    environment |= {"SHORTENER_GATEWAY_VALIDITY_HOURS": "720"}  # with this setting, a held message of the demo does not expire
    server = Server(folder, free_port(), environment)
    server.start()
    return server


def shoot(browser: Chromium, url: str, state: object, width: int, theme: str, folder: Path) -> None:
    with browser.page(state=state, width=width, theme=theme) as visit:
        visit.open(url)
        name = url.split("/portal")[1].strip("/").replace("/", "-").replace("?", "-").replace("&", "-")[:80] or "start"
        target = folder / f"{name}-{width}-{theme}.png"
        visit.page.screenshot(path=str(target), full_page=True)
        print(target, visit.problems or "")  # noqa: T201 - the output of this command


if __name__ == "__main__":
    if browser_path() is None:
        sys.exit("Chromium is not installed: apt-get install chromium-headless-shell")
    main()
