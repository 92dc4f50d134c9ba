// Memory over time: one step area per model, what else is in use above them, and the budget as a line. Kept for half an hour.

import { bytes, make } from "./api.js";

const SVG = "http://www.w3.org/2000/svg";
const [HEIGHT, BOTTOM, TOP] = [240, 22, 16]; // CSS pixels; the width is the page's
const KEPT = 30 * 60; // seconds
const samples = [];
const order = []; // keys, in the order in which they were first seen: a model keeps its colour

function shape(name, attributes, words) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (words !== undefined) element.textContent = words;
  return element;
}

export function colour(key) {
  if (!order.includes(key)) order.push(key);
  return `m${order.indexOf(key) % 4}`;
}

export function note(stats, models) {
  const now = Date.now() / 1000;
  const held = new Map(models.filter((m) => ["resident", "draining", "evicting", "loading"].includes(m.state)).map((m) => [m.key, m.bytes ?? 0]));
  models.forEach((m) => colour(m.key));
  const rest = Math.max(0, stats.total_memory_usage - [...held.values()].reduce((a, b) => a + b, 0));
  samples.push({ now, held, rest, used: stats.total_memory_usage, limit: stats.memory_limit });
  while (samples.length && samples[0].now < now - KEPT) samples.shift();
}

export function draw(svg, legend) {
  if (!samples.length) return;
  const width = svg.clientWidth || 720;
  const last = samples.at(-1);
  const from = samples[0].now;
  const span = Math.max(60, last.now - from);
  const most = Math.max(...samples.map((s) => Math.max(s.limit, s.used)));
  const top = focus(most);
  const x = (now) => ((now - from) / span) * width;
  const y = (size) => HEIGHT - BOTTOM - (Math.min(size, top) / top) * (HEIGHT - BOTTOM - TOP);
  const parts = [];
  const words = []; // above the areas
  for (const share of [0, 0.5, 1]) {
    const height = y(share * top);
    parts.push(shape("line", { class: "grid", x1: 0, x2: width, y1: height, y2: height }));
    if (share > 0) words.push(shape("text", { x: 2, y: height - 4 }, bytes(share * top)));
  }
  words.push(shape("text", { x: 0, y: HEIGHT - 6 }, new Date(1000 * from).toLocaleTimeString("en-GB")));
  words.push(shape("text", { x: width, y: HEIGHT - 6, "text-anchor": "end" }, new Date(1000 * (from + span)).toLocaleTimeString("en-GB")));
  const below = samples.map(() => 0);
  for (const key of [...order, null]) {
    const sizes = samples.map((s) => (key === null ? s.rest : (s.held.get(key) ?? 0)));
    if (sizes.some((size) => size > 0)) {
      const upper = [];
      const lower = [];
      samples.forEach((s, i) => {
        const end = x(samples[i + 1]?.now ?? s.now);
        upper.push(`${x(s.now)},${y(below[i] + sizes[i])} ${end},${y(below[i] + sizes[i])}`);
        lower.push(`${end},${y(below[i])} ${x(s.now)},${y(below[i])}`);
      });
      parts.push(shape("polygon", { class: key === null ? "rest" : colour(key), points: [...upper, ...lower.reverse()].join(" ") }));
      sizes.forEach((size, i) => (below[i] += size));
    }
  }
  const budget = samples.map((s, i) => `${x(s.now)},${y(s.limit)} ${x(samples[i + 1]?.now ?? s.now)},${y(s.limit)}`).join(" ");
  if (top >= last.limit) parts.push(shape("polyline", { class: "budget", points: budget }));
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.replaceChildren(...parts, ...words);
  svg.setAttribute("aria-label", `Memory held by models over ${Math.round(last.now - from)} seconds: now ${bytes(last.used)} of a budget of ${bytes(last.limit)}`);
  name(legend, last, top);
}

// Tiny models under a large budget would be a flat line: then the picture shows what is in use, and the words say so.
function focus(most) {
  const used = Math.max(...samples.map((s) => s.used));
  return used > 0.02 * most ? 1.05 * most : Math.max(1, 1.6 * used);
}

function name(legend, last, top) {
  const entries = order.filter((key) => last.held.has(key)).map((key) => [colour(key), `${key}: ${bytes(last.held.get(key))}`]);
  if (last.rest > 0) entries.push(["rest", `working memory and reserve: ${bytes(last.rest)}`]);
  const items = entries.map(([kind, words]) => {
    const mark = shape("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" });
    mark.append(shape("rect", { class: kind, width: 10, height: 10, rx: 2 }));
    return make("li", {}, mark, words);
  });
  const line = shape("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" });
  line.append(shape("line", { class: "budget", x1: 0, x2: 10, y1: 5, y2: 5 }));
  const seen = top >= last.limit;
  items.push(make("li", {}, seen ? line : "", `budget: ${bytes(last.limit)}${seen ? "" : `, above this picture (its top is ${bytes(top)})`}`));
  legend.replaceChildren(...items);
}
