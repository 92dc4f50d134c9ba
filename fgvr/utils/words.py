"""The words of a command that has its own, such as `fgvr sort`: options in full; wrong words are an error like any other."""

import argparse
from typing import Any

from fgvr.errors import ConfigError
from fgvr.utils.text import nearest


class Parser(argparse.ArgumentParser):
    def __init__(self, *names: Any, **settings: Any) -> None:
        super().__init__(*names, **settings, allow_abbrev=False)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = args
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> Any:
        parsers = [self, *(parser for action in self._actions if isinstance(action.choices, dict) for parser in action.choices.values())]
        known = [option for parser in parsers for option in parser._option_string_actions]
        unknown = [flag for word in self._given if (flag := word.partition("=")[0]).startswith("--") and flag not in known]
        near = ", ".join(name for flag in unknown for name in nearest(flag, known, 1))
        raise ConfigError(f"{self.prog}: {message}; {f'did you mean {near}? ' * bool(near)}see {self.prog} --help")
