"""Building what is known: the reference's passes against ours, on the same classes, pictures and tokens.

The experience pass is the reference's largest part; ours asks each question once. Its two rows are with and without it.
"""

from __future__ import annotations

from benchmarks import reference
from benchmarks.bench import Bench, bench
from benchmarks.race import Races, Way, race

TOKENS = 16
SHOTS = 3


def measure(*, models: str, repeat: int, size: int = 2) -> Races:
    """`size`: classes of 3 shots."""
    with bench(models, images=size * SHOTS, theirs=True) as peer, bench(models, images=size * SHOTS) as b:
        classes = [b.files[i : i + SHOTS] for i in range(0, len(b.files), SHOTS)]
        ways = [
            Way("reference: without experience", lambda: peer.counted(lambda: reference.build(peer, classes, TOKENS, experience=False))),
            Way("ours: without experience", lambda: b.counted(lambda: _build(b, classes, experience=False))),
            Way(
                "reference: with experience",
                lambda: peer.counted(lambda: reference.build(peer, classes, TOKENS, experience=True)),
                same_work=False,
            ),
            Way("ours: with experience", lambda: b.counted(lambda: _build(b, classes, experience=True)), same_work=False),
        ]
        laps = race(ways, items=len(b.files), repeat=repeat)
    whole = [a / o for a, o in zip(laps[2].cpu.values, laps[3].cpu.values, strict=True)]
    note = f"with experience: ours {min(whole):.2f} to {max(whole):.2f} x the reference's processor time"
    return Races({"kb": laps}, [note], {"with_experience": whole})


def _build(b: Bench, classes: list, *, experience: bool) -> None:
    """One encoder batch over all; descriptions in one batch; each experience question asked once (one pass of three is enough)."""
    pictures = [[b.open(file) for file in files] for files in classes]
    flat = [picture for group in pictures for picture in group]
    b.encoder.encode(flat)
    b.mllm.generate([group[:3] for group in pictures], [reference.DESCRIBE] * len(pictures), max_new_tokens=TOKENS)
    b.encoder.encode_text([reference.DESCRIBE] * len(pictures))
    if experience:
        b.mllm.generate(flat, [reference.CHOOSE] * len(flat), max_new_tokens=TOKENS)
        b.mllm.generate([[]] * 3, ["What can be learned from these failures?"] * 3, max_new_tokens=TOKENS)
