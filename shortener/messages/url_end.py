"""This module finds the end of a URL in a text. The URL ends before a character that people do not type as a part of a URL in that
place.

- White space, control and invisible characters, `<`, `>`, `"`, a backtick and a backslash end a URL. Emoji, dashes, bullets,
  arrows, punctuation of any script, and HTML entities of quotes and brackets also end a URL.
- Letters of other scripts belong to a URL if they are at the start of a part of the URL (`/wiki/Москва`, `?q=日本`). Directly
  after an ASCII letter or digit, or after a full stop or comma, they belong to the text after the URL (`/xをご覧ください`).
  Japanese and Korean particles after a slash (`/で検索`) also belong to the text after the URL.
- `|` belongs to a query if another character of the query follows, and if no `|` precedes the URL.
- A bracket that has no partner in the URL ends the URL. This applies to opening and closing brackets. Trailing punctuation belongs
  to the sentence.
- A `,` or `;` before another `http://` ends a URL. An `http://` also ends a URL if it directly follows a letter or digit, or one of
  `+`, `&`, `~` and `-` in a path.
- Text of the sentence that directly follows a URL is not a part of the URL: a capitalised word after a full stop (`/a.Reply STOP`),
  a word after one comma, semicolon or exclamation mark (`/a,now`), the suffix of a word (`/a's`, Turkish `/a'da`, Finnish
  `/a:sta`), and the number of the next URL in a list (`/a(2)https://`).
"""
# Tested by tests/messages/test_url_detection.py and tests/messages/test_public_corpora.py

from __future__ import annotations

import re
import unicodedata

_STOP = frozenset('<>"`\\\x7f')
_SCHEME = re.compile(r"https?://", re.IGNORECASE)
# An entity that means an ampersand, such as `&#38;`, is a part of a query. Every other entity ends a URL.
_ENTITY = re.compile(r"&(?:quot|lt|gt|apos|nbsp|#(?!0*38;)[0-9]{1,6}|#x(?!0*26;)[0-9a-f]{1,5});", re.IGNORECASE)
_AFTER_BAR = re.compile(r"[\w%.~|-]")
# After one of these characters, a word of another script is a part of the URL.
_SEPARATORS = frozenset("/=-_&#+~@$|%")
_BETWEEN_URLS = frozenset("+&~-")
# These brackets are ignored when the search decides whether a character directly follows a word.
_TRANSPARENT = frozenset("([{")
_CURLY_CLOSERS = {"“": "”", "„": "“”", "”": "”"}
_PARTICLES = re.compile(
    # These expressions match a Japanese particle before a word in another script, and a Korean particle that is a whole word.
    r"(?:を|へ|から|まで|より|にて|では|には|でも|[でにはがとのも](?![\u3040-\u309f]))|"
    r"(?:에서만|에서는|에서도|에서|으로|에게|까지|부터|입니다|이에요|예요|[에로를을와과는은이가도의])(?![\uac00-\ud7af])"
)
_SENTENCE = re.compile(r"(?<![.!])[.!]++([^\W\d_]+)[.,!?:;\"')]*\Z")
# Text that rarely belongs to a URL without a query: a word after a comma, semicolon or exclamation mark (/sale;see), and a dash at
# the end (/sale-).
_WORD_AFTER_PUNCTUATION = re.compile(r"[,;!](?:[^\W\d_]{2,}|[^\W\d_A-Za-z])\Z")
_ELLIPSIS = re.compile(r"(?<![./])\.{3,}[^\W\d_/][^/.]*\Z")
_DASH = re.compile(r"/(?:[a-z]+(?:-[a-z0-9]+)*|[0-9]+)(-+)\Z")
# Text that rarely belongs to the last value of a query: a word after a number (?id=12,now), and a word after a semicolon.
_WORD_AFTER_VALUE = re.compile(r"=[\w.%-]*(?:\d[,;!]|\w;)(?<=([,;!]))[^\W\d_]{3,}\Z")
# A suffix that Turkish and English separate from a name by an apostrophe, and Finnish by a colon.
_SUFFIX = re.compile(
    r"['’](?:[dt][ae]n?|y?[aeıiuü]|y?l[ae]|n?[ıiuü]n|n[dt]?[ae]n?|s[ıiuü]?)\Z|:(?:n|ss[aä]|st[aä]|l[lt][aä]|lle|ksi|h[aeiouyäö]n)\Z"
)
_NUMBER_OF_NEXT = re.compile(r"[(\[][0-9]{1,2}[)\]]\Z")
_EXTENSIONS = frozenset(
    ["html", "htm", "php", "asp", "aspx", "jsp", "pdf", "jpg", "jpeg", "png", "gif", "zip", "apk", "xml", "json", "doc", "docx"]
)
_PUNCTUATION = ".,;:!?'*~|’¡¿"
_BRACKETS = {")": "(", "]": "[", "}": "{"}


