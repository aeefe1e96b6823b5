"""This script calls the service with Infobip's Python client, version 3. Its arguments are the base URL, an API key and a text.
It prints JSON.
"""

# mypy: ignore-errors

import json
import sys
import time

from infobip_api_client.api.send_sms_api import SendSmsApi
from infobip_api_client.api_client import ApiClient, Configuration
from infobip_api_client.exceptions import ApiException
from infobip_api_client.model.sms_advanced_textual_request import SmsAdvancedTextualRequest
from infobip_api_client.model.sms_destination import SmsDestination
from infobip_api_client.model.sms_preview_request import SmsPreviewRequest
from infobip_api_client.model.sms_textual_message import SmsTextualMessage
from infobip_api_client.model.sms_tracking import SmsTracking

base, key, text = sys.argv[1:]


def api_with(api_key: str) -> SendSmsApi:
    configuration = Configuration(host=base, api_key={"APIKeyHeader": api_key}, api_key_prefix={"APIKeyHeader": "App"})
    return SendSmsApi(ApiClient(configuration))


def request(to: str, **options) -> SmsAdvancedTextualRequest:
    message = SmsTextualMessage(_from="InfoSMS", destinations=[SmsDestination(to=to)], text=text)
    return SmsAdvancedTextualRequest(messages=[message], **options)


api = api_with(key)
sent = api.send_sms_message(
    sms_advanced_textual_request=request("41793026731", tracking=SmsTracking(track="URL", type="One_Time_Pin"))
)
message_id = sent.messages[0].message_id

deadline = time.monotonic() + 30
found = []
while not found and time.monotonic() < deadline:
    found = api.get_outbound_sms_message_delivery_reports(message_id=message_id).results
    time.sleep(0.1)  # wait a moment, then check the condition again
log = api.get_outbound_sms_message_logs(message_id=[message_id])
preview = api.preview_sms_message(sms_preview_request=SmsPreviewRequest(text=text))
try:
    api.send_sms_message(sms_advanced_textual_request=request("12X"))
    error = None
except ApiException as failure:
    error = failure
try:
    api_with("wrong").get_outbound_sms_message_logs()
    unauthorized = None
except ApiException as failure:
    unauthorized = failure.status

sys.stdout.write(
    json.dumps(
        {
            "bulk_id": sent.bulk_id,
            "message_id": message_id,
            "status": sent.messages[0].status.name,
            "segments": preview.previews[0].message_count,
            "text_is_visible": hasattr(sent.messages[0], "text"),
            "report": [found[0].message_id, found[0].status.name, found[0].bulk_id, found[0]._from],
            "log": [log.results[0].message_id, log.results[0].status.group_name, log.results[0].to],
            "preview": [preview.previews[0].text_preview, preview.previews[0].message_count],
            "error": [error.status, json.loads(error.body)["requestError"]["serviceException"]["messageId"]],
            "unauthorized": unauthorized,
        }
    )
)
