"""Numbers with their nouns in texts for people: "1 message" and "2 messages"."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number and the words after it. `one` contains the words for 1, and `many` the words for every other number. The
    default of `many` is `one` and an s. Thousands are separated by commas."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
