"""What a person sees when a link leads nowhere: expired, switched off, unknown, or unreachable for the moment.

Small documents that stand alone: no script, no framework, nothing fetched from anywhere, light or dark as the phone is set. Each
is at most 4 KiB of UTF-8 and is built once per application's name.
"""

from __future__ import annotations

import html
from functools import lru_cache
from string import Template

LONGEST_NAME = 80  # characters of an application's name that are shown

_DOCUMENT = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ground: #f4f5f7; --card: #fff; --ink: #1b1f24; --quiet: #57606a; --line: #d8dee4 }
@media (prefers-color-scheme: dark) {
  :root { --ground: #0f1216; --card: #191e24; --ink: #eceff3; --quiet: #a3adb8; --line: #2c343d }
}
* { box-sizing: border-box }
body { margin: 0; min-height: 100vh; min-height: 100svh; display: grid; place-items: center; padding: 1.25rem;
  background: var(--ground); color: var(--ink); font: 1.0625rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main { width: 100%; max-width: 26rem; padding: 2rem 1.5rem; text-align: center; overflow-wrap: anywhere;
  background: var(--card); border: 1px solid var(--line); border-radius: 1rem }
svg { display: block; margin: 0 auto 1.25rem; color: var(--quiet) }
h1 { margin: 0 0 .75rem; font-size: 1.375rem; line-height: 1.25; text-wrap: balance }
p { margin: 0 0 .75rem; color: var(--quiet) }
p:last-child { margin: 0 }
a { display: inline-block; padding: .625rem 1.25rem; border-radius: .625rem; background: var(--ink); color: var(--card);
  font-weight: 600; text-decoration: none }
</style>
</head>
<body>
<main>
<svg width="48" height="48" viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.5" stroke-linecap="round"
 stroke-linejoin="round" aria-hidden="true">$drawing</svg>
<h1>$title</h1>
$text
</main>
</body>
</html>
""")

_CLOCK = '<circle cx="12" cy="12" r="9"/><path d="M12 7v5l3 2"/>'
_BARRED = '<circle cx="12" cy="12" r="9"/><path d="M6 18 18 6"/>'
_BROKEN_LINK = (
    '<path d="M9.5 14.5 7 17a3.5 3.5 0 0 1-5-5l3-3a3.5 3.5 0 0 1 4-.7M14.5 9.5 17 7a3.5 3.5 0 0 1 5 5l-3 3a3.5 3.5 0 0 1-4 .7'
    'M9 3v2M3 7l1.5 1M15 21v-2M21 17l-1.5-1"/>'
)
_AGAIN = '<path d="M20 12a8 8 0 1 1-2.3-5.7L20 8.5M20 4v4.5h-4.5"/>'


@lru_cache(maxsize=256)
def expired_page(application_name: str) -> bytes:
    """410: the link's time is over. The name may be empty."""
    name = _shown(application_name)
    links = f"Links in messages from {name}" if name else "Links like this one"
    return _page(
        "This link has expired",
        _CLOCK,
        f"<p>{links} work for a limited time.</p>",
        f"<p>If you still need it, ask {name or 'the sender'} for a new one.</p>",
    )


@lru_cache(maxsize=256)
def killed_page(application_name: str) -> bytes:
    """410: the link was switched off, by its sender or by whoever runs the service. The name may be empty."""
    name = _shown(application_name)
    return _page(
        "This link was switched off",
        _BARRED,
        "<p>It no longer leads anywhere, and there is nothing for you to do.</p>",
        f"<p>If you expected something here, please ask {name or 'the sender'}.</p>",
    )


@lru_cache(maxsize=1)
def unknown_page() -> bytes:
    """404: there is no such link here."""
    return _page(
        "There is no such link",
        _BROKEN_LINK,
        "<p>If you typed it, compare it with the message letter by letter: small and capital letters are different.</p>",
        "<p>If you tapped it, part of it may have been lost. The message has the whole link.</p>",
    )


@lru_cache(maxsize=1)
def unavailable_page() -> bytes:
    """503: the link may be good, but it cannot be looked up now."""
    return _page(
        "Please try again in a moment",
        _AGAIN,
        "<p>The page behind this link cannot be reached just now. The link is not lost.</p>",
        '<p><a href="">Try again</a></p>',
    )


def _shown(application_name: str) -> str:
    name = " ".join(application_name.split())
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 1].rstrip()}…"
    return f"<b><bdi>{html.escape(name)}</bdi></b>" if name else ""


def _page(title: str, drawing: str, *paragraphs: str) -> bytes:
    return _DOCUMENT.substitute(title=title, drawing=drawing, text="\n".join(paragraphs)).encode()
