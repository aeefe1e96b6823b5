"""Tests of the masks of gateway URLs: secrets are hidden, other values stay readable, and no mask is taken for a value."""

from __future__ import annotations

import pytest

from shortener.gateways.masking import find_masks, mask_url
from tests.one_test import in_one_test


@in_one_test
@pytest.mark.parametrize(
    ("parameter", "shown"),
    [
        ("charset=UTF-8", "charset=UTF-8"),
        ("dlr-mask=31", "dlr-mask=31"),
        ("app=ws&op=pv", "app=ws&op=pv"),
        ("to={phone}", "to={phone}"),
        ("dlr-url={report_url}%3Fstatus%3D%25d", "dlr-url={report_url}%3Fstatus%3D%25d"),
        ("empty=", "empty="),
        ("password=S3CRET", "password=***"),
        ("pin=123", "pin=***"),
        ("api%5Fkey=1", "api%5Fkey=***"),
        ("h=hunter2", "h=***"),
        ("PassWord=abc", "PassWord=***"),
        ("p%61ss=abc", "p%61ss=***"),
        ("x=abcd", "x=***"),
        ("x=a%2Bb", "x=a%2Bb"),
        ("psw=abc", "psw=***"),
        ("sms_pw=abc", "sms_pw=***"),
        ("usr=bob", "usr=***"),
        ("sms_pswd=abc", "sms_pswd=***"),
        ("u=bob&p=abc", "u=***&p=***"),
        ("0123456789abcdef", "***"),
        ("a=b+c&text={text}#part", "a=b+c&text={text}#part"),
    ],
)
def test_a_shown_gateway_url_hides_only_values_that_may_be_credentials(parameter: str, shown: str) -> None:
    assert mask_url(f"http://gw.example/send?{parameter}") == f"http://gw.example/send?{shown}"


def test_a_gateway_url_without_a_query_is_shown_unchanged() -> None:
    assert mask_url("http://gw.example/send") == "http://gw.example/send"


def test_masks_are_found_in_urls_and_in_members_but_not_in_texts_with_stars() -> None:
    values = {
        "url": "http://gw.example/?charset=%2A%2A%2A&to={phone}",
        "variables": {"password": " *** ", "user": "x"},
        "password": "***",
        "body": "*** {text} ***",
        "window": 3,
    }
    assert find_masks(values) == ["url", "variables.password", "password"]
    assert find_masks({"url": mask_url("http://gw.example/?0123456789abcdef")}) == ["url"]
    assert find_masks({"url": mask_url("http://gw.example/?x=secret#part")}) == ["url"]
