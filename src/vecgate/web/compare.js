// Try: texts in, their similarities, a map of them, what was counted and cut, and what role and dimensions change.

import { byId, bytes, grouped, h, linesOf, plural, styled } from "./dom.js";
import { base, cuts, key, post, timing } from "./api.js";
import { embedCalls } from "./calls.js";
import { codeCard } from "./code.js";
import { dark, heat, similarities } from "./heat.js";
import { map } from "./map.js";
import { embedders, onServer, ready, server } from "./server.js";
import { trouble, waiting } from "./trouble.js";

const MOST = 40;

const EXAMPLES = [
  [
    "A cat sleeps on the windowsill",
    "The kitten is napping by the window",
    "A dog chases its ball through the park",
    "Shares fell after the bank cut its forecast",
    "The central bank left interest rates unchanged",
    "How do I reset my password?",
  ],
  [
    "How long does delivery take?",
    "When will my parcel arrive?",
    "My order has not come yet",
    "Can I pay by invoice?",
    "Which payment methods do you accept?",
    "I would like my money back",
    "How do I return an item?",
  ],
  [
    "Mix flour, water, salt and yeast and let the dough rest",
    "Bake the loaf at 230 degrees until the crust is dark",
    "Simmer the tomatoes with garlic and basil",
    "The rocket's second stage separated as planned",
    "The probe entered orbit around Jupiter",
  ],
];

const out = () => byId("compare-out");
let example = 0;
let drawn = null; // what is on show, to be drawn again in other colours
let running = null;

export function startCompare() {
  byId("texts").value = EXAMPLES[0].join("\n");
  byId("texts").addEventListener("input", hint);
  byId("model").addEventListener("change", () => {
    offer();
    again();
  });
  byId("role").addEventListener("change", again);
  byId("dimensions").addEventListener("change", again);
  byId("compare").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  byId("compare-example").addEventListener("click", () => {
    example = (example + 1) % EXAMPLES.length;
    byId("texts").value = EXAMPLES[example].join("\n");
    hint();
    again();
  });
  dark.addEventListener("change", () => drawn && draw(drawn));
  onServer(offer);
  hint();
  out().replaceChildren(empty());
}

// A choice changes what is on show, and nothing before there is something.
function again() {
  roleHint();
  if (drawn && ready()) run();
}

function hint() {
  const texts = linesOf(byId("texts").value);
  const limit = Math.min(MOST, setting("VECGATE_MAX_INPUTS") ?? MOST);
  const over = texts.length > limit ? `; the first ${limit} are compared` : "";
  byId("texts-hint").textContent = `${plural(texts.length, "text")}${over}`;
}

const setting = (name) => Number(server.about?.settings.find((one) => one.name === name)?.value) || null;

// The roles and widths of the model; what was chosen stays chosen.
function offer() {
  choices(byId("model"), embedders().map((one) => [one.name, one.name]));
  byId("model-field").hidden = embedders().length < 2;
  const card = chosen();
  const roles = [["", "default"], ...rolesOf(card).map((role) => [role, role])];
  choices(byId("role"), roles);
  const width = card?.dimensions;
  const fewer = [2048, 1536, 1024, 768, 512, 384, 256, 128, 64, 32, 16].filter((one) => width && one < width);
  choices(byId("dimensions"), [["", width ? `all ${width}` : "all"], ...fewer.map((one) => [String(one), String(one)])]);
  const missing = server.trusted && server.models.length > 0 && !card;
  byId("compare-go").disabled = !ready() || missing;
  roleHint();
  hint();
  if (missing) out().replaceChildren(h("div", { class: "card quietly" }, h("p", { text: "This server reranks only: no model here gives vectors." })));
}

const chosen = () => embedders().find((card) => card.name === byId("model").value) ?? embedders()[0];

const rolesOf = (card) => (card ? [...new Set(["query", "document", ...Object.keys(card.prompts)])] : []);

function choices(select, options) {
  const before = select.value;
  const had = [...select.options].map((one) => `${one.value}=${one.text}`).join();
  if (had === options.map(([value, text]) => `${value}=${text}`).join()) return;
  select.replaceChildren(...options.map(([value, text]) => h("option", { value, text })));
  select.value = options.some(([value]) => value === before) ? before : options[0]?.[0];
}

function promptOf(card, role) {
  const known = card.prompts;
  if (!role) return card.default_prompt ? (known[card.default_prompt] ?? "") : "";
  return known[role] ?? (role === "document" ? known.passage : undefined) ?? "";
}

function roleHint() {
  const card = chosen();
  const role = byId("role").value;
  const prompt = card && promptOf(card, role);
  const told = prompt
    ? ["Before each text stands ", h("q", { text: prompt })]
    : card && role
      ? [`This model has no prompt for a ${role}: its rows are the plain ones.`]
      : [];
  byId("role-hint").replaceChildren(...told);
}

async function run() {
  const texts = linesOf(byId("texts").value).slice(0, MOST);
  if (texts.length === 0) return out().replaceChildren(empty("Type a text first: one a line."));
  const card = chosen();
  const [role, dimensions] = [byId("role").value || null, Number(byId("dimensions").value) || null];
  const call = { base, keyed: Boolean(key.get()), model: card.name, role, dimensions, texts };
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  out().setAttribute("aria-busy", "true");
  if (!drawn) out().replaceChildren(waiting("Computing"));
  try {
    const [found, plain, counted] = await Promise.all([
      embed(call, signal),
      role || dimensions ? embed({ ...call, role: null, dimensions: null }, signal) : null,
      card === embedders()[0] ? post("tokenize", { inputs: texts, ...(role ? { prompt_name: role } : {}) }, { signal }) : null,
    ]);
    drawn = { call, card, found, plain, counts: counted?.data.map((one) => one.length) };
    draw(drawn);
  } catch (error) {
    if (error.name === "AbortError") return null;
    drawn = null;
    out().replaceChildren(trouble(error, run));
  }
  return out().setAttribute("aria-busy", "false");
}

