// What the page knows of the server: its state, its models, and whether it wants a key. Asks again only until it is ready.

import { byId } from "./dom.js";
import { get, key, open } from "./api.js";

const AGAIN_MS = 2000;

export const server = { state: "connecting", trusted: false, error: null, models: [], about: null };

const listeners = new Set();
let timer = null;

export const onServer = (listener) => {
  listeners.add(listener);
  listener(server);
};

export const ready = () => server.state === "ok" && server.trusted && server.models.length > 0;
export const embedders = () => server.models.filter((card) => card.task === "embed");
export const embedder = () => embedders()[0];
export const reranker = () => server.models.find((card) => card.task === "rerank");

export async function look() {
  clearTimeout(timer);
  try {
    const found = await (await open("health")).json();
    server.state = found.status;
    server.error = found.error ?? null;
    server.trusted = found.ready !== undefined && found.ready !== null;
    if (server.trusted) await learn();
  } catch {
    server.state = "gone";
  }
  tell();
}

async function learn() {
  try {
    server.about = (await get("api/v1/about")).data;
    server.models = server.about.models;
  } catch (error) {
    if (error.status !== 401) server.state = error.status === 0 ? "gone" : server.state;
    else server.trusted = false;
  }
}

const unsettled = () =>
  server.state !== "ok" ||
  (server.trusted && (server.models.length === 0 || embedders().some((card) => card.state === "ready" && !card.space)));

function tell() {
  for (const listener of listeners) listener(server);
  if (unsettled()) timer = setTimeout(() => document.hidden || look(), AGAIN_MS);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && unsettled()) look();
});

// Who was just told more by an answer or the stream than the last look.
export function hear(state) {
  if (state === server.state) return;
  if (state === "ok") look();
  else {
    server.state = state;
    clearTimeout(timer);
    tell();
  }
}

// The key's dialogue.

export function askForKey(why = "") {
  const dialog = byId("key");
  byId("key-error").textContent = why;
  if (!dialog.open) {
    byId("key-input").value = "";
    dialog.showModal();
  }
}

async function tryKey(event) {
  event.preventDefault();
  const given = byId("key-input").value.trim();
  if (!given) return (byId("key-error").textContent = "Type the key first.");
  if (!/^[\x21-\x7e]+$/.test(given)) return (byId("key-error").textContent = "A key has no spaces and only ASCII letters.");
  key.set(given);
  await look();
  if (server.trusted) return byId("key").close();
  key.forget();
  byId("key-error").textContent =
    server.state === "gone" ? "The server does not answer; try again." : "The server does not know this key.";
  return byId("key-input").select();
}

byId("key-form").addEventListener("submit", tryKey);
byId("forget").addEventListener("click", () => {
  key.forget();
  server.models = [];
  server.about = null;
  look();
});
