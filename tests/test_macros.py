import pytest

from shortener.macros import Macro, find_macros, macro_problems
from shortener.urls import DESTINATION_PLACEHOLDERS
from tests.one_test import in_one_test

URL = "https://x.example/"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{message_id}/{click_id}?c={code}&n={campaign}#{phone_sha256}",
        "a(b)?q=f(x)&a[]=1&b[code]=2",
        "100%25/__init__",
        "?q=%d0%ab",
        "?q=100%25code",
        "?q=%23code&r=a|code|b",
        "?q=%3Cb%3Ebold%3C/b%3E",
    ],
)
def test_known_placeholders_and_ordinary_text_in_a_url_are_accepted(text: str) -> None:
    assert macro_problems(URL + text, DESTINATION_PLACEHOLDERS) == []


@in_one_test
@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("{{message_id}}", "message_id"),
        ("${click_id}", "click_id"),
        ("{ code }", "code"),
        ("{Message_ID}", "message_id"),
        ("{messageId}", "message_id"),
        ("{message-id}", "message_id"),
        ("{mesage_id}", "message_id"),
        ("{clickid}", "click_id"),
        ("{subid}", "click_id"),
        ("{msisdn}", "phone_sha256"),
        ("{phone}", "phone_sha256"),
        ("[clickid]", "click_id"),
        ("(message_id)", "message_id"),
        ("%message_id%", "message_id"),
        ("%%click_id%%", "click_id"),
        ("__CLICK_ID__", "click_id"),
        ("%7Bclick_id%7D", "click_id"),
        ("<click_id>", "click_id"),
        ("%3Cclick_id%3E", "click_id"),
        ("%253cclick_id%253e", "click_id"),
        ("%23message_id%23", "message_id"),
        ("%25message_id%25", "message_id"),
        ("||click_id||", "click_id"),
        ("%7C%7CCLICK_ID%7C%7C", "click_id"),
    ],
)
def test_a_misspelled_placeholder_is_reported_with_the_right_spelling(text: str, spelling: str) -> None:
    (problem,) = macro_problems(f"{URL}?a={text}", DESTINATION_PLACEHOLDERS)
    assert problem == f"contains {text}, which is not a placeholder; write {{{spelling}}}"


def test_an_unknown_placeholder_is_reported_once_with_the_known_names() -> None:
    (problem,) = macro_problems(f"{URL}{{first_name}}/{{first_name}}", ("click_id", "code"))
    assert problem == "contains {first_name}, which is not a placeholder; known placeholders: {click_id} {code}"


def test_find_macros_returns_the_name_and_the_position_of_each_macro() -> None:
    assert list(find_macros("https://x.example/{{a}}?b=%c%", 8)) == [
        Macro("{{a}}", "a", 18, True),
        Macro("%c%", "c", 26, False),
    ]
