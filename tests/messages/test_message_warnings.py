from __future__ import annotations

import pytest

from shortener.messages.message_warnings import find_warnings
from shortener.messages.spans import Span

LINK = "https://x.example/"


def warnings(before: str, after: str, host: str = "x.example", sender: str = "") -> list[str]:
    body = before + LINK + after
    return list(find_warnings(body, [(Span(len(before), len(before) + len(LINK), LINK), host)], sender))


@pytest.mark.parametrize(("before", "after"), [("", ""), ("see ", " now"), ("(", ")."), ("\n", ", x"), ("«", "»")])
def test_a_link_between_spaces_or_harmless_punctuation_has_no_warning(before: str, after: str) -> None:
    assert warnings(before, after) == []


@pytest.mark.parametrize(("before", "after"), [("x", ""), ("é", " "), (" ", "1"), (" ", "へ"), (" ", "/a"), (" ", "?"), (" ", "-")])
def test_text_that_is_attached_to_a_link_has_a_warning_with_its_position(before: str, after: str) -> None:
    (warning,) = warnings(before, after)
    assert warning == f"position {len(before)}: text is attached to the short link; phones may treat it as part of the link"


def test_a_host_that_mixes_scripts_has_a_warning() -> None:
    (warning,) = warnings("", "", host="www.xn--pypal-4ve.example")
    assert warning == "position 0: the host www.xn--pypal-4ve.example mixes Cyrillic and Latin letters, as look-alikes do"


def test_an_unusual_sender_has_a_warning() -> None:
    (warning,) = warnings("", "", sender="2Fast")
    assert warning.startswith("from '2Fast' is neither a number")
    assert warnings("", "", sender="InfoSMS") == []
