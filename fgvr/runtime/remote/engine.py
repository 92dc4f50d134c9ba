"""Who is on the other side: its models, whether fgvr serves them, what it can do. Asked when first needed and after it was away."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fgvr.errors import ConfigError, RemoteError
from fgvr.runtime.conversation import ALTERNATIVES
from fgvr.runtime.remote import wire
from fgvr.runtime.remote.link import Link
from fgvr.runtime.remote.wire import Message, parse_source
from fgvr.types import ROLES, ModelSpec

if TYPE_CHECKING:
    from openai import OpenAI

T = TypeVar("T")
Ask = Callable[[Callable[["OpenAI"], Any]], Any]
_ALTERNATIVES = (ALTERNATIVES, 5)  # the API's limit, and what older engines give
_REFUSALS = (400, 422, 500, 501)  # how engines answer a parameter that they do not know
_TRIAL = [{"role": "user", "content": "Answer with the letter A."}]


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an engine gives besides replies. `scores`: log-likelihoods of given text; `top_logprobs`: alternatives per token, 0 = none."""

    scores: bool
    top_logprobs: int

    def __str__(self) -> str:
        if self.scores:
            return "gives log-likelihoods of given text: every slow=... works"
        letters = f"top_logprobs ({self.top_logprobs})" if self.top_logprobs else "no log-probabilities"
        return f"generates only, with {letters}: slow=reason works, slow=score and slow=analyse do not"


@dataclass(frozen=True, slots=True)
class Identity:
    """One model of an engine. `ours`: a server of fgvr holds it, and says what the OpenAI API has no word for."""

    name: str  # to be sent as `model`
    fingerprint: str
    ours: bool
    logit_scale: float | None = None

    def __str__(self) -> str:
        return f"{self.name}, {self.fingerprint}"


