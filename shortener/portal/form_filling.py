"""This module fills entries into a form of a rendered page, as if the operator had typed them.

It changes the HTML of the page, so it works for every page of the portal without code in the page itself. It fills text fields,
text areas, checkboxes, radio buttons and selections. It does not change passwords and buttons. It changes a hidden field only if
its name is in `kept_fields`.
"""
# Tested by tests/portal/test_form_filling.py

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from html import escape
from html.parser import HTMLParser

from shortener.model import mutable_record, record

Attributes = dict[str, str | None]

#: The types of <input> whose values are never replaced.
_FIXED_TYPES = frozenset({"hidden", "password", "submit", "button", "reset", "image", "file"})
#: The score for the pressed button of a form. It is higher than the sum of the scores for all other fields of a form.
_BUTTON_SCORE = 1000


def fill_form(
    page: str,
    path: str,
    entries: Mapping[str, Sequence[str]],
    *,
    random_fields: frozenset[str] = frozenset(),
    kept_fields: frozenset[str] = frozenset(),
) -> str:
    """Return the page with `entries` filled into the form that is sent to `path`. If no form has these fields, return the page
    unchanged. If several forms are sent to `path`, choose the one that contains the pressed button and the most fields of
    `entries`. Never choose a form with a hidden field whose value differs from `entries`. There are two exceptions: a hidden
    field in `random_fields` may differ and keeps its value, and a hidden field in `kept_fields` may differ and gets the value in
    `entries`. If the form is inside a <details>, open it."""
    parser = _FormParser(page, path)
    parser.feed(page)
    parser.close()
    scored = [(form.score(entries, random_fields | kept_fields), form) for form in parser.forms]
    score, form = max(scored, key=lambda one: one[0], default=(0, None))
    if form is None or score <= 0:
        return page
    changes = [change for control in form.controls for change in control.changes(_values_of(control, form, entries))]
    kept = [one for one in form.controls if one.type == "hidden" and one.name in kept_fields and entries.get(one.name)]
    changes += [_Change(one.start, one.end, _tag("input", one.attributes | {"value": entries[one.name][0]})) for one in kept]
    changes += [_Change(one.start, one.end, _tag("details", one.attributes | {"open": None})) for one in form.details]
    for change in sorted(changes, key=lambda one: one.start, reverse=True):
        page = page[: change.start] + change.text + page[change.end :]
    return page


@record
class _Change:
    """A change of the page: `text` replaces the characters from `start` to `end`."""

    start: int
    end: int
    text: str


@mutable_record
class _Tag:
    """A start tag, with its range in the page."""

    start: int
    end: int
    attributes: Attributes


@mutable_record
class _Control(_Tag):
    """A control of a form: an <input>, <select>, <textarea> or <button>. `options` are the options of a <select>; `text_end` is
    the end of the text in a <textarea>."""

    tag: str = "input"
    options: list[_Tag] = field(default_factory=list)
    text_end: int = 0

    @property
    def name(self) -> str:
        return self.attributes.get("name") or ""

    @property
    def type(self) -> str:
        return (self.attributes.get("type") or ("submit" if self.tag == "button" else "text")).lower()

    @property
    def value(self) -> str:
        return self.attributes.get("value") or ""

    @property
    def is_fixed(self) -> bool:
        return self.tag == "button" or (self.tag == "input" and self.type in _FIXED_TYPES)

    def changes(self, values: Sequence[str] | None) -> list[_Change]:
        """Return the changes of the page that put these values into the control. If `values` is None, change nothing."""
        if values is None or self.is_fixed:
            return []
        if self.tag == "select":
            return [_mark(one, "option", "selected", one.attributes.get("value") in values) for one in self.options]
        if self.tag == "textarea":
            # A browser ignores a line break directly after the start tag of a <textarea>. This extra line break is the one that
            # it ignores, so a line break at the start of the text is preserved.
            return [_Change(self.end, self.text_end, "\n" + escape("".join(values[:1])))]
        if self.type in ("checkbox", "radio"):
            return [_mark(self, "input", "checked", (self.attributes.get("value") or "on") in values)]
        return [_Change(self.start, self.end, _tag("input", self.attributes | {"value": values[0]}))] if values else []


