// What happens in the pool, as it happens; the connection is made again when it breaks.

import { bytes, listen, make, seconds } from "./api.js";

const MOST = 100;

export async function follow(list, alerts, state, happened) {
  for (let pause = 500; ; pause = Math.min(10000, 2 * pause)) {
    try {
      await listen("/api/v1/memory/events", (event) => told(list, alerts, event, happened), () => {
        state.textContent = "live";
        pause = 500;
      });
      state.textContent = "the server ended the stream; trying again";
    } catch (error) {
      state.textContent = `not listening: ${error.message}`;
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

function told(list, alerts, event, happened) {
  const when = new Date(1000 * (event.time ?? event.when ?? Date.now() / 1000));
  const item = make("li", { class: event.kind }, make("time", { datetime: when.toISOString() }, when.toLocaleTimeString("en-GB")), make("b", {}, event.kind), make("span", {}, words(event)));
  list.prepend(item);
  while (list.children.length > MOST) list.lastChild.remove();
  if (event.kind === "alert") {
    alerts.prepend(make("p", {}, make("b", {}, `${when.toLocaleTimeString("en-GB")} `), event.text ?? event.alert));
    while (alerts.children.length > 3) alerts.lastChild.remove();
  }
  happened(event);
}

export function words(event) {
  if (event.kind === "lost") return `${event.count} events came faster than this page took them`;
  const parts = [event.key || event.subject || (event.models ?? []).join(", ")];
  if (event.kind === "budget") parts.push(`now ${bytes(event.limit)}`);
  else if (event.bytes) parts.push(bytes(event.bytes));
  if (event.seconds) parts.push(`in ${seconds(event.seconds)}`);
  if (event.text) parts.push(event.text);
  return parts.filter(Boolean).join(" · ");
}
