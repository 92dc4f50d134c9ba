"""What requests and answers look like: strict, so that a parameter this server does not know is an error that names it."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from fgvr.runtime.conversation import Answer, Token

_PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
_SHOWN = [{"type": "image_url", "image_url": {"url": _PIXEL}}, {"type": "text", "text": "Describe the bird."}]
_CHAT = [{"role": "user", "content": _SHOWN}]
T = TypeVar("T")


def _example(**body: Any) -> dict[str, Any]:
    """For the OpenAPI document."""
    return {"examples": [body]}


# A list is checked up to its first wrong item: a million wrong items must not cost a million errors.
Items = Annotated[list[T], Field(fail_fast=True)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _as_list(value: Any) -> Any:
    if not isinstance(value, str | list):
        raise PydanticCustomError("text_or_list", "must be a text or a list")
    return [value] if isinstance(value, str) else value


def _as_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else _as_list(value)


def _tag_of_part(value: Any) -> str | None:
    """In brackets: `http_errors` leaves it out of the parameter's name, which is then the client's own path."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"({kind})" if kind in ("text", "refusal", "image_url") else None


Texts = Annotated[Items[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]


# --- chat ----------------------------------------------------------------------------------------------------------------------


class TextPart(Strict):
    type: Literal["text"]
    text: str


class RefusalPart(Strict):
    """What an assistant declined with; the model reads it as the assistant's text."""

    type: Literal["refusal"]
    text: str = Field(alias="refusal")


class ImageUrl(Strict):
    url: str = Field(description="data:image/...;base64,...")
    detail: Literal["auto", "low", "high"] | None = Field(None, description="accepted; the processor's own cap on pixels holds for each")


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: Annotated[
        ImageUrl, BeforeValidator(lambda v: {"url": v} if isinstance(v, str) else v, json_schema_input_type=str | ImageUrl)
    ]


Part = Annotated[
    Annotated[TextPart, Tag("(text)")] | Annotated[RefusalPart, Tag("(refusal)")] | Annotated[ImagePart, Tag("(image_url)")],
    Discriminator(_tag_of_part, custom_error_type="content_part", custom_error_message="must be a part of type text, image_url or refusal"),
]
Content = Annotated[Items[Part], BeforeValidator(_as_parts, json_schema_input_type=str | list[Part])]


class Message(Strict):
    """An assistant's message may be sent back as it came, with everything the official client adds to it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = Field(None, description="null: of an assistant only")
    name: None = None
    refusal: str | None = None
    annotations: list[Any] | None = Field(None, description="accepted, not read")
    audio: None = None
    function_call: None = None
    tool_calls: list[Any] | None = Field(None, max_length=0, description="only an empty list: there are no tools")

    @property
    def parts(self) -> list[TextPart | RefusalPart | ImagePart]:
        """Its content; without one, an assistant's refusal."""
        return self.content if self.content is not None else [TextPart(type="text", text=self.refusal or "")]


class ResponseFormat(Strict):
    type: Literal["text"]


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ChatRequest(Strict, json_schema_extra=_example(model="mllm", messages=_CHAT, max_tokens=32)):
    """OpenAI's chat completions, as far as the shared model can honour it. Anything else is a 400 that names the parameter."""

    model: str = Field("mllm", description="role, key or source of the MLLM")
    messages: Items[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="0 (default) is greedy")
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False, description="0: only the likeliest token")
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Texts | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = Field(None, description="only text")
    user: str | None = Field(None, description="whose turn it is, for fairness")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="accepted, not kept")
    # Named for what OpenAI's client sends with them; any other value cannot be honoured.
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: dict[str, Any] | None = Field(None, max_length=0, description="only an empty one")
    store: Literal[False] | None = None
    tools: list[Any] | None = Field(None, max_length=0, description="only an empty list: there are no tools")
    tool_choice: Literal["none"] | None = None
    parallel_tool_calls: bool | None = None
    functions: None = None
    function_call: None = None
    audio: None = None
    prediction: None = None
    modalities: list[Literal["text"]] | None = Field(None, max_length=1)
    service_tier: Literal["auto", "default"] | None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> "Usage":
        """Of several answers to one prompt."""
        prompt, new = answers[0].prompt_tokens if answers else 0, sum(answer.new_tokens for answer in answers)
        return cls(prompt_tokens=prompt, completion_tokens=new, total_tokens=prompt + new)


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None

    @classmethod
    def of(cls, tokens: Sequence[Token]) -> "Logprobs":
        def one(text: str, logprob: float) -> dict[str, Any]:
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        rivals = [[TopLogprob(**one(*rival)) for rival in token.top] for token in tokens]
        return cls(content=[TokenLogprob(**one(t.text, t.logprob), top_logprobs=top) for t, top in zip(tokens, rivals, strict=True)])


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]

    @classmethod
    def of(cls, index: int, answer: Answer, *, logprobs: bool) -> "Choice":
        told = Logprobs.of(answer.tokens) if logprobs else None
        return cls(index=index, message=ChatMessage(content=answer.text), logprobs=told, finish_reason=finish_reason(answer))


