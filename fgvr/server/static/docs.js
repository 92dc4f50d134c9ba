// The OpenAPI document as a page: nothing comes from elsewhere, and nothing is sent.
const make = (name, text = "", ...inner) => {
  const one = document.createElement(name);
  one.textContent = text;
  one.append(...inner);
  return one;
};

function kind(schema = {}) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.type === "array") return `list of ${kind(schema.items)}`;
  return (schema.enum ?? (schema.const === undefined ? [schema.type ?? "any"] : [schema.const])).join(", ");
}

function table(head, rows) {
  const line = (cells, name) => make("tr", "", ...cells.map((cell) => make(name, cell)));
  const whole = make("div", "", make("table", "", make("thead", "", line(head, "th")), make("tbody", "", ...rows.map((row) => line(row, "td")))));
  whole.className = "scroll";
  return whole;
}

function operation(path, method, one, schemas) {
  const part = make("section", "", make("h2", `${method.toUpperCase()} ${path}`), make("p", one.description ?? one.summary ?? ""));
  const known = (one.parameters ?? []).map((p) => [p.name, `${p.in}, ${kind(p.schema)}`, p.description ?? ""]);
  for (const content of Object.values(one.requestBody?.content ?? {})) {
    const body = content.schema?.$ref ? schemas[kind(content.schema)] : content.schema;
    const needed = new Set(body?.required ?? []);
    for (const [name, field] of Object.entries(body?.properties ?? {}))
      known.push([needed.has(name) ? `${name} (needed)` : name, `body, ${kind(field)}`, field.description ?? ""]);
  }
  if (known.length) part.append(table(["name", "where and type", "what it is"], known));
  part.append(table(["answer", "means"], Object.entries(one.responses).map(([code, answer]) => [code, answer.description ?? ""])));
  return part;
}

const found = await (await fetch("/openapi.json")).json();
document.querySelector("#about").textContent = `${found.info.title} ${found.info.version}. ${found.info.description}`;
for (const [path, operations] of Object.entries(found.paths))
  for (const [method, one] of Object.entries(operations))
    document.querySelector("#addresses").append(operation(path, method, one, found.components?.schemas ?? {}));
