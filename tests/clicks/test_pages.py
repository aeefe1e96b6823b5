"""Tests of the pages that people get instead of a redirect. The HTML must be small, and safe with any application name."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.clicks.pages import expired_page, switched_off_page, unavailable_page, unknown_page

NAMED = (expired_page, switched_off_page)
PAGES = [*(page("ACME & Söhne") for page in NAMED), *(page("") for page in NAMED), unknown_page(), unavailable_page()]

#: HTML elements that load no other file and run no script.
HARMLESS = {"html", "head", "meta", "title", "style", "body", "main", "svg", "path", "circle", "h1", "p", "b", "bdi", "a"}


class Document(HTMLParser):
    """A parsed page: its elements, its visible text, and the elements that are not closed."""

    VOID = frozenset({"meta", "path", "circle"})

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.mark.parametrize("page", PAGES)
def test_each_page_about_an_unavailable_link_is_small_loads_no_other_file_and_forbids_indexing(page: bytes) -> None:
    assert len(page) < 4096
    document = Document(page)
    assert document.open == []
    assert {tag for tag, _ in document.elements} <= HARMLESS
    assert not any(name.startswith("on") or name == "src" for _, attributes in document.elements for name in attributes)
    assert ("html", {"lang": "en"}) in document.elements
    assert ("meta", {"name": "robots", "content": "noindex"}) in document.elements
    assert any(attributes.get("name") == "viewport" for _, attributes in document.elements)
    assert b"prefers-color-scheme: dark" in page
    assert b"url(" not in page


@pytest.mark.parametrize("page", NAMED)
@given(name=st.text(max_size=300))
def test_an_application_name_is_escaped_in_the_page_about_an_unavailable_link(page: Callable[[str], bytes], name: str) -> None:
    built = page(name)
    assert len(built) < 4096
    document = Document(built)
    plain = Document(page("Somebody"))
    if name.strip():
        assert document.elements == plain.elements
    assert document.open == []


@pytest.mark.parametrize("page", NAMED)
def test_a_page_about_an_unavailable_link_contains_the_application_name_or_the_words_the_sender(
    page: Callable[[str], bytes],
) -> None:
    assert "<ACME> & Söhne" in Document(page("<ACME> & Söhne")).text
    assert "the sender" in Document(page("")).text


@pytest.mark.parametrize("page", NAMED)
def test_a_very_long_application_name_is_cut_in_the_page_about_an_unavailable_link(page: Callable[[str], bytes]) -> None:
    assert len(page("&" * 10_000)) < 4096
    assert "…" in Document(page("x" * 81)).text
    assert "…" not in Document(page("x" * 80)).text


def test_the_page_about_an_unavailable_link_is_built_once_for_each_application_name() -> None:
    assert expired_page("ACME") is expired_page("ACME")
    assert unknown_page() is unknown_page()
