// One stream of server-sent events, read by fetch as EventSource can send no key; it comes back by itself.

import { failure, open } from "./api.js";

const FIRST_MS = 1000;
const LONGEST_MS = 15000;

// Calls onReading with each event's data, onTrouble(error) when the stream is refused or breaks; -> a function that ends it.
export function watch(path, onReading, onTrouble) {
  const ending = new AbortController();
  let wait = FIRST_MS;

  async function once() {
    const response = await open(path, { signal: ending.signal, headers: { accept: "text/event-stream" } });
    if (!response.ok) throw await failure(response);
    for await (const data of events(response.body)) {
      wait = FIRST_MS;
      onReading(data);
    }
  }

  async function forever() {
    while (!ending.signal.aborted) {
      try {
        await once();
      } catch (error) {
        if (ending.signal.aborted) return;
        onTrouble(error);
        if (error.status === 401) return;
        wait = Math.min(Math.max(2 * wait, 1000 * (error.retryAfterS ?? 0)), LONGEST_MS);
      }
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }

  forever();
  return () => ending.abort();
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const whole = rest.split("\n\n");
    rest = whole.pop();
    for (const event of whole) {
      if (event.startsWith("data: ")) yield JSON.parse(event.slice(6));
    }
  }
}
