"""Hydra's own sweeper (`hydra/sweeper=quick`, the default here), without composing every job twice.

Hydra composes all jobs before the first one runs, so that a wrong combination fails early, and each again when its turn comes: in a sweep
whose answers are remembered that was a quarter of the time. What a composition is made of is the choices among the groups' options: each
combination of them is composed once, and a job is a copy of it in which its plain values are set.
(This file lies here because Hydra looks for plugins only in the namespace `hydra_plugins`.)
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException


class QuickLoader(ConfigLoaderImpl):
    """Composes each combination of choices once; the jobs' configurations are equal to Hydra's."""

    def __init__(self, loader: ConfigLoaderImpl) -> None:
        super().__init__(loader.get_search_path())
        self._composed: dict[tuple[str, ...], bytes] = {}
        self._choices: dict[str, bool] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        overrides = OverridesParser.create().parse_overrides(sweep_overrides)
        values = [override for override in overrides if self.is_value(override)]
        if not all(override in values or self._is_choice(override) for override in overrides):  # keys added, or taken away
            return super().load_sweep_config(master_config, sweep_overrides)
        choices = tuple(word for word, override in zip(sweep_overrides, overrides, strict=True) if override not in values)
        if choices not in self._composed:
            self._composed[choices] = pickle.dumps(super().load_sweep_config(master_config, list(choices)))
        cfg: DictConfig = pickle.loads(self._composed[choices])  # a copy, in a sixth of copy.deepcopy's time
        try:
            for override in values:
                OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException:  # Hydra has the words for it
            return super().load_sweep_config(master_config, sweep_overrides)
        _name_overrides(cfg, [override for override in overrides if not override.is_hydra_override()])
        OmegaConf.copy_cache(from_config=master_config, to_config=cfg)
        return cfg

    def is_value(self, override: Override) -> bool:
        """Whether it sets a plain key that is there already."""
        return override.type is OverrideType.CHANGE and not override.is_hydra_override() and not self._is_choice(override)

    def _is_choice(self, override: Override) -> bool:
        key = override.key_or_group
        if key not in self._choices:
            self._choices[key] = bool(self.get_group_options(key))
        return self._choices[key]


def _name_overrides(cfg: DictConfig, overrides: Sequence[Override]) -> None:
    """Where Hydra's own settings tell what a job was asked."""
    words: dict[str, Any] = dict(cfg.hydra.job.config.override_dirname)
    with open_dict(cfg.hydra):
        cfg.hydra.overrides.task = [override.input_line for override in overrides]
        cfg.hydra.job.override_dirname = get_overrides_dirname(overrides=list(overrides), **words)


class QuickSweeper(BasicSweeper):
    """Every combination of comma-separated values, one job each."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        assert isinstance(hydra_context.config_loader, ConfigLoaderImpl)
        self._loader = QuickLoader(hydra_context.config_loader)
        quick = HydraContext(config_loader=self._loader, callbacks=hydra_context.callbacks)
        super().setup(hydra_context=quick, task_function=task_function, config=config)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Composes one job per combination of choices; a wrong value is told by its job, in our words. Raises what Hydra raises."""
        parse = OverridesParser.create().parse_overrides

        def choices(job: Sequence[str]) -> tuple[str, ...]:
            return tuple(word for word, override in zip(job, parse(list(job)), strict=True) if not self._loader.is_value(override))

        super().validate_batch_is_legal(list({choices(job): job for job in reversed(batch)}.values()))


ConfigStore.instance().store(
    group="hydra/sweeper", name="quick", node={**BasicSweeperConf().__dict__, "_target_": f"{__name__}.QuickSweeper"}, provider="fgvr"
)
