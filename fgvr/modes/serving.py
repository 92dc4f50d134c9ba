"""mode=serve: the pool of this process, behind HTTP."""

from __future__ import annotations

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

from omegaconf import DictConfig, OmegaConf

from fgvr import assembly
from fgvr.errors import ConfigError
from fgvr.evaluation.records import to_row
from fgvr.runtime.monitor import watch
from fgvr.types import ROLES

if TYPE_CHECKING:
    from fgvr.server.knowledge import Knowledge

log = logging.getLogger(__name__)
_PATIENCE = 1.0  # seconds for threads that still compute when everything is closed
NEEDED = ("fastapi", "uvicorn", "pydantic_settings", "prometheus_client", "python_multipart")


def serve(cfg: DictConfig) -> None:
    """Until a signal. The knowledge base is built or opened at once; models come with what needs them."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ConfigError(f"mode=serve needs {', '.join(missing)}: pip install 'fgvr[serve]'")
    from fgvr.server.app import make_app
    from fgvr.server.running import serve as run
    from fgvr.server.settings import Environment, Settings, Tokens

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read as torch comes in: idle OpenMP threads else spin on what the loop needs
    environment = Environment.read()
    cfg = with_environment(cfg, environment.overrides)
    settings, tokens = Settings.of(assembly.to_dict(cfg)["server"]), Tokens.of(environment)
    pool = assembly.shared_pool(cfg)
    specs = {role: assembly.spec(cfg, role) for role in ROLES}
    bundle = {key: value for key, value in assembly.to_dict(cfg)["models"].items() if key not in specs}
    server = make_app(pool, specs, settings, tokens, open_knowledge=partial(open_served, cfg), to_row=to_row, bundle=bundle)
    try:
        server.classifier.begin(tell)
        run(server, settings, tokens, assembly.home(cfg))
    finally:
        watch(pool).close()
        pool.close()
        if busy := _busy_threads(_PATIENCE):
            _leave(busy)


def open_served(cfg: DictConfig) -> Knowledge:
    """The base on disk as it is now, and a recognizer over it."""
    from fgvr.server.knowledge import Knowledge, KnownClass

    base = assembly.open_knowledge(cfg)
    shown = Counter(support.category for support in base.support)
    classes = tuple(KnownClass(record.id, record.name, shown[record.id]) for record in base.classes)
    return Knowledge(assembly.build_recognizer(cfg, base), classes, base.manifest.content_hash if base.manifest else "")


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
    log.warning("still computing: %s; the process ends without it", ", ".join(busy))
    logging.shutdown()
    sys.stderr.flush()
    os._exit(130 if isinstance(sys.exception(), KeyboardInterrupt) else 0)


def tell(words: str) -> None:
    """In the terminal of whoever started the server."""
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()


def with_environment(cfg: DictConfig, overrides: dict[str, object]) -> DictConfig:
    """The configuration with variables in place of what the command line left at its default; the command line wins."""
    default, changed = assembly.load_config("mode=serve"), cfg.copy()
    for key, value in overrides.items():
        if OmegaConf.select(cfg, key) == OmegaConf.select(default, key):
            OmegaConf.update(changed, key, value, merge=False)
            log.info("%s=%s from the environment", key, value)
    return assembly.validate(changed)
