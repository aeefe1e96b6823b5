"""Extract the command blocks of the documents and change them so that a test can run them."""

from __future__ import annotations

import re
import shlex
import sys
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
    """Return the languages of the fenced code blocks of a document, and `indented` if there is an indented block."""
    text = document.read_text()
    fenced = re.compile(r"^ *```([\w-]*)\n.*?^ *```$", re.MULTILINE | re.DOTALL)
    kinds = {match[1] for match in fenced.finditer(text)}
    return kinds | ({"indented"} if re.search(r"\n\n {4,}\S", fenced.sub("", text)) else set())


def starts_server(block: str) -> bool:
    return "make run" in block


def starts_receiver(block: str) -> bool:
    return "shortener listen" in block


def runnable(block: str, server_port: int, receiver_port: int, command: str | None = None) -> str:
    """Return a command block with the ports of the test, and with this Python instead of `.venv/bin`. `command` has the words that
    start `shortener`."""
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
