"""Tests of the portal's static files, including the files that come from other projects."""

from __future__ import annotations

import gzip
import hashlib
import tomllib

from shortener.portal.static_files import FOLDER, static_files
from tests.portal.conftest import NewBrowser

MAX_STYLE_BYTES = 8 * 1024  # maximum size of portal.css, compressed with gzip
MAX_SCRIPT_BYTES = 8 * 1024  # maximum size of portal.js, compressed with gzip


async def test_a_static_file_of_the_portal_has_a_hash_in_its_name_and_may_be_cached_for_a_year(new_browser: NewBrowser) -> None:
    browser = await new_browser()
    for file in static_files().values():
        response = await browser.get(file.url)
        assert response.content == file.content
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert response.headers["content-encoding"] == "gzip"
    assert (await browser.get("/portal/static/portal.css")).status_code == 404


def test_static_files_of_other_projects_have_the_recorded_hashes_and_licences() -> None:
    vendor = FOLDER / "vendor"
    recorded = {"vendor.toml"}
    for package in tomllib.loads((vendor / "vendor.toml").read_text())["package"]:
        assert package["version"]
        assert package["integrity"].startswith("sha512-")
        assert (vendor / package["license_file"]).is_file()
        for name, file in package["files"].items():
            assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == file["sha256"], name
            recorded.add(name)
    assert {file.name for file in vendor.iterdir()} == recorded


def test_the_style_sheet_and_the_scripts_of_the_portal_are_small() -> None:
    assert len(gzip.compress((FOLDER / "portal.css").read_bytes())) <= MAX_STYLE_BYTES
    assert len(gzip.compress((FOLDER / "portal.js").read_bytes())) <= MAX_SCRIPT_BYTES
