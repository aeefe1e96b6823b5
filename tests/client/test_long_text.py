"""Tests of texts with long URLs, which the client creates if the service fails. The client must parse directives as the service
does.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortener.client import BadRequestError, resolve_directives
from shortener.client.long_text import long_text
from shortener.messages.rewrite_item import RewriteItem
from shortener.messages.spans import replace_spans
from tests.messages.rewriting import plan

PIECES = st.sampled_from(
    [
        '#track("https://shop.example/a?b=1")',
        '#Track ("HTTPS://Shop.Example/ü")',
        '#trackurl("https://x.example/","sale")',
        "#trackurl('https://x.example','a','b')",
        "#track(&quot;https://x.example/a&amp;b&quot;)",
        '#track(\\"https://x.example/\\")',
        "＃track(“https://x.example/”)",
        "#track(“https://x.example/”)",
        '##track("https://x.example/")',
        '#trak("https://x.example/")',
        '#track("")',
        '#track("ftp://x.example")',
        '#track("https://user@x.example/")',
        '#track("javascript:alert(1)")',
        '#track("https://x.example/{message_id}")',
        "#track(",
        '#track("https://x.example/',
        '#trackurl("https://x.example/")',
        "#track",
        "#tracker",
        " hello ",
        "https://plain.example/x",
        '"',
        ")",
        "\u200b",
        "😀",
        "&#35;",
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=5), max_size=8).map("".join)


def resolve(body: str) -> tuple[BadRequestError | None, str]:
    try:
        return None, resolve_directives(body)
    except BadRequestError as error:
        return error, ""


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_the_client_accepts_or_rejects_a_text_with_directives_exactly_as_the_server(body: str) -> None:
    request = plan(RewriteItem(to=("+14085550100",), body=body))
    problems = request.all_problems()
    error, resolved = resolve(body)
    if error is not None:
        assert [(one.code.name, one.detail.position) for one in problems] == [
            (detail.error_code, detail.position) for detail in error.details
        ]
        assert [one.full_detail.body()["reason"] for one in problems] == [detail.reason[:500] for detail in error.details]
        assert error.error_code == problems[0].code.name
    else:
        assert problems == []
        links = request.plans[0].links
        if not any(link.destination.placeholders for link in links):
            assert resolved == replace_spans(body, [link.span for link in links], [link.destination.url for link in links])


def test_known_placeholders_in_long_urls_are_replaced_and_unknown_ones_become_empty() -> None:
    message = {"body": '#track("https://x.example/{message_id}?c={click_id}&n={campaign}")', "campaign": "a b"}
    text = long_text(message, "+14085550100", "m/1", "the service did not respond", ())
    assert text.body == "https://x.example/m%2F1?c=&n=a%20b"
    assert (text.message_id, text.is_tracked, text.links) == ("m/1", False, ())
    assert text.warnings == ("not tracked: the service did not respond",)


def test_a_directive_with_an_app_scheme_is_replaced_by_its_url_if_the_client_knows_the_scheme() -> None:
    body = 'open #track("myapp://cart/5")'
    assert resolve_directives(body, extra_schemes=["myapp"]) == "open myapp://cart/5"
    with pytest.raises(BadRequestError) as raised:
        resolve_directives(body)
    assert raised.value.error_code == "INVALID_TRACK_URL"


def test_the_error_for_a_text_with_invalid_urls_has_one_detail_for_each_url() -> None:
    with pytest.raises(BadRequestError) as raised:
        resolve_directives('#track("ftp://a") and #track("x")')
    assert [detail.position for detail in raised.value.details] == [0, 22]


def test_the_segments_of_a_text_with_long_urls_are_counted() -> None:
    text = long_text({"body": f'#track("https://x.example/{"a" * 200}")'}, "+1", "m", "", ())
    assert (text.encoding, text.segments) == ("GSM-7", 2)
