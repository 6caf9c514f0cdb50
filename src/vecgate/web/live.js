// Live: what the server does at this moment and did in the last minutes, from one stream that is open while this is seen.

import { byId, bytes, grouped, h, plural, seconds, short, styled } from "./dom.js";
import { SPAN_S, chart } from "./chart.js";
import { between, quantile, sum } from "./readings.js";
import { hear, askForKey, onServer, server } from "./server.js";
import { watch } from "./stream.js";

const NOW_S = 5; // a rate is that of so many seconds: a long batch is counted at its end
const QUANTILES_S = 15;
const SHARES = [0.5, 0.95, 0.99];

const KINDS = {
  400: "The request was wrong",
  401: "No key, or a wrong one",
  403: "Host or origin not allowed",
  404: "No such path or model",
  405: "Wrong method",
  408: "The body came too slowly",
  413: "The body was too large",
  415: "The body was compressed",
  422: "The request was wrong (TEI)",
  424: "The model failed (TEI)",
  429: "No room, or the rate was used up",
  499: "The client left",
  500: "The server failed",
  503: "Loading or shutting down",
  504: "The deadline passed",
};

const REASONS = {
  in_flight: "too many at once",
  body_memory: "too many bytes",
  queue: "too much work waits",
  draining: "shutting down",
  rate_limit: "rate of a key",
  key_concurrency: "too many of a key",
};

const percent = (share) => `${short(100 * share)} %`;

let readings = []; // null: a gap
let stop = null;
let shown = false;
let charts = null;

export function startLive() {
  document.addEventListener("visibilitychange", turn);
  onServer(turn);
  return {
    show(visible) {
      shown = visible;
      turn();
    },
  };
}

// The stream runs while this view is seen, and at no other time.
function turn() {
  const wanted = shown && !document.hidden && server.trusted;
  if (wanted && !stop) {
    if (!charts) build();
    tell("Connecting");
    stop = watch("api/v1/live", take, trouble);
  } else if (!wanted && stop) {
    stop();
    stop = null;
    readings.push(null);
  }
  if (shown && !server.trusted) tell(server.state === "ok" ? "This server asks for a key" : "Waiting for the server");
}

function tell(text, kind = "") {
  byId("live-state").textContent = text;
  byId("live-state").dataset.kind = kind;
}

function trouble(error) {
  readings.push(null);
  if (error.status === 401) {
    stop = null;
    askForKey("The server does not know this key.");
  } else if (error.status === 0) hear("gone");
  tell(error.message, "bad");
}

function take(reading) {
  hear(reading.status);
  const last = readings.findLast(Boolean);
  if (last && reading.uptime_s < last.uptime_s) readings = []; // another process: its counters begin anew
  readings.push(reading);
  while (readings.length && (!readings[0] || reading.uptime_s - readings[0].uptime_s > SPAN_S + QUANTILES_S)) readings.shift();
  draw(reading);
}

function build() {
  const rate = (value) => `${short(value)} /s`;
  charts = {
    requests: chart("Requests", ["requests"], rate, { id: "chart-requests" }),
    texts: chart("Texts", ["texts"], rate, { id: "chart-texts" }),
    tokens: chart("Tokens", ["tokens"], rate, { id: "chart-tokens" }),
    latency: chart("Time of a request", ["p50", "p95", "p99"], seconds, { id: "chart-latency" }),
    queue: chart("Waiting texts", ["waiting"], short, { id: "chart-queue" }),
    busy: chart("Device busy", ["busy"], percent, { id: "chart-busy", floor: 1 }),
  };
  byId("live-out").replaceChildren(
    h("div", { id: "refusing" }),
    h("div", { class: "charts" }, Object.values(charts).map((one) => one.element)),
    h(
      "div",
      { class: "three" },
      h("section", { class: "card" }, h("h2", { text: "Batches and queue" }), h("div", { id: "batches" })),
      h("section", { class: "card" }, h("h2", { text: "Memory and processor" }), h("div", { id: "memory" })),
      h("section", { class: "card" }, h("h2", { text: "Errors by kind" }), h("div", { id: "errors" })),
    ),
  );
}

// The reading about so many seconds before one, with no gap between.
function back(at, spanS) {
  let found = null;
  for (let i = at - 1; i >= 0 && readings[i]; i -= 1) {
    found = readings[i];
    if (readings[at].uptime_s - found.uptime_s >= spanS - 0.5) break;
  }
  return found;
}

function draw(reading) {
  const points = readings.map((one, i) => (one ? point(one, i) : null));
  const [nowS, before] = [reading.uptime_s, back(readings.length - 1, NOW_S)];
  const now = before && between(before, reading);
  const series = (pick) => points.map((one) => (one ? [one.atS, ...pick(one)] : null));
  for (const name of ["requests", "texts", "tokens", "busy"]) {
    charts[name].draw(series((one) => [one[name]]), nowS, [now ? now[name] : null]);
  }
  charts.latency.draw(series((one) => one.quantiles), nowS, points.at(-1).quantiles);
  charts.queue.draw(series((one) => [one.waiting]), nowS, [reading.queue.items]);
  const total = reading.totals.requests;
  tell(total === 0 ? "No requests yet. Charts move as soon as somebody calls." : `${plural(total, "request")} in ${seconds(reading.uptime_s)}, ${reading.in_flight} in flight now`);
  byId("batches").replaceChildren(...batches(reading, now));
  byId("memory").replaceChildren(...memory(reading));
  byId("errors").replaceChildren(errors(reading));
  refusing(now);
}

