// Model: what is loaded, from where, what it was checked for, and the settings in force.

import { byId, bytes, grouped, h, plural, seconds } from "./dom.js";
import { onServer, server } from "./server.js";

const TASKS = { embed: "Embedding model", rerank: "Reranker" };
const VERDICTS = {
  passed: "Verified",
  deviates: "Deviates",
  failed: "Failed its check",
  skipped: "Not checked",
};
const POOLINGS = { cls: "first token", mean: "mean", max: "maximum", last: "last token", weightedmean: "weighted mean", mean_sqrt_len: "sum over √length" };

let all = false;

export function startModel() {
  onServer(draw);
}

function draw() {
  const box = byId("model-out");
  if (!server.about) {
    const told = server.state === "ok" ? "This server asks for a key before it tells of its models." : "Nothing is known of the server yet.";
    return box.replaceChildren(h("div", { class: "card quietly" }, h("p", { text: told })));
  }
  return box.replaceChildren(...server.models.map(card), settings());
}

function card(model) {
  return h(
    "article",
    { class: "card model" },
    h("div", { class: "title" }, h("h2", { text: model.name }), h("p", { class: "muted", text: `${TASKS[model.task]} · ${model.state}` })),
    h(
      "div",
      { class: "two" },
      section("What it is", [
        ["Family", model.family],
        ["Also called", model.aliases.join(", ") || "nothing else"],
        ["From", code(server.about.folders[model.name] ?? "unknown")],
        ["Revision", model.revision ? code(model.revision) : "none: a folder or a package"],
        ["Weights", bytes(model.weight_bytes)],
        ["Vector space", model.space ? code(model.space) : model.task === "rerank" ? "none: scores" : "being computed"],
        model.dimensions && ["Dimensions", grouped(model.dimensions)],
        ["Pooling", model.pooling.map((one) => POOLINGS[one] ?? one).join(", ") + (model.task === "embed" ? (model.normalize ? ", normalised" : ", normalised on request") : "")],
      ]),
      section("Where it runs", [
        ["Backend", model.backend ?? "not chosen"],
        ["Because", model.why ?? "unknown"],
        ["Device", model.device ?? "not loaded"],
        ["Number type", model.dtype ?? "not loaded"],
        ["Longest text", plural(model.max_tokens, "token")],
        ["A batch", model.batch_tokens ? `up to ${plural(model.batch_tokens, "token")}` : "not loaded"],
        model.batch_tokens_now && model.batch_tokens_now < model.batch_tokens && ["For now", `${plural(model.batch_tokens_now, "token")}: the device had no room for more`],
        ["Loaded in", seconds(model.load_s)],
        ["Warmed up in", seconds(model.warmup_s)],
      ]),
    ),
    prompts(model),
    verification(model.verification),
  );
}

const code = (text) => h("code", { text });

function section(title, rows) {
  const found = rows.filter(Boolean).map(([name, value]) => h("div", null, h("dt", { text: name }), h("dd", null, value)));
  return h("section", null, h("h3", { text: title }), h("dl", { class: "facts" }, found));
}

function prompts(model) {
  const known = Object.entries(model.prompts);
  if (model.task === "rerank" && known.length === 0) return null;
  const told = known.length
    ? h("dl", { class: "facts" }, known.map(([name, text]) => h("div", null, h("dt", { text: name === model.default_prompt ? `${name} (default)` : name }), h("dd", null, text ? h("q", { text }) : "nothing"))))
    : h("p", { class: "muted", text: "None: queries and documents are embedded alike." });
  return h("section", null, h("h3", { text: "Prompts" }), told);
}

function verification(found) {
  const title = h("h3", { text: "Verification" });
  if (!found) return h("section", null, title, h("p", { class: "muted", text: "Not made yet, or VECGATE_VERIFY is off." }));
  const when = new Date(1000 * found.at).toLocaleString();
  const rows = found.checks.map((check) =>
    h(
      "tr",
      null,
      h("th", { scope: "row", text: check.name }),
      h("td", null, h("span", { class: `badge ${check.verdict}`, text: check.verdict })),
      h("td", { text: check.cosine === null ? "" : check.cosine.toFixed(7) }),
      h("td", { text: check.difference === null ? "" : check.difference.toExponential(1) }),
      h("td", { text: check.note }),
    ),
  );
  const head = h("tr", null, ["Check", "Verdict", "Least cosine", "Largest difference", "Of what"].map((text) => h("th", { scope: "col", text })));
  return h(
    "section",
    null,
    title,
    h("p", { class: "verdict" }, h("span", { class: `badge ${found.verdict}`, text: VERDICTS[found.verdict] ?? found.verdict }), ` ${found.form} check in ${seconds(found.took_s)}, ${when}`),
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Checks" }, h("table", { class: "plain" }, h("thead", null, head), h("tbody", null, rows))),
  );
}

// A path that is only written out in full is no change.
const changed = (one) => one.changed && one.value !== one.default;

function settings() {
  const shown = server.about.settings.filter((one) => all || changed(one));
  const toggle = h("button", {
    type: "button",
    class: "quiet",
    id: "settings-all",
    "aria-pressed": all,
    text: all ? "Only what is changed" : `Show all ${server.about.settings.length}`,
    onclick: () => {
      all = !all;
      draw();
      byId("settings-all").focus();
    },
  });
  const rows = shown.map((one) =>
    h(
      "tr",
      { class: changed(one) ? "changed" : null },
      h("th", { scope: "row" }, h("code", { text: one.name })),
      h("td", null, h("code", { text: one.value }), changed(one) && h("span", { class: "muted", text: ` default: ${one.default}` })),
      h("td", { text: one.what }),
    ),
  );
  const head = h("tr", null, ["Setting", "In force", "What it does"].map((text) => h("th", { scope: "col", text })));
  return h(
    "section",
    { class: "card" },
    h("div", { class: "title" }, h("h2", { text: "Settings" }), h("p", { class: "muted", text: `vecgate ${server.about.version}` }), toggle),
    shown.length
      ? h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Settings" }, h("table", { class: "plain settings" }, h("thead", null, head), h("tbody", null, rows)))
      : h("p", { class: "muted", text: "Everything is as it comes. Keys are never shown." }),
  );
}
