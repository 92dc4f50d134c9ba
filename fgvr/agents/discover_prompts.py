"""Prompts for the discovery of class names, and readers of the replies. No function here takes a class list."""

import re
from collections.abc import Sequence

from fgvr.agents import prompts
from fgvr.utils.text import normalise_name

IDENTIFY = "What kind of thing is this? Answer with the most general everyday word for it, one or two words."
_HOWTO = "Which visible parts and features tell similar kinds of {superclass} apart? List at most ten, one per line, a few words each."
_MENTION = " Mention: {attributes}."
_GUESS = (
    "What is the most specific name of this {superclass}? It was described like this: {description}\n"
    "Answer with up to three names, the best first, separated by semicolons."
)
_NAME = "What is the most specific name of this {superclass}? Answer with its name."

_LONGEST_KIND, _LONGEST_ATTRIBUTE, _LONGEST_NAME = 3, 4, 8  # words


def fingerprint() -> str:
    """12 hex digits over every prompt of discovery, including those of prompts.py, and over the limits on answers."""
    return prompts.fingerprint_of({**globals(), "PROMPTS": prompts.fingerprint()})


def howto(superclass: str) -> str:
    return _HOWTO.format(superclass=superclass)


def describe(superclass: str, attributes: Sequence[str]) -> str:
    """The prompt of the knowledge base, with the attributes that `howto` found at its end."""
    return prompts.describe_image(superclass) + (_MENTION.format(attributes=", ".join(attributes)) if attributes else "")


def guess(superclass: str, description: str) -> str:
    return _GUESS.format(superclass=superclass, description=description)


def name(superclass: str) -> str:
    """The prompt under which every guessed name is scored."""
    return _NAME.format(superclass=superclass)


def read_kind(reply: str) -> str:
    """The noun of `Bird`, `a bird.` or `A bird with a red crown`; "" where there is none."""
    text = re.sub(r"^((this|it) is |it's |an? |the )+", "", " ".join(reply.split()).lower())
    words = re.split(r"\b(?:with|that|which|on|in|of|standing|sitting|having)\b|[,.;:\n(]", text)[0].split()
    return " ".join(words) if 0 < len(words) <= _LONGEST_KIND else ""


def read_attributes(reply: str) -> tuple[str, ...]:
    """One attribute per line; () where the reply is no list of at least two short lines."""
    lines = [re.sub(r"^[\s\d.)*•-]+", "", line).strip(" .:;").lower() for line in reply.splitlines()]
    lines = [line for line in dict.fromkeys(lines) if line]
    return tuple(lines[:10]) if len(lines) > 1 and all(len(line.split()) <= _LONGEST_ATTRIBUTE for line in lines) else ()


def read_names(reply: str, superclass: str) -> tuple[str, ...]:
    """The names of a reply, best first, without the superclass itself and without whole sentences."""
    parts = [
        re.sub(r"^[\s\d.)*•-]+((an?|the)\s)?|^(an?|the)\s", "", part, flags=re.I).strip(" .\"'`") for part in re.split(r"[;\n]", reply)
    ]
    kept = [part for part in parts if part and len(part.split()) <= _LONGEST_NAME and normalise_name(part) != normalise_name(superclass)]
    once: dict[str, str] = {}
    for part in kept:
        once.setdefault(normalise_name(part), part)
    return tuple(once.values())[:3]


def phrases(description: str) -> tuple[str, ...]:
    """`red crown`, `hooked beak`, ... of `A bird with red crown, hooked beak.`; () of prose without such a list."""
    _, found, listed = description.partition(" with ")
    parts = tuple(part.removeprefix("and ").strip(" .") for part in listed.split(",")) if found else ()
    return parts if len(parts) > 1 and all(parts) else ()


def short_names(superclass: str, descriptions: Sequence[str]) -> list[str]:
    """A short name for each of several different descriptions: the superclass with few phrases that tell it from all others.

    The choice is greedy: the phrase that excludes most of the others comes first. A description that is no list gives its first words.
    """
    listed = [phrases(text) for text in descriptions]
    names = []
    for i, own in enumerate(listed):
        others, chosen = [set(other) for j, other in enumerate(listed) if j != i], list[str]()
        while others and (rest := [phrase for phrase in own if phrase not in chosen]):
            best = max(rest, key=lambda phrase: sum(phrase not in other for other in others))
            if all(best in other for other in others):
                break
            chosen.append(best)
            others = [other for other in others if best in other]
        chosen = chosen or list(own[:1])
        said = f"{superclass} with {', '.join(phrase for phrase in own if phrase in chosen)}"
        names.append(said if chosen else " ".join(descriptions[i].split()[:_LONGEST_NAME]).strip(" .,"))
    return names
