// Drop an image: candidates, decision and reasons, as reports show an image's way.

import { make, post } from "./api.js";

const SHOWN = 8;
const PATIENCE = 600; // seconds a busy server, or one that builds its knowledge base, is asked again
let shownUrl = null;
let newest = 0; // a later image ends the waiting for an earlier one

export function ready(drop, input, said, answer, failed) {
  const look = (files) => {
    const file = [...files].find((one) => one.type.startsWith("image/"));
    if (file) classify(file, said, answer, failed);
    else if (files.length) tell(said, "that is no image", true);
  };
  input.addEventListener("change", () => {
    look(input.files);
    input.value = ""; // the same file again is a change, too
  });
  for (const kind of ["dragenter", "dragover"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    look(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => look(event.clipboardData?.files ?? []));
}

function tell(said, words, wrong = false) {
  said.textContent = words;
  said.className = wrong ? "wrong" : "";
}

async function classify(file, said, answer, failed) {
  tell(said, `looking at ${file.name} …`);
  const form = new FormData();
  form.append("images", file, file.name);
  const began = performance.now();
  const mine = ++newest;
  try {
    const { predictions, warnings } = await patiently(form, (why) => mine === newest && tell(said, `${file.name}: ${why} …`));
    if (mine !== newest) return;
    if (shownUrl) URL.revokeObjectURL(shownUrl);
    shownUrl = URL.createObjectURL(file);
    const row = predictions[0];
    answer.replaceChildren(way(row, shownUrl));
    tell(said, [`${row.answer}: ${percent(row.confidence)}, after ${((performance.now() - began) / 1000).toFixed(2)} s`, ...warnings].join("; "));
  } catch (error) {
    if (mine !== newest) return;
    answer.replaceChildren();
    tell(said, `${file.name}: ${error.message}`, true);
    failed(error);
  }
}

async function patiently(form, waiting) {
  const end = performance.now() + 1000 * PATIENCE;
  for (;;) {
    try {
      return await post("/api/v1/classify", form);
    } catch (error) {
      if (!error.retry || performance.now() > end) throw error;
      waiting(`${error.message}; asking again in ${error.retry} s`);
      await new Promise((resolve) => setTimeout(resolve, 1000 * error.retry));
    }
  }
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const cell = (value) => make("td", { class: "number" }, value === null || value === undefined ? "" : value.toFixed(3));

function way(row, url) {
  const name = (id) => row.names?.[id] ?? id;
  const by = row.by === "slow" ? "System 2" : "System 1";
  const verdict = make("p", { class: "verdict" }, row.answer, " ", make("span", {}, `${percent(row.confidence)}, ${by}`));
  const right = make("div", {}, verdict, ...looked(row, name), ...decided(row), ...thought(row, name));
  return make("div", { class: "way" }, make("img", { src: url, alt: `the image ${row.image}` }), right);
}

function looked(row, name) {
  const { fast, history } = row;
  const agreed = fast.agreement ? "both modalities rank the same class first" : "image and text disagree about the first";
  const record = history.seen ? `; named ${history.seen} times on the support images, ${history.correct} of them rightly` : "";
  const title = heading("System 1 looks", `margin ${fast.margin.toFixed(2)}, entropy ${fast.entropy.toFixed(2)} nats, ${agreed}${record}`);
  const rows = fast.candidates.slice(0, SHOWN).map((c) => line(name(c.category), c.category === row.prediction, [cell(c.image_score), cell(c.text_score)], c.probability));
  return [title, table("Candidates of System 1", ["candidate", "image", "text", "System 1"], rows, [1, 2])];
}

function decided(row) {
  const { decision } = row;
  const escalated = row.slow || row.by !== "fast" ? "escalated to System 2" : "unsure, and nobody has looked again";
  const verdict = decision.escalate ? escalated : "answered by System 1";
  const sign = decision.escalate ? "<" : "≥";
  const title = heading(`The trigger decides: ${verdict}`, `score ${number(decision.score)} ${sign} threshold ${number(decision.threshold)}`);
  const terms = Object.entries(decision.terms);
  if (!terms.length) return [title];
  const largest = Math.max(...terms.map(([, value]) => Math.abs(value))) || 1;
  const rows = terms.map(([term, value]) => {
    const bar = make("span", { class: `bar ${value < 0 ? "against" : "for"}` });
    bar.style.width = `${(50 * Math.abs(value)) / largest}%`;
    const weight = make("td", { class: "number" }, `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`);
    return make("tr", {}, make("th", { scope: "row" }, term.replaceAll("_", " ")), weight, make("td", { class: "balance" }, bar));
  });
  return [title, table("Reasons of the trigger", ["reason", "weight", "System 2 ◂ ▸ System 1"], rows, [1])];
}

function thought(row, name) {
  const { slow } = row;
  if (!slow) return [];
  if (slow.category === null) return [heading("System 2 thinks", "its answer could not be read")];
  const ranked = Object.entries(slow.probabilities).sort(([, a], [, b]) => b - a).slice(0, SHOWN);
  const rows = ranked.map(([id, share]) => line(name(id), id === row.prediction, [], share));
  const parts = [heading("System 2 thinks", row.by === "slow" ? "" : "recorded, not used"), table("Probabilities of System 2", ["candidate", "System 2"], rows, [])];
  if (slow.rationale) parts.push(make("blockquote", {}, slow.rationale));
  if (slow.rules?.length) parts.push(make("p", {}, "Rules recalled:"), make("ul", {}, ...slow.rules.map((rule) => make("li", {}, rule))));
  return parts;
}

const number = (value) => (typeof value === "number" ? value.toFixed(3) : String(value));
const heading = (title, small) => make("h3", {}, title, small ? make("span", {}, small) : null);

function line(name, chosen, cells, share) {
  const bar = make("span", { class: "bar" });
  bar.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
  return make("tr", { class: chosen ? "chosen" : null }, make("th", { scope: "row" }, name), ...cells, make("td", { class: "share" }, bar, make("span", {}, percent(share))));
}

function table(caption, heads, rows, numeric) {
  const head = heads.map((words, i) => make("th", { scope: "col", class: numeric.includes(i) ? "number" : null }, words));
  const body = make("table", {}, make("caption", { class: "hidden" }, caption), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
  return make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption }, body);
}
