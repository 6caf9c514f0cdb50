// The frame: which view is shown, the server's state above it, and the notices between.

import { byId, h } from "./dom.js";
import { key } from "./api.js";
import { askForKey, embedder, look, onServer, ready, reranker, server } from "./server.js";
import { startCompare } from "./compare.js";
import { startRerank } from "./rerank.js";
import { startLive } from "./live.js";
import { startModel } from "./model.js";

const VIEWS = { try: "try", rerank: "try", live: "live", model: "model" };

const WORDS = {
  connecting: "Connecting",
  ok: "ready",
  loading: "loading",
  warming: "warming up",
  draining: "shutting down",
  failed: "failed",
  gone: "no answer",
};

const NOTICES = {
  loading: ["The model is loading.", "Everything here works as soon as it is ready; this page notices by itself."],
  warming: ["The model is warming up.", "Some seconds more; this page notices by itself."],
  draining: ["The server is shutting down.", "What it has begun it still answers; this page waits for its return."],
  gone: ["The server does not answer.", "It is not running, or the network between is down. This page tries again by itself."],
};

const live = startLive();
startCompare();
startRerank();
startModel();

function route() {
  const asked = location.hash.slice(1);
  if (asked === "main") return;
  const name = asked in VIEWS ? asked : "try";
  const view = VIEWS[name];
  for (const one of new Set(Object.values(VIEWS))) byId(`view-${one}`).hidden = one !== view;
  for (const one of ["try", "rerank"]) byId(`panel-${one}`).hidden = one !== name;
  mark(".views a", view);
  mark(".switch a", name);
  document.title = `vecgate: ${view}`;
  live.show(view === "live");
}

function mark(selector, name) {
  for (const link of document.querySelectorAll(selector)) {
    const here = link.getAttribute("href") === `#${name}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function showState() {
  const model = (embedder() ?? reranker())?.name;
  const locked = server.state === "ok" && !server.trusted;
  byId("state").dataset.state = locked ? "locked" : server.state;
  byId("state-text").textContent = locked ? "locked" : [model, WORDS[server.state]].filter(Boolean).join(" · ");
  byId("forget").hidden = !key.get();
  showNotice();
  for (const id of ["compare-go", "rerank-go"]) byId(id).disabled = !ready();
  const known = ["ok", "loading", "warming", "failed"].includes(server.state);
  if (known && !server.trusted) askForKey(key.get() ? "The server does not know this key." : "");
}

function showNotice() {
  const failed = server.state === "failed";
  const locked = server.state === "ok" && !server.trusted;
  const told = failed
    ? ["The model failed.", server.error ?? "The server's log says why."]
    : locked
      ? ["This server asks for a key.", "Nothing can be tried or watched without one."]
      : NOTICES[server.state];
  const box = byId("notice");
  if (box.dataset.shown === String(told)) return;
  box.dataset.shown = String(told);
  const kind = failed || server.state === "gone" ? "notice bad" : "notice";
  const enter = locked && h("button", { type: "button", text: "Enter a key", onclick: () => askForKey() });
  box.replaceChildren(...(told ? [h("div", { class: kind }, h("strong", { text: told[0] }), ` ${told[1]}`, enter || "")] : []));
}

addEventListener("hashchange", route);
route();
onServer(showState);
look();
