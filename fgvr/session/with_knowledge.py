"""The knowledge base of a configuration, found or built."""

import os
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from fgvr.agents import prompts
from fgvr.agents.analyse import AnalyseDecoder
from fgvr.agents.describe import Describer
from fgvr.agents.leave_one_out import answer_leave_one_out
from fgvr.agents.replies import ReplyDecoder
from fgvr.agents.slow import Decoder, ReasonDecoder, ScoreDecoder
from fgvr.data.leaks import without_near_copies
from fgvr.data.near_duplicates import PerceptualHash, duplicate_groups
from fgvr.data.splits import Split
from fgvr.errors import ConfigError
from fgvr.knowledge.base import KnowledgeBase, Origin
from fgvr.knowledge.build import JOURNAL, BuildComponents, build
from fgvr.knowledge.opening import find_or_build, support_of
from fgvr.protocols import reads_text
from fgvr.runtime.loaders.base import find_loader
from fgvr.session.resources import Resources
from fgvr.store.cache import LayeredCache, SqliteCache
from fgvr.types import Experience, Picture, Sample
from fgvr.utils.files import short_hash
from fgvr.utils.paths import user_path
from fgvr.utils.text import pieces

_WRITING = ("reason", "analyse")  # decoders that generate, for which `slow.max_new_tokens` counts


