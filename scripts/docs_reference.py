"""The reference pages of the documentation, made from the code: modes, options, keys, files, errors, HTTP addresses.

Each text stands once, where the thing itself is: the first comment of a YAML file, the comment beside a key, a field or an error's class.
`pages()` returns Markdown, and `scripts/docs_site.py` gives it to mkdocs. Alone it prints: `python scripts/docs_reference.py [PAGE]`.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from fgvr import cli, errors  # noqa: E402
from fgvr.config import fields as rules  # noqa: E402
from fgvr.config.configuration import Config  # noqa: E402
from fgvr.config.overrides import groups  # noqa: E402
from fgvr.utils.paths import config_dir  # noqa: E402
from scripts.docs_files import Part, fields_of, files, table  # noqa: E402

MADE = "<!-- made by scripts/docs_reference.py -->\n"


def pages() -> dict[str, str]:
    """Path below docs/ -> Markdown."""
    made = {"commands": commands, "options": options, "keys": keys, "files": files, "errors": error_page, "http": http}
    return {f"reference/{name}.md": MADE + "\n".join(make()) + "\n" for name, make in made.items()}


# --- modes and commands ------------------------------------------------------------------------------------------------------


def commands() -> Iterator[str]:
    yield "# Modes and commands\n"
    yield "`fgvr MODE [GROUP=OPTION ...] [KEY=VALUE ...]` is the same as `python discovering.py mode=MODE ...`. A mistyped mode, option or"
    yield "key is answered with the nearest right one. [Groups and their options](options.md), [keys](keys.md).\n"
    yield "## Modes\n"
    modes = sorted(groups()["mode"])
    yield from table(("mode", "does"), [(f"[`{name}`](#{name})", cli.summary(config_dir() / "mode" / f"{name}.yaml")) for name in modes])
    yield "## Commands with words of their own\n"
    yield from table(("command", "does"), [(f"`fgvr {name}`", line) for name, (_, line) in cli.COMMANDS.items()])
    for name in cli.COMMANDS:
        yield f"### fgvr {name}\n"
        yield f"```text\n{_help_of(name)}```\n"
    yield "## Exit codes\n"
    codes = (line.partition(" ") for line in re.split(r",\s*", inspect.getdoc(cli).split("\n\n")[1].rstrip(".")))  # type: ignore[union-attr]
    yield from table(("code", "means"), [(code, what) for code, _, what in codes])
    yield "## Keys of single modes\n"
    for name in modes:
        yield f"### {name}\n"
        yield cli.summary(config_dir() / "mode" / f"{name}.yaml") + "\n"
        own = [entry for entry in entries(config_dir() / "mode" / f"{name}.yaml") if entry.key != "mode"]
        if own:
            yield from table(("key", "default", "what it is"), [(f"`{e.key}`", f"`{e.value}`", e.comment) for e in own])


def _help_of(name: str) -> str:
    """What `fgvr NAME --help` prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        pkgutil.resolve_name(cli.COMMANDS[name][0])(["--help"])
    return text.getvalue()


# --- options and keys --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as a YAML file has it."""

    key: str
    value: str
    comment: str


