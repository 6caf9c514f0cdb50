// The heat map: every similarity as a number on its colour, in a table that screen readers can walk.

import { h, styled } from "./dom.js";

const SCALES = {
  light: [[244, 247, 246], [143, 203, 190], [15, 107, 95]],
  dark: [[26, 33, 31], [28, 92, 82], [122, 224, 203]],
};

export const dark = matchMedia("(prefers-color-scheme: dark)");

// The cosine of every two rows of length 1.
export const similarities = (rows) => rows.map((a) => rows.map((b) => a.reduce((sum, value, i) => sum + value * b[i], 0)));

export function heat(texts, matrix, onHover) {
  const others = matrix.flatMap((row, i) => row.filter((_, j) => i !== j));
  const low = Math.min(0, ...others);
  const head = h(
    "tr",
    null,
    h("td"),
    texts.map((text, i) => h("th", { scope: "col", title: text, text: i + 1 })),
  );
  const rows = matrix.map((row, i) => h("tr", null, rowHead(texts, i), row.map((value, j) => cell(value, low, i, j))));
  const table = h(
    "table",
    { class: "heat" },
    h("caption", { class: "sr", text: "Cosine similarity of every two texts" }),
    h("thead", null, head),
    h("tbody", null, rows),
  );
  const over = (event) => {
    const found = event.target.closest?.("td[data-at]");
    onHover(found ? found.dataset.at.split(" ").map(Number) : []);
  };
  table.addEventListener("pointerover", over);
  table.addEventListener("pointerleave", () => onHover([]));
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Similarities" },
    table,
    legend(low),
  );
}

const rowHead = (texts, i) =>
  h("th", { scope: "row", title: texts[i] }, h("b", { text: i + 1 }), h("span", { class: "text", text: texts[i] }));

function cell(value, low, i, j) {
  const [background, color] = colours((value - low) / (1 - low || 1));
  return styled(h("td", { "data-at": `${i} ${j}`, class: i === j ? "self" : null, text: value.toFixed(3) }), {
    "background-color": background,
    color,
  });
}

function legend(low) {
  const steps = Array.from({ length: 24 }, (_, i) => styled(h("i"), { "background-color": colours(i / 23)[0] }));
  return h("div", { class: "legend", "aria-hidden": "true" }, low.toFixed(2), h("span", null, steps), "1.00");
}

// Background, and black or white on it: one of the two always has a contrast over 4.5.
function colours(share) {
  const scale = SCALES[dark.matches ? "dark" : "light"];
  const at = Math.min(Math.max(share, 0), 1) * 2;
  const [from, to] = at < 1 ? [scale[0], scale[1]] : [scale[1], scale[2]];
  const rgb = from.map((value, i) => Math.round(value + (to[i] - value) * (at < 1 ? at : at - 1)));
  return [`rgb(${rgb})`, luminance(rgb) > 0.179 ? "#000" : "#fff"];
}

function luminance(rgb) {
  const [r, g, b] = rgb.map((value) => (value <= 10 ? value / 3295 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
