// What the drivers of Node clients share: the inputs, the cases, and one line of JSON for each case; driving.py's twin.
//
//     node DRIVER.mjs BASE_URL CONTROL_URL KEY
//
// Knows no client and nothing of vecgate; it lies beside the driver, and both beside the packages of its environment.

import { readFileSync } from "node:fs";
import { join } from "node:path";

export const TEXTS = [
  "The cat sits on the mat.",
  "A feline rests on a rug.",
  "Stock markets fell sharply today.",
  "hello world",
];
export const QUERY = "What is the capital of France?";
export const DOCUMENTS = ["Dogs bark at night.", "Paris is the capital of France.", "Rust is a programming language."];
export const TOP_N = 2;
export const DIMENSIONS = 4;
// TEXTS[3] by MiniLM's tokenizer.
export const TOKEN_IDS = [101, 7592, 2088, 102];
// 20,000 characters.
export const LONG = "The cat sits on the mat. ".repeat(800);
export const MODEL = "all-MiniLM-L6-v2";
export const RERANKER = "rerank-v3.5";
export const UNKNOWN = "no-such-model";
export const FAILING = "fail-twice";
export const WRONG_KEY = "wrong-key";

export const CASES = [
  "embedding",
  "batch",
  "base64",
  "dimensions",
  "token-ids",
  "roles",
  "rerank",
  "errors",
  "retries",
  "wrong-key",
  "long-input",
];

export const [base, control, rightKey] = process.argv.slice(2);

// Of a package in the environment that this driver lies in.
export const version = (name) =>
  JSON.parse(readFileSync(join(import.meta.dirname, "node_modules", name, "package.json"))).version;

// In the order of the texts; of `roles` the query's row, then the documents'.
export const vectors = (rows, usage) => ({ vectors: rows.map((row) => Array.from(row, Number)), ...used(usage) });

// [index of the document, score], in the order the client gave them.
export const ranking = (pairs, usage) => ({
  ranking: pairs.map(([index, score]) => ({ index, score })),
  ...used(usage),
});

const used = (usage) => (usage === undefined ? {} : { usage });

// Runs every case in the order of CASES, and prints a line for each; a string says why the client has no such thing.
export async function drive(client, version, cases) {
  const missing = new Set(CASES).symmetricDifference(new Set(Object.keys(cases)));
  if (missing.size) throw new Error(`${client}: these cases are missing, or unknown: ${[...missing]}`);
  for (const name of CASES) {
    const result = typeof cases[name] === "string" ? { skipped: cases[name] } : await recorded(client, name, cases[name]);
    console.log(JSON.stringify({ client, case: name, version, ...result }));
  }
}

// The call's result, once the recording proxy knows whose the next requests are.
async function recorded(client, name, call) {
  const told = { method: "POST", headers: { "Content-Type": "application/json" } };
  const answer = await fetch(control, { ...told, body: JSON.stringify({ client, case: name }) });
  if (!answer.ok) throw new Error(`${control} answered ${answer.status}`);
  try {
    return await call();
  } catch (error) {
    return { error: { class: error.constructor.name, message: error.message, status: status(error) } };
  }
}

const status = (error) => error.status ?? error.statusCode ?? (error.cause ? status(error.cause) : null);