def finish_reason(answer: Answer) -> Literal["stop", "length"]:
    return "length" if answer.finish == "length" else "stop"


class ChatAnswer(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str


# --- embeddings, scores, matches -----------------------------------------------------------------------------------------------


class EmbeddingRequest(Strict, json_schema_extra=_example(model="encoder", input=["a blue crown, a grey back", _PIXEL])):
    """Each item is a text, or an image as a data URL."""

    model: str = Field("encoder", description="role, key or source of the encoder")
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, description="only the encoder's own")
    user: str | None = None


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbeddingAnswer(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class ScoreRequest(Strict, json_schema_extra=_example(messages=[{"role": "user", "content": "A bird?"}], continuations=["a crow"])):
    """One user turn and several whole answers to it."""

    model: str = "mllm"
    messages: Items[Message] = Field(min_length=1)
    continuations: Items[str] = Field(min_length=1)


class ScoreAnswer(BaseModel):
    """In nats, summed over the answer's tokens and the end of the turn."""

    log_likelihoods: list[float]
    tokens: list[int]
    prompt_tokens: int


class MatchRequest(Strict, json_schema_extra=_example(model="joint", images=[_PIXEL], texts=["a grey bird"])):
    model: str = "joint"
    images: Items[str]
    texts: Items[str]


class MatchAnswer(BaseModel):
    probabilities: list[float]


class ModelRow(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "fgvr"
    role: str
    source: str
    state: str
    fingerprint: str
    logit_scale: float | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelRow]


# --- ours ----------------------------------------------------------------------------------------------------------------------


class QueryRequest(Strict, json_schema_extra=_example(question="Describe the bird.", image=_PIXEL)):
    question: str = Field(min_length=1)
    image: str | None = Field(None, description="data:image/...;base64,...")
    max_tokens: int = Field(128, ge=1)


class Success(BaseModel):
    """Every answer of `/api/v1`."""

    status: Literal["success"] = "success"
    data: Any


class ClassifiedImage(BaseModel, extra="allow"):
    """A row of predictions.jsonl, and the answer in words."""

    image: str = Field(description="name of the file, or the one that was given")
    prediction: str = Field(description="class id of the answer")
    name: str = Field(description="its name")
    answer: str = Field(description="the answer in words: its name, that it is unsure, or that none is given")
    confidence: float = Field(description="of the answer")
    by: Literal["fast", "slow", "person"] = Field(description="which system answered")
    unsure: bool = Field(description="not to be relied on: withheld, or the trigger doubts it and nobody has looked again")
    names: dict[str, str] = Field(description="class id -> name of each candidate")


class Classification(BaseModel):
    predictions: list[ClassifiedImage] = Field(description="in the order of the images")
    warnings: list[str] = Field(description="what holds for every answer of these models, such as that they know rendered birds only")


class Classified(Success):
    data: Classification


class ClassifyRequest(Strict):
    """One of `images` and `image`."""

    images: Items[str] | None = Field(None, min_length=1, description="data:image/...;base64,...")
    image: str | None = Field(None, description="the only one; likewise")
    names: Items[str] | None = Field(None, description="how the answers call them; by default image 0, image 1, ...")


class CleanupRequest(Strict, json_schema_extra=_example(target_bytes=8589934592)):
    """Nothing: everything idle. `models`: these. `target_bytes`: until no more is in use."""

    models: Items[str] | None = None
    target_bytes: int | None = Field(None, ge=0)


# --- errors ----------------------------------------------------------------------------------------------------------------------


class ErrorDetail(BaseModel):
    """`param` names the parameter at fault."""

    message: str
    code: str
    param: str | None = None
    plan: dict[str, Any] | None = None


class ErrorBody(BaseModel):
    status: Literal["error"] = "error"
    data: ErrorDetail


class OpenAIError(ErrorDetail):
    type: str


class OpenAIErrorBody(BaseModel):
    error: OpenAIError


_TEXTS = {
    400: "A parameter is wrong or cannot be honoured; it is named",
    401: "No token, or a wrong one",
    404: "No such model",
    409: "The model is leased, pinned or moving; of a limit: more than it is leased, with the plan",
    413: "The body is larger than server.max_body",
    429: "server.max_inflight requests are being served; Retry-After",
    503: "Starting, stopping, or no memory in time; Retry-After",
    504: "Not done within server.deadline",
    507: "Can never fit the budget; with the plan",
}


def codes(*which: int, openai: bool = False) -> dict[int | str, dict[str, Any]]:
    """What a route's document says of its http_errors."""
    body = OpenAIErrorBody if openai else ErrorBody
    return {code: {"model": body, "description": _TEXTS[code]} for code in which}