async function embed(call, signal) {
  const model = call.role ? `${call.model}:${call.role}` : call.model;
  const body = { model, input: call.texts, ...(call.dimensions ? { dimensions: call.dimensions } : {}) };
  const { data, headers } = await post("v1/embeddings", body, { signal });
  const rows = data.data.map((row) => row.embedding);
  return { rows, matrix: similarities(rows), tokens: data.usage.total_tokens, cuts: cuts(headers), spent: timing(headers) };
}

function draw(shown) {
  const { call, card, found, plain, counts } = shown;
  const plane = call.texts.length > 2 ? map(call.texts, found.rows) : null;
  const note = [
    plural(call.texts.length, "text"),
    plural(found.tokens, "token"),
    plural(found.rows[0].length, "dimension"),
    `${(found.spent.forward ?? 0).toFixed(1)} ms on the ${card.device}`,
  ];
  out().replaceChildren(
    h(
      "section",
      { class: "card" },
      h("div", { class: "title" }, h("h2", { text: "Similarity" }), h("p", { class: "muted", id: "compare-note", text: note.join(" · ") })),
      heat(call.texts, found.matrix, (lit) => plane?.mark(lit)),
    ),
    ...(plain ? [changes(shown)] : []),
    h(
      "div",
      { class: "two" },
      h(
        "section",
        { class: "card" },
        h("h2", { text: "Map" }),
        plane?.element ?? h("p", { class: "muted", text: "A map needs three texts." }),
      ),
      h("section", { class: "card" }, h("h2", { text: "Tokens" }), tokens(call.texts, counts, found.cuts, card.max_tokens)),
    ),
    codeCard("This call", embedCalls(call)),
  );
}

function tokens(texts, counts, cut, limit) {
  const rows = texts.map((text, i) => {
    const [before, kept] = cut.get(String(i)) ?? [counts?.[i] ?? 0, Math.min(counts?.[i] ?? 0, limit)];
    const bar = styled(h("i"), { width: `${Math.max(1, (100 * kept) / limit)}%` });
    const told = before > kept ? `${grouped(before)} cut to ${grouped(kept)}` : kept ? grouped(kept) : "whole";
    return h(
      "li",
      { class: before > kept ? "cut" : null },
      h("b", { text: i + 1 }),
      h("span", { class: "text", title: text, text }),
      h("span", { class: "meter", "aria-hidden": "true" }, bar),
      h("span", { class: "count", text: told }),
    );
  });
  const lost = rows.filter((row) => row.classList.contains("cut")).length;
  const told = lost
    ? `${plural(lost, "text")} lost what is over the limit of ${grouped(limit)} tokens.`
    : `Nothing was cut: the limit is ${grouped(limit)} tokens a text. Special tokens and prompts count.`;
  return [h("ol", { class: "tokens" }, rows), h("p", { class: lost ? "wrong" : "hint", text: told })];
}

// Beside the rows without a role and with all dimensions.
function changes({ call, card, found, plain }) {
  const pairs = [];
  for (let i = 0; i < call.texts.length; i += 1) {
    for (let j = 0; j < i; j += 1) pairs.push({ i: j, j: i, by: found.matrix[i][j] - plain.matrix[i][j] });
  }
  pairs.sort((a, b) => Math.abs(b.by) - Math.abs(a.by));
  const mean = pairs.reduce((sum, pair) => sum + Math.abs(pair.by), 0) / (pairs.length || 1);
  const [wide, narrow] = [plain.rows[0].length, found.rows[0].length];
  const what = [call.role && `the role ${call.role}`, call.dimensions && `${narrow} dimensions`].filter(Boolean).join(" and ");
  const facts = [
    ["Mean change of a similarity", mean.toFixed(3)],
    pairs.length > 0 && ["Largest change", `${signed(pairs[0].by)} (texts ${pairs[0].i + 1} and ${pairs[0].j + 1})`],
    ["Nearest neighbours kept", `${kept(plain.matrix, found.matrix)} of ${call.texts.length}`],
    call.role && ["Tokens", `${grouped(plain.tokens)} → ${grouped(found.tokens)}`],
    call.dimensions && ["A vector's size", `${bytes(4 * wide)} → ${bytes(4 * narrow)} (float32)`],
  ];
  const none = pairs.every((pair) => Math.abs(pair.by) < 1e-6);
  const told = none && call.role && !promptOf(card, call.role) ? "Nothing: this model has no prompt for that role." : null;
  return h(
    "section",
    { class: "card", id: "changes" },
    h("h2", { text: `What ${what} change${call.role && !call.dimensions ? "s" : ""}` }),
    told ? h("p", { text: told }) : h("dl", { class: "facts" }, facts.filter(Boolean).map(([name, value]) => h("div", null, h("dt", { text: name }), h("dd", { text: value })))),
  );
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;

function kept(before, after) {
  const nearest = (matrix) =>
    matrix.map((row, i) => row.reduce((best, value, j) => (j !== i && (best < 0 || value > row[best]) ? j : best), -1));
  const [one, other] = [nearest(before), nearest(after)];
  return one.filter((at, i) => at === other[i]).length;
}

function empty(told = "Compare, and every two texts get a number here: 1 is the same meaning, 0 none in common.") {
  const cells = Array.from({ length: 36 }, (_, i) => h("i", { class: i % 7 === 0 ? "self" : null }));
  return h("div", { class: "card empty" }, h("div", { class: "ghost", "aria-hidden": "true" }, cells), h("p", { text: told }));
}
