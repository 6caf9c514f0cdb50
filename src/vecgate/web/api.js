// Every request of the page: relative to where it is served, with the tab's key, its failures in one shape.

const KEEP = "vecgate-key";

export const base = new URL(".", location.href).href.replace(/\/$/, "");

export const key = {
  get: () => sessionStorage.getItem(KEEP),
  set: (value) => sessionStorage.setItem(KEEP, value),
  forget: () => sessionStorage.removeItem(KEEP),
};

export class Failed extends Error {
  constructor(status, message, { code = null, retryAfterS = null, id = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfterS, id });
  }
}

const authorized = () => (key.get() ? { authorization: `Bearer ${key.get()}` } : {});

// The response, or Failed with status 0 where there was none.
export async function open(path, options = {}) {
  const headers = { ...authorized(), ...options.headers };
  try {
    return await fetch(`${base}/${path}`, { cache: "no-store", credentials: "omit", ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed(0, "No answer: the server is not running, or the network between is down.");
  }
}

export async function get(path, options) {
  const response = await open(path, options);
  if (!response.ok) throw await failure(response);
  return { data: await response.json(), headers: response.headers };
}

export const post = (path, body, options) =>
  get(path, {
    method: "POST",
    body: JSON.stringify(body),
    ...options,
    headers: { "content-type": "application/json" },
  });

export async function failure(response) {
  const body = await response.json().catch(() => ({}));
  const message = body.error?.message ?? body.message ?? body.error ?? `The server answered ${response.status}.`;
  const retry = Number(response.headers.get("retry-after"));
  return new Failed(response.status, String(message), {
    code: body.error?.code ?? null,
    retryAfterS: retry > 0 ? retry : null,
    id: response.headers.get("x-request-id"),
  });
}

// server-timing: "queue;dur=0.10, forward;dur=8.20" -> {queue: 0.1, forward: 8.2}, in milliseconds.
export function timing(headers) {
  const found = {};
  for (const part of (headers.get("server-timing") ?? "").split(",")) {
    const [, name, ms] = /^\s*(\w+);dur=([\d.]+)/.exec(part) ?? [];
    if (name) found[name] = Number(ms);
  }
  return found;
}

// x-vecgate-truncated: "2:300>256, query:40>32" -> Map of index or "query" to [before, kept].
export function cuts(headers) {
  const found = new Map();
  for (const [, at, before, kept] of (headers.get("x-vecgate-truncated") ?? "").matchAll(/(\w+):(\d+)>(\d+)/g)) {
    found.set(at, [Number(before), Number(kept)]);
  }
  return found;
}
