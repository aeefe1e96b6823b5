// An SMSC for tests, with the npm package `smpp`. Usage: node smsc.js FOLDER PORT LOG [KEY CERTIFICATE]
// Each received message is a JSON line in LOG before its response is sent. A text that begins with a word below causes a failure once.
const fs = require("fs");
const path = require("path");
const [folder, port, log, key, certificate] = process.argv.slice(2);
const smpp = require(path.join(folder, "node_modules", "smpp"));

const file = fs.openSync(log, "a");
const seen = new Set();
const write = (entry) => fs.writeSync(file, JSON.stringify(entry) + "\n");
const first = (name) => !seen.has(name) && seen.add(name);
const options = key ? { key: fs.readFileSync(key), cert: fs.readFileSync(certificate) } : {};
let number = Date.now() % 0x40000000; // a new process continues with other ids

smpp.createServer(options, (session) => {
  session.on("error", () => session.destroy());
  session.on("bind_transmitter", (pdu) => session.send(pdu.response()));
  session.on("bind_transceiver", (pdu) => {
    write({ event: "bind", system_id: pdu.system_id, secure: session.socket.encrypted === true });
    session.send(pdu.response({ command_status: pdu.password === "wrong" ? smpp.ESME_RINVPASWD : 0 }));
  });
  session.on("enquire_link", (pdu) => session.send(pdu.response()));
  session.on("unbind", (pdu) => { session.send(pdu.response()); session.close(); });
  session.on("deliver_sm_resp", (pdu) => write({ event: "deliver_sm_resp", status: pdu.command_status }));
  session.on("submit_sm", (pdu) => {
    const text = pdu.short_message.message;
    const udh = pdu.short_message.udh ? Buffer.concat([].concat(pdu.short_message.udh)).toString("hex") : "";
    const id = (++number).toString(16).toUpperCase().padStart(8, "0");
    write({ event: "submit", to: pdu.destination_addr, from: pdu.source_addr, text, udh, coding: pdu.data_coding, id,
      receipt: pdu.registered_delivery });
    if (text.startsWith("throttle") && first("throttle" + text)) {
      session.send(pdu.response({ command_status: smpp.ESME_RTHROTTLED }));
      return;
    }
    if (text.startsWith("drop") && first("drop" + text)) { session.destroy(); return; }
    if (text.startsWith("reject")) { session.send(pdu.response({ command_status: smpp.ESME_RINVDSTADR })); return; }
    session.send(pdu.response({ message_id: id }));
    write({ event: "response", to: pdu.destination_addr, id });
    if (!pdu.registered_delivery) return;
    const receipt = `id:${parseInt(id, 16)} sub:001 dlvrd:001 submit date:2611281200 done date:2611281201 stat:DELIVRD err:000 text:`;
    session.deliver_sm({ source_addr: pdu.destination_addr, destination_addr: pdu.source_addr, esm_class: 4, short_message: receipt });
    if (text.startsWith("ask")) {
      session.deliver_sm({ source_addr: pdu.destination_addr, destination_addr: pdu.source_addr, short_message: "Stop!" });
    }
  });
}).listen(Number(port), "127.0.0.1");
