// Principal components of a few long rows: those of their Gram matrix, which is as small as the rows are few.

// Rows -> {points: [[x, y]], kept: share of the variance that two axes show}.
export function pca(rows) {
  const means = rows[0].map((_, d) => rows.reduce((sum, row) => sum + row[d], 0) / rows.length);
  const centred = rows.map((row) => row.map((value, d) => value - means[d]));
  const gram = centred.map((a) => centred.map((b) => a.reduce((sum, value, d) => sum + value * b[d], 0)));
  const { values, vectors } = eigen(gram);
  const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a]);
  const total = values.reduce((sum, value) => sum + Math.max(value, 0), 0);
  const axes = order.slice(0, 2).map((k) => {
    const root = Math.sqrt(Math.max(values[k], 0));
    const column = vectors.map((row) => row[k] * root);
    const furthest = column.reduce((most, value) => (Math.abs(value) > Math.abs(most) ? value : most), 0);
    return column.map((value) => (furthest < 0 ? -value : value)); // the same side every time
  });
  const shown = order.slice(0, 2).reduce((sum, k) => sum + Math.max(values[k], 0), 0);
  return { points: rows.map((_, i) => [axes[0][i], axes[1]?.[i] ?? 0]), kept: total > 0 ? shown / total : 1 };
}

// Jacobi's method: rotate the largest entries beside the diagonal away until none is left.
function eigen(symmetric) {
  const n = symmetric.length;
  const a = symmetric.map((row) => [...row]);
  const v = a.map((_, i) => a.map((_, j) => (i === j ? 1 : 0)));
  const scale = Math.max(1e-300, ...a.flat().map(Math.abs));
  for (let sweep = 0; sweep < 60; sweep += 1) {
    let off = 0;
    for (let p = 0; p < n; p += 1) {
      for (let q = p + 1; q < n; q += 1) {
        off = Math.max(off, Math.abs(a[p][q]));
        rotate(a, v, p, q);
      }
    }
    if (off < 1e-12 * scale) break;
  }
  return { values: a.map((row, i) => row[i]), vectors: v };
}

function rotate(a, v, p, q) {
  if (a[p][q] === 0) return;
  const theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
  const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
  const cos = 1 / Math.sqrt(t * t + 1);
  const sin = t * cos;
  for (const row of a) turn(row, p, q, cos, sin);
  for (let k = 0; k < a.length; k += 1) {
    const [x, y] = [a[p][k], a[q][k]];
    a[p][k] = cos * x - sin * y;
    a[q][k] = sin * x + cos * y;
  }
  for (const row of v) turn(row, p, q, cos, sin);
}

function turn(row, p, q, cos, sin) {
  const [x, y] = [row[p], row[q]];
  row[p] = cos * x - sin * y;
  row[q] = sin * x + cos * y;
}
