"""Every prompt, in one file. Pure text: no images, no models.

The tiny models are trained on exactly these sentences (scripts/train_tiny.py imports them), so a change here needs a new training
or an ADR. The knowledge base records `fingerprint()`, so that an old base is never used with new prompts. Fixed instructions stand before
the image (system turn), and the variable part stands last, so that prefixes can be shared.
"""

import string
from collections.abc import Mapping, Sequence

from fgvr.utils.files import short_hash

SYSTEM = "You look closely at pictures and say exactly what is visible."

_DESCRIBE_CLASS = (
    "All pictures show the same kind of {superclass}, called {name}. "
    "Describe its visible features: shape, colours, markings and what tells it from similar kinds."
)
_DESCRIBE_IMAGE = "Describe the visible features of this {superclass}: shape, colours, markings and what tells it from similar kinds."
_CHOOSE = "Which {superclass} is this? The candidates are:\n{candidates}\n{rules}"
_NAME = "Answer with its name."
_LETTER = "Answer with its letter."
ANSWER = "Answer:"  # what stands between a rationale and its letter
_RULE = "Rule: {rule}\n"
_REFLECT = (
    "This {superclass} is a {truth}, but it was taken for a {wrong}.\n{descriptions}\n"
    "What should one look at so that this does not happen again? Answer in four lines:\n"
    "Rule: what to do, in one sentence.\nWhen: when the rule applies.\nCause: why they were confused.\nPriority: high, medium or low."
)
_EXEMPLARS = "The first picture is the one in question; the others show the candidates, one each, in their order.\n"
_TELL_APART = (
    "These kinds of {superclass} are easily confused:\n{candidates}\n"
    "Which parts of the picture tell them apart? Name at most three, one per line."
)
_LOOK_AT = "Look at this part of the {superclass} only: {part}. Say what is visible there."
_SUM_UP = "What was seen of this {superclass}:\n{notes}\nDescribe it in one sentence that names all its visible features."
_REASON = "First say what you see, then answer with its letter."

# CLIP's two general templates and the one of fine-grained benchmarks (Radford et al. 2021, section 3.1.4).
NAME_TEMPLATES = ("a photo of a {name}, a type of {superclass}.", "a photo of the {name}, a kind of {superclass}.", "a photo of a {name}.")


def describe_class(name: str, superclass: str) -> str:
    """Asks for a class's description, from its support images."""
    return _DESCRIBE_CLASS.format(name=name, superclass=superclass)


def describe_image(superclass: str, rules: Sequence[str] = ()) -> str:
    """The shared prompt under which every candidate's description is scored (`slow.target=description`)."""
    return rule_lines(rules) + _DESCRIBE_IMAGE.format(superclass=superclass)


def rule_lines(rules: Sequence[str]) -> str:
    return "".join(_RULE.format(rule=rule) for rule in rules)


def reflect(superclass: str, truth: tuple[str, str], taken_for: tuple[str, str]) -> str:
    """Asks the MLLM about its own mistake; the only prompt that tells the truth. Pairs are (name, description)."""
    said = "\n".join(f"{name}: {description}" for name, description in (truth, taken_for) if description)
    return _REFLECT.format(superclass=superclass, truth=truth[0], wrong=taken_for[0], descriptions=said)


def candidate_lines(names: Sequence[str], descriptions: Sequence[str]) -> str:
    """`A. name: description`, one line per candidate."""
    pairs = zip(string.ascii_uppercase, names, descriptions, strict=False)
    return "\n".join(f"{letter}. {name}: {text}" if text else f"{letter}. {name}" for letter, name, text in pairs)


def choose(
    superclass: str, names: Sequence[str], descriptions: Sequence[str], rules: Sequence[str], *, ending: str, exemplars: bool = False
) -> str:
    """The multiple-choice question; `ending` is `name`, `letter` or `reason`. The true label is never an argument here.

    Args: exemplars: an image of each candidate follows the one in question.
    """
    asked = {"name": _NAME, "letter": _LETTER, "reason": _REASON}[ending]
    return (
        (_EXEMPLARS if exemplars else "")
        + _CHOOSE.format(superclass=superclass, candidates=candidate_lines(names, descriptions), rules=rule_lines(rules))
        + asked
    )


def tell_apart(superclass: str, names: Sequence[str], descriptions: Sequence[str]) -> str:
    """First step of an analysis: asks which parts tell the candidates apart."""
    return _TELL_APART.format(superclass=superclass, candidates=candidate_lines(names, descriptions))


def look_at(superclass: str, part: str) -> str:
    """Second step of an analysis: asks for what is visible at one part."""
    return _LOOK_AT.format(superclass=superclass, part=part)


def sum_up(superclass: str, notes: Sequence[str]) -> str:
    """Third step of an analysis: asks for one description from all notes."""
    return _SUM_UP.format(superclass=superclass, notes="\n".join(notes))


def name_prompts(name: str, superclass: str, templates: int | None = None) -> tuple[str, ...]:
    """Class-name prompts for the text encoder. Args: templates: the number of templates used; None = all."""
    return tuple(t.format(name=name, superclass=superclass) for t in NAME_TEMPLATES[:templates])


def fingerprint() -> str:
    """12 hex digits over every prompt of this file; part of a knowledge base's key."""
    return fingerprint_of(globals())


def fingerprint_of(module: Mapping[str, object]) -> str:
    """12 hex digits over all constants (upper-case names) of a module of prompts."""
    return short_hash({name: value for name, value in module.items() if name.isupper()})
