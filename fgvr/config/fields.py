"""The types that the keys of a configuration have, and how a complaint names what a value must be.

A key's whole rule is its type in `groups.py`: a type from here, or a plain one with `Field(ge=...)`. What a value means together with
others is a validator of its group. Imports nothing heavy: `mode=plan` answers in less time than numpy takes to import.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, PlainValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from fgvr.errors import ConfigError
from fgvr.runtime.budget import parse_bytes

OWN = "own"
"""The type of an error whose message needs no key before it."""

ABSENT: Any = Field(default=None)
"""For keys that only some options of a group have: `name: Count = ABSENT`. Such a key is in the configuration where an option brings it."""


@dataclass(frozen=True, slots=True)
class Must:
    """What a value must be, where its type alone would not say it well."""

    be: str


def complaint(message: str) -> PydanticCustomError:
    """For validators: a message that names its keys itself."""
    return PydanticCustomError(OWN, "{message}", {"message": message})


def judge(parse: Callable[[Any], object], value: Any) -> Any:
    """The value, if a part of ours can read it; the complaint is that part's own ConfigError."""
    try:
        parse(value)
    except ConfigError as error:
        raise complaint(str(error)) from None
    return value


def judged(parse: Callable[[Any], object]) -> AfterValidator:
    """The same as the type of a key."""
    return AfterValidator(lambda value: judge(parse, value))


def satisfies(fits: Callable[[Any], object]) -> AfterValidator:
    """What the function says yes to; `Must` beside it says what that is."""

    def check(value: Any) -> Any:
        if not fits(value):
            raise ValueError
        return value

    return AfterValidator(check)


def _text(value: Any) -> str:
    """Also with the lone surrogates of a file name that is no UTF-8, which pydantic's own text refuses."""
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Number = Annotated[int | float, Field()]
NotNegative = Annotated[int | float, Field(ge=0)]
Positive = Annotated[int | float, Field(ge=0.01)]
Temperature = Annotated[int | float, Field(ge=1e-6)]
Share = Annotated[int | float, Field(ge=0, le=1)]
Text = Annotated[str, PlainValidator(_text)]
Size = Annotated[
    int | str,
    satisfies(lambda value: value >= 0 if isinstance(value, int) else parse_bytes(value) is not None),
    Must("a whole number of bytes, or a size such as 2GiB"),
]


def _is_address(value: str) -> bool:
    return urlsplit(value).scheme in ("http", "https") and bool(urlsplit(value).hostname)


WebAddress = Annotated[Text, satisfies(_is_address), Must("an address that begins with http:// or https://")]
Addresses = Annotated[
    Text,
    BeforeValidator(
        lambda value: ",".join(value) if isinstance(value, list) and value and all(isinstance(v, str) for v in value) else value
    ),
]
"""A text; of a list, its entries joined by commas: a model that several addresses hold."""
Webhook = Annotated[
    Text | None,
    satisfies(lambda value: "://" not in (value or "") or _is_address(value)),
    Must("an address that begins with http:// or https://, an environment variable that holds one, or null"),
]
Level = Annotated[
    Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(lambda v: v.lower() if isinstance(v, str) else v)
]
Quantization = Annotated[Literal["int8", "nf4"], BeforeValidator(lambda value: "nf4" if value == "int4" else value)]
Learning = Annotated[
    Literal["off", "statistics", "prototypes"],
    BeforeValidator(lambda value: "off" if value is False else value),  # YAML's reading of a bare off
]

NEEDED = {
    "image": "an image or a folder of images, such as image='my bird.jpg'",
    "images": "a folder of unlabelled images, such as images=photos",
    "predictions": "a run's folder or the predictions.jsonl in it, such as predictions=fgvr_home/runs/evaluate/1a2b3c4d5e6f",
    "answers": "the answers.csv that a review page lets one download, such as answers=answers.csv",
    "runs": "the folders of two runs, such as runs=[fgvr_home/runs/evaluate/1a2b3c4d5e6f,fgvr_home/runs/evaluate/6f5e4d3c2b1a], "
    "or the folder of one sweep, such as runs=fgvr_home/sweeps/1a2b3c4d5e6f",
    "dataset.root": "the folder that holds the images, such as dataset.root=photos",
}
"""Keys without a default, and what their value is."""


def needed(key: str) -> str:
    """What to write for a key that has no default."""
    return f"{key} is needed here: {NEEDED[key]}" if key in NEEDED else f"{key} is needed here: write {key}=VALUE"


# --- in words ----------------------------------------------------------------------------------------------------------------


def must_be(field: FieldInfo) -> str:
    """ "must be ..." for a key of this type."""
    return _said(_alternatives(field.annotation, field.metadata))


def entries_must_be(field: FieldInfo) -> str:
    """The same for each entry of a list."""
    kinds = [field.annotation, *get_args(field.annotation)]
    [entry] = next(get_args(kind) for kind in kinds if get_origin(kind) is list)
    return _said(_alternatives(entry))


def _said(words: list[str]) -> str:
    text = "must be " + ", or ".join(words)
    return text + """ (digits alone in two kinds of quotes: '"123"')""" if words[0] == "text" else text


def _alternatives(annotation: Any, metadata: Any = ()) -> list[str]:
    """What may stand there, the main thing first."""
    for extra in metadata:
        if isinstance(extra, Must):
            return [extra.be]
    limits = _limits(metadata)
    if get_origin(annotation) is Annotated:
        return _alternatives(annotation.__origin__, [*annotation.__metadata__, *metadata])
    if annotation == int | float:
        return [_number("a number", limits)]
    if get_origin(annotation) in (Union, UnionType):
        return [words for part in get_args(annotation) for words in _alternatives(part, metadata)]
    if get_origin(annotation) is Literal:
        values = get_args(annotation)
        return [f"{'one of ' if len(values) > 1 else ''}{', '.join(map(spelled, values))}"]
    if get_origin(annotation) is list:
        return ["a list" + (f" of {limits['min_length']} entries" if "max_length" in limits else "") + ", such as [A,B]"
                + (", not empty" if limits.get("min_length") == 1 else "")]  # fmt: skip
    simple = {bool: "one of true, false", str: "text", NoneType: "null"}
    return [simple[annotation] if annotation in simple else _number("a whole number", limits)]


def _limits(metadata: Any) -> dict[str, Any]:
    found = {}
    for extra in metadata:
        for part in [extra, *getattr(extra, "metadata", ())]:
            found |= {name: value for name in ("ge", "le", "min_length", "max_length") if (value := getattr(part, name, None)) is not None}
    return found


def _number(kind: str, limits: dict[str, Any]) -> str:
    if "le" in limits:
        return f"{kind} from {limits['ge']:g} to {limits['le']:g}"
    return f"{kind} from {limits['ge']:g} up" if "ge" in limits else kind


def spelled(value: Any) -> str:
    """As one writes it on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def group_of(field: FieldInfo) -> type[BaseModel] | None:
    """The group that a key is, if it is one."""
    for part in (field.annotation, *get_args(field.annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None
