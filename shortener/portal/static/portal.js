// The script of the portal. Every page works without it. It only makes pages easier to use, and never fetches or counts anything.
const root = document.documentElement;
root.classList.add("js");

// The token of an invitation is in the fragment of the address. Put it into the form, and remove it from the address bar.
const token = document.querySelector("[data-token]");
if (token && location.hash.length > 1) {
  token.value = location.hash.slice(1);
  history.replaceState(null, "", location.pathname + location.search);
  token.form.requestSubmit();
}

// Send the time zone of the browser with the form of the welcome page.
for (const field of document.querySelectorAll("[data-time-zone]")) {
  field.value = Intl.DateTimeFormat().resolvedOptions().timeZone || "";
}

document.addEventListener("change", (event) => {
  const form = event.target.closest("form[data-submit-on-change]");
  if (form && !event.target.hasAttribute("data-wait")) form.requestSubmit();
});

// The fields of a form with the method GET become the query of a URL. Leave out empty fields, so that the URL stays short.
document.addEventListener("formdata", (event) => {
  if (event.target.method !== "get") return;
  for (const [name, value] of [...event.formData]) if (value === "") event.formData.delete(name);
});

// A second click within ten seconds does not send the form again if the form has a form_id: the second response would hide the new
// secret that the first response shows. A later click sends the form, because the first request may have been stopped.
document.addEventListener("submit", (event) => {
  const { dataset } = event.target;
  if (event.defaultPrevented || !event.target.querySelector("[name=form_id]")) return;
  if (Date.now() - dataset.sent < 10000) event.preventDefault(); else dataset.sent = Date.now();
});
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
});

// The reason why a value was rejected disappears when the value is changed.
document.addEventListener("input", ({ target }) => {
  if (target.getAttribute("aria-invalid") !== "true") return;
  target.removeAttribute("aria-invalid");
  const reason = document.getElementById(`w-${target.name}`);
  if (reason) reason.hidden = true;
});

// On plain http, browsers have no `navigator.clipboard`, except for localhost.
async function copy(text) {
  if (navigator.clipboard) { await navigator.clipboard.writeText(text); return; }
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) {
    const text = button.dataset.copy;
    await copy(text.startsWith("/portal/") ? new URL(text, location).href : text);
    const status = document.getElementById("status");
    if (status) status.textContent = "Copied";
    showTip("Copied", button.getBoundingClientRect());
    setTimeout(() => { tip.hidden = true; }, 1500);
  }
  // An open menu closes when something else is clicked.
  for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});

// Keyboard shortcuts, outside of fields: / to search, g and a letter to go to a page, ? for the list of all shortcuts.
let prefix = false;
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") for (const menu of document.querySelectorAll("details.menu[open]")) { menu.open = false; menu.firstElementChild.focus(); }
  if (root.dataset.shortcuts !== "on" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea, [contenteditable]")) return;
  const list = document.getElementById("shortcuts");
  if (event.key === "?" && list) { if (list.open) list.close(); else list.showModal(); return; }
  const follow = (name) => document.querySelector(`[data-key="${CSS.escape(name)}"]`);
  const found = follow(prefix ? `g ${event.key}` : event.key);
  prefix = !prefix && event.key === "g";
  if (!found) return;
  event.preventDefault();
  if (found.matches("input")) found.focus(); else found.click();
});

// The badge of the live page says whether the stream of new rows is open. The SSE extension of htmx sends these events.
const state = document.querySelector("[data-stream-state]");
if (state) {
  const show = (text, kind) => {
    state.lastElementChild.textContent = text;
    for (const name of ["good", "warn", "bad"]) state.classList.toggle(name, name === kind);
  };
  let failed = false;
  document.addEventListener("htmx:sse:before:connection", () => { if (!failed) show("connecting", ""); });
  document.addEventListener("htmx:sse:after:connection", () => { failed = false; show("following", "good"); });
  document.addEventListener("htmx:sse:error", (event) => {
    failed = true;
    if (event.detail.status === 401) show("signed out: reload the page", "bad"); else show("interrupted, tries again", "warn");
  });
  document.addEventListener("htmx:response:error", (event) => {
    show(event.detail.ctx.response.status === 429 ? "other pages of this session follow already" : "not connected: reload the page", "bad");
  });
}

// A list to which the stream adds rows keeps only its newest rows. Every ten seconds, screen readers get the number of new rows.
for (const list of document.querySelectorAll("[data-limit]")) {
  let added = 0;
  new MutationObserver((changes) => {
    for (const change of changes) added += [...change.addedNodes].filter((node) => node.nodeType === 1).length;
    while (list.children.length > Number(list.dataset.limit)) list.lastElementChild.remove();
  }).observe(list, { childList: true });
  setInterval(() => {
    const status = document.getElementById("status");
    if (added && status) status.textContent = `${added} new`;
    added = 0;
  }, 10000);
}

// A short text above an element.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
function showTip(text, box, top = box.top) {
  tip.hidden = false;
  tip.textContent = text;
  const left = box.left + (box.width - tip.offsetWidth) / 2;
  tip.style.left = `${Math.max(8, Math.min(left, root.clientWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(8, top - tip.offsetHeight - 8)}px`;
}

// The description of a bar replaces the browser's own tooltip, which would appear only after a delay.
document.addEventListener("pointerover", (event) => {
  const bar = event.target.closest(".plot .slot, .plot .gap");
  if (!bar) { if (tip.dataset.bar) tip.hidden = true; delete tip.dataset.bar; return; }
  const title = bar.querySelector("title");
  if (title) { bar.dataset.tip = title.textContent; title.remove(); }
  tip.dataset.bar = "1";
  showTip(bar.dataset.tip, bar.getBoundingClientRect(), (bar.querySelector(".bar") || bar).getBoundingClientRect().top);
});
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
