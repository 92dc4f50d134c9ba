"""The only package that turns configuration into objects. Everything below it takes plain arguments.

Hydra's `_target_` stands at leaves only (a dataset, a spec, a policy); the one pool is handed over here. One module per thing assembled.
"""

from fgvr.assembly.baselines import OURS, TITLES, baseline_config, baseline_recognizer, chosen_baselines, unavailable_baselines
from fgvr.assembly.configuration import (
    configuration_key,
    instantiate,
    load_config,
    policy,
    resolve,
    store_limit,
    to_dict,
    trigger_name,
    validate,
)
from fgvr.assembly.discovery import discovered_dataset, find_kinds, open_images
from fgvr.assembly.experience import build_experience
from fgvr.assembly.images import open_dataset, perceptual_hash
from fgvr.assembly.knowledge import open_knowledge, origin_of
from fgvr.assembly.models import (
    Models,
    asks_mllm,
    home,
    looking_ahead,
    open_models,
    open_store,
    present,
    sentences,
    shared_pool,
    spec,
    stages_of_recognition,
    store_path,
)
from fgvr.assembly.recognizer import build_evaluated, build_recognizer
from fgvr.assembly.replaying import build_replay, replayed_config
from fgvr.assembly.thinking import check_decoder
from fgvr.assembly.triggers import check_trigger
from fgvr.utils.paths import config_dir

__all__ = [
    "OURS",
    "TITLES",
    "baseline_config",
    "baseline_recognizer",
    "chosen_baselines",
    "Models",
    "asks_mllm",
    "build_evaluated",
    "build_experience",
    "build_recognizer",
    "build_replay",
    "check_decoder",
    "check_trigger",
    "unavailable_baselines",
    "validate",
    "config_dir",
    "configuration_key",
    "discovered_dataset",
    "find_kinds",
    "home",
    "load_config",
    "looking_ahead",
    "perceptual_hash",
    "instantiate",
    "open_dataset",
    "open_images",
    "open_knowledge",
    "open_models",
    "open_store",
    "origin_of",
    "to_dict",
    "policy",
    "present",
    "replayed_config",
    "sentences",
    "resolve",
    "shared_pool",
    "spec",
    "stages_of_recognition",
    "store_limit",
    "store_path",
    "trigger_name",
]
