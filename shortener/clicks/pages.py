"""The HTML pages that a person gets instead of a redirect: the link is expired, switched off, unknown or temporarily unavailable,
the client has requested too many unknown codes, or the person must press a button first.

Each page is one HTML document without scripts and without references to other files. It follows the light or dark mode of the
phone. A page has at most 4 KiB of UTF-8 and is built once for each application name.
"""

from __future__ import annotations

from functools import lru_cache
from string import Template

MAX_NAME_LENGTH = 80  # maximum number of characters of an application's name; longer names are cut

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
_CROSSED_CIRCLE = '<circle cx="12" cy="12" r="9"/><path d="M6 18 18 6"/>'
_BROKEN_LINK = (
    '<path d="M9.5 14.5 7 17a3.5 3.5 0 0 1-5-5l3-3a3.5 3.5 0 0 1 4-.7M14.5 9.5 17 7a3.5 3.5 0 0 1 5 5l-3 3a3.5 3.5 0 0 1-4 .7'
    'M9 3v2M3 7l1.5 1M15 21v-2M21 17l-1.5-1"/>'
)
_RELOAD = '<path d="M20 12a8 8 0 1 1-2.3-5.7L20 8.5M20 4v4.5h-4.5"/>'


_CONFIRMATION = Template("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>Open this link</title>
<style>
:root { color-scheme: light dark }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; text-align: center; overflow-wrap: anywhere;
  font: 1.125rem/1.5 system-ui, sans-serif }
main { padding: 1.5rem }
h1 { font-size: 1.375rem }
button { padding: .75rem 2rem; border: 0; border-radius: .625rem; font: inherit; font-weight: 600;
  background: #0b57d0; color: #fff; cursor: pointer }
button:focus-visible { outline: 3px solid; outline-offset: 3px }
</style>
<main>
<h1>Open this link</h1>
$text
<form method="post"><button>Continue</button></form>
</main>
</html>
""")


@lru_cache(maxsize=256)
def confirmation_page(application_name: str) -> bytes:
    """Return the confirmation page. It has one button, and a person who presses it is redirected to the destination. The page has
    at most 1,500 bytes. `application_name` may be empty."""
    name = _displayed_name(application_name)
    text = f"<p>{name} sent you this link.</p>" if name else "<p>Press the button to open the page.</p>"
    return _CONFIRMATION.substitute(text=text).encode()


@lru_cache(maxsize=256)
def expired_page(application_name: str) -> bytes:
    """Return the page for the status 410, for an expired link. `application_name` may be empty."""
    name = _displayed_name(application_name)
    links = f"Links in messages from {name}" if name else "Links like this one"
    return _page(
        "This link has expired",
        _CLOCK,
        f"<p>{links} work for a limited time only.</p>",
        f"<p>Please ask {name or 'the sender'} for a new link.</p>",
    )


@lru_cache(maxsize=256)
def switched_off_page(application_name: str) -> bytes:
    """Return the page for the status 410, for a link that its sender or the operator has switched off. `application_name` may be
    empty."""
    name = _displayed_name(application_name)
    return _page(
        "This link is no longer active",
        _CROSSED_CIRCLE,
        "<p>It was switched off. You do not need to do anything.</p>",
        f"<p>If you have a question, please contact {name or 'the sender'}.</p>",
    )


@lru_cache(maxsize=1)
def unknown_page() -> bytes:
    """Return the page for the status 404, for a code that belongs to no link."""
    return _page(
        "Link not found",
        _BROKEN_LINK,
        "<p>If you typed the link, please check each letter. Capital and small letters are different.</p>",
        "<p>If you tapped it, part of the link may be missing. Please use the complete link from the message.</p>",
    )


@lru_cache(maxsize=1)
def too_many_requests_page() -> bytes:
    """Return the page for the status 429, for a client that has requested many unknown codes."""
    return _page(
        "Please wait a moment",
        _CLOCK,
        "<p>Too many links that do not exist were opened from your network.</p>",
        "<p>Please check the link in your message and try again in a minute.</p>",
    )


@lru_cache(maxsize=1)
def unavailable_page() -> bytes:
    """Return the page for the status 503, for a link that cannot be looked up at the moment."""
    return _page(
        "Please try again in a moment",
        _RELOAD,
        "<p>This link cannot be opened right now. It is not lost.</p>",
        '<p><a href="">Try again</a></p>',
    )


def _displayed_name(application_name: str) -> str:
    name = " ".join(application_name.split())
    if len(name) > MAX_NAME_LENGTH:
        name = f"{name[: MAX_NAME_LENGTH - 1].rstrip()}…"
    if not name:
        return ""
    from html import escape  # imported when a page is built: the module takes 0.4 MB of memory, and most clicks need no page

    return f"<b><bdi>{escape(name)}</bdi></b>"


def _page(title: str, drawing: str, *paragraphs: str) -> bytes:
    return _DOCUMENT.substitute(title=title, drawing=drawing, text="\n".join(paragraphs)).encode()
