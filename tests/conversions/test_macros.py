"""Tests of the detection of placeholders that a network sent without replacing them by a value."""

from __future__ import annotations

import html
import uuid
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shortener.conversions.macros import NOTATIONS, is_unexpanded
from shortener.ids import encode
from tests.one_test import in_one_test

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,20}(?:[_.-][A-Za-z0-9]{1,10}){0,2}", fullmatch=True).filter(
    lambda name: not set(name.lower()) <= set("0123456789abcdef-")
)


def placeholder(notation: str, name: str) -> str:
    return notation.replace("X", name.upper()).replace("x", name)


@pytest.mark.parametrize("name", ["tid", "TRANSACTION_ID", "order.id", "sub-1", "aff_sub", "s2", "added"])
def test_a_placeholder_is_detected_in_every_documented_notation(name: str) -> None:
    texts = [placeholder(notation, name) for notation in NOTATIONS]
    assert [text for text in texts if not is_unexpanded(text)] == []
    assert [text for text in texts if not is_unexpanded(f" {text} ")] == []


@given(notation=st.sampled_from(NOTATIONS), name=NAMES)
@example(notation="<%x%>", name="A0_0")  # %A0 looks like the beginning of a placeholder and like a percent-encoded byte
@example(notation="<%x%>", name="ad")
def test_a_placeholder_is_detected_whether_it_is_encoded_or_not(notation: str, name: str) -> None:
    text = placeholder(notation, name)
    assert is_unexpanded(text)
    assert is_unexpanded(quote(text))
    assert is_unexpanded(quote(quote(text)))
    assert is_unexpanded(html.escape(text))


@pytest.mark.parametrize("name", ["ad", "ad_id", "aff.sub-1", "face:2", "decade", "adid.ref"])
def test_a_placeholder_whose_beginning_the_query_parser_has_decoded_is_detected(name: str) -> None:
    texts = [unquote_to_bytes(placeholder(notation, name)).decode("cp1252") for notation in NOTATIONS]
    assert [text for text in texts if not is_unexpanded(text)] == []


#: Ids in the formats of other systems.
REAL_IDS = st.one_of(
    st.uuids().map(str),
    st.uuids().map(lambda one: f"{{{one}}}"),
    st.uuids().map(lambda one: f"{{{one.hex.upper()}}}"),
    st.binary(max_size=40).map(lambda some: some.hex()),
    st.from_regex(r"[A-Za-z0-9+/]{4,60}={0,2}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{3,60}", fullmatch=True),
    st.from_regex(r"[#$@]?[A-Z]{0,3}[-/. ]?[0-9]{1,12}", fullmatch=True),
    st.from_regex(r"[a-z0-9.]{1,20}@[a-z]{1,10}\.[a-z]{2,6}", fullmatch=True),
    st.from_regex(r"<[a-z0-9.]{1,20}@[a-z]{1,10}\.[a-z]{2,6}>", fullmatch=True),
    st.integers(0, (1 << 64) - 1).map(encode),
    st.from_regex(r"[0-9]{4}[-/][0-9]{2}[-/][0-9]{2}( [0-9]{2}:[0-9]{2}:[0-9]{2})?", fullmatch=True),
    st.from_regex(r"[0-9]{1,3}([.,][0-9]{1,2})? ?[%$]", fullmatch=True),
)


@given(REAL_IDS)
@example(f"{{{uuid.UUID(int=0)}}}")
@example("{ABCDEFAB-ABCD-4BCD-8BCD-ABCDEFABCDEF}")
def test_an_id_of_another_system_is_not_taken_for_a_placeholder(text: str) -> None:
    assert not is_unexpanded(text)


@in_one_test
@pytest.mark.parametrize(
    "text",
    [
        "{{ click.id }}",
        "$%7Bclick_id%7D",
        "%7Bclick_id%7D",
        "%7b%7bclick_id%7d%7d",
        "{cost:2}",
        "order-{order_id}",
        "[CLICK_ID]",
        "%5Bclick_id%5D",
        "%23tid%23",
        "%25tid%25",
        "%%FIRST-NAME%%",
        "<orderid>",
        "%3Corderid%3E",
        "__CLICKID__",
        "||tid||",
        "##tid##",
        "&lt;orderid&gt;",
        "&amp;lt;orderid&amp;gt;",
        "&#123;orderid&#125;",
        "&lt;%a0_0%&gt;",
        "%26lt%3Borderid%26gt%3B",
        "{$clickid}",
        "{%transaction%}",
        "{% tid %}",
        "*|SUBID|*",
        "<%= order.id %>",
        "<%= transaction_id %>",
        "@clickid@",
        "!!!awc!!!",
        "$SUBSCRIBER.EMAIL$",
        "~Contact.Id~",
        "{cafe}",
        "Êmpaign%",  # %campaign%, after the query parser has decoded %ca
        "%\xadid%%",  # %%adid%%, after the query parser has decoded %ad
    ],
)
def test_placeholders_with_unusual_names_or_encodings_are_detected(text: str) -> None:
    assert is_unexpanded(text)


@in_one_test
@pytest.mark.parametrize(
    "text",
    [
        "",
        "m-1",
        "{}",
        "[]",
        "a[1]",
        "items[blue]",
        "{abcdef00-89ab-4def-8123-456789abcdef}",
        '{"a": 1}',
        "100%",
        "{5}",
        "#1001",
        "#1001#",
        "%31%",
        "<1>",
        "__1__",
        "order_1__2",
        "a||b",
        "_id_",
        "50%off",
        "été%",
        "Äpfel 50%",
        "Übersicht 50%",
        "½",
        "{é%}",
        "a@b",
        "@a",
        "$5$",
        "~1~",
        "*AB12*",
        "Tom & Jerry &amp; Co",
        "(not set)",
    ],
)
def test_a_text_that_only_resembles_a_placeholder_is_not_detected(text: str) -> None:
    assert not is_unexpanded(text)
