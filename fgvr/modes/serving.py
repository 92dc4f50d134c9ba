"""mode=serve: the pool of this process, behind HTTP."""

import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fgvr.config.composing import load_config
from fgvr.errors import ConfigError
from fgvr.evaluation.records import to_row
from fgvr.runtime.monitor import watch
from fgvr.session import Session
from fgvr.utils import terminal

if TYPE_CHECKING:
    from fgvr.server.knowledge import Knowledge

log = logging.getLogger(__name__)
_PATIENCE = 1.0  # seconds for threads that still compute when everything is closed
NEEDED = ("fastapi", "uvicorn", "pydantic_settings", "prometheus_client", "python_multipart")


def serve(session: Session) -> None:
    """Until a signal. The knowledge base is built or opened at once; models come with what needs them."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ConfigError(f"mode=serve needs {', '.join(missing)}: pip install 'fgvr[serve]'")
    from fgvr.server.app import make_app
    from fgvr.server.running import serve as run
    from fgvr.server.settings import Environment, Settings, Tokens

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read as torch comes in: idle OpenMP threads else spin on what the loop needs
    environment = Environment.read()
    session = with_environment(session, environment.overrides)
    config = session.config
    specs = {role: session.specs[role] for role in config.models.present}
    settings, tokens = Settings.of(config.server.to_dict()), Tokens.of(environment)
    pool = session.pool
    bundle = {key: value for key, value in config.models.to_dict().items() if key not in session.specs}
    server = make_app(pool, specs, settings, tokens, open_knowledge=partial(open_served, session), to_row=to_row, bundle=bundle)
    try:
        if notice := config.models.notice:
            tell(notice)
        server.classifier.begin(tell)
        run(server, settings, tokens, session.home)
    finally:
        for member in pool.members:
            watch(member).close()
        pool.close()
        if busy := _busy_threads(_PATIENCE):
            _leave(busy)


def open_served(serving: Session) -> "Knowledge":
    """The images and the base on disk as they are now, and a recognizer over them. The pool stays as it was set while it ran."""
    from fgvr.server.knowledge import Knowledge

    session = Session(serving.config, pool=serving.pool, specs=serving.specs, store=serving.store)
    base = session.knowledge
    shown = Counter(support.category for support in base.support)
    classes = tuple({"id": record.id, "name": record.name, "photographs": shown[record.id]} for record in base.classes)
    return Knowledge(session.recognizer_of_pictures(), classes, base.manifest.content_hash if base.manifest else "")


def _busy_threads(seconds: float) -> list[str]:
    """Names of the daemon threads that have not ended after `seconds` together."""
    until = time.monotonic() + seconds
    ours = [thread for thread in threading.enumerate() if thread.daemon]
    for thread in ours:
        thread.join(max(0.0, until - time.monotonic()))
    return [thread.name for thread in ours if thread.is_alive()]


def _leave(busy: Sequence[str]) -> None:
    """The last resort; all is saved and closed by now. At its own end Python unwinds the stack of a daemon thread that comes back from
    native code, and C++ frames on that stack abort the process ("terminate called without an active exception")."""
    log.info("still computing: %s; the process ends without it", ", ".join(busy))
    error = sys.exception()
    code = 0 if error is None else terminal.answer(error)
    if code is None:
        return  # a bug: its traceback is worth more than a quiet end
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def tell(words: str) -> None:
    """In the terminal of whoever started the server."""
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()


def with_environment(session: Session, overrides: dict[str, object]) -> Session:
    """The session with variables in place of what the command line left at its default; the command line wins."""
    default = load_config("mode=serve")
    changes = {key: value for key, value in overrides.items() if session.config.get(key) == default.get(key)}
    for key, value in changes.items():
        log.info("%s=%s from the environment", key, value)
    return session.derive(changes)
