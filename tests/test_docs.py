"""Tests that the documents agree with the code: links lead to existing pages, commands and options exist, and tables contain what
the code contains.

tests/acceptance/test_document_commands.py runs the command blocks.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from shortener import __version__, settings_sources
from shortener.accounts.settings import ApplicationSettings
from shortener.cli import COMMANDS, cli
from shortener.clicks.verdicts.contextual_rules import RULES as CONTEXTUAL_RULES
from shortener.clicks.verdicts.request_rules import RULES
from shortener.delivery.outcomes import OUTCOME_TABLE
from shortener.delivery.placeholders import OWN_PLACEHOLDERS, TELECOM_PLACEHOLDERS
from shortener.errors import ErrorCode
from shortener.settings import Settings
from tests.document_blocks import (
    DOCUMENTS,
    ROOT,
    block_kinds,
    environment_files,
    parse_environment_file,
    shell_blocks,
    shortener_commands,
)

#: Which test file runs the code blocks of a document, by kind of block. The default folder of the test files is
#: tests/acceptance/. If a document has no entry for `sh` here, test_document_commands.py runs its blocks of this kind.
RUN_BY = {
    "README.md": {"sh": "test_document_commands.py", "js": "test_readme_examples.py", "php": "test_readme_examples.py"}
    | {"python": "test_readme_examples.py"},
    "generate-clients.md": {"python": "test_generated_clients.py", "ts": "test_generated_clients.py"},
    "python-client.md": {"python": "test_client.py"},
    "verify-signatures.md": dict.fromkeys(("go", "js", "php", "python", "ruby"), "tests/delivery/test_signature_verification.py"),
    "delivery-reports.md": {"json": "tests/messages/test_report_words.py"},
    "cli.md": {"indented": "tests/test_docs.py"},
    "production-two-nodes.md": {"indented": "tests/test_docs.py"},
}
#: The code blocks that no test runs, with the reason for each of them.
NOT_RUN = {
    "CONTRIBUTING.md": {"layers": "a list, which test_layout.py compares", "indented": "runs this test suite"},
    "peers.md": {"indented": "measures other products, which must be installed first"},
    "life-of-a-message.md": {"indented": "a picture"},
    "performance.md": {"indented": "`make bench` measures for minutes"},
    "recording-hits.md": {"mermaid": "a picture"},
    "backup-and-restore.md": {
        "indented": "PostgreSQL's tools with names of the reader; test_postgresql_backup.py runs them with its own"
    },
    "failover.md": {"indented": "two machines; test_failover.py runs the programs with its own folders"},
    "generate-clients.md": {"text": "installs generators; test_generated_clients.py runs them with pinned versions"},
    "monitoring.md": {"indented": "an example of log lines"},
    "python-client.md": {"indented": "names the folder of a clone; test_installation.py installs a wheel of the client"},
    "portal.md": {"text": "runs until Ctrl+C; test_demo_traffic.py tests the command"},
    "production-kubernetes.md": {"indented": "needs a cluster; test_config.py validates the manifests"},
    "production-one-machine.md": {"indented": "changes users, packages and units of the machine; test_config.py checks the files"},
    "scaling.md": {"indented": "a picture"},
    "upgrade.md": {"indented": "stops and starts a unit of systemd; tests/storage/test_upgrades.py upgrades"},
    "versions.md": {"indented": "runs this test suite"},
} | {
    f"{name}.md": {"text": "settings of another product"}
    for name in ("affise", "binom", "everflow", "keitaro", "redtrack", "tune", "voluum")
}

DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))


def for_each_document(documents: Iterable[Path]) -> Callable[[Callable[[Path], None]], Callable[[], None]]:
    """Make a test of a check of one document. The test checks all documents, and its error contains the errors of each document.

    A test for each document would be 600 tests, which need more time than their checks."""

    def decorate(check: Callable[[Path], None]) -> Callable[[], None]:
        def test() -> None:
            errors = []
            for document in documents:
                try:
                    check(document)
                except Exception as error:
                    error.add_note(f"in {document.relative_to(ROOT)}")
                    errors.append(error)
            if errors:
                raise ExceptionGroup(f"{len(errors)} of the documents have errors", errors)

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


def anchors(document: Path) -> set[str]:
    """Return the anchors of the headings of a document, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@for_each_document(DOCUMENTS)
