"""This script calls the service with Infobip's Python client, version 5 or 6. Its arguments are the base URL, an API key and a
text. It prints JSON.
"""

# mypy: ignore-errors

import json
import sys
import time

from infobip_api_client import models
from infobip_api_client.api.sms_api import SmsApi
from infobip_api_client.api_client import ApiClient
from infobip_api_client.configuration import Configuration
from infobip_api_client.exceptions import BadRequestException, UnauthorizedException

base, key, text = sys.argv[1:]


def api_with(api_key: str) -> SmsApi:
    configuration = Configuration(host=base, api_key={"APIKeyHeader": api_key}, api_key_prefix={"APIKeyHeader": "App"})
    return SmsApi(ApiClient(configuration))


def request(to: str, **options) -> models.SmsRequest:
    message = models.SmsMessage(
        sender="InfoSMS",
        destinations=[models.SmsDestination(to=to)],
        content=models.SmsMessageContent(models.SmsTextContent(text=text)),
    )
    return models.SmsRequest(messages=[message], **options)


api = api_with(key)
options = models.SmsMessageRequestOptions(
    tracking=models.UrlOptions(shorten_url=True, track_clicks=True),
    conversion_tracking=models.SmsTracking(use_conversion_tracking=True, conversion_tracking_name="One_Time_Pin"),
)
sent = api.send_sms_messages(request("41793026731", options=options))
message_id = sent.messages[0].message_id

deadline = time.monotonic() + 30
found = []
while not found and time.monotonic() < deadline:
    found = api.get_outbound_sms_message_delivery_reports(message_id=message_id).results
    time.sleep(0.1)  # wait a moment, then check the condition again
log = api.get_outbound_sms_message_logs(message_id=[message_id])
preview = api.preview_sms_message(models.SmsPreviewRequest(text=text))
try:
    api.send_sms_messages(request("12X"))
    error = None
except BadRequestException as failure:
    error = failure
try:
    api_with("wrong").get_outbound_sms_message_logs()
    unauthorized = None
except UnauthorizedException as failure:
    unauthorized = failure.status

sys.stdout.write(
    json.dumps(
        {
            "bulk_id": sent.bulk_id,
            "message_id": message_id,
            "status": sent.messages[0].status.name,
            "segments": sent.messages[0].details.message_count,
            "text_is_visible": "text" in sent.messages[0].to_dict(),
            "report": [found[0].message_id, found[0].status.name, found[0].bulk_id, found[0].sender],
            "log": [log.results[0].message_id, log.results[0].status.group_name, log.results[0].destination],
            "preview": [preview.previews[0].text_preview, preview.previews[0].message_count],
            "error": [error.status, error.data.error_code],
            "violations": [violation.var_property for violation in error.data.violations],
            "unauthorized": unauthorized,
        }
    )
)
