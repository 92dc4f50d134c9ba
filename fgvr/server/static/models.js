// One row per model, with its controls. Rows are kept and only their cells change: a focused button stays focused.

import { bytes, make, post, seconds } from "./api.js";

const CONTROLS = {
  load: (m) => !["resident", "draining", "loading", "evicting"].includes(m.state),
  evict: (m) => (m.state === "resident" || m.state === "parked") && m.leases === 0 && !m.pinned,
  pin: (m) => !m.pinned,
  unpin: (m) => m.pinned,
  reset: (m) => m.leases === 0,
};
const rows = new Map();
const busy = new Set();

function row(key, act) {
  const cells = Object.fromEntries(["state", "size", "leases", "hits", "loads", "idle"].map((name) => [name, make("td", { class: name === "state" ? null : "number", "data-name": name })]));
  const buttons = Object.fromEntries(
    Object.keys(CONTROLS).map((control) => {
      const button = make("button", { type: "button", "aria-label": `${control} ${key}` }, control);
      button.addEventListener("click", () => button.getAttribute("aria-disabled") === "true" || act(control, key));
      return [control, button];
    }),
  );
  const head = make("th", { scope: "row" });
  const element = make("tr", {}, head, ...Object.values(cells), make("td", { class: "controls" }, ...Object.values(buttons)));
  return { element, head, cells, buttons };
}

export function show(body, models, changed, say) {
  async function act(control, key) {
    if (busy.has(key)) return;
    busy.add(key);
    say(`${control} ${key} …`);
    try {
      const done = await post(`/api/v1/models/${encodeURIComponent(key)}/${control}`);
      const back = control === "evict" && done.released_bytes !== undefined ? `, ${bytes(done.released_bytes)} came back` : "";
      say(`${control} ${key}: done${back}`);
    } catch (error) {
      say(`${control} ${key}: ${error.message}`, error);
    } finally {
      busy.delete(key);
      changed();
    }
  }
  for (const model of models) {
    if (!rows.has(model.key)) {
      rows.set(model.key, row(model.key, act));
      body.append(rows.get(model.key).element);
    }
    fill(rows.get(model.key), model);
  }
  const known = new Set(models.map((m) => m.key));
  for (const [key, { element }] of rows) {
    if (!known.has(key)) {
      element.remove();
      rows.delete(key);
    }
  }
}

function fill({ head, cells, buttons }, model) {
  set(head, model.key, model.source);
  const where = model.tier === "disk" || model.state === "absent" ? "" : ` on ${model.tier}`;
  set(cells.state, `${model.state}${where}${model.pinned ? ", pinned" : ""}`, model.error, "wrong");
  set(cells.size, bytes(model.bytes));
  set(cells.leases, String(model.leases));
  set(cells.hits, model.hits.toLocaleString("en"));
  set(cells.loads, String(model.loads));
  set(cells.idle, model.state === "resident" && !model.leases ? seconds(model.idle_seconds) : "–");
  for (const [control, button] of Object.entries(buttons)) {
    const off = !CONTROLS[control](model);
    button.disabled = off && document.activeElement !== button; // a disabled button would lose the focus
    button.setAttribute("aria-disabled", String(off));
  }
}

function set(cell, words, small = "", kind = null) {
  const text = `${words}\n${small}`;
  if (cell.dataset.text === text) return;
  cell.dataset.text = text;
  cell.replaceChildren(words, ...(small ? [make("small", { class: kind }, small)] : []));
}
