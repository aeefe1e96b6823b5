// Search and "Try it" of the page /docs. Without this script the page is complete, except for these two.
"use strict";

const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Search: every word must occur in the method, path, name, group or description of an operation.

const search = one("#search");
const operations = all("details.operation").map((card) => ({
  card,
  entry: one(`nav a[href="#${CSS.escape(one(".inside", card).id)}"]`).parentElement,
  text: card.dataset.search.toLowerCase(),
}));

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const { card, entry, text } of operations) {
    const matches = words.every((word) => text.includes(word));
    card.hidden = entry.hidden = !matches;
    found += matches;
  }
  for (const section of all("section.group")) section.hidden = !one("details.operation:not([hidden])", section);
  for (const part of all("nav .part[data-group]")) {
    let next = part.nextElementSibling;
    let visible = false;
    for (; next && !next.classList.contains("part"); next = next.nextElementSibling) visible ||= !next.hidden;
    part.hidden = !visible;
  }
  one("#found").textContent = words.length ? `${found} of ${operations.length} operations` : "";
}

search.addEventListener("input", filter);
document.addEventListener("keydown", (event) => {
  const isTyping = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName);
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    search.focus();
  } else if (event.key === "Escape" && document.activeElement === search) {
    search.value = "";
    filter();
  }
});

// A link to an operation opens it.

function open() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const card = target && target.closest("details.card");
  if (!card) return;
  if (card.hidden || card.closest("section[hidden]")) {
    search.value = "";
    filter();
  }
  card.open = true;
  card.scrollIntoView();
}
addEventListener("hashchange", open);

// Try it: sends the request of the form from this page. Credentials are kept only in the two inputs of the page.

function requestOf(form) {
  let path = form.dataset.path;
  const query = new URLSearchParams();
  const headers = {};
  for (const input of all("[data-in]", form)) {
    if (input.dataset.in === "path") path = path.replace(`{${input.name}}`, encodeURIComponent(input.value));
    else if (input.value === "") continue;
    else if (input.dataset.in === "query") query.append(input.name, input.value);
    else headers[input.name] = input.value;
  }
  if (form.dataset.credential === "key") headers["X-API-Key"] = one("#api-key").value.trim();
  if (form.dataset.credential === "token") headers["X-Api-Token"] = one("#tracker-token").value.trim();
  const body = one("textarea", form);
  const content = body && body.value.trim() ? body.value : undefined;
  if (content !== undefined) headers["Content-Type"] = "application/json";
  const text = query.toString();
  return [path + (text ? `?${text}` : ""), { method: form.dataset.method, headers, body: content, credentials: "omit", redirect: "manual" }];
}

function show(form, status, text) {
  one(".status", form).textContent = status;
  one(".answer", form).textContent = text;
  one(".result", form).hidden = false;
}

function readable(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

async function send(form) {
  const button = one("button", form);
  button.disabled = true;
  const start = performance.now();
  try {
    const response = await fetch(...requestOf(form));
    if (response.type === "opaqueredirect") {
      show(form, "Redirect", "The browser does not show the target of a redirect.");
      return;
    }
    const text = await response.text();
    const id = response.headers.get("X-Request-Id");
    const milliseconds = Math.round(performance.now() - start);
    show(form, `${response.status} in ${milliseconds} ms${id ? `, request ${id}` : ""}`, readable(text));
  } catch (error) {
    show(form, "Not sent", String(error));
  } finally {
    button.disabled = false;
  }
}

for (const form of all("form.try")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form);
  });
}

for (const part of all("[data-script]")) part.hidden = false;
open();
