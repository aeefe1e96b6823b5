"""This module compares the messages of a rewrite request with stored messages. It finds repeats, and messages whose message_id is
already used for other content."""
# Tested by tests/messages/test_write.py and tests/web/test_rewrite_errors.py

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from shortener.errors import Detail, ErrorCode
from shortener.messages import queries
from shortener.messages.item_plan import Problem
from shortener.messages.plan import PlannedMessage, PlannedRequest
from shortener.messages.queries import StoredMessage
from shortener.messages.send_queue import SendBatch


def find_problems(connection: Connection, request: PlannedRequest) -> list[Problem]:
    """Return the problems of a request that is rejected for another reason. Nothing is stored or locked.

    The result contains the same problems as the error of `RewriteWriter.apply`, except a low balance."""
    _, conflicts, new = classify(request, find_stored(connection, [request]))
    return [*request.problems_of(new), *conflicts, *SendBatch(connection, [request], locks=False).find_problems(request, new)]


def find_stored(connection: Connection, requests: Sequence[PlannedRequest]) -> dict[tuple[int, str], StoredMessage]:
    """Return the stored messages whose ids occur in the requests. The keys are (application_id, message_id)."""
    own_ids = {
        (request.application.id, message.message_id) for request in requests for message in request.messages if message.has_own_id
    }
    return queries.find_messages(connection, own_ids) if own_ids else {}


def classify(
    request: PlannedRequest, stored_messages: Mapping[tuple[int, str], StoredMessage]
) -> tuple[list[tuple[PlannedMessage, StoredMessage]], list[Problem], list[PlannedMessage]]:
    """Return the messages of a request in three groups: the repeats with their stored messages, the conflicts, and the new
    messages."""
    repeats, conflicts, new = [], [], []
    for message in request.messages:
        stored = stored_messages.get((request.application.id, message.message_id)) if message.has_own_id else None
        if stored is None:
            new.append(message)
        elif stored.content_hash in (message.content_hash, message.earlier_hash):
            repeats.append((message, stored))
        else:
            path = message.item.field_path("message_id", message.recipient)
            reason = f"{message.message_id!r} is already used for a message with other content"
            problem = Problem(message.item_index, ErrorCode.MESSAGE_ID_CONFLICT, Detail(path, reason), message.recipient)
            conflicts.append(problem)
    return repeats, conflicts, new
