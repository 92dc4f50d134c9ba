"""The command line, `fgvr` and `python discovering.py`: it answers --help at once, mends overrides and gives errors their exit codes.

0 done, 1 a bug of ours, 2 a wrong configuration, 3 any other FgvrError, 130 interrupted.
"""

import atexit
import gc
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvr import __version__
from fgvr.config.overrides import explain, groups, tidy
from fgvr.errors import ConfigError, FgvrError, causes
from fgvr.utils import terminal
from fgvr.utils.paths import config_dir
from fgvr.utils.plugins import OUTSIDE, blame
from fgvr.utils.terminal import on_terminal, tell
from fgvr.utils.text import nearest

if TYPE_CHECKING:
    from fgvr.config.configuration import Config

SHORT = {"-c": "--cfg", "-p": "--package", "-r": "--run", "-m": "--multirun", "-i": "--info", "-sc": "--shell-completion"}
SWITCHES = {"--hydra-help", "--resolve", "--run", "--multirun", "--shell-completion"}
VALUED = {"--cfg", "--package", "--info"}

HELP = """\
fgvr {version}: fine-grained visual recognition without training. It looks fast, and thinks slowly only when unsure.

usage: fgvr MODE [GROUP=OPTION ...] [KEY=VALUE ...]     the same as python discovering.py mode=MODE ...
       fgvr COMMAND [...]

Modes
{modes}

Commands
{commands}

Groups (* default)
{groups}

Often used
  dataset.root=FOLDER  dataset.shots=4    which images, how many per class
  trigger.target=slow_rate:0.45           how often to think slowly
  runtime.budget=18GiB                    memory the models may use
  knowledge.path=FOLDER  run.fresh=true   another knowledge base; do not show the former result

Examples
  fgvr build_knowledge_base
  fgvr classify image='my bird.jpg'
  fgvr evaluate -m trigger=never,always,calibrated

--cfg job shows the whole configuration of a command, -m runs every combination of values separated by commas,
--hydra-help tells the rest. Exit codes: 0 done, 2 wrong configuration, 3 another error, 130 interrupted.
"""


COMMANDS = {
    "add": ("fgvr.modes.commands:add", "one class more in a knowledge base: fgvr add CLASS PHOTO..."),
    "remove": ("fgvr.modes.commands:remove", "one class less: fgvr remove CLASS"),
    "classes": ("fgvr.modes.commands:classes", "the classes of a knowledge base"),
    "sort": ("fgvr.modes.commands:sort", "photographs copied into one folder per class: fgvr sort FOLDER --into OUT"),
    "memory": ("fgvr.console:memory", "a running server's models and memory; see fgvr memory --help"),
    "bird": ("fgvr.console:bird", "writes a rendered bird into a FILE, to try things with"),
}
"""Commands whose words are their own: name -> function of the words that returns an exit code, and its line in --help. Every mode is a
command, too (`fgvr evaluate` is mode=evaluate): those stand in `fgvr.modes.MODES`."""


def program(words: Sequence[str]) -> int:
    """`main` for a process that ends with it, in which nobody else has a say about the garbage collector and pydantic."""
    if not {*COMMANDS, "-m", "--multirun"} & set(words):  # a sweep leaves a composed configuration per job, which refers to itself
        gc.disable()  # until a mode begins: hardly anything becomes garbage, and the search took a tenth of a plan's time
    atexit.register(gc.freeze)  # what is alive at the end is not searched either: after a server's work that took up to ten seconds
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # for them it reads the metadata of every installed package
    return main(words)


def main(words: Sequence[str], job: "Callable[[Config], Any] | None" = None) -> int:
    """Answer one command line; the return value is the exit code. `job`: what is done with each configuration, instead of its mode."""
    return on_terminal(lambda: _main(list(words), job))


def _main(words: list[str], job: "Callable[[Config], Any] | None") -> int:
    first = words[0] if words else ""
    overrides: list[str] = []
    try:
        if first in COMMANDS:
            return pkgutil.resolve_name(COMMANDS[first][0])(words[1:])
        if first == "run":
            words = words[1:] or ["--help"]
        elif first.isidentifier():
            if first in (modes := groups()["mode"]):
                words[0] = f"mode={first}"
            elif not os.path.exists(first):
                near = ", ".join(nearest(first, [*COMMANDS, *modes]))
                raise ConfigError(f"{first} is no mode and no command. " + (f"Nearest: {near}" if near else "fgvr --help lists them"))
        if {"-h", "--help"} & set(words):
            sys.stdout.write(help_text())
        elif "--version" in words:
            sys.stdout.write(f"fgvr {__version__}\n")
        else:
            flags, overrides = split(words)
            run(flags, overrides, job)
    except (Exception, KeyboardInterrupt) as error:
        return answer(error, overrides)
    return 0


