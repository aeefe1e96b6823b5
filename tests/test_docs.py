"""The documents hold: their links lead somewhere, their commands exist, and what they name is there."""

from __future__ import annotations

import contextlib
import re
import subprocess
from pathlib import Path

import pytest

from shortener.accounts.settings import ApplicationSettings
from shortener.cli import COMMANDS
from shortener.clicks.verdicts.contextual_rules import RULES as CIRCUMSTANCES
from shortener.clicks.verdicts.request_rules import RULES
from shortener.delivery.outcomes import OUTCOME_TABLE
from shortener.delivery.placeholders import OWN_PLACEHOLDERS, TELECOM_PLACEHOLDERS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_of_the_code_that_are_named_exist(document: Path) -> None:
    for named in re.findall(r"`((?:shortener|tests|benchmarks|docs|config)/[\w./-]+)`", document.read_text()):
        assert (ROOT / named).exists(), named


def test_commands_that_are_named_exist() -> None:
    for document in DOCUMENTS:
        for name in re.findall(r"`(?:\.venv/bin/)?shortener ([a-z]+)", document.read_text()):
            assert name in COMMANDS, f"{document.name}: shortener {name}"


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        for name in re.findall(r"`make ([a-z-]+)", document.read_text()):
            assert name in targets, f"{document.name}: make {name}"


def files() -> list[Path]:
    """What git keeps; in a tree without git, what lies where that would."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
        if found := [path for name in listed.split("\0") if (path := ROOT / name).is_file()]:
            return found
    folders = [ROOT / name for name in (".ci", "benchmarks", "config", "docs", "shortener", "tests")]
    return [path for path in [*ROOT.iterdir(), *(inner for folder in folders for inner in folder.rglob("*"))] if path.is_file()]


def test_nothing_names_a_registry_or_a_path_of_this_machine() -> None:
    """The machine's are asked for here: a list of them would name them itself."""
    # A checkout in /app, or a home in /, has the name that any text may use.
    places = [place for place, least in ((Path.home(), 2), (ROOT, 3)) if len(place.parts) >= least]
    words = [rf"(?<![\w.]){re.escape(str(place))}/" for place in places]
    suspicious = re.compile("|".join([*words, r"\bpypi\.", r"\bfiles\.python", r"\bnpmjs\."]).encode())
    for path in files():
        content = path.read_bytes()
        if b"\0" not in content:  # text
            assert not suspicious.search(content), path


def outcomes() -> str:
    """The table of docs/reference/delivery.md, from the code that decides."""
    rows = ["| answer | what follows | why |", "|---|---|---|"]
    return "\n".join([*rows, *(f"| {row.when} | {row.kind.name.lower()} | {row.why} |" for row in OUTCOME_TABLE)])


def placeholders() -> str:
    told = [" ".join(f"`{{{name}}}`" for name in names) for names in (TELECOM_PLACEHOLDERS, OWN_PLACEHOLDERS)]
    return f"- 23 Telecom's: {told[0]}\n- ours: {told[1]}"


def test_every_rule_and_the_setting_that_switches_it_on_is_told() -> None:
    text = (ROOT / "docs" / "reference" / "verdicts.md").read_text()
    for verdict, name in RULES:
        assert f"| `{name}` | {verdict.api_name} |" in text, name
    told = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", text, re.MULTILINE)
    assert [rule for _, rule in told] == list(CIRCUMSTANCES)
    assert all(setting in ApplicationSettings.model_fields for setting, _ in told)


def test_the_tables_of_delivery_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "reference" / "delivery.md").read_text()
    assert outcomes() in text, outcomes()
    assert placeholders() in text, placeholders()