def entries(file: Path, prefix: str = "") -> list[Entry]:
    """Every key of a configuration file with its default and the comment beside it; a comment may go on in the lines below."""
    found: list[Entry] = []
    parents: list[tuple[int, str]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if more := re.fullmatch(r"\s{8,}# (.*)", line):
            last = found.pop()
            found.append(Entry(last.key, last.value, f"{last.comment} {more[1]}"))
        if not (
            match := re.fullmatch(
                r"(\s*)([\w]+):(?:\s+((?:\[[^\]]*\]|\"[^\"]*\"|[^#\s])(?:[^#]|(?<=\S)#)*?)?)?\s*(?:(?<!\S)#\s*(.*))?", line
            )
        ):
            continue
        indent, name, value, comment = len(match[1]), match[2], match[3] or "", match[4] or ""
        parents = [parent for parent in parents if parent[0] < indent]
        path = ".".join([*([prefix] if prefix else []), *(parent for _, parent in parents), name])
        if not value:
            parents.append((indent, name))
        if value or comment:
            found.append(Entry(path, value, comment))
    return [one for one in found if one.key.split(".")[-1] not in ("_target_", "defaults")]


def option_files() -> Iterator[tuple[str, str, Path]]:
    """(group, option, file) of every option there is."""
    for group, names in groups().items():
        if group != "experiment":
            yield from ((group, name, config_dir() / group / f"{name}.yaml") for name in names)


def options() -> Iterator[str]:
    chosen = cli.defaults(config_dir() / "config.yaml")
    yield "# Groups and options\n"
    yield "An option sets many keys at once: `trigger=never`, `models=photos`, `models/mllm=NAME`. Each is one small file in `configs/`."
    yield "The default is in bold.\n"
    by_group: dict[str, list[tuple[str, Path]]] = {}
    for group, name, file in option_files():
        by_group.setdefault(group, []).append((name, file))
    for group, members in by_group.items():
        if group == "mode":
            continue
        yield f"## {group}\n"
        rows = [(f"**`{name}`**" if chosen.get(group) == name else f"`{name}`", cli.summary(file)) for name, file in members]
        yield from table(("option", "what it is"), rows)
    yield "## experiment\n"
    yield "Published configurations as a whole: the rows of `configs/experiments.toml`.\n"
    yield from table(("option",), [(f"`{name}`",) for name in groups().get("experiment", [])])


def known_keys() -> dict[str, list[tuple[str, Entry]]]:
    """Dotted key -> (option that has it, entry). `models/mllm/x.yaml` is read as `models.mllm`."""
    found: dict[str, list[tuple[str, Entry]]] = {}
    sources = [("", "config.yaml", config_dir() / "config.yaml"), *option_files()]
    for group, option, file in sources:
        prefix = "" if group in ("", "mode") else group.replace("/", ".")
        for entry in entries(file, prefix):
            if entry.key != "mode" and rule(entry.key) is not None:
                found.setdefault(entry.key, []).append((option, entry))
    return found


def rule(key: str) -> str | None:
    """What a value of this key must be, as far as one place knows it; None where there is no such key."""
    model: Any = Config
    info = None
    for place, name in enumerate(key.split(".")):
        if model is None:
            return ""  # within a key that holds a mapping, such as runtime.allocator
        info = next((one for known, one in model.model_fields.items() if name in (known, one.alias)), None)
        if info is None:
            return _rule_of_server(name) if key.startswith("server.") and place == 1 else None
        model = rules.group_of(info)
    return (
        None
        if info is None or model is not None
        else ""
        if info.annotation is Any
        else rules.must_be(info).removeprefix("must be ").split(" (digits")[0]
    )


def _rule_of_server(name: str) -> str | None:
    from pydantic import TypeAdapter

    from fgvr.server.settings import Settings

    known = TypeAdapter(Settings).json_schema()["properties"].get(name)
    return None if known is None else _kind(known) + (f" from {known['minimum']:g} up" if "minimum" in known else "")


def keys() -> Iterator[str]:
    yield "# Keys\n"
    yield "`KEY=VALUE` on the command line, in `load_config(...)` and in a sweep. `fgvr MODE ... --cfg job` shows the whole configuration"
    yield "of a command. Where options of a group have different defaults, all are listed.\n"
    by_section: dict[str, list[tuple[str, list[tuple[str, Entry]]]]] = {}
    for key, places in known_keys().items():
        by_section.setdefault(key.partition(".")[0] if "." in key else "general", []).append((key, places))
    usual = cli.defaults(config_dir() / "config.yaml")
    of_model = {one.name: one.comment for one in fields_of(Part("fgvr.types.memory:ModelSpec"))}
    for section in sorted(by_section, key=lambda name: (name != "general", name)):
        yield f"## {section}\n"
        rows = []
        for key, places in by_section[section]:
            values = list(dict.fromkeys(entry.value for _, entry in places))
            shown = "by option" if len(values) > 3 else ", ".join("must be given" if v == "???" else f"`{v}`" for v in values)
            told = {option: entry.comment for option, entry in reversed(places) if entry.comment}
            text = next((told[one] for one in ("config.yaml", "default", usual.get(section), *reversed(told)) if one in told), "")
            if key.startswith("models.") and key.count(".") == 2:
                text = of_model.get(key.rpartition(".")[2]) or text
            must = f"<small>{escape(must)}</small>" if (must := rule(key)) else ""
            rows.append((f"`{key}`", shown, f"{text} {must}".strip()))
        yield from table(("key", "default", "what it is, what may stand there"), rows)


# --- errors and addresses ----------------------------------------------------------------------------------------------------


def error_page() -> Iterator[str]:
    lead, _, tree = (inspect.getdoc(errors) or "").partition("\n\n")
    yield "# Errors\n"
    yield lead + "\n"
    yield f"```text\n{tree}\n```\n"
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.FgvrError):
            own = [attribute for attribute in ("offenders", "plan", "status") if f"self.{attribute}" in inspect.getsource(kind)]
            yield f"## {name}\n"
            told = f" Attribute: `{'`, `'.join(own)}`." if own else ""
            yield f"{inspect.getdoc(kind)}{told} Exit code {2 if issubclass(kind, errors.ConfigError) else 3}.\n"


