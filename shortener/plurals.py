"""Numbers with their nouns in texts for people: "1 message" and "2 messages"."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with the words after it. `one` contains the words for the number 1, and `many` contains the words for every
    other number. By default, `many` is `one` with an s at the end. Thousands are separated by commas."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