class Engine:
    """The model a spec names, and the link to who holds it, at one address or several. Making one asks nothing yet."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._addresses, self._model = parse_source(spec)
        self.link = Link(self._addresses, spec.patience, self._verify)
        self._lock = threading.Lock()
        self._identity: Identity | None = None
        self._abilities: Abilities | None = None
        self._refused: set[str] = set()  # settings that this model does not take

    @property
    def address(self) -> str:
        """All of them, for people."""
        return ", ".join(self._addresses)

    @property
    def identity(self) -> Identity:
        """Raises RemoteError: nobody there, or no such model; ConfigError: the addresses hold different ones."""
        if (known := self._identity) is None:
            found = self._same(self.link.everywhere(lambda ask: ask(self._look)), "hold different models")
            with self._lock:
                self._identity = known = self._identity or found
        return known

    @property
    def abilities(self) -> Abilities:
        """Tried out with two short requests when first asked; a server of fgvr can do everything. Raises as `identity`."""
        if (known := self._abilities) is None:
            ours = self.identity.ours
            found = Abilities(True, ALTERNATIVES) if ours else self._same(self.link.everywhere(self._probe), "can do different things")
            with self._lock:
                self._abilities = known = self._abilities or found
        return known

    def _probe(self, ask: Ask) -> Abilities:
        def given(settings: Mapping[str, Any], turns: Sequence[Message], read: Callable[[Any], Any]) -> Any:
            return _unless_refused(lambda: ask(self.chat(turns, settings, read)))

        scores = given(wire.PROMPT_LOGPROBS, [*_TRIAL, {"role": "assistant", "content": "A"}], wire.prompt_row) is not None
        plain = {"max_tokens": 1, "temperature": 0, "logprobs": True}
        told = (count for count in _ALTERNATIVES if given(plain | {"top_logprobs": count}, _TRIAL, wire.tokens))
        return Abilities(scores, next(told, 0))

    def _same(self, found: Mapping[str, T], differ: str) -> T:
        first, *others = found.values()
        if any(other != first for other in others):
            each = "; ".join(f"{address}: {one}" for address, one in found.items())
            raise ConfigError(f"models.{self.spec.role}.source: its addresses {differ} ({each}): name equal engines, or one")
        return first

    def chat(self, turns: Sequence[Message], settings: Mapping[str, Any], read: Callable[[Any], T]) -> Callable[[OpenAI], T]:
        """A chat completion, in the words this model takes: some of OpenAI's refuse `max_tokens`, and every temperature but their own."""
        body = {"model": self.identity.name, "messages": list(turns), **settings}

        def call(client: OpenAI) -> T:
            import openai

            while True:
                try:
                    return wire.post("/chat/completions", self._spoken(body), read)(client)
                except openai.BadRequestError as error:
                    if not self._learns(str(error), body):
                        raise

        return call

    def _spoken(self, body: Mapping[str, Any]) -> dict[str, Any]:
        renamed = {"max_tokens": "max_completion_tokens"}
        spoken = {renamed.get(key, key) if key in self._refused else key: value for key, value in body.items()}
        return {key: value for key, value in spoken.items() if key != "temperature" or key not in self._refused}

    def _learns(self, said: str, body: Mapping[str, Any]) -> bool:
        wrong = "max_tokens" if "max_completion_tokens" in said else "temperature" if "'temperature'" in said else ""
        new = wrong in body and wrong not in self._refused
        if new:
            self._refused.add(wrong)
        return new

    def tries(self, call: Callable[[OpenAI], T]) -> T | None:
        """None where the engine refuses this very request; other failures raise RemoteError."""
        return _unless_refused(lambda: self.link.ask(call))

    def lacks(self, what: str, cure: str) -> RemoteError:
        return RemoteError(f"{self.identity.name} at {self.address} {what}: {cure}")

    def _look(self, client: OpenAI) -> Identity:
        rows = wire.get("/models", _listed)(client)
        ours = [row for row in rows if row.get("fingerprint")]
        chosen = next((row for row in ours if self._model in (row["id"], row.get("role"))), None)
        if chosen is not None:
            return Identity(self._model, str(chosen["fingerprint"]), True, chosen.get("logit_scale"))
        names = [row["id"] for row in rows]
        wanted = (
            names if len(names) == 1 and not ours and self._model in ROLES else [self._model, f"{self._model}:latest"]
        )  # as Ollama does
        if (name := next((name for name in wanted if name in names), None)) is None:
            raise RemoteError(f"{str(client.base_url).rstrip('/')} has {_instead(self._model, self.spec.role, rows)}")
        known = hashlib.sha256(f"{self._addresses[0]}#{name}".encode()).hexdigest()[:12]  # its name and where it is: no more can be known
        return Identity(name, f"remote-{known}", False)

    def _verify(self, client: OpenAI) -> None:
        known = self._identity
        if known is not None and (found := self._look(client)).fingerprint != known.fingerprint:
            raise RemoteError(
                f"{str(client.base_url).rstrip('/')} came back with another {self.spec.role} ({found}; it was {known}). "
                "Answers of two models are not mixed: start the run again"
            )


_WITHOUT: Mapping[str, str] = {
    "mllm": "go without an MLLM (models/mllm=none slow=person, or slow=none), or name a server that has one: models.mllm.source=URL",
    "encoder": "take one that runs here (models/encoder=efficientnet_lite0), or name a server that has one: models.encoder.source=URL",
    "joint": "take the one that runs here: models/joint=blip_itm_base, or go without: models/joint=none",
}
"""What to do where the other side has no model for a role."""


def _instead(wanted: str, role: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Which models of another's list may be taken for a role, or what to do where none can. An engine that is not ours names no roles."""
    fit = [row["id"] for row in rows if row.get("role", role) == role]
    others = [f"{row['id']} ({row['role']})" if "role" in row else row["id"] for row in rows]
    listed = f"it has {', '.join(others) or 'none'}"
    if fit:
        return f"no model {wanted!r}; {listed}. Name one: models.{role}.model={fit[0]}"
    return f"no {'MLLM' if role == 'mllm' else role}; {listed}. Write what to do without: {_WITHOUT[role]}"


def _unless_refused(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except RemoteError as error:
        if error.status in _REFUSALS:
            return None
        raise


def _listed(found: Any) -> list[dict[str, Any]]:
    """The models of a list in the API's form, or of a bare one."""
    rows = found if isinstance(found, list) else found["data"]
    return [{**row, "id": str(row["id"])} for row in rows]
