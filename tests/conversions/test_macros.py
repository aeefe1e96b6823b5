"""Tests of the detection of placeholders that a network sent without replacing them by a value."""

import pytest

from shortener.conversions.macros import NOTATIONS, is_unexpanded


@pytest.mark.parametrize("notation", NOTATIONS)
@pytest.mark.parametrize("name", ["tid", "TRANSACTION_ID", "order.id", "sub-1", "aff_sub"])
def test_a_placeholder_is_detected_in_every_documented_notation(notation: str, name: str) -> None:
    text = notation.replace("x", name).replace("X", name)
    assert is_unexpanded(text)
    assert is_unexpanded(f" {text} ")


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
    ],
)
def test_placeholders_with_unusual_names_or_encodings_are_detected(text: str) -> None:
    assert is_unexpanded(text)


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
    ],
)
def test_a_text_that_only_resembles_a_placeholder_is_not_detected(text: str) -> None:
    assert not is_unexpanded(text)
