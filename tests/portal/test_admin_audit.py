"""Tests of the audit log as a page and as CSV."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from sqlalchemy import Connection

from shortener.accounts.audit import Actor, AuditWriter
from shortener.container import Service
from tests.conftest import Clock
from tests.portal.conftest import SignIn, log

PATH = "/portal/admin/audit"


async def test_the_portal_page_of_the_audit_log_has_filters_pages_and_an_export(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    admin = await sign_in("Ada")
    for number in range(55):
        clock.forward(minutes=1)
        await admin.post("/portal/signin", data={"name": "Ada", "password": "wrong"}) if number % 10 == 0 else None

        def add(connection: object, number: int = number) -> None:
            from shortener.accounts.audit import Actor, AuditWriter

            writer = AuditWriter(Actor(1, "Ada"), service.ids)
            writer.add(connection, clock.now, "list_exported", f"=list {number}")  # type: ignore[arg-type]

        await service.database.write(add)
    page = await admin.get(PATH)
    assert page.text.count("<time ") == 50
    assert "What people changed with the portal, the API or the command line" in page.text
    assert '<label>Actor<select name="operator">' in page.text, "an actor can also be something else than an operator"
    assert 'data-label="Actor"' in page.text
    assert 'rel="next"' in page.text
    filtered = await admin.get(PATH, params={"action": "sign_in_failed"})
    assert filtered.text.count("<time ") == 6
    assert "Nothing in this period" in (await admin.get(PATH, params={"period": "yesterday"})).text
    exported = await admin.get(f"{PATH}.csv", params={"action": "list_exported", "tz": "Asia/Tokyo"})
    assert exported.headers["content-disposition"].startswith('attachment; filename="all-audit-')
    rows = list(csv.DictReader(io.StringIO(exported.text)))
    assert len(rows) == 56  # the export itself adds a row to the audit log
    assert rows[1]["object"] == "'=list 54"
    assert rows[1]["time"].endswith("+09:00")
    assert (await log(service))[-1].action == "list_exported"


async def test_the_audit_log_can_be_filtered_by_the_command_line_and_by_api_keys(service: Service, sign_in: SignIn) -> None:
    admin = await sign_in("key 7 of Ada")
    for actor, subject in (
        (Actor(name="command line", os_user="root"), "by root"),
        (Actor(name="command line"), "by nobody"),
        (Actor(name="key 7"), "by a key"),
    ):
        await service.database.write(AuditWriter(actor, service.ids).add, service.clock(), "host_blocked", subject)
    for chosen, expected in (("command line", ["by nobody", "by root"]), ("API keys", ["by a key"])):
        page = await admin.get(PATH, params={"operator": chosen})
        assert [text for text in ("by nobody", "by root", "by a key") if text in page.text] == expected
        assert f"<option selected>{chosen}</option>" in page.text
        assert "Invitation accepted</td>" not in page.text


def test_no_text_says_that_the_audit_log_is_of_the_portal_only() -> None:
    folder = Path(__file__).parents[2]
    files = [*folder.glob("docs/**/*.md"), *folder.glob("shortener/**/*.py"), *folder.glob("shortener/portal/templates/*.html")]
    said = re.compile(r"audit\s+log\s+of\s+the\s+portal|portal's\s+audit\s+log", re.IGNORECASE)
    assert [file.name for file in files if said.search(file.read_text())] == []


async def test_the_audit_log_shows_switches_and_missing_values_as_people_write_them(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    browser = await sign_in()
    clock.forward(minutes=1)

    def add(connection: Connection) -> None:
        before, after = {"is_on": False, "names": None}, {"is_on": True, "names": ["x", "y"]}
        AuditWriter(Actor(1, "Ada"), service.ids).add(connection, clock.now, "settings_changed", before=before, after=after)

    await service.database.write(add)
    page = (await browser.get(PATH)).text
    assert "is_on: false → true" in page
    assert "names: – → x, y" in page
