// Try: a query and documents in, bars by score out; the similarity beside the cross-encoder where both are served.

import { byId, h, linesOf, plural, styled } from "./dom.js";
import { base, cuts, key, post } from "./api.js";
import { rerankCalls } from "./calls.js";
import { codeCard } from "./code.js";
import { embedder, onServer, ready, reranker } from "./server.js";
import { trouble, waiting } from "./trouble.js";

const EXAMPLES = [
  [
    "How do I keep my houseplants alive in winter?",
    [
      "Water less often: most plants rest in the cold months and their roots rot in wet soil",
      "Central heating dries the air, so put a bowl of water beside ferns and palms",
      "The city opened a new botanical garden last spring",
      "Winter tyres must have at least four millimetres of tread",
      "Move pots close to a bright window, but away from the draught",
      "Plant-based meals were ordered more often than last year",
    ],
  ],
  [
    "Which error does the server answer when it is overloaded?",
    [
      "A request over capacity is answered 429 with a Retry-After header",
      "503 is answered while the model is loading and while the server shuts down",
      "The logo of the server is green",
      "Clients should wait as long as Retry-After says, then send the request again",
    ],
  ],
];

const NAMES = { "cross-encoder": "Cross-encoder", similarity: "Similarity" };

const out = () => byId("rerank-out");
let example = 0;
let drawn = null;
let by = null; // the method whose order is shown
let running = null;

export function startRerank() {
  fill();
  byId("documents").addEventListener("input", hint);
  byId("rerank").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  byId("rerank-example").addEventListener("click", () => {
    example = (example + 1) % EXAMPLES.length;
    fill();
    if (drawn && ready()) run();
  });
  onServer(offer);
  out().replaceChildren(empty());
}

function fill() {
  const [query, documents] = EXAMPLES[example];
  byId("query").value = query;
  byId("documents").value = documents.join("\n");
  hint();
}

const hint = () => {
  byId("documents-hint").textContent = plural(linesOf(byId("documents").value).length, "document");
};

const methods = () => [reranker() && "cross-encoder", embedder() && "similarity"].filter(Boolean);
const modelOf = (method) => (method === "similarity" ? embedder() : reranker());

function offer() {
  const told = {
    0: "",
    1: reranker() ? `Scored by ${reranker()?.name}.` : `Ordered by similarity: no reranker is loaded (CROSS_ENCODER_MODEL).`,
    2: `Scored by ${reranker()?.name}, beside the similarity of ${embedder()?.name}.`,
  };
  byId("method-hint").textContent = told[methods().length];
  byId("rerank-go").disabled = !ready();
}

async function run() {
  const query = byId("query").value.trim();
  const documents = linesOf(byId("documents").value);
  if (!query || documents.length === 0) return out().replaceChildren(empty("A query and a document are needed."));
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  out().setAttribute("aria-busy", "true");
  if (!drawn) out().replaceChildren(waiting("Computing"));
  try {
    const asked = methods();
    const answers = await Promise.all(
      asked.map((method) => post("api/v1/rerank", { query, passages: documents, method, return_text: false }, { signal })),
    );
    const columns = asked.map((method, i) => column(method, answers[i], documents.length));
    drawn = { query, documents, columns };
    if (!asked.includes(by)) by = asked[0];
    draw();
  } catch (error) {
    if (error.name === "AbortError") return null;
    drawn = null;
    out().replaceChildren(trouble(error, run));
  }
  return out().setAttribute("aria-busy", "false");
}

function column(method, { data, headers }, count) {
  const [scores, places] = [new Array(count), new Array(count)];
  data.results.forEach((result, place) => {
    scores[result.index] = result.score;
    places[result.index] = place;
  });
  return { method, scores, places, order: data.results.map((one) => one.index), ms: data.usage.processing_time_ms, tokens: data.usage.total_tokens, cuts: cuts(headers) };
}

function draw() {
  const { query, documents, columns } = drawn;
  const chosen = columns.find((one) => one.method === by);
  const rest = columns.filter((one) => one !== chosen);
  const call = { base, keyed: Boolean(key.get()), model: modelOf(by).name, query, documents, method: by };
  const note = [plural(documents.length, "document"), plural(chosen.tokens, "token"), `${chosen.ms.toFixed(1)} ms`];
  out().replaceChildren(
    h(
      "section",
      { class: "card" },
      h("div", { class: "title" }, h("h2", { text: "Ranking" }), h("p", { class: "muted", text: note.join(" · ") })),
      rest.length > 0 && order(columns),
      h("ol", { class: "ranking" }, chosen.order.map((index) => row(documents[index], index, chosen, rest))),
      h("p", { class: "hint", text: meaning(columns) }),
    ),
    codeCard("This call", rerankCalls(call)),
  );
}

function order(columns) {
  const buttons = columns.map(({ method }) =>
    h("button", {
      type: "button",
      "aria-pressed": method === by,
      text: NAMES[method],
      onclick: () => {
        by = method;
        draw();
        out().querySelector('[aria-pressed="true"]').focus();
      },
    }),
  );
  return h("div", { class: "pressed", role: "group", "aria-label": "Order by" }, h("span", { class: "muted", text: "Order by" }), buttons);
}

function row(text, index, chosen, rest) {
  const cut = chosen.cuts.get(String(index));
  return h(
    "li",
    { "data-index": index },
    h("b", { text: chosen.places[index] + 1 }),
    h(
      "div",
      { class: "ranked" },
      h("p", null, text, cut && h("span", { class: "wrong", text: ` cut: ${cut[0]} tokens to ${cut[1]}` })),
      bar(chosen, index, rest.length > 0),
      rest.map((one) => bar(one, index, true)),
    ),
  );
}

function bar(column, index, named) {
  const score = column.scores[index];
  const width = styled(h("i"), { width: `${100 * Math.min(Math.max(score, 0), 1)}%` });
  return h(
    "div",
    { class: `bar ${column.method}` },
    named && h("span", { class: "name", text: `${NAMES[column.method]}, place ${column.places[index] + 1}` }),
    h("span", { class: "meter", "aria-hidden": "true" }, width),
    h("span", { class: "score", text: score.toFixed(3) }),
  );
}

function meaning(columns) {
  const told = {
    similarity: "Similarity is the cosine of query and document, from −1 to 1; a bar shows what is over 0.",
    "cross-encoder": "The cross-encoder reads both at once; its score is from 0 to 1.",
  };
  return columns.map((one) => told[one.method]).join(" ");
}

function empty(told = "Rerank, and the documents stand here in the order of how well they answer.") {
  const bars = [92, 74, 61, 38, 22].map((width) => styled(h("i"), { width: `${width}%` }));
  return h("div", { class: "card empty" }, h("div", { class: "ghost bars", "aria-hidden": "true" }, bars), h("p", { text: told }));
}
