// Tables sort by their heads and filter by a word; so do the confused pairs. Without script the page is whole, only still.
"use strict";

const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

function filterable(items, name, before) {
  if (items.length < 6) return;
  const field = document.createElement("input");
  field.type = "search";
  field.placeholder = `filter ${name}`;
  field.setAttribute("aria-label", `Filter ${name}`);
  const told = document.createElement("span");
  told.setAttribute("role", "status");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const item of items) {
      const text = (item.dataset.name ?? item.textContent).toLowerCase();
      item.hidden = !words.every((word) => text.includes(word));
      shown += item.hidden ? 0 : 1;
    }
    told.textContent = words.length ? `${shown} of ${items.length} shown` : "";
  });
  const box = document.createElement("p");
  box.className = "filter";
  box.append(field, told);
  before.before(box);
}

function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const numeric = head.classList.contains("number");
    const value = (row) => {
      const text = row.cells[column].textContent;
      return numeric ? parseFloat(text.replace(/,/g, "")) : text;
    };
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const sign = down ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        return sign * (numeric ? x - y : collator.compare(x, y));
      });
      body.append(...rows);
    });
  });
}

for (const table of document.querySelectorAll("table[data-live]")) {
  sortable(table);
  filterable([...table.tBodies[0].rows], table.caption.textContent.toLowerCase(), table.parentElement);
}
for (const list of document.querySelectorAll("[data-filter]")) {
  filterable([...list.children], list.dataset.filter, list);
}