class WithKnowledge(Resources):
    """Adds the base, and how System 2 is asked: a base holds its answers on the support images, too."""

    @cached_property
    def knowledge(self) -> KnowledgeBase:
        """The base that this configuration means, built when it is missing and may be built. Raises KnowledgeError."""
        return self.open_knowledge()

    def open_knowledge(self, *, building: bool = False) -> KnowledgeBase:
        """Args: building: the command is there to build: it does so at `knowledge.path`, too, where others only look, and once more when
        the base found has classes whose description failed."""
        asked, named = self.config.knowledge, self.config.knowledge.path is not None
        own = self.home / "knowledge" / self.dataset.name / self.origin.key
        return find_or_build(
            Path(os.path.realpath(user_path(asked.path))) if asked.path is not None else own,
            self.origin,
            self._build,
            check=self.check_decoder if self.config.answers_support else lambda: None,
            when=asked.build if building or not named else "never",  # a typo in the path must not start an hour's work
            mend=building,
            fresh=self.config.run.fresh,
            key="knowledge.path" if named else "paths.home",
            command=self.config.building_command,
        )

    @cached_property
    def origin(self) -> Origin:
        """What a base of this configuration is made from."""
        models, knowledge, slow, dataset = self.config.models, self.config.knowledge, self.config.slow, self.dataset
        answered: list[Any] = [slow.decoder, slow.target, *(["exemplars"] if slow.exemplars else [])]
        if slow.decoder in _WRITING:
            answered.append(slow.max_new_tokens)
        if slow.votes > 1:
            answered.append(("votes", slow.votes))
        asked = [
            prompts.fingerprint(),
            models.description_tokens,
            models.name_prompts,
            knowledge.pictures_per_description,
            knowledge.cross_fit,
            answered if self.config.answers_support else (),
            # Only where they were changed: a base made before there was such a choice keeps its key.
            *([("split", knowledge.split)] if knowledge.split != "length" else []),
            *([("templates", knowledge.templates)] if models.name_prompts and knowledge.templates is not None else []),
            *([("views", knowledge.views)] if knowledge.views != 1 else []),
        ]
        specs = {role: self.specs[role] for role in self.fingerprints}
        return Origin(
            dataset=dataset.name,
            world=dataset.world,
            split_hash=Split(dataset.split.support, ()).split_hash,  # a base does not depend on what it is tested with
            shots=self.config.dataset.shots,
            split_seed=self.config.dataset.split_seed,
            models=self.fingerprints,
            prompts=short_hash(asked),
            catalog=short_hash([(c.id, c.name, c.superclass) for c in dataset.catalog.categories]),
            sources={role: {"source": s.source, "revision": s.revision, "dtype": s.dtype} for role, s in specs.items()},
        )

    def _build(self, into: Path, learned: Sequence[Experience]) -> None:
        """Into a folder of its own, whose journal keeps finished work."""
        with SqliteCache(into / JOURNAL) as journal:
            self.derive({}, store=LayeredCache(journal, self.store))._build_with_journal(into, learned, self.perceptual_hash)

    def _build_with_journal(self, into: Path, learned: Sequence[Experience], hashes: PerceptualHash) -> None:
        models, knowledge, slow = self.config.models, self.config.knowledge, self.config.slow
        components = BuildComponents(
            encoder=self.encoder,
            look=self.engine.look,
            describe=Describer(self.mllm, max_new_tokens=models.description_tokens) if "mllm" in models.present else None,
            leave_one_out=partial(
                answer_leave_one_out,
                decoder=self.decoder if self.config.answers_support else None,
                target=slow.target,
                exemplars=slow.exemplars,
                batch=models.mllm.batch_size,
                each=self.engine.map,
            ),
            name_prompts=(lambda c: prompts.name_prompts(c.name, c.superclass, knowledge.templates))
            if models.name_prompts and reads_text(self.encoder)
            else None,
            pictures_per_description=knowledge.pictures_per_description,
            cross_fit=knowledge.cross_fit,
            views=knowledge.views,
            families=lambda samples: duplicate_groups(samples, hashes),
            pieces=lambda text: pieces(text, knowledge.split),
            encode_batch=models.encoder.batch_size,
            describe_batch=models.mllm.batch_size,
            each=self.engine.map,
        )
        build(self.origin, self.dataset.catalog.categories, self.dataset.split.support, components, into, learned=learned)

    @cached_property
    def support(self) -> list[Sample]:
        """The base's support images in its own order, known by content. Raises KnowledgeError where the dataset lacks one."""
        return support_of(self.knowledge, self.dataset.split.support)

    def support_pictures(self, indices: Sequence[int]) -> list[Picture]:
        return [self.engine.look(self.support[i]) for i in indices]

    @cached_property
    def calibration(self) -> list[Sample]:
        """The dataset's calibration images that the base has not met, nor near copies of them."""
        met, split = {support.sha256 for support in self.knowledge.support}, self.dataset.split
        samples = [sample for sample in split.calibration if sample.sha256 not in met]
        return without_near_copies(samples, [sample for sample in split.support if sample.sha256 in met], self.perceptual_hash)

    # --- System 2

    def check_decoder(self) -> None:
        """Whether the MLLM can be asked as `slow` says; before anything is built. Raises ConfigError, RemoteError."""
        slow, mllm = self.config.slow, self.config.models.mllm
        if not self.config.asks_mllm:
            raise ConfigError(
                f"slow={slow.decoder} asks no MLLM, and this needs one: choose models/mllm=NAME and a decoder, such as slow=score"
            )
        if mllm.loader == "none":
            raise ConfigError(
                f"slow={slow.decoder} asks an MLLM, and this configuration has none (models/mllm=none): write slow=none, which lists "
                "doubtful images as unsure, or choose an MLLM, such as models/mllm=tiny"
            )
        if slow.decoder == "analyse" and not reads_text(self.encoder):
            raise ConfigError(
                f"slow=analyse retrieves with descriptions, and {self.config.models.encoder.source} reads no text: write slow=reason or "
                "slow=score, or choose an encoder with a text side, such as models/encoder=vit_b_32_openai"
            )
        can = self.abilities
        if can is None and slow.votes > 1 and not find_loader(self.specs["mllm"]).converses:
            raise ConfigError(f"slow.votes={slow.votes} asks for sampled replies, and models.mllm.loader={mllm.loader} gives none: write 1")
        if slow.votes > 1 and slow.decoder != "reason":
            raise ConfigError(f"slow.votes={slow.votes} asks for several replies: write slow=reason")
        if can is not None and not can.scores and slow.decoder != "reason":
            raise ConfigError(
                f"slow={slow.decoder} needs log-likelihoods of given text, and {mllm.source} gives none: write "
                "slow=reason, or have a server of fgvr (fgvr serve) or vLLM hold the model"
            )

    def decoder(self, superclass: str) -> Decoder:
        """How System 2 is asked, as `slow.decoder` says. Asks the engine that holds the MLLM, once. Raises RemoteError."""
        slow, can = self.config.slow, self.abilities
        if slow.decoder == "reason" and (slow.votes > 1 or (can is not None and not can.scores)):  # answers are read from replies
            return ReplyDecoder(self.mllm, superclass=superclass, max_new_tokens=slow.max_new_tokens, votes=slow.votes)
        if slow.decoder == "reason":
            return ReasonDecoder(self.mllm, superclass=superclass, max_new_tokens=slow.max_new_tokens)
        if slow.decoder == "analyse":
            tau = 1 / self.encoder.logit_scale
            return AnalyseDecoder(self.mllm, self.encoder, superclass=superclass, temperature=tau, max_new_tokens=slow.max_new_tokens)
        return ScoreDecoder(self.mllm, superclass=superclass, target=slow.target)
