"""Who is on the other side: its models, whether fgvr serves them, what it can do. Asked when first needed and after it was away."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fgvr.errors import ConfigError, RemoteError
from fgvr.runtime.remote import replies
from fgvr.runtime.remote.link import Link
from fgvr.runtime.remote.wire import parse_source
from fgvr.types import ROLES, ModelSpec

if TYPE_CHECKING:
    from openai import OpenAI

T = TypeVar("T")
_ALTERNATIVES = (20, 5)  # the OpenAI API's limit, and what older engines give
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


class Engine:
    """The model a spec names, and the link to who holds it. Making one asks nothing yet."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        try:
            address, self._model = parse_source(spec.source, spec.role)
        except ValueError:
            raise ConfigError(
                f"models.{spec.role}.source={spec.source}: no address of a server. Give server.url=http://127.0.0.1:8000 (or set "
                "FGVR_SERVER_URL), or models.%s.source='http://host:port/v1#model'" % spec.role
            ) from None
        self._link = Link(address, spec.patience, self._verify)
        self._lock = threading.Lock()
        self._identity: Identity | None = None
        self._abilities: Abilities | None = None

    @property
    def address(self) -> str:
        return self._link.address

    @property
    def identity(self) -> Identity:
        """Raises RemoteError: nobody there, or no such model."""
        if self._identity is None:
            found = self._link.ask(self._look)
            with self._lock:
                self._identity = self._identity or found
        return self._identity

    @property
    def abilities(self) -> Abilities:
        """Tried out with two short requests when first asked; a server of fgvr can do everything. Raises RemoteError."""
        if self._abilities is None:
            found = Abilities(True, 0) if self.identity.ours else Abilities(self._gives_scores(), self._alternatives())
            with self._lock:
                self._abilities = self._abilities or found
        return self._abilities

    def _gives_scores(self) -> bool:
        return self.tries(replies.likelihoods(self.address, self.identity.name, _TRIAL, "A")) is not None

    def _alternatives(self) -> int:
        """How many alternatives of each token the engine tells."""
        for count in _ALTERNATIVES:
            body = {
                "model": self.identity.name,
                "messages": _TRIAL,
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": True,
                "top_logprobs": count,
            }
            if self.tries(replies.chat(self.address, body, replies.token_rows)):
                return count
        return 0

    def tries(self, call: Callable[[OpenAI], T]) -> T | None:
        """None where the engine refuses this very request; other failures raise RemoteError."""
        try:
            return self.ask(call)
        except RemoteError as error:
            if error.status in _REFUSALS:
                return None
            raise

    def ask(self, call: Callable[[OpenAI], T]) -> T:
        return self._link.ask(call)

    def each(self, calls: Sequence[Callable[[OpenAI], T]]) -> list[T]:
        return self._link.each(calls)

    def close(self) -> None:
        self._link.close()

    def lacks(self, what: str, cure: str) -> RemoteError:
        return RemoteError(f"{self.identity.name} at {self.address} {what}: {cure}")

    def _look(self, client: OpenAI) -> Identity:
        rows = replies.get(self.address, "/models", _listed)(client)
        ours = [row for row in rows if row.get("fingerprint")]
        chosen = next((row for row in ours if self._model in (row["id"], row.get("role"))), None)
        if chosen is not None:
            return Identity(chosen["id"], str(chosen["fingerprint"]), True, chosen.get("logit_scale"))
        names = [str(row["id"]) for row in rows]
        name = names[0] if len(names) == 1 and not ours and self._model in ROLES else self._model
        if name not in names:
            raise RemoteError(
                f"{self.address} has no model {name!r}; it has {', '.join(names) or 'none'}. "
                f"Name one: models.{self.spec.role}.source='{self.address}#{(names or ['MODEL'])[0]}'"
            )
        return Identity(name, _fingerprint(self.address, name), False)

    def _verify(self, client: OpenAI) -> None:
        known = self._identity
        if known is not None and (found := self._look(client)).fingerprint != known.fingerprint:
            raise RemoteError(
                f"{self.address} came back with another {self.spec.role} ({found.name}, {found.fingerprint}; it was {known.name}, "
                f"{known.fingerprint}). Answers of two models are not mixed: start the run again"
            )


def _listed(found: Any) -> list[dict[str, Any]]:
    """The models of a list in the API's form, or of a bare one."""
    rows = found if isinstance(found, list) else found["data"]
    return [{**row, "id": str(row["id"])} for row in rows]


def _fingerprint(address: str, name: str) -> str:
    """All that can be known of a foreign engine's model: its name and where it is."""
    return f"remote-{hashlib.sha256(f'{address}#{name}'.encode()).hexdigest()[:12]}"