def document() -> dict[str, Any]:
    """The server's OpenAPI document, of a server that is never started."""
    from fgvr.evaluation.records import to_row
    from fgvr.runtime.devices.simulated import SimulatedDevice
    from fgvr.runtime.pool import ModelPool
    from fgvr.server.app import make_app
    from fgvr.server.settings import Settings, Tokens
    from fgvr.types import ModelSpec

    def no_knowledge() -> Any:
        raise errors.KnowledgeError("this server answers nothing")

    pool, spec = ModelPool(SimulatedDevice(1 << 30), budget=1 << 29), ModelSpec("mllm", "fake", "mllm 1MiB")
    try:
        return make_app(pool, {"mllm": spec}, Settings(), Tokens("none"), open_knowledge=no_knowledge, to_row=to_row).app.openapi()
    finally:
        pool.close()


def http() -> Iterator[str]:
    found = document()
    yield "# HTTP API\n"
    yield f"{found['info']['description']} A running server has the same document at `/openapi.json`, and a page of it at `/docs`."
    yield "How to run one: [Run it as a service](../ops/README.md). Limits, tokens, errors: [the model server](../server.md).\n"
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            yield f"## {method.upper()} {path}\n"
            yield (operation.get("description") or operation.get("summary", "")) + "\n"
            parameters = operation.get("parameters", [])
            if parameters:
                rows = [(f"`{p['name']}`", p["in"], _kind(p.get("schema", {})), p.get("description", "")) for p in parameters]
                yield from table(("parameter", "in", "type", "what it is"), rows)
            for schema in _bodies(operation, found):
                yield from table(
                    ("body field", "type", "what it is"),
                    [
                        (f"`{name}`" + (" (needed)" if name in schema.get("required", []) else ""), _kind(one), one.get("description", ""))
                        for name, one in schema.get("properties", {}).items()
                    ],
                )
            if answered := list(_answered(_of_json(operation["responses"].get("200", {})), found)):
                yield from table(("field of the answer", "type", "what it is"), answered)
            yield "Answers: " + ", ".join(f"{code} {one.get('description', '')}" for code, one in operation["responses"].items()) + ".\n"


def _bodies(operation: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    seen = []
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = _resolved(content.get("schema", {}), found)
        for one in [schema, *(_resolved(part, found) for part in schema.get("anyOf", []))]:
            if one.get("properties") and one not in seen:
                seen.append(one)
                yield one


def _of_json(body: Mapping[str, Any]) -> Mapping[str, Any]:
    return body.get("content", {}).get("application/json", {}).get("schema", {})


def _answered(schema: Mapping[str, Any], found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every field that is described, with its path."""
    for name, one in _resolved(schema, found).get("properties", {}).items():
        if described := one.get("description"):
            yield (f"`{prefix}{name}`", _kind(one), described)
        inner, path = (one["items"], f"{prefix}{name}[].") if "items" in one else (one, f"{prefix}{name}.")
        if "$ref" in inner:
            yield from _answered(inner, found, path)


def _resolved(schema: Mapping[str, Any], found: Mapping[str, Any]) -> Mapping[str, Any]:
    return found["components"]["schemas"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _kind(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    return str(schema.get("type", "any"))


if __name__ == "__main__":
    everything = pages()
    wanted: Callable[[str], bool] = lambda path: not sys.argv[1:] or sys.argv[1] in path  # noqa: E731
    print("\n".join(text for path, text in everything.items() if wanted(path)))
