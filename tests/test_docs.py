"""The documents hold: their links lead somewhere, their commands exist, and what they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shortener.accounts import ApplicationSettings
from shortener.cli import COMMANDS
from shortener.click.circumstance import RULES as CIRCUMSTANCES
from shortener.click.verdict import RULES
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


def test_nothing_names_a_registry_or_a_path_of_somebodys_machine() -> None:
    suspicious = re.compile(r"(pypi\.org|pythonhosted|npmjs|/root/|/home/\w+/|/work/)")
    for path in [*DOCUMENTS, *ROOT.glob("*.lock"), *ROOT.glob("*.toml"), ROOT / "Makefile", ROOT / "Dockerfile", ROOT / ".ci/run"]:
        assert not suspicious.search(path.read_text()), path


def outcomes() -> str:
    """The table of docs/delivery.md, from the code that decides."""
    rows = ["| answer | what follows | why |", "|---|---|---|"]
    return "\n".join([*rows, *(f"| {row.when} | {row.kind.name.lower()} | {row.why} |" for row in OUTCOME_TABLE)])


def placeholders() -> str:
    told = [" ".join(f"`{{{name}}}`" for name in names) for names in (TELECOM_PLACEHOLDERS, OWN_PLACEHOLDERS)]
    return f"- 23 Telecom's: {told[0]}\n- ours: {told[1]}"


def test_every_rule_and_the_setting_that_switches_it_on_is_told() -> None:
    text = (ROOT / "docs" / "verdicts.md").read_text()
    for verdict, name in RULES:
        assert f"| `{name}` | {verdict.word} |" in text, name
    told = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", text, re.MULTILINE)
    assert [rule for _, rule in told] == list(CIRCUMSTANCES)
    assert all(setting in ApplicationSettings.model_fields for setting, _ in told)


def test_the_tables_of_delivery_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "delivery.md").read_text()
    assert outcomes() in text, outcomes()
    assert placeholders() in text, placeholders()
