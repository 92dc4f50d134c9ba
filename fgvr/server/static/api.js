// The server's addresses, asked with the token of this tab.

const KEY = "fgvr-token";

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export class Refused extends Error {
  constructor(status, message, retry) {
    super(message);
    this.status = status;
    this.retry = retry; // seconds after which the same may succeed; null: it will not
  }
}

const headers = () => (token.get() ? { Authorization: `Bearer ${token.get()}` } : {});

async function answered(response) {
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    const body = await response.json();
    message = body?.data?.message ?? body?.error?.message ?? message;
  } catch {
    // no JSON: the status says it
  }
  const passing = response.status === 429 || response.status === 503;
  throw new Refused(response.status, message, passing ? Number(response.headers.get("Retry-After")) || 2 : null);
}

export async function get(path) {
  const response = await answered(await fetch(path, { headers: headers(), cache: "no-store" }));
  return (await response.json()).data;
}

export async function text(path) {
  return (await answered(await fetch(path, { headers: headers(), cache: "no-store" }))).text();
}

export async function post(path, body) {
  const json = body !== undefined && !(body instanceof FormData);
  const options = { method: "POST", headers: { ...headers(), ...(json ? { "Content-Type": "application/json" } : {}) } };
  if (body !== undefined) options.body = json ? JSON.stringify(body) : body;
  return (await (await answered(await fetch(path, options))).json()).data;
}

// Server-sent events by fetch: EventSource cannot send a token. Ends when the stream does; raises when it breaks.
export async function listen(path, told, opened) {
  const response = await answered(await fetch(path, { headers: headers(), cache: "no-store" }));
  opened();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (waiting + value).split("\n\n");
    waiting = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
      if (data) told(JSON.parse(data));
    }
  }
}

const UNITS = ["B", "KiB", "MiB", "GiB"];

export function bytes(count) {
  if (count === null || count === undefined) return "unknown";
  let power = 0;
  while (count >= 1024 && power < UNITS.length - 1) {
    count /= 1024;
    power += 1;
  }
  return `${count.toFixed([0, 1, 1, 2][power])} ${UNITS[power]}`; // as fgvr.utils.text.format_bytes writes it
}

export function seconds(value) {
  if (value < 0.9995) return `${(1000 * value).toFixed(value < 0.01 ? 1 : 0)} ms`;
  if (value < 90) return `${value.toFixed(1)} s`;
  return value < 5400 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}

// An element with attributes and children; strings become text, never markup.
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
