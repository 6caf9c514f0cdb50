// The rows on a plane: both axes on one scale, so that what is far apart looks far apart.

import { h, s, styled } from "./dom.js";
import { pca } from "./pca.js";

const [WIDTH, HEIGHT, EDGE] = [480, 340, 34];

// {element, mark}: `mark` lights the points of some texts, as the heat map asks.
export function map(texts, rows) {
  const { points, kept } = pca(rows);
  const places = fitted(points);
  const tip = h("div", { class: "tip", hidden: true });
  const dots = places.map(([x, y], i) =>
    s(
      "g",
      {
        class: "point",
        tabindex: 0,
        role: "img",
        "aria-label": `${i + 1}: ${texts[i]}`,
        onpointerenter: () => raise(i),
        onfocus: () => show(i),
        onpointerleave: hide,
        onblur: hide,
      },
      s("circle", { cx: x, cy: y, r: 15 }),
      s("text", { x, y: y + 5.5, "text-anchor": "middle", "aria-hidden": "true", text: i + 1 }),
    ),
  );

  function show(i) {
    tip.textContent = texts[i];
    tip.hidden = false;
    const [x, y] = places[i];
    tip.dataset.side = x > WIDTH / 2 ? "left" : "right";
    styled(tip, { left: `${(100 * x) / WIDTH}%`, top: `${(100 * y) / HEIGHT}%` });
  }

  // In front of what covers it, but for one that has the focus: it would lose it.
  function raise(i) {
    if (dots[i].nextSibling && !dots.includes(document.activeElement)) dots[i].parentNode.append(dots[i]);
    show(i);
  }

  function hide() {
    tip.hidden = true;
  }

  const axes = s(
    "g",
    { class: "axes", "aria-hidden": "true" },
    s("line", { x1: 8, y1: HEIGHT / 2, x2: WIDTH - 8, y2: HEIGHT / 2 }),
    s("line", { x1: WIDTH / 2, y1: 8, x2: WIDTH / 2, y2: HEIGHT - 8 }),
  );
  const element = h(
    "div",
    { class: "map" },
    s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": "Map of the texts" }, axes, s("g", null, dots)),
    tip,
    h("p", { class: "hint", text: `Two principal components, which hold ${Math.round(100 * kept)} % of the variance.` }),
  );
  const mark = (lit) => dots.forEach((dot, i) => dot.classList.toggle("lit", lit.includes(i)));
  return { element, mark };
}

function fitted(points) {
  const [xs, ys] = [0, 1].map((axis) => points.map((point) => point[axis]));
  const span = (values) => Math.max(...values) - Math.min(...values);
  const middle = (values) => (Math.max(...values) + Math.min(...values)) / 2;
  const scale = Math.min((WIDTH - 2 * EDGE) / (span(xs) || 1e-9), (HEIGHT - 2 * EDGE) / (span(ys) || 1e-9));
  return points.map(([x, y]) => [
    WIDTH / 2 + (scale < 1e8 ? (x - middle(xs)) * scale : 0),
    HEIGHT / 2 - (scale < 1e8 ? (y - middle(ys)) * scale : 0),
  ]);
}
