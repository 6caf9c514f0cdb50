// Rates and shares out of the server's own counters: differences between two readings, by the server's own clock.

export const between = (before, after) => {
  const seconds = after.uptime_s - before.uptime_s;
  const by = (name) => after.totals[name] - before.totals[name];
  const ratio = (above, below) => (below > 0 ? above / below : null);
  const batches = by("batches");
  return {
    seconds,
    requests: by("requests") / seconds,
    texts: by("inputs") / seconds,
    tokens: by("tokens") / seconds,
    busy: Math.min(1, by("forward_s") / seconds),
    rows: ratio(by("rows"), batches),
    fill: ratio(by("padded_tokens"), batches * limit(after)),
    padding: ratio(by("padded_tokens") - by("tokens"), by("padded_tokens")),
    queued_s: ratio(by("queue_s"), by("waited")),
    refused: sum(after.totals.shed) - sum(before.totals.shed),
  };
};

export const sum = (counts) => Object.values(counts).reduce((total, count) => total + count, 0);

// Most tokens of a batch, of the model with the largest.
const limit = (reading) => Math.max(0, ...Object.values(reading.batch_tokens).map(([all, now]) => now ?? all ?? 0));

// The time that a share of the requests between two readings stayed under, by the histogram's buckets; null: none came.
export function quantile(share, before, after) {
  const counts = after.totals.buckets.map((count, i) => count - before.totals.buckets[i]);
  const all = counts[counts.length - 1];
  if (all <= 0) return null;
  const bounds = after.totals.bounds_s;
  const at = counts.findIndex((count) => count >= share * all);
  if (at >= bounds.length) return bounds[bounds.length - 1];
  const [low, under] = at > 0 ? [bounds[at - 1], counts[at - 1]] : [0, 0];
  return low + ((bounds[at] - low) * (share * all - under)) / (counts[at] - under || 1);
}
