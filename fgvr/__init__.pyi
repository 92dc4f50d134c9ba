# ruff: noqa: F403
from fgvr.api import *
from fgvr.errors import *
from fgvr.types import *

__version__: str
