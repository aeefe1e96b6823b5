// Calls of the npm package @infobip-api/sdk. Arguments: base URL, API key, text. Prints JSON.
import { createRequire } from "node:module";

const { AuthType, Infobip } = createRequire(process.cwd() + "/")("@infobip-api/sdk");
const [base, key, text] = process.argv.slice(2);
const client = (apiKey) => new Infobip({ baseUrl: base, apiKey, authType: AuthType.ApiKey }).channels.sms;
const sms = client(key);
const request = (to, more = {}) => ({ messages: [{ from: "InfoSMS", destinations: [{ to }], text }], ...more });

const sent = await sms.send(
  request("41793026731", { tracking: { track: "SMS", type: "One_Time_Pin" }, urlOptions: { shortenUrl: true } }),
);
const message = sent.data.messages[0];
let found = [];
for (const deadline = Date.now() + 30_000; !found.length && Date.now() < deadline; ) {
  found = (await sms.reports.get({ messageId: message.messageId })).data.results;
  await new Promise((resolve) => setTimeout(resolve, 100));
}
const log = (await sms.logs.get({ messageId: message.messageId })).data.results[0];
const preview = (await sms.preview({ text })).data.previews[0];
// The client returns the error of a rejected request instead of throwing it.
const error = (await sms.send(request("12X"))).response;
const unauthorized = (await client("wrong").logs.get({})).response;

console.log(
  JSON.stringify({
    bulk_id: sent.data.bulkId,
    message_id: message.messageId,
    status: message.status.name,
    segments: message.smsCount,
    text_is_visible: message.text.includes(message.links[0].short_url),
    report: [found[0].messageId, found[0].status.name, found[0].bulkId, found[0].from],
    log: [log.messageId, log.status.groupName, log.to],
    preview: [preview.textPreview, preview.messageCount],
    error: [error.status, error.data.requestError.serviceException.messageId],
    unauthorized: unauthorized.status,
  }),
);
