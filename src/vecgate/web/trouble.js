// What went wrong, where the result would stand: what it means, what the server said, what to do next.

import { h } from "./dom.js";
import { askForKey, hear, look } from "./server.js";

const TITLES = {
  0: "No answer",
  400: "The server refuses this request",
  401: "The key is not valid",
  404: "There is no such model",
  408: "The request came too slowly",
  413: "That is too much at once",
  422: "The server refuses this request",
  429: "The server is busy",
  500: "The server failed",
  503: "The model is not ready",
  504: "It took too long",
};

// A card for the failure; `again` repeats the request.
export function trouble(error, again) {
  if (error.status === 401) askForKey("The server does not know this key.");
  if (error.status === 0) hear("gone");
  if (error.status === 503) look();
  const retry = h("button", { type: "button", onclick: again, text: "Try again" });
  const card = h(
    "div",
    { class: "card trouble", role: "alert", "data-status": error.status },
    h("h2", { text: TITLES[error.status] ?? `The server answered ${error.status}` }),
    h("p", { text: error.message }),
    h("div", { class: "actions" }, error.status === 401 ? keyButton() : retry),
    error.id && h("p", { class: "hint" }, "Request id ", h("code", { text: error.id })),
  );
  if (error.retryAfterS) countDown(retry, error.retryAfterS, again);
  return card;
}

const keyButton = () => h("button", { type: "button", text: "Enter a key", onclick: () => askForKey() });

// Repeats once by itself when the server said it would have room, as long as the card still stands.
function countDown(button, left, again) {
  if (left <= 0) return again();
  button.textContent = `Try again (by itself in ${left} s)`;
  return setTimeout(() => button.isConnected && countDown(button, left - 1, again), 1000);
}

export const waiting = (what) => h("div", { class: "card quietly" }, h("span", { class: "spin" }), h("p", { text: what }));
