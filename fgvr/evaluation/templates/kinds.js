// Names for kinds. They stay in this browser under the run's id, and leave it only as names.csv.
"use strict";

const { run } = JSON.parse(document.getElementById("data").textContent);
const place = `fgvr:${run}`;
const fields = [...document.querySelectorAll("[data-kind]")];
const at = (id) => document.getElementById(id);

function guarded(act) {
  try {
    return act();
  } catch {
    at("forgetful").hidden = false;
    return null;
  }
}

const names = () => fields.map((field) => [field.dataset.kind, field.value.trim()]).filter(([, name]) => name);

function progress() {
  const given = names();
  at("told").textContent = `${given.length} of ${fields.length} named`;
  const bar = document.querySelector(".done");
  bar.setAttribute("aria-valuenow", given.length);
  bar.firstElementChild.style.width = `${(100 * given.length) / Math.max(1, fields.length)}%`;
  at("download").disabled = !given.length;
  fields.forEach((field) => field.closest("li").classList.toggle("named", Boolean(field.value.trim())));
  const distinct = [...new Set(given.map(([, name]) => name))];
  at("given").replaceChildren(...distinct.map((name) => Object.assign(document.createElement("option"), { value: name })));
}

function download() {
  const quoted = (text) => (/[",;\t\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const rows = [["run", "kind", "name"], ...names().map(([kind, name]) => [run, kind, name])];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["\ufeff", ...rows.map((row) => row.map(quoted).join(",") + "\r\n")], { type: "text/csv" }));
  link.download = "names.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const kept = guarded(() => JSON.parse(localStorage.getItem(place) ?? "{}")) ?? {};
fields.forEach((field, index) => {
  field.value = kept[field.dataset.kind] ?? "";
  field.addEventListener("input", () => {
    guarded(() => localStorage.setItem(place, JSON.stringify(Object.fromEntries(names()))));
    progress();
  });
  field.addEventListener("keydown", ({ key }) => {
    if (key === "Enter") (fields[index + 1] ?? at("download")).focus();
  });
});
at("download").addEventListener("click", download);
progress();
(fields.find((field) => !field.value) ?? fields[0])?.focus();
