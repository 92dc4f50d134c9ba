"""Starts a Ray cluster on this machine, or joins one, without a word of Ray's on the terminal."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from fgvr.config.groups import Engine
from fgvr.errors import ConfigError
from fgvr.runtime.budget import as_bytes
from fgvr.utils.logging import adopt_libraries

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what the cluster has to say of a death, `workers.py` says in our words
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_ALONE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the name of the switch that keeps a cluster on 127.0.0.1, on any system
    "RAY_AUTH_MODE": "token",
}


_TRIES = 3  # on a busy machine the parts of a cluster may be too slow for each other


@contextmanager
def joined(engine: Engine) -> Iterator[ModuleType]:
    """The `ray` module, connected. A cluster that was started here ends here. Raises ConfigError."""
    own = engine.address is None
    for name, value in {**_QUIET, **(_ALONE if own else {})}.items():
        os.environ.setdefault(name, value)
    if own:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # other users of this machine stay out
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"engine=ray needs Ray ({error}): pip install 'fgvr[ray]', or write engine=local") from error
    adopt_libraries()
    if ray.is_initialized():  # by the program around us, whose cluster it stays
        yield ray
        return
    cores, here = (engine.workers or 0) * engine.cpus, os.cpu_count() or 1
    if own and cores > max(8, 4 * here):  # a few too many wait for each other, thousands take the machine down
        raise ConfigError(f"engine.workers={engine.workers} with engine.cpus={engine.cpus} want {cores} cores; this machine has {here}")
    for left in reversed(range(_TRIES if own else 1)):
        try:
            _connect(ray, engine)
            break
        except Exception as error:  # Ray raises nearly anything, also plain Exceptions
            ray.shutdown()
            if not left:
                raise ConfigError(_unreachable(str(engine.address), error)) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: ModuleType, engine: Engine) -> None:
    common = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    if engine.address is not None:
        if engine.address != "auto":
            host, _, port = engine.address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()  # Ray itself would wait for minutes
        ray.init(address=engine.address, **common)
        return
    cores, store = (engine.workers or 0) * engine.cpus or None, as_bytes(engine.object_store)
    own = {"num_cpus": cores, "object_store_memory": store, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    ray.init(address="local", **own, **common)  # without an address it would join any cluster that it finds here


def _unreachable(address: str, error: Exception) -> str:
    said = " ".join(str(error).split())
    if "Version mismatch" in said:
        return (
            f"engine.address={address}: the cluster runs other versions than this process: {said.partition('Version mismatch:')[2].strip()}"
        )
    if address == "None":
        return f"engine=ray: no cluster could be started on this machine ({said[:300]})"
    cure = "`ray start --head` starts one, engine.address=null one of its own"
    return f"engine.address={address}: no Ray cluster answers there ({said[:200]}); {cure}"
