"""Tests of URL detection with the test data of other libraries, and with texts that were not used to write the rules.

The test data are the user agents of the package `crawler-user-agents`, which contain URLs, and the test cases of
`twitter-text-python`, which repeat the conformance tests of twitter-text. `twitter-text-python` is not a dependency of the
tests, because it has no wheel. To run these tests: `pip install twitter-text-python`.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator

import pytest
from crawleruseragents import CRAWLER_USER_AGENTS_DATA
from linkify_it import LinkifyIt

from shortener.messages.url_detection import find_urls
from tests.messages.held_out_texts import HELD_OUT_TEXTS
from tests.messages.marketing_texts import MARKETING_TEXTS

# Texts of twitter-text in which the URL detection finds more URLs than Twitter. Twitter links only URLs that have a known top-level
# domain and that follow certain characters. A person would also mark the other URLs and the bare domains.
DIFFERENT_FROM_TWITTER = {
    "See http://example.com example.com",
    "Is http://tld-too-short.x a valid URL?",
    "text http://a.com/ http://a.net/ http://a.org/",  # the test case calls a method of Twitter's parser that ignores URLs
    "text http://domain.tld-that-you-should-have-put-a-space-after",
    "text =http://example.com",
    "text /http://example.com",
    "text !http://example.com",
    "badly formatted http://foo_bar.com",
}


def detect(text: str) -> list[str]:
    return [text[url.start : url.end] for url in find_urls(text)]


def mark(text: str) -> str:
    for url in reversed(find_urls(text)):
        text = f"{text[: url.start]}⟦{text[url.start : url.end]}⟧{text[url.end :]}"
    return text


def test_url_detection_finds_the_marked_urls_in_95_percent_of_the_texts_that_were_not_used_to_write_the_rules() -> None:
    different = [text for text in HELD_OUT_TEXTS if mark(text.replace("⟦", "").replace("⟧", "")) != text]
    assert len(HELD_OUT_TEXTS) > 390
    assert len(different) / len(HELD_OUT_TEXTS) < 0.05, different


def test_url_detection_and_the_library_linkify_it_py_find_the_same_urls_in_crawler_user_agents() -> None:
    linkify = LinkifyIt()
    texts = [text.replace("+http", " http") for crawler in CRAWLER_USER_AGENTS_DATA for text in crawler["instances"]]
    different = []
    for text in texts:
        expected = [match.text.rstrip("-;") for match in linkify.match(text) or [] if match.schema in ("http:", "https:")]
        found = [url for url in detect(text) if url.startswith("http")]
        if found != expected:
            different.append((text, found, expected))
    assert len(texts) > 1000
    assert different == []


def test_url_detection_finds_every_url_start_that_the_library_linkify_it_py_finds_in_marketing_texts() -> None:
    linkify = LinkifyIt()
    for marked in MARKETING_TEXTS + HELD_OUT_TEXTS:
        text = marked.replace("⟦", "").replace("⟧", "")
        theirs = {match.index for match in linkify.match(text) or [] if match.schema in ("http:", "https:")}
        if "user:pw@" in text or "99999" in text or "//intranet" in text or "https://https:" in text:
            continue  # linkify-it finds URLs with a user name, a wrong port or a host without a dot, and `https://` in `https://https:`
        assert theirs <= {url.start for url in find_urls(text)}, text


def twitter_cases() -> Iterator[tuple[str, list[str]]]:
    """Yield the text and the URLs of each test case of twitter-text-python that checks URLs, without running the test cases."""
    cases = pytest.importorskip("ttp.tests", reason="twitter-text-python is not installed: pip install twitter-text-python")
    for function in ast.walk(ast.parse(inspect.getsource(cases))):
        text = None
        for statement in function.body if isinstance(function, ast.FunctionDef) else ():
            for call in ast.walk(statement):
                if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                    continue
                if call.func.attr == "parse" and isinstance(call.args[0], ast.Constant):
                    text = str(call.args[0].value)
                elif call.func.attr == "assertEqual" and ast.unparse(call.args[0]) == "result.urls" and text is not None:
                    urls = ast.literal_eval(call.args[1])
                    yield text, [url if isinstance(url, str) else url[0] for url in urls]


def test_url_detection_finds_the_expected_urls_in_the_test_cases_of_twitter_text() -> None:
    cases = list(twitter_cases())
    assert len(cases) > 50
    assert {text for text, urls in cases if detect(text) != urls} == DIFFERENT_FROM_TWITTER
