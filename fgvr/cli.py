"""The command line: a thin wrapper around Hydra that answers --help at once, mends overrides and gives errors their exit codes.

0 done, 1 a bug of ours, 2 a wrong configuration, 3 any other FgvrError, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fgvr import __version__
from fgvr.errors import ConfigError, FgvrError
from fgvr.overrides import compose, explain, groups, tidy
from fgvr.utils import terminal
from fgvr.utils.files import short_hash
from fgvr.utils.paths import config_dir
from fgvr.utils.terminal import on_terminal, tell

SHORT = {"-c": "--cfg", "-p": "--package", "-r": "--run", "-m": "--multirun", "-i": "--info", "-sc": "--shell-completion"}
SWITCHES = {"--hydra-help", "--resolve", "--run", "--multirun", "--shell-completion"}
VALUED = {"--cfg", "--package", "--info"}

HELP = """\
fgvr {version}: fine-grained visual recognition without training. It looks fast, and thinks slowly only when unsure.

usage: python discovering.py [mode=MODE] [GROUP=OPTION ...] [KEY=VALUE ...]

Modes
{modes}

Groups (* default)
{groups}

Often used
  dataset.root=FOLDER  dataset.shots=4    which images, how many per class
  trigger.target=slow_rate:0.45           how often to think slowly
  runtime.budget=18GiB                    memory the models may use
  knowledge.path=FOLDER  run.fresh=true   another knowledge base; do not show the former result

Examples
  python discovering.py mode=build_knowledge_base
  python discovering.py mode=classify image='my bird.jpg'
  python discovering.py -m mode=evaluate trigger=never,always,calibrated

--cfg job shows the whole configuration of a command, -m runs every combination of values separated by commas,
--hydra-help tells the rest. Exit codes: 0 done, 2 wrong configuration, 3 another error, 130 interrupted.
"""


def perform(cfg: Any) -> None:
    """One job: what the chosen mode does. A plan needs so little of the house that it is asked directly: it answers in half the time."""
    if cfg.mode == "plan":
        from fgvr import planning

        planning.show(planning.plan(cfg), as_json=cfg.logging.json)
        return
    from fgvr import modes
    from fgvr.runtime.loaders import libraries

    libraries.own_the_process()
    modes.run(cfg)


def main(words: Sequence[str], job: Callable[[Any], Any] = perform) -> int:
    """Answer one command line; the return value is the exit code."""
    return on_terminal(lambda: _main(words, job))


def _main(words: Sequence[str], job: Callable[[Any], Any]) -> int:
    if {"-h", "--help"} & set(words):
        sys.stdout.write(help_text())
        return 0
    if "--version" in words:
        sys.stdout.write(f"fgvr {__version__}\n")
        return 0
    overrides: list[str] = []
    try:
        flags, overrides = split(words)
        run(flags, tidy(overrides, sweep="--multirun" in flags), job)
    except (Exception, KeyboardInterrupt) as error:
        return answer(error, overrides)
    return 0


def run(flags: Sequence[str], overrides: Sequence[str], job: Callable[[Any], Any]) -> None:
    """Hand over to Hydra, which composes the configuration and calls the job, or once per combination of a sweep."""
    if not flags:  # one composition; hydra.main makes two, the first only to see whether it is a sweep
        job(compose("config", overrides))
        return
    import hydra

    sys.argv[1:] = [*flags, *overrides]  # where Hydra looks
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing; `answer` speaks
    failures: list[Exception] = []

    def once(cfg: Any) -> None:
        try:
            job(cfg)
        except Exception as error:  # kept from Hydra, which would print a line of its own
            failures.append(error)

    sweep = "--multirun" in flags
    if sweep:
        what = sorted(word for word in overrides if not word.startswith(("run.", "logging")))
        os.environ["FGVR_SWEEP"] = short_hash(what)  # the same sweep finds its folder again
    hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")(job if sweep else once)()
    if failures:
        raise failures[0]


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags (in long form) and the overrides, which may stand in any order."""
    flags: list[str] = []
    overrides: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        flag, equals, value = word.partition("=")
        flag = SHORT.get(flag, flag)
        if not word.startswith("-"):
            overrides.append(word)
        elif flag == "--yes":
            overrides.append("fetch.ask=false")
        elif flag in SWITCHES:
            flags.append(flag)
        elif flag in VALUED:
            if not equals and waiting and "=" not in waiting[0]:
                value = waiting.pop(0)
            flags.append(f"{flag}={value}" if value else flag)
        else:
            value = value or (waiting[0] if waiting and "=" not in waiting[0] else "VALUE")
            raise ConfigError(f"{word}: options have no dashes here; write {flag.lstrip('-').replace('-', '_')}={value}")
    return flags, overrides


# --- answers -----------------------------------------------------------------------------------------------------------------


def answer(error: BaseException, overrides: Sequence[str]) -> int:
    """Say what went wrong in the user's words, and choose the exit code. A traceback means a bug of ours."""
    for cause in causes(error):
        if isinstance(cause, FgvrError) and (code := terminal.answer(cause)) is not None:
            return code
    if is_configuration(error):
        from omegaconf.errors import MissingMandatoryValue

        if isinstance(error, MissingMandatoryValue):
            return tell(f"error: {needed(str(error.full_key))}", 2)
        return tell(f"error: {explain(error, overrides)}", 2)
    for cause in causes(error):
        if (code := terminal.answer(cause)) is not None:
            return code
    traceback.print_exception(error)
    return tell(f"This is a bug in fgvr {__version__}: please report it with the lines above and your command.", 1)


def needed(key: str) -> str:
    """What to write for a key that has no default."""
    from fgvr.keys import NEEDED

    return f"{key} is needed here: {NEEDED[key]}" if key in NEEDED else f"{key} is needed here: write {key}=VALUE"


def is_configuration(error: BaseException) -> bool:
    from hydra.errors import HydraException, InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, InstantiationException):  # a key the target does not take is the user's; what the target raises is ours
        return isinstance(error.__cause__, TypeError)
    return isinstance(error, HydraException | OmegaConfBaseException)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


# --- help --------------------------------------------------------------------------------------------------------------------


def help_text() -> str:
    tree = config_dir()
    known = groups(tree)
    modes = [f"  {name:<24} {summary(tree / 'mode' / f'{name}.yaml')}".rstrip() for name in known.pop("mode", [])]
    chosen = defaults(tree / "config.yaml")
    lines = [f"  {group:<16} {'  '.join(f'{o}*' if chosen.get(group) == o else o for o in names)}" for group, names in known.items()]
    return HELP.format(version=__version__, modes="\n".join(modes), groups="\n".join(lines))


def summary(file: Path) -> str:
    """The first comment of a configuration file that is a sentence."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line), "")


def defaults(file: Path) -> dict[str, str]:
    """`group: option` of a defaults list, read without a YAML library: --help shall be quick."""
    pairs = (line.strip().removeprefix("- ").split("#")[0].split(": ") for line in file.read_text(encoding="utf-8").splitlines())
    return {pair[0].removeprefix("override ").strip(): pair[1].strip() for pair in pairs if len(pair) == 2}