def run(flags: Sequence[str], overrides: Sequence[str], job: "Callable[[Config], Any] | None") -> None:
    """Compose the configuration and do its job; with flags of Hydra's, Hydra does, or once per combination of a sweep."""
    if not flags:  # one composition; hydra.main makes two, the first only to see whether it is a sweep
        from fgvr.config.composing import load_config

        (job or _mode)(load_config(*overrides))
        return
    if slurm := next((word for word in overrides if word.startswith("hydra/launcher=") and "slurm" in word), None):
        _find_slurm(slurm)
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from fgvr.config import experiments
    from fgvr.config.composing import resolved

    experiments.register()
    sweep = "--multirun" in flags
    words = tidy(overrides, sweep=sweep)
    sys.argv[1:] = [*flags, *words]  # where Hydra looks
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing; `answer` speaks
    failures: list[Exception] = []

    def once(cfg: Any) -> None:
        try:
            (job or _mode)(resolved(cfg, HydraConfig.get().overrides.task))
        except Exception as error:
            if sweep:
                raise
            failures.append(error)  # kept from Hydra, which would print a line of its own

    if sweep:
        from fgvr.utils.files import short_hash

        what = sorted(word for word in words if not word.startswith(("run.", "logging")))
        os.environ["FGVR_SWEEP"] = short_hash(what)  # the same sweep finds its folder again
    hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")(once)()
    if failures:
        raise failures[0]


def _find_slurm(word: str) -> None:
    """Raises ConfigError where Slurm's commands are not to be found, which submitit would say in a traceback."""
    import shutil

    if absent := [name for name in ("sbatch", "srun") if shutil.which(name) is None]:
        raise ConfigError(
            f"{word}: no Slurm on this machine ({' and '.join(absent)} not found): run it on a login node of the cluster, or write "
            "hydra/launcher=submitit_local for processes of this machine"
        )


def _mode(config: "Config") -> None:
    from fgvr import modes

    modes.run(config)


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
    chain = list(causes(error, meanwhile=False))
    ours = next((cause for cause in chain if isinstance(cause, FgvrError)), None)
    if ours is None and "hydra" in sys.modules and (hydras := next(filter(_is_hydras, chain), None)):
        return tell(f"error: {explain(hydras, overrides)}", 2)
    if ours is None and not isinstance(error, KeyboardInterrupt | MemoryError | BrokenPipeError) and (theirs := blame(error)):
        return tell(f"error: {theirs}", 3)
    for cause in chain if ours is None else [ours]:
        if (code := terminal.answer(cause)) is not None:
            return code
    import traceback

    traceback.print_exception(error)
    parts = f", or in a part of your own ({', '.join(OUTSIDE)})" if OUTSIDE else ""
    return tell(f"This is a bug in fgvr {__version__}{parts}: please report it with the lines above and your command.", 1)


def _is_hydras(error: BaseException) -> bool:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return isinstance(error, HydraException | OmegaConfBaseException)


# --- help --------------------------------------------------------------------------------------------------------------------


def help_text() -> str:
    tree = config_dir()
    known = groups(tree)
    modes = [f"  {name:<24} {summary(tree / 'mode' / f'{name}.yaml')}".rstrip() for name in known.pop("mode", [])]
    chosen = defaults(tree / "config.yaml")
    lines = [f"  {group:<16} {'  '.join(f'{o}*' if chosen.get(group) == o else o for o in names)}" for group, names in known.items()]
    commands = [f"  {name:<24} {line}" for name, (_, line) in COMMANDS.items()]
    return HELP.format(version=__version__, modes="\n".join(modes), groups="\n".join(lines), commands="\n".join(commands))


def summary(file: Path) -> str:
    """The first comment of a configuration file that is a sentence."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line), "")


def defaults(file: Path) -> dict[str, str]:
    """`group: option` of a defaults list, read without a YAML library: --help shall be quick."""
    pairs = (line.strip().removeprefix("- ").split("#")[0].split(": ") for line in file.read_text(encoding="utf-8").splitlines())
    return {pair[0].removeprefix("override ").strip(): pair[1].strip() for pair in pairs if len(pair) == 2}
