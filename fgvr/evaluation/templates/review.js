// One doubtful image at a time. Answers stay in this browser under the run's id, and leave it only as answers.csv.
"use strict";

const NONE = "", NONE_TOLD = "none of these";
const data = JSON.parse(document.getElementById("data").textContent);
const images = data.images;
const classes = new Map(data.classes.map((one) => [one.id, one]));
const at = (id) => document.getElementById(id);
const place = `fgvr:${data.run}`;

// --- what is kept ----------------------------------------------------------------------------------------------------------

let state = { answers: {}, history: [] }; // image -> class id, or NONE; history: [image, its answer before or null]
let current = 0;

function recall() {
  try {
    const kept = JSON.parse(localStorage.getItem(place) ?? "null");
    if (kept) state = kept;
  } catch {
    at("forgetful").hidden = false;
  }
}

function keep() {
  try {
    localStorage.setItem(place, JSON.stringify(state));
  } catch {
    at("forgetful").hidden = false;
  }
}

const answerOf = (index) => state.answers[images[index].image];
const open = (index) => answerOf(index) === undefined;
const answered = () => images.filter((_, index) => !open(index)).length;
const nameOf = (id) => (id === NONE ? NONE_TOLD : classes.get(id).name);

// --- what is done ----------------------------------------------------------------------------------------------------------

function answer(id) {
  const image = images[current]?.image;
  if (image === undefined) return;
  state.history.push([image, state.answers[image] ?? null]);
  state.answers[image] = id;
  keep();
  forward();
}

/** To the next image without an answer, after this one or from the start; past the last one when all have an answer. */
function forward() {
  const order = images.map((_, step) => (current + 1 + step) % images.length);
  show(order.find(open) ?? images.length);
}

function undo() {
  const last = state.history.pop();
  if (!last) return;
  const [image, before] = last;
  if (before === null) delete state.answers[image];
  else state.answers[image] = before;
  keep();
  show(images.findIndex((one) => one.image === image));
}

function move(step) {
  show(Math.min(Math.max(current + step, 0), images.length - 1));
}

function csv() {
  const quoted = (text) => (/[",;\t\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const rows = images.filter((_, index) => !open(index)).map(({ image }) => {
    const id = state.answers[image];
    return [data.run, image, id, nameOf(id)];
  });
  return "\ufeff" + [["run", "image", "class_id", "class_name"], ...rows].map((row) => row.map(quoted).join(",") + "\r\n").join("");
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.download = "answers.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// --- what is seen ----------------------------------------------------------------------------------------------------------

function candidate([id, share], index) {
  const { name, known } = classes.get(id);
  const button = document.createElement("button");
  button.type = "button";
  button.className = "candidate";
  button.setAttribute("aria-keyshortcuts", index + 1);
  button.setAttribute("aria-pressed", answerOf(current) === id);
  const key = document.createElement("kbd");
  key.textContent = index + 1;
  const text = document.createElement("span");
  text.className = "told";
  const bold = document.createElement("b");
  bold.textContent = name;
  const small = document.createElement("small");
  small.textContent = `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`;
  const bar = document.createElement("span");
  bar.className = "share";
  const filled = document.createElement("i");
  filled.style.width = `${100 * share}%`;
  bar.append(filled);
  text.append(bold, small, bar);
  const pictures = document.createElement("span");
  pictures.className = "known";
  pictures.append(...known.map((url) => Object.assign(new Image(), { src: url, alt: "" })));
  button.append(key, text, pictures);
  button.addEventListener("click", () => answer(id));
  return button;
}

function show(index) {
  current = index;
  const over = index >= images.length;
  at("ask").hidden = over;
  at("finished").hidden = !over;
  if (!over) {
    const { image, picture, certainty, candidates } = images[index];
    at("photograph").src = picture ?? "data:,";
    at("photograph").alt = image;
    at("photograph").hidden = !picture;
    at("absent").hidden = Boolean(picture);
    at("name").textContent = image;
    at("certainty").textContent = certainty === null ? "" : `System 1 is ${Math.round(100 * certainty)}% sure`;
    at("candidates").replaceChildren(...candidates.map(candidate));
    const given = answerOf(index);
    at("none").setAttribute("aria-pressed", given === NONE);
    const elsewhere = given !== undefined && given !== NONE && !candidates.some(([id]) => id === given);
    at("another").value = elsewhere ? nameOf(given) : "";
    at("another").parentElement.classList.toggle("chosen", elsewhere);
  }
  progress();
}

function progress() {
  const done = answered();
  const none = images.filter(({ image }) => state.answers[image] === NONE).length;
  const here = current < images.length ? `image ${current + 1} of ${images.length} · ` : "";
  at("told").textContent = `${here}${done} answered`;
  at("summary").textContent = images.length ? `All ${images.length} answered${none ? `, ${none} of them “${NONE_TOLD}”` : ""}` : "No image is doubtful";
  const bar = document.querySelector(".done");
  bar.setAttribute("aria-valuenow", done);
  bar.firstElementChild.style.width = `${images.length ? (100 * done) / images.length : 100}%`;
  at("download").disabled = !done;
  at("undo").disabled = !state.history.length;
  at("back").disabled = current === 0;
  at("next").disabled = current >= images.length - 1;
  [...at("strip").children].forEach(({ firstElementChild: tick }, index) => {
    const given = answerOf(index);
    tick.className = given === undefined ? "" : given === NONE ? "none" : "named";
    tick.title = `${images[index].image}${given === undefined ? "" : `: ${nameOf(given)}`}`;
    tick.setAttribute("aria-label", tick.title);
    tick.toggleAttribute("aria-current", index === current);
  });
}

// --- keyboard and mouse ----------------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === at("another")) {
    if (event.key === "Escape") {
      event.target.value = "";
      event.target.blur();
    }
    return;
  }
  const actions = { n: () => answer(NONE), u: undo, d: download, ArrowLeft: () => move(-1), ArrowRight: () => move(1), "/": () => at("another").focus() };
  const chosen = /^[1-9]$/.test(event.key) ? images[current]?.candidates[event.key - 1] : undefined;
  const action = chosen ? () => answer(chosen[0]) : actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

function another(target) {
  const wanted = target.value.trim().toLowerCase();
  const found = data.classes.find(({ name }) => name.toLowerCase() === wanted);
  target.setCustomValidity(found || !wanted ? "" : "no class has this name");
  target.reportValidity();
  if (!found) return;
  target.value = "";
  target.blur();
  answer(found.id);
}

at("another").addEventListener("change", ({ target }) => another(target));
at("another").addEventListener("input", ({ target, inputType }) => {
  target.setCustomValidity("");
  if (inputType === undefined || inputType === "insertReplacementText") another(target); // chosen from the list
});
at("none").addEventListener("click", () => answer(NONE));
at("undo").addEventListener("click", undo);
at("back").addEventListener("click", () => move(-1));
at("next").addEventListener("click", () => move(1));
at("download").addEventListener("click", download);
window.addEventListener("storage", (event) => {
  if (event.key !== place) return; // another window of the same page
  recall();
  show(current);
});

at("classes").append(...data.classes.map(({ name }) => Object.assign(document.createElement("option"), { value: name })));
at("strip").append(...images.map((_, index) => {
  const item = document.createElement("li");
  const tick = document.createElement("button");
  tick.type = "button";
  tick.tabIndex = -1; // the arrow keys walk through them
  tick.addEventListener("click", () => show(index));
  item.append(tick);
  return item;
}));
recall();
show(images.length ? Math.max(0, images.findIndex((_, index) => open(index))) : 0);
if (images.length && images.every((_, index) => !open(index))) show(images.length);
