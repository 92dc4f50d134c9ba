# ruff: noqa: F403
from fgvr.assembly import *
from fgvr.errors import *
from fgvr.modes import *
from fgvr.types import *

__version__: str
