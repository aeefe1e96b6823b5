"""A client of the HTTP API of the shortener: `Client`, and `AsyncClient` for asyncio and trio.

    from shortener.client import Client

    client = Client("https://sms.example", api_key="KEY", timeout=5)
    text = client.rewrite(to="+14085550100", body='Look: #track("https://shop.example/a")')
    print(text.body, text.segments)

`timeout` limits the time for each call, in seconds, including repeated attempts. Within this time, the client repeats a call that
got no complete response, or whose response asks the client to try later. The pause before a repeat is at least the time in
`Retry-After`, and has jitter so that many clients do not return at the same moment. Requests that create something have an
`Idempotency-Key`, so a repeat creates nothing twice. Every error is a `ClientError`.

The package needs only httpx and idna. docs/guides/python-client.md says how to install it.
"""

from shortener.client.async_client import AsyncClient
from shortener.client.bulk import BulkMessage, Progress
from shortener.client.calls import RewriteOptions
from shortener.client.exceptions import (
    AuthenticationError,
    BadRequestError,
    BulkError,
    ClientError,
    ConflictError,
    ConnectionFailedError,
    DeadlineError,
    ErrorDetail,
    InsufficientBalanceError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ResponseError,
    ServerFailureError,
    UnexpectedResponseError,
)
from shortener.client.long_text import resolve_directives
from shortener.client.models import (
    ConversionInfo,
    ConversionReceipt,
    FigureTotals,
    LinkInfo,
    MessageInfo,
    ReportSummary,
    RewrittenText,
    SendOutcome,
    SentRecipient,
    ShortLink,
    SkippedRecipient,
)
from shortener.client.receivers import (
    EventMemory,
    EventReceiver,
    Receipt,
    RecentEvents,
    flask_view,
    starlette_endpoint,
)
from shortener.client.retry import RetryPolicy
from shortener.client.sync_client import Client
from shortener.client.webhooks import InvalidSignatureError, WebhookEvent, verify_webhook

__all__ = [
    "AsyncClient",
    "AuthenticationError",
    "BadRequestError",
    "BulkError",
    "BulkMessage",
    "Client",
    "ClientError",
    "ConflictError",
    "ConnectionFailedError",
    "ConversionInfo",
    "ConversionReceipt",
    "DeadlineError",
    "ErrorDetail",
    "EventMemory",
    "EventReceiver",
    "FigureTotals",
    "InsufficientBalanceError",
    "InvalidSignatureError",
    "LinkInfo",
    "MessageInfo",
    "NotFoundError",
    "PermissionDeniedError",
    "Progress",
    "RateLimitError",
    "Receipt",
    "RecentEvents",
    "ReportSummary",
    "ResponseError",
    "RetryPolicy",
    "RewriteOptions",
    "RewrittenText",
    "SendOutcome",
    "SentRecipient",
    "ServerFailureError",
    "ShortLink",
    "SkippedRecipient",
    "UnexpectedResponseError",
    "WebhookEvent",
    "flask_view",
    "resolve_directives",
    "starlette_endpoint",
    "verify_webhook",
]
