"""Tests of the command `shortener clicks reclassify`, on a database with hits from the previous day."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, insert, select

from shortener.model import State, Topic
from shortener.storage import schema
from tests.cli.shell import InProcessShell, create_installation
from tests.rows import Rows, messages_now

PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Mobile/15E148 Safari/604.1"
)


@pytest.fixture
def shell(tmp_path: Path, sqlite_template: Path) -> InProcessShell:
    create_installation(tmp_path / "data", sqlite_template)
    return InProcessShell(tmp_path / "data")


@pytest.fixture
def yesterday(shell: InProcessShell) -> str:
    """Store a message with two hits that have the verdict `human`: the first click, by a program, and a later hit by a person.
    Return the id of the application."""
    number = shell.json("applications", "create", "Brand")["application_id"]
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    engine = create_engine(f"sqlite:///{shell.folder}/shortener.db")
    with engine.begin() as connection:
        cohort = {"id": 1, "application_id": number, "campaign": "", "source": "api", "country": "US"}
        connection.execute(insert(schema.cohorts).values(cohort))
        rows = Rows(connection)
        message = rows.message(at, application_id=number)
        link = rows.link(message, application_id=number)
        rows.first_click(message, link, at, user_agent="curl/8.9.1")
        rows.hit(link, at + timedelta(minutes=1), user_agent=PHONE)
    engine.dispose()
    return str(number)


def test_the_command_clicks_reclassify_changes_the_verdicts_of_hits_in_a_period(shell: InProcessShell, yesterday: str) -> None:
    since = (datetime.now(UTC) - timedelta(days=2)).date().isoformat()
    result = shell.json("clicks", "reclassify", "--since", since)
    assert (result["hits"], result["kept"], result["retracted"]) == (2, 1, 0)
    assert "retract_clicks is off" in shell("clicks", "reclassify", "--since", since).stdout
    shell("applications", "update", yesterday, "--set", "retract_clicks=true")
    dry = shell.json("clicks", "reclassify", "--since", since, "--dry-run")
    assert (dry["dry_run"], dry["to_suspected"], dry["retracted_messages"]) == (True, 1, 1)
    result = shell.json("clicks", "reclassify", "--since", since, "--application", yesterday)
    assert (result["dry_run"], result["retracted_messages"], result["first_clicks"]) == (False, 1, 1)
    assert shell.json("clicks", "reclassify", "--since", since)["to_suspected"] == 0

    engine = create_engine(f"sqlite:///{shell.folder}/shortener.db")
    with engine.connect() as connection:
        topics = connection.execute(select(schema.events.c.topics).order_by(schema.events.c.id)).scalars().all()
        assert topics == [Topic.CLICK_RETRACTED, Topic.STATE | Topic.CLICK]
        assert connection.execute(select(messages_now.c.state)).scalar_one() == State.CLICKTHRU
    engine.dispose()


def test_the_command_clicks_reclassify_rejects_an_invalid_time_as_a_usage_error(shell: InProcessShell) -> None:
    assert "is not a date or time" in shell("clicks", "reclassify", "--since", "yesterday", code=2).stderr
    assert "Missing option" in shell("clicks", "reclassify", code=2).stderr


def test_the_old_name_of_the_command_clicks_reclassify_still_works_and_is_hidden_from_the_help(
    shell: InProcessShell, yesterday: str
) -> None:
    since = (datetime.now(UTC) - timedelta(days=2)).date().isoformat()
    assert shell.json("clicks", "rejudge", "--since", since, "--dry-run")["hits"] == 2
    assert "rejudge" not in shell("clicks", "--help").stdout
