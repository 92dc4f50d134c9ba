// Request rates and times, from the figures for Prometheus: what models do, not what this page asks.

import { make, seconds } from "./api.js";

const OURS = /^(\/v1\/|\/api\/v1\/(classify|query)$)/;
const LINE = /^(\w+)(?:\{(.*)\})? ([^ ]+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const WINDOW = 10; // seconds
const past = []; // {now, counts: route -> requests}

export function parse(page) {
  const found = [];
  for (const line of page.split("\n")) {
    const match = line.startsWith("#") ? null : LINE.exec(line);
    if (match) found.push({ name: match[1], labels: Object.fromEntries([...(match[2] ?? "").matchAll(LABEL)].map((m) => [m[1], m[2]])), value: Number(match[3]) });
  }
  return found;
}

export function show(body, queue, page) {
  const figures = parse(page);
  const routes = new Map();
  const of = (route) => routes.get(route) ?? routes.set(route, { all: 0, refused: 0, failed: 0, buckets: [] }).get(route);
  for (const { name, labels, value } of figures) {
    if (!OURS.test(labels.route ?? "")) continue;
    if (name === "fgvr_http_requests_total") {
      const route = of(labels.route);
      route.all += value;
      if (labels.status.startsWith("4") || labels.status === "503") route.refused += value;
      else if (labels.status.startsWith("5")) route.failed += value;
    } else if (name === "fgvr_http_request_duration_seconds_bucket") {
      of(labels.route).buckets.push([labels.le === "+Inf" ? Infinity : Number(labels.le), value]);
    }
  }
  const now = Date.now() / 1000;
  past.push({ now, counts: new Map([...routes].map(([route, { all }]) => [route, all])) });
  while (past.length > 2 && past[1].now <= now - WINDOW) past.shift();
  const before = past[0];
  const rate = (route, all) => (now > before.now ? (all - (before.counts.get(route) ?? 0)) / (now - before.now) : 0);
  const rows = [...routes].filter(([, { all }]) => all > 0).sort(([a], [b]) => a.localeCompare(b));
  const lines = rows.map(([route, r]) => {
    const cells = [Math.max(0, rate(route, r.all)).toFixed(1), r.all.toLocaleString("en"), r.refused.toLocaleString("en"), r.failed.toLocaleString("en"), time(r.buckets, 0.5), time(r.buckets, 0.95)];
    return make("tr", {}, make("th", { scope: "row" }, route), ...cells.map((cell) => make("td", { class: "number" }, cell)));
  });
  body.replaceChildren(...(lines.length ? lines : [make("tr", {}, make("td", { colspan: 7 }, "none yet"))]));
  const value = (name) => figures.find((f) => f.name === name)?.value ?? 0;
  const waiting = figures.filter((f) => f.name === "fgvr_queue_jobs").reduce((sum, f) => sum + f.value, 0);
  queue.textContent = `${value("fgvr_requests_in_flight")} in flight, ${waiting} waiting for a batch`;
}

// A quantile of a histogram, by straight lines between its bounds.
export function time(buckets, share) {
  const sorted = [...buckets].sort(([a], [b]) => a - b);
  const all = sorted.at(-1)?.[1] ?? 0;
  if (!all) return "–";
  let [bound, below] = [0, 0];
  for (const [upper, count] of sorted) {
    if (count >= share * all) {
      if (upper === Infinity) return `> ${seconds(bound)}`;
      return `≈ ${seconds(bound + ((upper - bound) * (share * all - below)) / Math.max(1, count - below))}`;
    }
    [bound, below] = [upper, count];
  }
  return "–";
}
