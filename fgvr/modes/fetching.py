"""mode=fetch: brings what a configuration needs and this machine lacks. The only mode that downloads anything."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fgvr import planning
from fgvr.config.configuration import Config
from fgvr.data.benchmarks import BENCHMARKS, locate_archive
from fgvr.errors import ConfigError, DatasetError, FgvrError
from fgvr.fetch import Download, fetch_benchmark, free_room, plan_benchmark, remote_files
from fgvr.modes.showing import to_json, to_text
from fgvr.session import Session
from fgvr.utils.paths import user_path
from fgvr.utils.text import format_bytes

USE = "Use it: the same words with mode=build_knowledge_base in place of mode=fetch"


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was brought; nothing where everything was here already."""

    downloads: tuple[Download, ...]

    def as_json(self) -> dict[str, Any]:
        return {"fetched": [asdict(download) for download in self.downloads]}

    def as_text(self) -> list[str]:
        places = [f"{download.title}: {download.destination}" for download in self.downloads]
        return [*(places or ["everything that this configuration needs is on this machine"]), USE]


def fetch(session: Session) -> Fetched:
    """Plan every download, ask once, then bring them one by one. Published data sets and models; what is here stays.

    Raises:
        ConfigError: nobody can be asked (no terminal) and `fetch.ask` is true; or the person said no.
    """
    jobs = [*_dataset(session.config), *_models(session)]
    if not jobs:
        return Fetched(())
    downloads = tuple(download for download, _ in jobs)
    if session.config.fetch.ask:
        _ask(downloads)
    for _, bring in jobs:
        bring()
    return Fetched(downloads)


def _dataset(config: Config) -> Iterator[tuple[Download, Callable[[], object]]]:
    name = config.dataset.name
    if name not in BENCHMARKS:
        return
    root = user_path(config.dataset.root)
    try:
        locate_archive(name, root)
    except DatasetError:
        known = remote_files(name, config.fetch.mirror)
        yield plan_benchmark(known, BENCHMARKS[name].title, root), lambda: (fetch_benchmark(known, root), locate_archive(name, root))


def _models(session: Session) -> Iterator[tuple[Download, Callable[[], object]]]:
    from fgvr.fetch.models import fetch_model, plan_model
    from fgvr.runtime.loaders.base import find_loader

    for role in planning.used(session.config):
        spec = session.specs[role]
        if (repository := find_loader(spec).hub_repository(spec)) is not None and (download := plan_model(spec, repository)) is not None:
            yield download, lambda spec=spec, repository=repository: fetch_model(spec, repository)


def _ask(downloads: Sequence[Download]) -> None:
    """Say what would be downloaded; a person at a terminal says yes or no."""
    for one in downloads:
        size = "of unknown size" if one.size is None else format_bytes(one.size)
        places = "".join(f"\n  from {address}" for address in one.files)
        sys.stderr.write(f"{one.title}, {size}, licence: {one.licence}{places}\n  to   {one.destination}, ")
        sys.stderr.write(f"where {format_bytes(free_room(one.destination)[1])} are free\n")
    if not sys.stdin.isatty():
        raise ConfigError("nobody can be asked here whether to download this: write fetch.ask=false (or --yes)")
    sys.stderr.write("Download this? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise FgvrError("nothing was downloaded")


to_json.register(Fetched, Fetched.as_json)
to_text.register(Fetched, Fetched.as_text)
