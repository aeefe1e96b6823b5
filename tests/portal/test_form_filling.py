"""Tests of the module that fills entries into a form of a rendered page."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.portal.form_filling import fill_form

PAGE = """<!doctype html>
<body><form method="post" action="/portal/signout"><button name="action" value="save">x</button></form>
<form method="get" action="/p"><input name="text" value="query"></form>
<p>Ünï</p><form class="form" method="post" action="/p#anchor">
<input type="hidden" name="form_id" value="new"><input id="f" name="text" value="old &amp; &quot;x&quot;" required
 autofocus><input name="text" value="second">
<input type="password" name="password" value=""><textarea id="t" name="area" rows="3">old &lt;text&gt;
more</textarea>
<select name="format"><option>json</option><option selected>scg</option><option value="a&amp;b">A</option></select>
<input type="checkbox" name="events" value="click" checked> <input type="checkbox" name="events" value="sale">
<input type="checkbox" name="enabled" checked><input type="radio" name="kind" value="1" checked>
<input type="radio" name="kind" value="2">
<button name="action" value="save">Save</button></form>
</body>"""
#: The entries that a browser sends if the operator changes nothing in the form of PAGE.
UNCHANGED = {
    "text": ['old & "x"', "second"],
    "area": ["old <text>\r\nmore"],
    "format": ["scg"],
    "events": ["click"],
    "enabled": ["on"],
    "kind": ["1"],
    "action": ["save"],
    "form_id": ["old"],
}
RANDOM = frozenset({"form_id"})


def test_entries_replace_the_values_of_every_kind_of_field_except_hidden_fields_and_passwords() -> None:
    entries = {
        "text": ['<b>"new"', "2nd"],
        "password": ["secret"],
        "area": ["\n</textarea><script>x"],
        "format": ["a&b"],
        "events": ["sale"],
        "kind": ["2"],
        "action": ["save"],
        "form_id": ["old"],
    }
    page = fill_form(PAGE, "/p", entries, random_fields=RANDOM)
    assert '<input id="f" name="text" value="&lt;b&gt;&quot;new&quot;" required autofocus><input name="text" value="2nd">' in page
    assert '<input type="password" name="password" value="">' in page
    assert '<textarea id="t" name="area" rows="3">\n\n&lt;/textarea&gt;&lt;script&gt;x</textarea>' in page
    assert re.findall(r"<option[^>]*>", page)[-1] == '<option value="a&amp;b" selected>'
    assert page.count("selected") == 1
    assert '<input type="checkbox" name="events" value="click">' in page
    assert '<input type="checkbox" name="events" value="sale" checked>' in page
    assert '<input type="checkbox" name="enabled">' in page
    assert '<input type="radio" name="kind" value="2" checked>' in page
    assert page.count("checked") == 2
    assert '<input type="hidden" name="form_id" value="new">' in page
    assert '<form method="get" action="/p"><input name="text" value="query"></form>' in page
    assert "secret" not in page
    assert "<script>" not in page


def test_a_page_without_the_form_of_the_entries_stays_unchanged() -> None:
    for path, entries in (("/other", UNCHANGED), ("/p", {"unknown": ["x"]}), ("/p", {})):
        assert fill_form(PAGE, path, entries, random_fields=RANDOM) == PAGE
    assert fill_form(PAGE, "/p", UNCHANGED) == PAGE, "a hidden field with another value belongs to another form"


def test_the_form_with_the_pressed_button_and_the_same_hidden_values_gets_the_entries() -> None:
    rows = "".join(
        f'<details class="m"><summary>x</summary><form method="post"><input type="hidden" name="application" value="{number}">'
        f'<input name="name" value="{number}"><button name="action" value="rename">x</button></form></details>'
        for number in (1, 2)
    )
    create = '<form method="post"><input name="name" value=""><button name="action" value="create">x</button></form>'
    renamed = fill_form(rows + create, "/p", {"application": ["2"], "name": ["new"], "action": ["rename"]})
    assert re.findall(r'name="name" value="([^"]*)"', renamed) == ["1", "new", ""]
    assert renamed.count('<details class="m" open>') == 1, "the form is visible"
    created = fill_form(rows + create, "/p", {"name": ["new"], "action": ["create"]})
    assert re.findall(r'name="name" value="([^"]*)"', created) == ["1", "2", "new"]


@pytest.mark.slow
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r")))
def test_a_value_of_any_characters_is_escaped_and_stays_the_same(value: str) -> None:
    page = fill_form(PAGE, "/p", UNCHANGED | {"text": [value, ""], "area": [value]}, random_fields=RANDOM)
    (shown,) = re.findall(r'<input id="f" name="text" value="([^"]*)"', page)
    assert html.unescape(shown) == value
    (area,) = re.findall(r'rows="3">\n([^<]*)</textarea>', page)
    assert html.unescape(area) == value
