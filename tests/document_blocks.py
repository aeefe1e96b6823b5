"""This module extracts the command blocks of the documents, and changes them so that a test can run them."""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/HISTORY.md", "benchmarks/peers.md")
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def shell_blocks(document: Path) -> list[str]:
    """Return the text of each ```sh block of a document, in order."""
    return re.findall(r"^```sh\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


def block_kinds(document: Path) -> set[str]:
    """Return the languages of the fenced code blocks of a document. If it has an indented block, the set also contains
    `indented`."""
    text = document.read_text()
    fenced = re.compile(r"^ *```([\w-]*)\n.*?^ *```$", re.MULTILINE | re.DOTALL)
    kinds = {match[1] for match in fenced.finditer(text)}
    return kinds | ({"indented"} if re.search(r"\n\n {4,}\S", fenced.sub("", text)) else set())


def starts_server(block: str) -> bool:
    return "make run" in block


def starts_receiver(block: str) -> bool:
    return "shortener listen" in block


def runnable(block: str, server_port: int, receiver_port: int, command: str | None = None) -> str:
    """Return a command block that a test can run: with the ports of the test, and with this Python instead of `.venv/bin`.
    `command` is the beginning of the command line that starts `shortener`."""
    python = shlex.quote(sys.executable)
    command = command or f"{python} -m shortener"
    commands = {
        "make run": f"{command} serve",
        ".venv/bin/shortener": command,
        ".venv/bin/python": python,
    }
    text = re.sub("|".join(map(re.escape, commands)), lambda match: commands[match[0]], block)
    text = text.replace("127.0.0.1:8000", f"127.0.0.1:{server_port}")
    return re.sub(r"127\.0\.0\.1:9000|--port 9000", lambda match: match[0].replace("9000", str(receiver_port)), text)


def shortener_commands(text: str) -> list[list[str]]:
    """Return the words of each `shortener ...` command in a block, without shell operators."""
    joined = text.replace("\\\n", " ")
    found = re.findall(r"(?:^|[\s(])(?:\.venv/bin/)?shortener ([^\n|;)]*)", joined, re.MULTILINE)
    return [shlex.split(command, comments=True) for command in found]


_ASSIGNMENT = re.compile(r" *[A-Z_]+ *=")


def environment_files(document: Path) -> list[str]:
    """Return the contents of the environment files in a document (systemd: `EnvironmentFile`).

    There are two kinds: indented blocks that consist of assignments and comments, and texts that a command writes to a file with
    the name `environment`. In the texts, each `$(command)` is replaced by fixed hexadecimal digits, as if the command had printed
    them."""
    text = document.read_text()
    written = re.findall(r"^ *cat > \S*/environment <<EOF\n(.*?)^ *EOF$", text, re.MULTILINE | re.DOTALL)
    found = [textwrap.dedent(re.sub(r"\$\([^)]*\)", "0123456789abcdef" * 3, body)) for body in written]
    for block in re.findall(r"(?<=\n\n)((?: {4,}\S.*\n)+)", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)):
        lines = block.splitlines()
        if any(map(_ASSIGNMENT.match, lines)) and all(_ASSIGNMENT.match(line) or line.lstrip().startswith("#") for line in lines):
            found.append(textwrap.dedent(block))
    return found


def parse_environment_file(text: str) -> dict[str, str]:
    """Return the variables of an `EnvironmentFile`, parsed by the rules of systemd (systemd.exec).

    A line that begins with `#` or `;` is a comment. A backslash at the end of a line continues it. Spaces and quotes around a
    value are removed. A `#` after a value does not begin a comment."""
    values = {}
    for line in text.replace("\\\n", "").splitlines():
        name, sign, value = line.strip().partition("=")
        if sign and not name.startswith(("#", ";")):
            value = value.strip()
            is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            values[name.strip()] = value[1:-1] if is_quoted else value
    return values
