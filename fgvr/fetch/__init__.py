"""Downloads that a person asked for: published data sets and models. Nothing else in the package uses the network by itself."""

from fgvr.fetch.published import Download, Published, fetch_benchmark, free_room, plan_benchmark, published, remote_files

__all__ = ["Download", "Published", "fetch_benchmark", "free_room", "plan_benchmark", "published", "remote_files"]