def find_end(body: str, start: int, rest: int) -> int:
    """Return the end of the URL that begins at `start`. Its path, query or fragment begins at `rest`."""
    end = _scan(body, start, rest)
    if body[end - 1] in _BETWEEN_URLS and _SCHEME.match(body, end):
        end -= 1
    end = _end_of_sentence(body, rest, end)
    end = _balanced_end(body, rest, end)
    before = body[start - 1 : start] if start else ""
    trailing = _PUNCTUATION + ("_" if before == "_" else "")
    # The semicolon or colon is a part of a smiley such as ;-).
    if body[end : end + 1] in ("(", ")") and body[end - 2 : end] in (";-", ":-"):
        end -= 2
    while end > rest and body[end - 1] in trailing:
        end -= 1
    return end


def _scan(body: str, start: int, rest: int) -> int:
    """Search `body` from the position `rest`. Return the position of the first character that cannot belong to the URL, or
    `len(body)` if there is none. The URL begins at `start`."""
    before = body[start - 1 : start] if start else ""
    in_query = False
    # true if the previous character is an ASCII letter or digit, or is punctuation directly after such a character
    after_word = False
    position = rest
    while position < len(body):
        character = body[position]
        if character.isascii():
            if _ends_before(body, position, before, in_query, after_word):
                return position
            if character in "?#":
                in_query = True
                after_word = character == "?"
            elif character not in _TRANSPARENT:
                after_word = character not in _SEPARATORS
            position += 1
            continue
        category = unicodedata.category(character)
        if character in "\ufe0e\ufe0f\u20e3":
            # A keycap emoji begins with an ASCII digit, which is then not a part of the URL.
            return position - 1 if body[position - 1] in "0123456789#*" and position - 1 > rest else position
        if character in _CURLY_CLOSERS and body[position - 1] == "=":
            closing = _closing_quote(body, position, _CURLY_CLOSERS[character])
            if closing is None:
                return position
            position = closing + 1
            after_word = True
            continue
        if not _continues(body, position, character, category, after_word):
            return position
        if category[0] == "L" and not _is_latin(character):
            after_word = False
        elif category[0] == "L" or character in "’·":
            after_word = True
        position += 1
    return position


def _ends_before(body: str, position: int, before: str, in_query: bool, after_word: bool) -> bool:
    """Return whether the URL ends before the ASCII character at `position`. `before` is the character before the URL."""
    match character := body[position]:
        case "'":
            return before == "'" and not body[position + 1 : position + 2].isalnum()
        case "|":
            return not in_query or before == "|" or _AFTER_BAR.match(body, position + 1) is None
        case "," | ";":
            return _SCHEME.match(body, position + 1) is not None
        case "*":
            return not in_query and body[position + 1 : position + 2].isalpha()
        case "&":
            is_last = not in_query and body[position + 1 : position + 2] == "@"
            return is_last or _ENTITY.match(body, position) is not None
        case "h" | "H":
            is_next = after_word or (not in_query and body[position - 1] in _BETWEEN_URLS)
            return is_next and _SCHEME.match(body, position) is not None
        case _:
            return character <= " " or character in _STOP


