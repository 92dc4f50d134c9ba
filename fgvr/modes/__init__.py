"""The modes, one module per kind. A mode is a function of a Session that returns a record; how it is shown stands beside it.

The one table of modes is here. It names functions and imports none, so that a plan does not wait for what an evaluation needs.
"""

from __future__ import annotations

import gc
import pkgutil
from typing import Any

from fgvr.config.configuration import Config

MODES = {
    "baselines": "fgvr.modes.comparing_baselines:baselines",
    "build_knowledge_base": "fgvr.modes.building:build_knowledge_base",
    "build_experience_base": "fgvr.modes.building:build_experience_base",
    "cache": "fgvr.modes.checking:cache",
    "classify": "fgvr.modes.classifying:classify",
    "compare": "fgvr.modes.comparing:compare",
    "discover": "fgvr.modes.discovering:discover",
    "doctor": "fgvr.modes.checking:doctor",
    "evaluate": "fgvr.modes.evaluating:evaluate",
    # Presets: the same function; the configuration pins the trigger.
    "fastonly": "fgvr.modes.evaluating:evaluate",
    "slowonly": "fgvr.modes.evaluating:evaluate",
    "fast_slow": "fgvr.modes.evaluating:evaluate",
    "fetch": "fgvr.modes.fetching:fetch",
    "memory": "fgvr.modes.checking:memory",
    "plan": "fgvr.modes.memory_plan:plan",
    "review": "fgvr.modes.review:review",
    "replay": "fgvr.modes.replaying:replay",
    "serve": "fgvr.modes.serving:serve",
}
"""Name -> dotted name of a function of a Session. A new one: a row here, and configs/mode/NAME.yaml, whose first comment is its line in
--help."""
LIGHT = ("plan",)
"""Functions of the Config alone: they need nothing that takes long to import."""


def perform(config: Config) -> Any:
    """The result of a configuration's mode."""
    run = pkgutil.resolve_name(MODES[config.mode])
    if config.mode in LIGHT:
        return run(config)
    from fgvr.session import Session

    return run(Session(config))


def begin(config: Config) -> None:
    """The terminal, the log and the libraries of this process are the command's."""
    from fgvr.runtime.loaders import libraries
    from fgvr.utils.logging import own_terminal, setup_logging

    if not gc.isenabled():  # `fgvr.cli.program` has stopped it for the start
        gc.freeze()
        gc.enable()
    own_terminal()
    libraries.freeze_after_imports()
    setup_logging(level=config.logging.level, quiet=config.logging.quiet)


def run(config: Config) -> Any:
    """What the command line calls: perform, then show."""
    from fgvr.modes.showing import show

    if config.mode not in LIGHT:
        begin(config)
    result = perform(config)
    show(result, as_json=config.logging.as_json)
    return result
