"""The modes, one module per kind. A mode is a function of a Session that returns a record; how it is shown stands beside it.

The one table of modes is here. It names functions and imports none, so that a plan does not wait for what an evaluation needs.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import Any

from fgvr.config.configuration import Config


@dataclass(frozen=True, slots=True)
class Mode:
    """`run` is the dotted name of a function of a Session, or of the Config alone where it needs nothing that takes long to import."""

    run: str
    light: bool = False

    def __call__(self, config: Config) -> Any:
        run = pkgutil.resolve_name(self.run)
        if self.light:
            return run(config)
        from fgvr.session import Session

        return run(Session(config))


_EVALUATE = Mode("fgvr.modes.evaluating:evaluate")

MODES = {
    "baselines": Mode("fgvr.modes.comparing_baselines:baselines"),
    "build_knowledge_base": Mode("fgvr.modes.building:build_knowledge_base"),
    "build_experience_base": Mode("fgvr.modes.building:build_experience_base"),
    "cache": Mode("fgvr.modes.checking:cache"),
    "classify": Mode("fgvr.modes.classifying:classify"),
    "compare": Mode("fgvr.modes.comparing:compare"),
    "discover": Mode("fgvr.modes.discovering:discover"),
    "doctor": Mode("fgvr.modes.checking:doctor"),
    "evaluate": _EVALUATE,
    # Presets: the same function; the configuration pins the trigger.
    "fastonly": _EVALUATE,
    "slowonly": _EVALUATE,
    "fast_slow": _EVALUATE,
    "fetch": Mode("fgvr.modes.fetching:fetch"),
    "memory": Mode("fgvr.modes.checking:memory"),
    "plan": Mode("fgvr.modes.memory_plan:plan", light=True),
    "review": Mode("fgvr.modes.review:review"),
    "replay": Mode("fgvr.modes.replaying:replay"),
    "serve": Mode("fgvr.modes.serving:serve"),
}
"""Name -> mode. A new one: a row here, and configs/mode/NAME.yaml, whose first comment is its line in --help."""


def perform(config: Config) -> Any:
    """The result of a configuration's mode."""
    return MODES[config.mode](config)


def begin(config: Config) -> None:
    """The terminal, the log and the libraries of this process are the command's."""
    from fgvr.runtime.loaders import libraries
    from fgvr.utils.logging import own_terminal, setup_logging

    own_terminal()
    libraries.freeze_after_imports()
    setup_logging(level=config.logging.level, quiet=config.logging.quiet)


def run(config: Config) -> Any:
    """What the command line calls: perform, then show."""
    from fgvr.modes.showing import show

    if not MODES[config.mode].light:
        begin(config)
    result = perform(config)
    show(result, as_json=config.logging.as_json)
    return result
