"""System 2's parts: its decoder, the pictures beside its candidates, the weight of its answer."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from fgvr.agents.analyse import AnalyseDecoder
from fgvr.agents.answer_fusion import LogLinearFusion, Reprompt, fit_weight
from fgvr.agents.leave_one_out import LeaveOneOutAnswers, fusion_cases
from fgvr.agents.replies import ReplyDecoder
from fgvr.agents.slow import Decoder, Exemplar, Exemplars, ReasonDecoder, ScoreDecoder, Shortlist, SlowThinking
from fgvr.assembly.configuration import given_weight
from fgvr.assembly.images import look, open_dataset, support_of
from fgvr.assembly.models import Models, abilities, asks_mllm
from fgvr.errors import ConfigError
from fgvr.knowledge.base import KnowledgeBase
from fgvr.knowledge.experience import Library
from fgvr.protocols import SlowThinker
from fgvr.types import Sample

WRITING = ("reason", "analyse")  # decoders that generate, for which `slow.max_new_tokens` counts


def build_decoder(cfg: DictConfig, models: Models, superclass: str) -> Decoder:
    """How System 2 is asked, as `slow.decoder` says."""
    if cfg.slow.decoder == "reason" and reads_replies(cfg):
        return ReplyDecoder(models.mllm, superclass=superclass, max_new_tokens=cfg.slow.max_new_tokens, votes=cfg.slow.votes)
    if cfg.slow.decoder == "reason":
        return ReasonDecoder(models.mllm, superclass=superclass, max_new_tokens=cfg.slow.max_new_tokens)
    if cfg.slow.decoder == "analyse":
        temperature = 1 / models.encoder.logit_scale
        return AnalyseDecoder(
            models.mllm, models.encoder, superclass=superclass, temperature=temperature, max_new_tokens=cfg.slow.max_new_tokens
        )
    return ScoreDecoder(models.mllm, superclass=superclass, target=cfg.slow.target)


def reads_replies(cfg: DictConfig) -> bool:
    """Whether answers are read from replies: the engine that holds the MLLM gives no log-likelihoods, or several replies are asked for.

    Asks the engine, once. Raises RemoteError.
    """
    can = abilities(cfg)
    return can is not None and (not can.scores or cfg.slow.votes > 1)


def check_decoder(cfg: DictConfig) -> None:
    """Whether the MLLM can be asked as `slow` says; before anything is built. Raises ConfigError, RemoteError."""
    if not asks_mllm(cfg):
        raise ConfigError(
            f"slow={cfg.slow.decoder} asks no MLLM, and this needs one: choose models/mllm=NAME and a decoder, such as slow=score"
        )
    if cfg.models.mllm.loader == "none":
        raise ConfigError(
            f"slow={cfg.slow.decoder} asks an MLLM, and this configuration has none (models/mllm=none): write slow=none, which lists "
            "doubtful images as unsure, or choose an MLLM, such as models/mllm=tiny"
        )
    can = abilities(cfg)
    if can is None and cfg.slow.votes > 1:
        raise ConfigError(
            f"slow.votes={cfg.slow.votes} is for engines that generate (models/mllm=remote): here likelihoods are read, write 1"
        )
    if cfg.slow.votes > 1 and cfg.slow.decoder != "reason":
        raise ConfigError(f"slow.votes={cfg.slow.votes} asks for several replies: write slow=reason")
    if can is not None and not can.scores and cfg.slow.decoder != "reason":
        raise ConfigError(
            f"slow={cfg.slow.decoder} needs log-likelihoods of given text, and {cfg.models.mllm.source} gives none: write slow=reason, "
            "or have a server of fgvr (fgvr serve) or vLLM hold the model"
        )


def build_slow(cfg: DictConfig, base: KnowledgeBase, models: Models) -> SlowThinker | None:
    """System 2; None where it is nobody (`slow=none`): doubtful images then keep System 1's answer and are unsure."""
    if not asks_mllm(cfg):
        return None
    exemplar = build_exemplars(cfg, base, open_dataset(cfg).split.support) if cfg.slow.exemplars else None
    shortlist = Shortlist(base.records, candidates=cfg.slow.candidates, exemplar=exemplar)
    decoder = build_decoder(cfg, models, base.classes[0].superclass)
    slow = SlowThinking(decoder, shortlist, Library(base.experience, most=cfg.slow.rules), wide=cfg.evaluation.record == "all")
    return Reprompt(slow, decoder, shortlist) if cfg.slow.arbitrate == "mllm" else slow


def build_exemplars(cfg: DictConfig, base: KnowledgeBase, samples: Sequence[Sample]) -> Exemplar | None:
    """The support picture shown beside each candidate, where `slow.exemplars` asks for them."""
    if not cfg.slow.exemplars:
        return None
    support, known = support_of(base, samples), base.prototypes
    return Exemplars(known.ids, known.owners.tolist(), known.folds.tolist(), lambda i: look(support[i]))


def build_answer_fusion(cfg: DictConfig, base: KnowledgeBase, left_out: LeaveOneOutAnswers) -> LogLinearFusion:
    """System 2's answer with System 1's; its weight is given, or fitted on leave-one-out answers when first needed."""
    if cfg.slow.arbitrate in ("slow", "mllm"):
        return LogLinearFusion(weight=1.0)
    given = given_weight(cfg)
    if given is not None:
        return LogLinearFusion(weight=given)
    return LogLinearFusion(weight=lambda: fit_weight(fusion_cases(left_out()[0], base.prototypes, base.slow_scores)))
