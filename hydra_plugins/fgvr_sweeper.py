"""Hydra's own sweeper (`hydra/sweeper=quick`, the default here), without composing every job twice.

Hydra composes all jobs before the first one runs, so that a wrong combination fails early, and each again when its turn comes: in a sweep
whose answers are remembered that was a tenth of the time. What can be wrong is a choice among a group's options; any value of a plain
key composes like any other, and a wrong one is told by its job, in our words. So each combination of choices is tried once.
(This file lies here because Hydra looks for plugins only in the namespace `hydra_plugins`.)
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore


class QuickSweeper(BasicSweeper):
    """Every combination of comma-separated values, one job each."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Composes one job per combination of group choices. Raises what Hydra raises."""
        assert self.hydra_context is not None
        of_group = self.hydra_context.config_loader.get_group_options

        def is_choice(override: str) -> bool:
            return bool(of_group(override.partition("=")[0].lstrip("+~").partition("@")[0]))

        first = {tuple(word for word in job if is_choice(word)): job for job in reversed(batch)}
        super().validate_batch_is_legal(list(first.values()))


ConfigStore.instance().store(
    group="hydra/sweeper", name="quick", node={**BasicSweeperConf().__dict__, "_target_": f"{__name__}.QuickSweeper"}, provider="fgvr"
)
