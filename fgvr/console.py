"""Commands whose words are their own: `fgvr memory ACTION` and `fgvr bird FILE`.

They start in a fraction of a second: argparse and the standard library's HTTP, rich only for tables, and neither Hydra nor numpy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fgvr import __version__
from fgvr.errors import ConfigError, FgvrError
from fgvr.utils.words import Parser

EPILOG = """\
The server is --url, or FGVR_SERVER_URL, or the one that runs in this home (FGVR_HOME, else ./fgvr_home); without one, stats, pressure,
models, system and cleanup are of this machine. The token is --token, or FGVR_ADMIN_TOKEN, or that of the server in this home.
A model is named by its key or its role (mllm, encoder, joint).
"""
LOCAL = ("stats", "pressure", "models", "system", "cleanup")  # what this machine can be asked without a server


def main() -> int:
    """The `fgvr` command."""
    from fgvr import cli

    return cli.program(sys.argv[1:] or ["--help"])


def bird(words: Sequence[str]) -> int:
    """`fgvr bird FILE`: a species of the default world, in a picture that no base was built from."""
    from io import BytesIO
    from pathlib import Path

    from fgvr.data import birds
    from fgvr.utils.files import atomic_write

    parser = Parser("fgvr bird", description="write a rendered bird as a picture")
    parser.add_argument("file", nargs="?", type=Path, default=Path("bird.png"), help="where to; bird.png by default")
    file: Path = parser.parse_args(list(words)).file
    world = birds.make_world(seed=9000, genera=birds.DEFAULT_GENERA, difficulty=1.0)
    content = BytesIO()
    birds.render(world, 0, "sample", 0).save(content, "PNG")
    try:
        if file.exists() and file.read_bytes() != content.getvalue():
            raise ConfigError(f"{file} is there already; name another file")
        atomic_write(file, content.getvalue())
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror or error}); name one like bird.png") from None
    sys.stdout.write(f"{file}: a rendered {world.species[0].name}\n")
    return 0


def memory(words: Sequence[str]) -> int:
    """`fgvr memory ...`."""
    from fgvr.runtime import admin_client
    from fgvr.utils.running_server import default_home, find_server
    from fgvr.utils.service import Service, token_from_environment

    asked = _parser().parse_args(list(words))
    url, token = asked.url or os.environ.get("FGVR_SERVER_URL"), asked.token
    found = find_server(default_home())
    if found is not None and (url is None or Service.at(url).url == found.url):  # its token goes to that address alone
        url, token = found.url, token or token_from_environment(("FGVR_ADMIN_TOKEN", "ADMIN_TOKEN")) or found.token
    if url is None:
        if asked.action not in LOCAL or getattr(asked, "models", None) or getattr(asked, "target", None) or asked.watch is not None:
            raise ConfigError(f"memory {asked.action}: only a running server can be asked that; give --url, or set FGVR_SERVER_URL")
        from fgvr import modes
        from fgvr.config.composing import load_config

        modes.run(load_config("mode=memory", f"action={asked.action}", *(["logging=json"] if asked.json else [])))
        return 0
    server = Service.at(url, token)
    wish = {name: value for name in ("models", "target", "size", "model") if (value := getattr(asked, name, None))}
    try:
        if asked.action == "events":
            _tell_events(server.events("/api/v1/memory/events"), as_json=asked.json)
        else:
            _repeated(lambda: admin_client.ask(server, asked.action, **wish), server.url, asked)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Interrupted; the server goes on.") from None
    return 0


def _tell_events(events: Iterable[dict[str, Any]], *, as_json: bool) -> None:
    for event in events:
        sys.stdout.write(json.dumps(event) + "\n" if as_json else _sentence(event))
        sys.stdout.flush()


def _repeated(ask: Callable[[], Any], url: str, asked: argparse.Namespace) -> None:
    """Once, or every `--watch` seconds until it is interrupted; a server that is away for a while is waited for."""
    while True:
        try:
            _show(ask(), url, as_json=asked.json, clear=asked.watch is not None)
        except FgvrError as error:
            if asked.watch is None or isinstance(error, ConfigError):
                raise
            sys.stderr.write(f"{error}\n")
        if asked.watch is None:
            return
        time.sleep(asked.watch)


def _show(found: Any, url: str, *, as_json: bool, clear: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"server": url} | found) + "\n")
        sys.stdout.flush()
        return
    from fgvr.evaluation import memory_console
    from fgvr.utils.logging import stdout_console

    console = stdout_console()
    if clear and sys.stdout.isatty():
        console.clear()
    for part in memory_console.tables(found, server=url):
        console.print(part)


def _sentence(event: dict[str, Any]) -> str:
    told = "  ".join(f"{name}={value}" for name, value in event.items() if name not in ("kind", "time") and value not in ("", None))
    return f"{time.strftime('%H:%M:%S')}  {event.get('kind', 'event')}  {told}\n"


def _parser() -> argparse.ArgumentParser:
    common = Parser(add_help=False)
    common.add_argument("--url", help="of the server")
    common.add_argument("--token", help="that lets one read, or change, what the server has")
    common.add_argument("--json", action="store_true", help="one JSON object per line instead of tables")
    again = Parser(add_help=False)
    again.add_argument("--watch", type=_seconds, nargs="?", const=2.0, metavar="SECONDS", help="again and again (every 2 s)")
    parser = Parser("fgvr memory", description="a running server's models and memory", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=__version__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, help: str, *, watched: bool = False) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=help, description=help, parents=[common, again] if watched else [common])
        action.set_defaults(watch=None)
        return action

    add("stats", "how much of the budget is in use", watched=True)
    add("pressure", "whether memory is short, and whom that would cost", watched=True)
    add("models", "every model: state, size, leases, hits, loads, pin", watched=True)
    add("system", "main memory, control group, swap, devices", watched=True)
    add("cache", "hits, misses, evictions, seconds of loading", watched=True)
    add("events", "every load, eviction and alert as it happens")
    cleanup = add("cleanup", "drop idle models: all, or these, or until a target is reached")
    cleanup.add_argument("models", nargs="*", metavar="MODEL")
    cleanup.add_argument("--target", metavar="SIZE", help="stop when no more than this is in use, such as 8GiB")
    add("limit", "set the budget of the running server").add_argument("size", metavar="SIZE", help="18GiB, or 18 (GiB)")
    for control, what in (("load", "bring a model in"), ("evict", "drop an idle model"), ("pin", "never evict a model"),
                        ("unpin", "let a model be evicted again"), ("reset", "forget a model's failed load")):  # fmt: skip
        add(control, what).add_argument("model", metavar="MODEL")
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if seconds <= 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return seconds
