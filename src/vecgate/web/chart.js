// A small line chart of the last minutes: one svg, redrawn as a whole, its scales written beside it.

import { h, s } from "./dom.js";

const [WIDTH, HEIGHT] = [300, 72];

export const SPAN_S = 300;
const LEAST_S = 60; // what is not yet so long is drawn on so much

// names: of the lines, the first drawn boldest. unit(value) -> text. -> {element, draw(points, now)}
export function chart(title, names, unit, more = {}) {
  const value = h("strong", { class: "now", text: "–" });
  const plot = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title });
  const high = h("span", { class: "high" });
  const since = h("span");
  const key =
    names.length > 1 &&
    h("ul", { class: "key" }, names.map((name, i) => h("li", { class: `line-${i}` }, h("i"), `${name} `, h("b", { text: "–" }))));
  const element = h(
    "figure",
    { class: "chart card", id: more.id },
    h("figcaption", null, h("h2", { text: title }), names.length === 1 && value),
    key,
    h("div", { class: "plot" }, plot, high),
    h("p", { class: "ends", "aria-hidden": "true" }, since, h("span", { text: "now" })),
    more.below,
  );

  // points: [seconds, ...values], a value null where there is none; a null point is a gap. shown: the figures of now.
  function draw(points, nowS, shown) {
    const values = points.flatMap((point) => (point ? point.slice(1) : [])).filter((one) => one !== null);
    const most = Math.max(more.floor ?? 0, ...values);
    const scale = nice(most);
    const first = points.find(Boolean)?.[0] ?? nowS;
    const span = Math.min(Math.max(nowS - first, LEAST_S), SPAN_S);
    plot.replaceChildren(...names.map((_, i) => line(points, i + 1, (at) => 1 - (nowS - at) / span, scale, i)).reverse());
    high.textContent = scale > 0 ? unit(scale) : "";
    since.textContent = span < 120 ? `${Math.round(span)} s ago` : `${(span / 60).toFixed(1).replace(".0", "")} min ago`;
    const told = shown.map((one) => (one === null ? "–" : unit(one)));
    if (names.length === 1) value.textContent = told[0];
    else key.querySelectorAll("b").forEach((place, i) => (place.textContent = told[i]));
    const said = names.map((name, i) => (names.length > 1 ? `${name} ${told[i]}` : told[i])).join(", ");
    plot.setAttribute("aria-label", `${title} over the last minutes: now ${said}, at most ${unit(most)}`);
  }

  return { element, draw };
}

function line(points, column, place, high, i) {
  let path = "";
  let pen = "M";
  let started = null;
  let area = "";
  for (const point of points) {
    const value = point?.[column] ?? null;
    if (value === null) {
      pen = "M";
      continue;
    }
    const x = WIDTH * place(point[0]);
    const y = HEIGHT - 2 - (high > 0 ? (value / high) * (HEIGHT - 6) : 0);
    if (pen === "M") {
      if (area) area += `V${HEIGHT}Z`;
      area += `M${x.toFixed(1)} ${HEIGHT}`;
      started = x;
    }
    path += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
    area += `L${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = "L";
  }
  const fill = i === 0 && started !== null ? s("path", { class: "area", d: `${area}V${HEIGHT}Z` }) : null;
  return s("g", { class: `line-${i}` }, fill, s("path", { class: "stroke", d: path || "M0 0", "vector-effect": "non-scaling-stroke" }));
}

// The next round number.
function nice(most) {
  if (most <= 0) return 0;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 1.5, 2, 3, 5, 7.5, 10].map((step) => step * power).find((step) => step >= most * 0.999);
}
