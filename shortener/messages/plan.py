"""This module validates a rewrite request without the database.

`plan_request` checks a request completely and returns every problem; it raises nothing for an invalid message. `RewriteWriter`
decides later whether a problem rejects the request: a repeated request or message gets its first response even if it would be
invalid today. The caller passes the time, the limits and the hosts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import orjson

from shortener.accounts.directory import Application
from shortener.errors import MAX_DETAILS, ApiError, Detail, ErrorCode
from shortener.ids import new_message_id
from shortener.messages.item_plan import ItemPlan, PlanCache, Problem, plan_item
from shortener.messages.phone_numbers import PhoneNumber, PhoneNumberError, parse_number
from shortener.messages.rewrite_item import LinkHosts, RewriteItem, RewriteLimits
from shortener.messages.sender_rules import country_problem
from shortener.model import record
from shortener.plurals import counted
from shortener.storage.types import to_iso, to_ms


@record
class PlannedMessage:
    """The planned message for one recipient. `recipient` is the index of the recipient in the `RewriteItem`."""

    item_index: int
    item: RewriteItem
    recipient: int
    number: PhoneNumber
    message_id: str
    has_own_id: bool  # the caller chose the message_id
    request_id: str
    # The hash of the message's content. A repeat of the message must have the same hash. Empty if the service generated the
    # message_id.
    content_hash: str
    plan: ItemPlan
    expires_at: int = 0  # the time at which the links expire, in milliseconds since 1970
    problem: Problem | None = None  # a problem that rejects only this recipient, and only if the message is new
    earlier_hash: str | None = None  # the hash that earlier releases stored for the same content; None if it is `content_hash`


@record
class PlannedRequest:
    """A checked rewrite request. `now` is its time in ms since 1970.

    `content_hash` is the hash of its content, and `earlier_hash` is the hash of the content in the form of the previous release.
    Both are "" if the request has no `idempotency_key`.

    The problems of a request decide whether it is rejected, unless it repeats an Idempotency-Key:

    - `problems` reject the request.
    - The problems of an `ItemPlan` reject it only if a message of this item is new. The problem of a message rejects it only if
      this message is new.
    - `error` states that the request is too large. It rejects the request unless all its messages are repeats. If there is an
      `error` and the caller has chosen no message_id, `messages` is empty."""

    application: Application
    items: Sequence[RewriteItem]
    plans: Sequence[ItemPlan]  # one plan for each item
    messages: tuple[PlannedMessage, ...]
    problems: tuple[Problem, ...]
    idempotency_key: str | None
    content_hash: str
    earlier_hash: str
    now: int
    error: ApiError | None = None

    @property
    def may_be_repeat(self) -> bool:
        """Whether the request or one of its messages may be a repeat. In this case, the stored rows must be searched."""
        return self.idempotency_key is not None or any(message.has_own_id for message in self.messages)

    def with_own_ids(self) -> PlannedRequest:
        """Return a copy of the request in which every message may be a repeat. Call this if an earlier attempt may have stored the
        messages. The messages are then searched by their ids, including the ids that the service generated for this request."""
        return replace(self, messages=tuple(replace(message, has_own_id=True) for message in self.messages))

    @property
    def may_send(self) -> bool:
        """Whether a gateway may send a message of the request. If so, the opt-out list and the prices must be searched."""
        return any(item.gateway is not None for item in self.items)

    @property
    def row_count(self) -> int:
        """The number of rows of messages and links that the request stores, if all its messages are new."""
        return sum(len(item.to) * (1 + len(plan.links)) for item, plan in zip(self.items, self.plans, strict=False))

    def check(self, new_messages: Sequence[PlannedMessage], other_problems: Sequence[Problem] = ()) -> list[Problem]:
        """Raise ApiError if a problem rejects the request. Otherwise return the other problems: the recipients that they concern
        are left out, and the rest of the request is accepted. Messages that are not in `new_messages` repeat stored messages. The
        error has the code of the first problem, and the details of all problems in request order, followed by
        `other_problems`."""
        if self.error is not None and (new_messages or not self.messages):  # a request that only repeats messages is accepted
            raise self.error
        problems = [*self.problems_of(new_messages), *other_problems]
        rejecting = [problem for problem in problems if not self.items[problem.item].skips(problem.code)]
        if rejecting:
            details = [problem.full_detail for problem in rejecting[:MAX_DETAILS]]
            raise ApiError(rejecting[0].code, details=details, hidden_details=len(rejecting) - len(details))
        return problems

    def all_problems(self) -> list[Problem]:
        """Return the problems of all messages, in request order. This includes the problems of messages that repeat an earlier
        request."""
        return self.problems_of(self.messages)

    def problems_of(self, new_messages: Sequence[PlannedMessage]) -> list[Problem]:
        """Return the problems of the request, of the messages `new_messages`, and of each item that contains one of these
        messages or an invalid recipient."""
        recipients = [*self.problems, *(message.problem for message in new_messages if message.problem is not None)]
        if not recipients and not any(plan.problems for plan in self.plans):
            return []
        items = {message.item_index for message in new_messages} | {problem.item for problem in self.problems}
        problems = [*recipients, *(problem for item in sorted(items) for problem in self.plans[item].problems)]
        return sorted(problems, key=lambda problem: problem.item)


def plan_request(
    application: Application,
    items: Sequence[RewriteItem],
    *,
    idempotency_key: str | None,
    content: bytes,
    earlier_content: bytes = b"",
    now: datetime,
    limits: RewriteLimits,
    hosts: LinkHosts,
    cache: PlanCache | None = None,
) -> PlannedRequest:
    """Check a rewrite request, and return its plan with all problems. `cache` contains the plans of earlier messages.

    `content` is the content that a repeat with the same Idempotency-Key must have. `earlier_content` is the same content in the
    form that the previous release stored."""
    content_hash = earlier_hash = ""
    if idempotency_key is not None:
        content_hash, earlier_hash = (hashlib.sha256(one).hexdigest() for one in (content, earlier_content))
    recipients = sum(len(item.to) for item in items)
    error = None
    if recipients > limits.max_recipients:
        description = f"The request has {counted(recipients, 'recipient')}; at most {limits.max_recipients} may be in one request."
        error = ApiError(ErrorCode.BATCH_TOO_LARGE, description)
    # A request that is too large now can repeat a request that was accepted when the limit was higher. If the caller has chosen no
    # message_id, only the Idempotency-Key can show this, so the messages are not planned.
    if error is not None and not any(any(item.message_ids or ()) for item in items):
        return PlannedRequest(application, items, (), (), (), idempotency_key, content_hash, earlier_hash, to_ms(now), error)
    messages: list[PlannedMessage] = []
    problems: list[Problem] = []
    used_ids: dict[str, str] = {}  # the hash of the content of each message, by message_id
    plans: list[ItemPlan] = []
    for index, item in enumerate(items):
        if item.invalid:
            problems += [Problem(index, ErrorCode.INVALID_REQUEST, detail, recipient) for recipient, detail in item.invalid]
            if any(recipient is None for recipient, _ in item.invalid):
                plans.append(ItemPlan())
                continue
        plan, expires_at = plan_item(application, item, index, now, limits, hosts, cache)
        plans.append(plan)
        messages += _identify(application, item, index, plan, expires_at, used_ids, problems)
    return PlannedRequest(
        application, items, plans, tuple(messages), tuple(problems), idempotency_key, content_hash, earlier_hash, to_ms(now), error
    )


def _identify(
    application: Application,
    item: RewriteItem,
    item_index: int,
    plan: ItemPlan,
    expires_at: int,
    used_ids: dict[str, str],
    problems: list[Problem],
) -> list[PlannedMessage]:
    """Return a planned message for each valid recipient. Add a problem for each invalid recipient and message_id."""

    def reject(code: ErrorCode, name: str, reason: str, recipient: int | None = None) -> None:
        problems.append(Problem(item_index, code, Detail(item.field_path(name, recipient), reason), recipient))

    if not item.to:
        reject(ErrorCode.INVALID_RECIPIENT, "to", "must contain at least one recipient")
    numbers: dict[int, PhoneNumber] = {}
    for index, to in enumerate(item.to):
        try:
            numbers[index] = parse_number(to)
        except PhoneNumberError as error:
            reject(ErrorCode.INVALID_RECIPIENT, "to", error.reason, index)
    refused = _refused_senders(application, item, item_index, numbers)
    message_ids = item.message_ids or (None,) * len(item.to)
    if len(message_ids) != len(item.to):
        reason = f"must contain one id for each of the {counted(len(item.to), 'recipient')}; it has {len(message_ids)}"
        reject(ErrorCode.INVALID_REQUEST, "message_id", reason)
        problems += refused.values()
        return []
    hashes: dict[int, str] = {}
    earlier_hashes: dict[int, str] = {}
    if item.message_ids is not None:
        hashes, earlier_hashes = _check_ids(item, item.message_ids, numbers, used_ids, reject)
    request_id = item.request_id or new_message_id()
    return [
        PlannedMessage(
            item_index=item_index,
            item=item,
            recipient=index,
            number=number,
            message_id=message_ids[index] or new_message_id(),
            has_own_id=message_ids[index] is not None,
            request_id=request_id,
            content_hash=hashes.get(index, ""),
            plan=plan,
            expires_at=expires_at,
            problem=refused.get(index),
            earlier_hash=earlier_hashes.get(index),
        )
        for index, number in numbers.items()
    ]


def _check_ids(
    item: RewriteItem,
    message_ids: Sequence[str | None],
    numbers: Mapping[int, PhoneNumber],
    used_ids: dict[str, str],
    reject: Callable[[ErrorCode, str, str, int], None],
) -> tuple[dict[int, str], dict[int, str]]:
    """Reject each message_id of the caller that also occurs earlier in the request. Add all ids to `used_ids`, with the content
    hashes of their messages.

    Return the content hashes of the messages with an id of the caller. Also return the hashes that earlier releases stored for the
    same content, if they differ. The keys are the indexes of the recipients."""
    content = _content_of(item) if any(message_ids) else b""
    earlier_content = _content_of_0_3(item) if any(message_ids) and item.metadata == {} else b""
    hashes: dict[int, str] = {}
    earlier_hashes: dict[int, str] = {}
    for index, message_id in enumerate(message_ids):
        if message_id is None:
            continue
        recipient = numbers[index].e164 if index in numbers else item.to[index]
        hashes[index] = _content_hash(content, recipient)
        if earlier_content:
            earlier_hashes[index] = _content_hash(earlier_content, recipient)
        if message_id in used_ids:
            # If two messages of a batch have the same id and different content, the error is the same as for two requests with this
            # id. A repetition within one list, or with the same content, is an invalid request.
            is_conflict = message_id not in message_ids[:index] and used_ids[message_id] != hashes[index]
            code = ErrorCode.MESSAGE_ID_CONFLICT if is_conflict else ErrorCode.INVALID_REQUEST
            reject(code, "message_id", f"{message_id!r} is used twice in this request", index)
        used_ids[message_id] = hashes[index]
    return hashes, earlier_hashes


def _refused_senders(
    application: Application, item: RewriteItem, item_index: int, numbers: Mapping[int, PhoneNumber]
) -> dict[int, Problem]:
    """Return a problem for each recipient in a country whose networks do not deliver the sender. The keys are the indexes of the
    recipients. Return {} if the application does not reject such senders."""
    if application.settings.sender_rules != "reject":
        return {}
    sender, problems = item.from_address, {}
    for index, number in numbers.items():
        if (reason := country_problem(sender, number.country)) is not None:
            detail = Detail(item.field_path("from", None), reason)
            problems[index] = Problem(item_index, ErrorCode.SENDER_NOT_ALLOWED, detail, index)
    return problems


def _content_hash(content: bytes, recipient: str) -> str:
    return hashlib.sha256(content + recipient.encode(errors="surrogatepass")).hexdigest()[:32]


def _content_of_0_3(item: RewriteItem) -> bytes:
    """Return the content of a message with empty metadata as releases up to 0.3.0 stored it."""
    return _content_of(item, metadata=item.metadata)


def _content_of(item: RewriteItem, *, metadata: Mapping[str, Any] | None = None) -> bytes:
    """Return all fields of a message, except ids and recipients, as bytes for its content hash.

    Empty metadata counts as no metadata. If `metadata` is given, it is used in place of empty metadata. Content hashes are stored,
    so this format must not change."""
    try:
        expires_at = to_iso(item.expires_at)
    except OverflowError:  # a time at the end of the year 9999 cannot be converted to UTC; `plan_item` rejects it
        expires_at = str(item.expires_at)
    content = (
        item.body,
        item.track or "directives",
        item.from_address,
        item.sender_id_id,
        item.sender_id_alias,
        item.external_request_id,
        item.campaign,
        item.source,
        None if item.mt_price is None else format(item.mt_price.normalize(), "f"),
        item.expires_in,
        expires_at,
        item.fallback_url,
        item.callback_url,
        item.metadata or metadata,
        item.tracking,
        *([item.domain] if item.domain else []),
        # Older releases had no field `opt_out`. The hash of a message without `opt_out` must be equal to the hash that those
        # releases stored.
        *([item.opt_out] if item.opt_out else []),
        *([("gateway", item.gateway)] if item.gateway is not None else []),
    )
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
