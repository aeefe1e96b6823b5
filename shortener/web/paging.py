"""This module encodes the cursors of paged lists, and contains the fields that the queries and responses of lists share.

A cursor contains the id of the last row of a page, and a checksum. Because of the checksum, the service rejects a cursor that it
did not create, for example a cursor of another installation. A cursor still works if its row is deleted.
"""
# Tested by tests/web/test_messages.py

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shortener.errors import ApiError, ErrorCode
from shortener.ids import ClickIds
from shortener.secret import Secret
from shortener.web.endpoint import RequestModel

#: The type of the field `next_cursor` in responses.
NextCursor = Annotated[str | None, Field(description="Cursor of the next page; null on the last page.")]
#: The type of the query parameter `cursor`.
Cursor = Annotated[str | None, Field(max_length=100, description="`next_cursor` of the previous page. Default: the first page.")]
#: The type of the query parameter `bom`.
ByteOrderMark = Annotated[
    bool,
    Field(description="true: the CSV begins with a byte order mark, so that Excel reads it as UTF-8. Default: false."),
]


class SingleRowCsvQuery(RequestModel):
    """The query parameters of a CSV that contains a single row."""

    bom: ByteOrderMark = False


class Cursors:
    """Encodes and decodes the cursors of one kind of list, such as "hits". `name` is the kind of list. A cursor of another kind
    of list is rejected."""

    def __init__(self, secret: Secret, name: str) -> None:
        self._ids = ClickIds(secret.key(name))

    def encode(self, last_id: int | None) -> str | None:
        """Return the cursor of the page that begins after the row `last_id`; None if `last_id` is None."""
        return None if last_id is None else self._ids.encode(last_id)

    def decode(self, cursor: str | None) -> int | None:
        """Return the id in the cursor, or None if the cursor is None. Raise ApiError INVALID_CURSOR if the cursor is not
        valid."""
        if cursor is None:
            return None
        last_id = self._ids.decode(cursor)
        if last_id is None:
            raise ApiError(ErrorCode.INVALID_CURSOR)
        return last_id
