"""What a server says of the models it lends, as values of the configuration (`${served:name_prompts,true}` in `models=remote`).

Only where a server is named, and not by `mode=plan`, which needs none of these values. An engine that is not ours has nothing to say, and
the given value holds. One that is away is waited for: a configuration must not depend on the moment.
"""

import time
from functools import lru_cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fgvr.errors import RemoteError

BUNDLE = "/api/v1/bundle"
_PATIENCE, _PAUSE = 60.0, 0.5  # seconds
_NOT_OURS = (404, 405, 200)  # another engine: it has no such page, or shows its own web page for every address


def register() -> None:
    OmegaConf.register_new_resolver("served", _served, replace=True)


def _served(key: str, otherwise: Any, *, _root_: DictConfig) -> Any:
    url = OmegaConf.select(_root_, "server.url")
    return otherwise if url is None or _root_.mode == "plan" else bundle(str(url)).get(key, otherwise)


@lru_cache(maxsize=16)
def bundle(url: str) -> dict[str, Any]:
    """The traits of a server's models; {} of another engine. Raises RemoteError when nobody answers for a minute."""
    from fgvr.utils.service import Service  # brings the HTTP client, which a plan does not need

    server, deadline = Service.at(url), time.monotonic() + _PATIENCE
    while True:
        try:
            found = server.get(BUNDLE)
            return found if isinstance(found, dict) else {}
        except RemoteError as error:
            if error.status in _NOT_OURS:
                return {}
            if (error.status is not None and error.status < 500 and error.status != 429) or time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE)