def test_links_between_documents_and_their_headings_resolve(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", document.read_text()):
        linked = document.parent / target if target else document
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


def test_every_document_is_reachable_by_links_from_the_index_of_the_documents() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for document in DOCUMENTS:
        name = str(document.relative_to(ROOT / "docs")) if document.is_relative_to(ROOT / "docs") else ""
        if name and name != "index.md" and not name.startswith("decisions/"):
            assert f"({name})" in index, name


@for_each_document([path for path in DOCUMENTS if path not in DECISIONS])
def test_the_first_paragraph_of_each_document_names_its_readers(document: Path) -> None:
    first = document.read_text().split("\n\n")[1]
    assert re.search(r"\b[Ff]or (?!example)", first), first


def test_each_code_block_of_a_document_is_run_by_a_test_or_has_a_reason_why_not() -> None:
    for document in DOCUMENTS:
        name = "decisions" if document.parent.name == "decisions" else document.name
        run, not_run = RUN_BY.get(name, {}), NOT_RUN.get(name, {})
        assert run.keys() | not_run.keys() | ({"sh"} if "sh" in block_kinds(document) else set()) == block_kinds(document), document
        assert not run.keys() & not_run.keys(), document
        for name in run.values():
            file = ROOT / name if "/" in name else ROOT / "tests" / "acceptance" / name
            assert file.is_file(), file


@for_each_document(DOCUMENTS)
def test_paths_that_a_document_mentions_exist(document: Path) -> None:
    for name in re.findall(r"`((?:shortener|tests|benchmarks|docs|config)/[\w./-]+)`", document.read_text()):
        assert (ROOT / name).exists(), name


@for_each_document(DOCUMENTS)
def test_every_decision_record_exists_that_a_document_cites(document: Path) -> None:
    for number in re.findall(r"decisions?/(\d{4})", document.read_text()):
        assert list((ROOT / "docs" / "decisions").glob(f"{number}-*.md")), number


@for_each_document(DOCUMENTS)
def test_commands_and_options_that_a_document_mentions_exist(document: Path) -> None:
    spans = re.findall(r"`((?:\.venv/bin/)?shortener [a-z][^`]*)`", document.read_text())
    for words in shortener_commands("\n".join([*shell_blocks(document), *spans])):
        command: click.Command | None = cli
        context = click.Context(cli)
        path: list[str] = []
        while isinstance(command, click.Group) and len(path) < len(words):
            path.append(words[len(path)])
            command = command.get_command(context, path[-1])
        assert command is not None, f"shortener {' '.join(path)}"
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for word in words[len(path) :]:
            if word.startswith("--"):
                assert word.partition("=")[0] in options, f"shortener {' '.join(words)}: {word}"


def command_paths(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command and subcommand of `shortener`."""
    context = click.Context(group)
    for name in group.list_commands(context):
        yield (*path, name)
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from command_paths(command, (*path, name))


@pytest.mark.parametrize("path", list(command_paths(cli)), ids=" ".join)
def test_every_command_prints_its_help(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, [*path, "--help"])
    assert (result.exit_code, result.output.startswith("Usage: ")) == (0, True)


def test_every_make_target_that_a_document_mentions_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        text = document.read_text()
        for name in re.findall(r"`make ([a-z-]+)|^    make ([a-z-]+)", text, re.MULTILINE):
            assert (name[0] or name[1]) in targets, f"{document.name}: make {name}"


def test_benchmarks_that_documents_mention_exist() -> None:
    for document in DOCUMENTS:
        for name in re.findall(r"python -m benchmarks\.(\w+)", document.read_text()):
            assert (ROOT / "benchmarks" / f"{name}.py").is_file(), f"{document.name}: {name}"


@for_each_document(DOCUMENTS)
def test_a_document_that_promises_that_no_data_are_lost_states_the_conditions(document: Path) -> None:
    text = document.read_text()
    if re.search(r"\b(nothing|no acknowledged click|never)\b[^.|]*\b(lost|lose|loses)\b|\bloses no\b", text, re.IGNORECASE):
        assert "HIT_DEADLINE" in text


@for_each_document(DOCUMENTS)
def test_settings_that_a_document_mentions_exist(document: Path) -> None:
    for name in re.findall(r"\bSHORTENER_([A-Z][A-Z_]+[A-Z])\b", document.read_text()):
        assert name.removesuffix("_FILE").lower() in {*Settings.model_fields, "config", "name"}, name


def registered_metrics() -> set[str]:
    """Return the names of all metrics, without the suffix `_total`. tests/test_observability.py checks this list against the
    code."""
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    return {name.removesuffix("_total") for name in re.findall(r"^\| `(shortener_[a-z_]+)` \|", text, re.MULTILINE)}


@for_each_document([path for path in DOCUMENTS if path.name != "CHANGELOG.md"])
def test_metrics_that_a_document_mentions_exist(document: Path) -> None:
    for name in re.findall(r"\b(shortener_[a-z_]+[a-z])\b", document.read_text()):
        assert name.removesuffix("_total") in registered_metrics(), name


def logged_events() -> set[str]:
    source = "\n".join(path.read_text() for path in (ROOT / "shortener").rglob("*.py"))
    return set(re.findall(r'\.(?:debug|info|warning|error|exception)\(\s*"([a-z_]+)"', source))


def test_log_events_that_documents_mention_exist() -> None:
    for document in DOCUMENTS:
        for name in re.findall(r"log event `([a-z_]+)`", document.read_text()):
            assert name in logged_events(), f"{document.name}: {name}"


@for_each_document(DECISIONS)
def test_a_decision_record_has_a_number_a_date_and_a_status(record: Path) -> None:
    title, facts = record.read_text().split("\n\n")[:2]
    assert title.startswith(f"# {int(record.name[:4])}. "), title
    assert re.match(r"Date: \d{4}-\d\d-\d\d\. Status: (accepted|superseded)", facts), facts
    assert "**Decision.**" in record.read_text()
    assert f"[{title.partition('. ')[2]}]({record.name})" in (record.parent / "README.md").read_text()


def test_the_changelog_describes_this_version() -> None:
    versions = re.findall(r"^## (\S+)(?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0][0] == "Unreleased"
    assert versions[1][0] == __version__
    assert all(date for _, date in versions[1:])


def test_the_layers_in_contributing_md_equal_the_layers_that_the_command_make_lint_checks() -> None:
    block = re.search(r"^```layers\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    assert block
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    assert block[1].splitlines() == layers


def repository_files() -> list[Path]:
    """Return the files that git tracks. If git is missing, return all files of the known folders."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
        if found := [path for name in listed.split("\0") if (path := ROOT / name).is_file()]:
            return found
    folders = [ROOT / name for name in (".ci", "benchmarks", "config", "docs", "shortener", "tests")]
    return [path for path in [*ROOT.iterdir(), *(inner for folder in folders for inner in folder.rglob("*"))] if path.is_file()]


def test_no_file_contains_a_registry_address_or_a_path_of_this_machine() -> None:
    # A path of this machine that is as short as /app or / cannot be searched for, because it also occurs in ordinary texts.
    places = [place for place, min_parts in ((Path.home(), 2), (ROOT, 3)) if len(place.parts) >= min_parts]
    words = [rf"(?<![\w.]){re.escape(str(place))}/" for place in places]
    suspicious = re.compile("|".join([*words, r"\bpypi\.", r"\bfiles\.python", r"\bnpmjs\."]).encode())
    for path in repository_files():
        content = path.read_bytes()
        if b"\0" not in content:  # A file without NUL bytes is a text file.
            assert not suspicious.search(content), path


def outcome_table() -> str:
    """Return the table of outcomes in docs/reference/delivery.md as the code generates it."""
    rows = ["| response | what follows | why |", "|---|---|---|"]
    return "\n".join([*rows, *(f"| {row.when} | {row.kind.name.lower()} | {row.why} |" for row in OUTCOME_TABLE)])


def placeholder_list() -> str:
    lines = [" ".join(f"`{{{name}}}`" for name in names) for names in (TELECOM_PLACEHOLDERS, OWN_PLACEHOLDERS)]
    return f"- 23 Telecom's: {lines[0]}\n- this service's: {lines[1]}"


def test_the_list_of_errors_equals_the_errors_of_the_code() -> None:
    """The list must contain each error code of the API and each kind of error of the command line, with what the user must do."""
    text = (ROOT / "docs" / "reference" / "errors.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\d+) \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
    assert [row[:3] for row in rows] == [(code.name, str(code.http_status), code.meaning) for code in ErrorCode]
    assert all(len(remedy) > 10 for *_, remedy in rows)
    source = (ROOT / "shortener" / "cli" / "common.py").read_text()
    caught = {"SettingsError", "ApiError", "StoreUnavailable", *re.findall(r"^            ([A-Z]\w+),$", source, re.MULTILINE)}
    assert set(re.findall(r"^\| `([A-Z][a-z]\w+)` \|", text, re.MULTILINE)) == caught


def test_the_examples_of_environment_files_have_valid_settings_and_no_comment_behind_a_value() -> None:
    """Systemd reads these files, and would take a comment after a value as a part of the value."""
    found = [(document, text) for document in DOCUMENTS for text in environment_files(document)]
    assert {document.name for document, _ in found} >= {"production-one-machine.md", "production-two-nodes.md"}
    for document, text in found:
        values = parse_environment_file(text)
        assert not [value for value in values.values() if "#" in value], document
        # A value that ends with "..." is incomplete, because the reader must replace it.
        settings_sources.load({name: value for name, value in values.items() if not value.endswith("...")})


def test_an_environment_file_is_parsed_as_by_systemd() -> None:
    text = "# comment\n; comment\nA=1  # not a comment\n B = two words \nC='x # y'\nD=a\\\nb\nno assignment\nE=\n"
    expected = {"A": "1  # not a comment", "B": "two words", "C": "x # y", "D": "ab", "E": ""}
    assert parse_environment_file(text) == expected


def test_the_table_of_commands_equals_the_commands_of_the_code() -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text()
    assert re.findall(r"^\| `([a-z-]+)` \| ([^|]+) \|$", text, re.MULTILINE) == [
        (name, line) for name, (_, line) in COMMANDS.items()
    ]


def test_the_shell_completion_offers_the_commands_that_the_documents_mention() -> None:
    environment = os.environ | {
        "_SHORTENER_COMPLETE": "bash_complete",
        "COMP_WORDS": "shortener applications cr",
        "COMP_CWORD": "2",
    }
    script = "import sys; sys.argv = ['shortener']; from shortener.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "plain,create\n"
    lines = re.findall(r"_SHORTENER_COMPLETE=(\w+)", (ROOT / "docs" / "reference" / "cli.md").read_text())
    assert lines == ["bash_source", "zsh_source", "fish_source"]
    for shell in lines:
        environment["_SHORTENER_COMPLETE"] = shell
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
        assert f"_SHORTENER_COMPLETE={shell.partition('_')[0]}_complete" in done.stdout


def test_the_verdict_rules_and_their_settings_are_documented() -> None:
    text = (ROOT / "docs" / "reference" / "verdicts.md").read_text()
    for verdict, name in RULES:
        assert f"| `{name}` | {verdict.api_name} |" in text, name
    documented = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", text, re.MULTILINE)
    assert [rule for _, rule in documented] == list(CONTEXTUAL_RULES)
    assert all(setting in ApplicationSettings.model_fields for setting, _ in documented)


def test_the_tables_of_delivery_md_equal_the_code() -> None:
    text = (ROOT / "docs" / "reference" / "delivery.md").read_text()
    assert outcome_table() in text, outcome_table()
    assert placeholder_list() in text, placeholder_list()
