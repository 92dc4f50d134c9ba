// The page: asks every two seconds while it is looked at, and at once when something happens.

import { bytes, get, post, text, token } from "./api.js";
import * as chart from "./chart.js";
import * as classify from "./classify.js";
import { follow } from "./events.js";
import * as models from "./models.js";
import * as traffic from "./traffic.js";

const EVERY = 2000; // milliseconds
const $ = (id) => document.getElementById(id);
let asking = false;
let again = false;
let soon = null;

function say(words, error = null) {
  $("said").textContent = words;
  $("said").classList.toggle("wrong", error !== null);
  if (error?.status === 401) access(true);
}

function access(wanted) {
  $("access").hidden = !wanted;
  $("show-access").setAttribute("aria-expanded", String(wanted));
  $("forget").hidden = !token.get();
  if (wanted) $("token").focus();
}

function tile(id, words, small) {
  const [value, note] = [$(id), $(id).querySelector("small")];
  value.firstChild.textContent = words;
  if (note.textContent !== small) note.textContent = small;
}

async function refresh() {
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  try {
    const [stats, pressure, rows, cache] = await Promise.all(["stats", "pressure", "models", "cache-stats"].map((name) => get(`/api/v1/memory/${name}`)));
    tile("used", stats.formatted_usage, `of ${stats.formatted_limit}, ${(100 * pressure.share).toFixed(pressure.share < 0.1 ? 1 : 0)} %`);
    tile("level", pressure.pressure ? pressure.level : "none", pressure.recommended.length ? `would drop ${pressure.recommended.join(", ")}` : pressure.host_low);
    $("level").parentElement.classList.toggle("high", pressure.pressure);
    tile("loaded", String(stats.total_models), `${(100 * cache.hit_rate).toFixed(1)} % hits, ${cache.evictions} evictions`);
    tile("host", stats.formatted_system_available, `of ${stats.formatted_system_total}`);
    if (document.activeElement !== $("limit") && !$("limit").dataset.typed) $("limit").value = Number((stats.memory_limit / 2 ** 30).toFixed(3));
    chart.note(stats, rows);
    chart.draw($("residency"), $("legend"));
    models.show($("models"), rows, refresh, say);
    traffic.show($("traffic"), $("queue"), await text("/metrics"));
    health("the server answers", "well");
  } catch (error) {
    health(error.status === 401 ? "a token is needed to read here" : `no figures: ${error.message}`, "ill");
    if (error.status === 401 && $("access").hidden) access(true);
  } finally {
    asking = false;
    if (again) {
      again = false;
      refresh();
    }
  }
}

function health(words, kind) {
  if ($("health").textContent !== words) $("health").textContent = words;
  $("health").className = kind;
}

async function control(words, path, body, done) {
  say(`${words} …`);
  try {
    say(done(await post(path, body)));
  } catch (error) {
    say(`${words}: ${error.message}`, error);
  }
  refresh();
}

$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set($("token").value.trim());
  $("token").value = "";
  access(false);
  say("token taken; try again what was refused");
  refresh();
});
$("forget").addEventListener("click", () => {
  token.set("");
  access(false);
  say("token forgotten");
});
$("show-access").addEventListener("click", () => access($("access").hidden));
$("limit").addEventListener("input", () => ($("limit").dataset.typed = "yes"));
$("limit-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = $("limit").value;
  delete $("limit").dataset.typed;
  control(`budget ${wanted} GiB`, `/api/v1/memory/limit?limit_gb=${encodeURIComponent(wanted)}`, undefined, (found) => `the budget is ${found.formatted_limit ?? `${wanted} GiB`} now`);
});
$("cleanup").addEventListener("click", () => control("clean-up", "/api/v1/memory/cleanup", undefined, (found) => `dropped ${found.dropped.join(", ") || "nothing"}: ${bytes(found.released_bytes)} came back`));
document.addEventListener("visibilitychange", () => document.hidden || refresh());

classify.ready($("drop"), $("file"), $("classify-said"), $("answer"), (error) => error.status === 401 && access(true));
get("/api/v1/memory/system").then((found) => ($("device").textContent = `on ${found.devices[0].name}`), () => {}); // refresh says what is wrong
refresh();
setInterval(() => document.hidden || refresh(), EVERY);
follow($("events"), $("alerts"), $("listening"), () => {
  $("no-events").hidden = true;
  clearTimeout(soon); // loads come in groups of events: one look after them
  soon = setTimeout(refresh, 150);
});
