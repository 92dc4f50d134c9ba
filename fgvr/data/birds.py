"""Birds: a small synthetic world of fine-grained species, drawn with Pillow.

A species is a combination of ten visible attributes; genera hold species that differ from each other in one or two *fine* ones.
Pictures are 112 x 112 RGB with heavy nuisance (pose, background, occlusion, light, noise). Everything is seeded; nothing is learned here,
nothing touches a disk, and the attributes of a picture are never written into it.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fgvr.data import bird_drawing
from fgvr.data.bird_drawing import SIZE as SIZE

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "crown": ("black", "red", "blue", "yellow", "white"),
    "back": ("grey", "brown", "green", "blue", "black"),
    "belly": ("white", "yellow", "orange", "grey"),
    "breast": ("plain", "spotted", "streaked"),
    "beak": ("stubby", "long", "hooked"),
    "wing bars": ("no", "one", "two"),
    "eye ring": ("no", "white", "orange"),
    "tail": ("short", "pointed", "forked"),
    "legs": ("black", "yellow", "red"),
    "throat": ("white", "black", "red"),
}
FINE = (3, 4, 5, 6, 7, 8, 9)
"""Indices of the attributes in which the species of one genus differ; the other three are the genus's colours."""
DEFAULT_GENERA = (4, 4, 4, 4, 6, 6, 6, 6)
MAX_GENUS = 9
RESERVED_SEEDS = range(9000, 9100)
"""Worlds no shipped model was trained on (nor on any one-attribute neighbour of their species)."""

_CARDINALITIES = tuple(len(values) for values in ATTRIBUTES.values())
_GENUS_APART = 4
_DRAFT_GENUS = 6  # every genus is drafted to at least this size, so that smaller worlds are subsets of the default one

Attributes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Species:
    """One kind of bird: a nonsense name, the genus it belongs to, one value index per attribute."""

    name: str
    genus: int
    attributes: Attributes

    def describe(self) -> str:
        """The ground-truth description: a sentence that names all ten attributes, in a fixed order."""
        return describe(self.attributes)


@dataclass(frozen=True, slots=True)
class World:
    """A set of species and how hard their pictures are to see (`difficulty` 0 clean to 1 heavy)."""

    seed: int
    difficulty: float
    species: tuple[Species, ...]


# --- species ---------------------------------------------------------------------------------------------------------


def describe(attributes: Sequence[int]) -> str:
    """`A bird with red crown, ..., white throat.` for one value index per attribute."""
    parts = [phrase(name, values[i]) for (name, values), i in zip(ATTRIBUTES.items(), attributes, strict=True)]
    return "A bird with " + ", ".join(parts) + "."


def phrase(name: str, value: str) -> str:
    """One attribute in words: `red crown`, `one wing bar`."""
    return f"{value} {name.removesuffix('s')}" if value == "one" else f"{value} {name}"


def read(text: str) -> tuple[int | None, ...]:
    """The value index of each attribute that `text` names, None where it names none; the first one counts."""
    found: list[int | None] = []
    for name, values in ATTRIBUTES.items():
        places = {i: text.find(phrase(name, value)) for i, value in enumerate(values)}
        named = [i for i, place in places.items() if place >= 0]
        found.append(min(named, key=places.__getitem__) if named else None)
    return tuple(found)


def make_world(seed: int = 9000, genera: Sequence[int] = DEFAULT_GENERA, difficulty: float = 1.0) -> World:
    """Species drawn from `seed`: one genus per entry of `genera`, of that many species. Smaller genera are prefixes of larger ones."""
    if not 0.0 <= difficulty <= 1.0:
        raise ValueError(f"difficulty {difficulty} is outside [0, 1]")
    if max(genera, default=0) > MAX_GENUS:
        raise ValueError(f"a genus of {max(genera)} has no room; ask for at most {MAX_GENUS} species per genus")
    return _world(seed, tuple(genera), difficulty)


@functools.lru_cache(maxsize=16)
def _world(seed: int, genera: tuple[int, ...], difficulty: float) -> World:
    drafts = _draft_genera(seed, genera)
    names = _names(seed)
    species = [
        Species(next(names), genus, attributes)
        for genus, (size, draft) in enumerate(zip(genera, drafts, strict=True))
        for attributes in draft[:size]
    ]
    return World(seed, difficulty, tuple(species))


def distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of attributes in which two species differ."""
    return sum(x != y for x, y in zip(a, b, strict=True))


def is_reserved(seed: int, genera: Sequence[int] = DEFAULT_GENERA) -> bool:
    """Whether the shipped models are guaranteed never to have seen the species of this world, see `reserved`."""
    return seed in RESERVED_SEEDS and len(genera) <= len(DEFAULT_GENERA) and max(genera, default=0) <= _DRAFT_GENUS


@functools.cache
def reserved(seeds: Sequence[int] = RESERVED_SEEDS) -> frozenset[Attributes]:
    """Species of all reserved worlds (up to 8 genera of up to 6) and every combination one attribute away from one of them."""
    species = {a for seed in seeds for draft in _draft_genera(seed, DEFAULT_GENERA) for a in draft}
    return frozenset(species.union(*(_neighbours(a) for a in species)))


def _neighbours(attributes: Attributes) -> Iterable[Attributes]:
    for place, count in enumerate(_CARDINALITIES):
        for value in range(count):
            if value != attributes[place]:
                yield (*attributes[:place], value, *attributes[place + 1 :])


def _draft_genera(seed: int, genera: tuple[int, ...]) -> list[list[Attributes]]:
    """Members per genus, at least `_DRAFT_GENUS` each; a genus never gets close to an earlier one."""
    drafts: list[list[Attributes]] = []
    for genus, size in enumerate(genera):
        others = list(itertools.chain.from_iterable(drafts))
        for attempt in range(200):
            rng = _rng("genus", seed, genus, attempt)
            draft = _draft_genus(rng, max(size, _DRAFT_GENUS), others)
            if draft is not None:
                drafts.append(draft)
                break
        else:
            raise ValueError(f"no room for {len(genera)} genera of sizes {genera} in world {seed}; ask for fewer or smaller ones")
    return drafts


def _draft_genus(rng: np.random.Generator, size: int, others: Sequence[Attributes]) -> list[Attributes] | None:
    """`size` species, each 1 or 2 fine attributes from every other, all far from `others`; None when the draw leads nowhere."""
    members = [tuple(int(v) for v in rng.integers(_CARDINALITIES))]
    if any(distance(members[0], o) < _GENUS_APART for o in others):
        return None
    for _ in range(60 * size):
        if len(members) == size:
            return members
        candidate = list(members[int(rng.integers(len(members)))])
        for place in rng.choice(FINE, size=int(rng.integers(1, 3)), replace=False):
            candidate[place] = (candidate[place] + int(rng.integers(1, 3))) % 3
        chosen = tuple(candidate)
        if all(1 <= distance(chosen, m) <= 2 for m in members) and all(distance(chosen, o) >= _GENUS_APART for o in others):
            members.append(chosen)
    return members if len(members) == size else None


def _names(seed: int) -> Iterator[str]:
    """Endless unique pronounceable names in which no word of an attribute can be read."""
    words = {"bird", "wing", "bar", "ring"}
    words |= {w for name, values in ATTRIBUTES.items() for text in (name, *values) for w in text.split()}
    onsets = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "tr", "kl")
    codas = ("", "", "n", "l", "s", "m")
    rng, taken = _rng("names", seed), set[str]()
    while True:
        syllables = [str(rng.choice(onsets)) + "aeiou"[int(rng.integers(5))] for _ in range(int(rng.integers(2, 4)))]
        name = "".join(syllables) + str(rng.choice(codas))
        if name not in taken and len(name) >= 5 and not any(w in name for w in words):
            taken.add(name)
            yield name.capitalize()


def _rng(*key: object) -> np.random.Generator:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


# --- pictures --------------------------------------------------------------------------------------------------------


def render(world: World, species_index: int, split: str, index: int) -> Image.Image:
    """Picture `index` of a species in a split, 112 x 112 RGB; the same arguments always give the same pixels."""
    species = world.species[species_index]
    rng = _rng("picture", world.seed, species.name, species.attributes, split, index)
    return draw_bird(species.attributes, rng, world.difficulty)


def draw_bird(attributes: Sequence[int], rng: np.random.Generator, difficulty: float) -> Image.Image:
    """A bird with these attributes, 112 x 112 RGB. At difficulty 0 only the pose varies, a little."""
    return bird_drawing.draw(_words(attributes), rng, difficulty)


def _words(attributes: Sequence[int]) -> dict[str, str]:
    return {name: values[i] for (name, values), i in zip(ATTRIBUTES.items(), attributes, strict=True)}
