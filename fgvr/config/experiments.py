"""Published experiments: the rows of one table (configs/experiments.toml), each an option of the group `experiment`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from fgvr.utils.paths import config_dir

TABLE = "experiments.toml"


def names(tree: Path) -> list[str]:
    return sorted(name for name, _, _ in _rows(tree))


@cache
def register() -> None:
    """Make them known to Hydra in this process. Only where one is asked for: it takes as long as reading ten files."""
    from hydra.core.config_store import ConfigStore

    for name, dataset, paper in _rows(config_dir()):
        top1, clip, mllm, *ours = paper["datasets"][dataset]
        published = {"source": paper["source"], "top1": top1, "clip_vit_b_32": clip, "qwen2_5_vl_7b": mllm, "caution": paper["caution"]}
        node = {
            "defaults": [{"override /dataset": dataset}, {"override /models": paper["models"]}, {"override /trigger": paper["trigger"]}],
            "dataset": {"shots": paper["shots"]},
            "slow": {"decoder": paper["decoder"]},
            "published": published | {"ours": ours[0] if ours else None},
        }
        ConfigStore.instance().store(group="experiment", name=name, node=node, package="_global_", provider="fgvr")


def _rows(tree: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(option, dataset, what holds for all of this paper)."""
    import tomllib  # later than a plan needs it

    file = tree / TABLE
    papers = tomllib.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for paper, about in papers.items():
        for dataset in about["datasets"]:
            yield f"{paper}_{dataset}", dataset, about