@mutable_record
class _Form:
    """A form that is sent to the `path` of `fill_form`. `details` are the start tags of the <details> elements that contain the
    form."""

    details: list[_Tag]
    controls: list[_Control] = field(default_factory=list)

    def score(self, entries: Mapping[str, Sequence[str]], random_fields: frozenset[str]) -> int:
        """Return how well the form matches the entries: a higher number is a better match, and 0 means no match."""
        score = 0
        for control in self.controls:
            values = entries.get(control.name, ())
            if control.tag == "button":
                score += _BUTTON_SCORE if control.value in values else 0
            elif control.type == "hidden" and control.tag == "input":
                if control.name not in random_fields and control.value not in values:
                    return 0
            elif not control.is_fixed and values:
                score += 1
        return score


def _values_of(control: _Control, form: _Form, entries: Mapping[str, Sequence[str]]) -> Sequence[str] | None:
    """Return the values in `entries` for a control, or None if it must not change. A checkbox without an entry was not checked.
    If several text fields of the form have the same name, each of them gets one of the values, in order."""
    values = entries.get(control.name)
    if control.type in ("checkbox", "radio") and control.tag == "input":
        return values or ()
    if values is None:
        return None
    if control.tag == "select":
        return values
    same = [one for one in form.controls if one.name == control.name and not one.is_fixed]
    position = next(number for number, one in enumerate(same) if one is control) if not control.is_fixed else 0
    return values[position : position + 1]


class _FormParser(HTMLParser):
    """A parser that finds the forms of a page that are sent to `path` with POST. A form without an action is sent to the URL of
    its page, which is `path` too."""

    def __init__(self, page: str, path: str) -> None:
        super().__init__(convert_charrefs=True)
        self._path = path
        # for each line of the page: the position of its first character
        self._lines = [0, *(match.end() for match in re.finditer("\n", page))]
        self._details: list[_Tag] = []
        self._form: _Form | None = None
        self._open: _Control | None = None  # The <select> or <textarea> that is not closed yet.
        self.forms: list[_Form] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        start = self._position()
        end = start + len(self.get_starttag_text() or "")
        if tag == "details":
            self._details.append(_Tag(start, end, attributes))
        elif tag == "form":
            action = re.split("[?#]", attributes.get("action") or self._path)[0]
            is_wanted = (attributes.get("method") or "").lower() == "post" and action == self._path
            self._form = _Form([*self._details]) if is_wanted else None
            if self._form is not None:
                self.forms.append(self._form)
        elif self._form is not None:
            if tag == "option" and self._open is not None:
                self._open.options.append(_Tag(start, end, attributes))
            elif tag in ("input", "select", "textarea", "button"):
                control = _Control(start, end, attributes, tag)
                self._form.controls.append(control)
                if tag in ("select", "textarea"):
                    self._open = control

    def handle_data(self, data: str) -> None:
        # The value of an <option> without the attribute `value` is its text.
        if self._open is not None and self._open.options and "value" not in self._open.options[-1].attributes:
            self._open.options[-1].attributes["value"] = data.strip()

    def handle_endtag(self, tag: str) -> None:
        if tag == "details" and self._details:
            self._details.pop()
        elif tag == "form":
            self._form = None
        elif self._open is not None and tag == self._open.tag:
            self._open.text_end = self._position()
            self._open = None

    def _position(self) -> int:
        line, column = self.getpos()
        return self._lines[line - 1] + column


def _mark(tag: _Tag, name: str, attribute: str, is_marked: bool) -> _Change:
    """Return the change that adds or removes an attribute without a value, such as `checked`."""
    attributes = {key: value for key, value in tag.attributes.items() if key != attribute}
    return _Change(tag.start, tag.end, _tag(name, attributes | ({attribute: None} if is_marked else {})))


def _tag(name: str, attributes: Attributes) -> str:
    """Return a start tag with escaped attributes."""
    texts = [key if value is None else f'{key}="{escape(value)}"' for key, value in attributes.items()]
    return f"<{' '.join([name, *texts])}>"