def _continues(body: str, position: int, character: str, category: str, after_word: bool) -> bool:
    """Return whether a non-ASCII character is a part of the URL that precedes it."""
    previous = body[position - 1]
    if category[0] == "L":
        if "\uff00" <= character <= "\uffef":  # the character is half-width or full-width
            return False
        if _is_latin(character):
            return previous.isascii() or unicodedata.category(previous)[0] in "LM" or previous in "’·"
        if after_word:
            return False
        is_start = previous in _SEPARATORS
        return not (is_start and _PARTICLES.match(body, position))
    if category == "Nd":
        return not after_word and not "\uff00" <= character <= "\uffef"
    if category[0] == "M":
        return previous.isalnum() or unicodedata.category(previous)[0] == "M"
    if character in "\u200c\u200d":
        following = body[position + 1 : position + 2]
        return _is_foreign_letter(previous) and (_is_foreign_letter(following) or (bool(following) and following in "./-_"))
    if character == "·":
        return previous in "lL" and body[position + 1 : position + 2] in ("l", "L")
    if character == "’":
        following = body[position + 1 : position + 2]
        return previous.isalpha() and following.isalpha() and (following.isascii() or _is_latin(following))
    return False


def _is_latin(character: str) -> bool:
    return character.isascii() or "\u00aa" <= character <= "\u024f" or "\u1e00" <= character <= "\u1eff"


def _is_foreign_letter(character: str) -> bool:
    return bool(character) and not _is_latin(character) and unicodedata.category(character)[0] in "LM"


def _closing_quote(body: str, opening: int, closers: str) -> int | None:
    """Return the position of the quote that closes the quote at `opening`; None if white space or a bracket is between them."""
    for position in range(opening + 1, len(body)):
        if body[position] in closers:
            return position if position > opening + 1 else None
        if body[position].isspace() or body[position] in _STOP:
            return None
    return None


def _end_of_sentence(body: str, rest: int, end: int) -> int:
    """Return the end of the URL without the text of the sentence that follows it: `/a.Reply STOP`, `/a;offer ends`, `/a- now`."""
    if _SCHEME.match(body, end) and (number := _NUMBER_OF_NEXT.search(body, rest, end)):
        return number.start()
    whole = end
    while end > rest and body[end - 1] in ".,;:!?":
        end -= 1
    if suffix := _ELLIPSIS.search(body, rest, end) or _SUFFIX.search(body, rest, end):
        return suffix.start()
    if "?" in body[rest:end] or "#" in body[rest:end]:
        if word := _WORD_AFTER_VALUE.search(body, rest, end):
            return word.start(1)
    else:
        if (word := _WORD_AFTER_PUNCTUATION.search(body, rest, end)) and _is_single_word(body[rest : word.start()]):
            return word.start()
        if dash := _DASH.search(body, rest, end):
            return dash.start(1)
    start = max(body.rfind("/", rest, end), body.rfind("=", rest, end))
    sentence = _SENTENCE.search(body, start, end) if start >= 0 else None
    if sentence is None or not _is_capitalised(sentence[1]) or sentence[1].lower() in _EXTENSIONS:
        return whole
    before = body[start : sentence.start()]
    is_name = any(character.isupper() for character in before) and not before[-1].isdigit()
    return whole if is_name else sentence.start()


def _is_single_word(before: str) -> bool:
    """Return whether the word after a comma belongs to the sentence and not to the path `before`. If the path is a list or a place
    name, return False, because the word can belong to the path."""
    return not any(mark in before for mark in ",;!") and not before.rpartition("/")[2][:1].isupper()


def _is_capitalised(word: str) -> bool:
    return word[0].isupper() and (len(word) == 1 or word[1:].islower())


def _balanced_end(body: str, rest: int, end: int) -> int:
    """Return the position of the first bracket that has no partner in the URL; the end of the URL if there is none."""
    opened: list[int] = []
    for position in range(rest, end):
        character = body[position]
        if character in "([{":
            opened.append(position)
        elif character in _BRACKETS:
            if not opened or body[opened[-1]] != _BRACKETS[character]:
                end = position
                break
            opened.pop()
    return min([end, *opened[:1]])