function point(reading, i) {
  const [before, wide] = [back(i, NOW_S), back(i, QUANTILES_S)];
  const by = before && between(before, reading);
  return {
    atS: reading.uptime_s,
    requests: by?.requests ?? null,
    texts: by?.texts ?? null,
    tokens: by?.tokens ?? null,
    busy: by?.busy ?? null,
    waiting: reading.queue.items,
    quantiles: SHARES.map((share) => (wide ? quantile(share, wide, reading) : null)),
  };
}

const facts = (rows) =>
  h("dl", { class: "facts" }, rows.map(([name, value]) => h("div", null, h("dt", { text: name }), h("dd", { text: value }))));

function batches(reading, now) {
  const whole = between({ uptime_s: 0, totals: zeros(reading.totals) }, reading);
  const told = (value, unit) => (value === null || value === undefined ? "–" : unit(value));
  const averages = [
    ["Rows of a batch", "rows", short],
    ["Filled", "fill", percent],
    ["Padding", "padding", percent],
    ["A text waits", "queued_s", seconds],
  ].map(([name, key, unit]) =>
    h("tr", null, h("th", { scope: "row", text: name }), h("td", { text: told(now?.[key], unit) }), h("td", { text: told(whole[key], unit) })),
  );
  const head = h("tr", null, ["On average", "Now", "Since start"].map((text) => h("th", { scope: "col", text })));
  const { queue } = reading;
  return [
    facts([
      ["Waiting", `${plural(queue.items, "text")}, ${plural(queue.tokens, "token")}`],
      ["Work ahead", queue.wait_s > 0 ? seconds(queue.wait_s) : "none"],
      ["Device's rate", queue.tokens_per_s ? `${short(queue.tokens_per_s)} tokens/s` : "–"],
      ["Cut to the limit", plural(reading.totals.truncated, "text")],
    ]),
    h("table", { class: "plain numbers" }, h("thead", null, head), h("tbody", null, averages)),
  ];
}

const zeros = (totals) =>
  Object.fromEntries(Object.entries(totals).map(([name, value]) => [name, typeof value === "number" ? 0 : Array.isArray(value) ? value.map(() => 0) : {}]));

function memory({ process, machine, device_memory: device }) {
  const used = machine.memory_bytes - machine.memory_available_bytes;
  return [
    meter("This process", process.memory_bytes, machine.memory_bytes),
    meter("The machine", used, machine.memory_bytes),
    device && device.limit_bytes && meter("The device's arrays", device.active_bytes + device.cache_bytes, device.limit_bytes),
    facts([
      ["Processor", `${Math.round(process.cpu_percent)} % of one core`],
      ["All processors", `${Math.round(machine.cpu_percent)} % of ${plural(machine.cpu_count, "core")}`],
    ]),
  ].filter(Boolean);
}

function meter(name, value, most) {
  const bar = styled(h("i"), { width: `${Math.min(100, (100 * value) / most)}%` });
  return h(
    "div",
    { class: "gauge" },
    h("p", null, h("span", { text: name }), h("span", { class: "count", text: `${bytes(value)} of ${bytes(most)}` })),
    h("span", { class: "meter", "aria-hidden": "true" }, bar),
  );
}

function errors({ totals }) {
  const first = readings.find(Boolean).totals;
  const statuses = Object.entries(totals.errors).sort(([, a], [, b]) => b - a);
  if (statuses.length === 0) return h("p", { class: "good", text: "None since the start." });
  const rows = statuses.map(([status, count]) => [`${KINDS[status] ?? "Other"}`, status, count - (first.errors[status] ?? 0), count]);
  const refused = Object.entries(totals.shed).map(([reason, count]) => [`Refused: ${REASONS[reason] ?? reason}`, "", count - (first.shed[reason] ?? 0), count]);
  const head = h("tr", null, ["Kind", "Status", "Seen here", "Since start"].map((text) => h("th", { scope: "col", text })));
  const body = [...rows, ...refused].map(([kind, status, lately, all]) =>
    h("tr", null, h("th", { scope: "row", text: kind }), h("td", { text: status }), h("td", { text: grouped(lately) }), h("td", { text: grouped(all) })),
  );
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Errors" }, h("table", { class: "plain numbers" }, h("thead", null, head), h("tbody", null, body)));
}

function refusing(now) {
  const told = now && now.refused > 0 ? `Overloaded: ${plural(now.refused, "request")} refused in the last ${NOW_S} seconds.` : "";
  const box = byId("refusing");
  if (box.dataset.told === told) return;
  box.dataset.told = told;
  box.replaceChildren(...(told ? [h("div", { class: "notice bad", role: "alert", text: told })] : []));
}
