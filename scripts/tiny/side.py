"""A side network in the tiny MLLM: it compares the candidates in the prompt with what the reply says, beside frozen shipped weights.

The residual stream gets `WIDTH` more dimensions, each layer `HEADS` more heads and `NEURONS` more neurons, and two layers come in front.
All of them read and write the new dimensions only, so the shipped weights compute what they did (side-tuning: Zhang et al. 2020, Sung et
al. 2022). `written` puts both into one ordinary Qwen2.5-VL.

Matching in the context did not begin by itself (docs/reasoning-log.md), as more than half of a head's dimensions turn too fast with the
distance to match by content. The circuit is therefore written into the initial weights:

1. first layer: each token gets the code of the token before it, and the letter of the candidate in whose line it stands;
2. second layer: each word of the reply matches the question's tokens with the same code that follow the same code, and takes their letters;
3. first shipped layer: the letter after "Answer:" is the one that the reply's words took most.

The first layer stays as written. Before the shipped layers a token's stream has the length of its embedding, so training passes through
none of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tiny import lean

WIDTH, HEADS, NEURONS, HEAD, FRONT = 64, 2, 128, 32, 2
LETTERS = "ABCDEFG"
"""Each is one token after a space."""
OWN, PREVIOUS, LABEL, VOTES = slice(0, 20), slice(20, 40), slice(40, 47), slice(49, 56)
"""Places of the new dimensions: a token's own code, that of the token before it, the candidate it belongs to, votes for candidates."""
IN_REPLY, OUTSIDE, FORM, REST = 47, 48, 56, 57
"""Marks of the reply's tokens, of those before the first candidate, of those that begin the reply, and of those that begin a turn."""
PLACE = slice(LABEL.start, OUTSIDE + 1)
AMPLITUDE = 0.005
"""Length of the new dimensions in the residual stream, so small that the shipped layers' norms hardly change."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Token ids: the letters that begin a candidate's line, the token that begins the reply, the end of a line after it, the token that
    begins a turn, the two before an answer's letter, and the words of descriptions."""

    begins: tuple[int, ...]
    reply: int
    line: int
    turn: int
    answer: tuple[int, int]
    words: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """Right-padded ids int64 [n, t] in which each reply has `length` tokens, the last of them the one before its letter, at `last` [n]."""

    ids: torch.Tensor
    last: torch.Tensor
    length: int

    @property
    def places(self) -> torch.Tensor:
        """Of the first token, at which looks who counts nothing, and of the reply's tokens, int64 [n, 1 + length]."""
        return F.pad(self.last[:, None] + torch.arange(1 - self.length, 1), (1, 0))


class Attention(nn.Module):
    """The new heads of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * HEAD)
        self.out = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        nn.init.normal_(self.qkv.weight, std=0.02), nn.init.zeros_(self.qkv.bias), nn.init.normal_(self.out.weight, std=0.02)

    def part(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of queries (0), keys (1) or values (2)."""
        rows = slice(number * HEADS * HEAD, (number + 1) * HEADS * HEAD)
        return self.qkv.weight[rows], self.qkv.bias[rows]

    def forward(self, asking: torch.Tensor, asked: torch.Tensor, at: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        """Args: asking [n, a, WIDTH] and asked [n, b, WIDTH], normalised; their places at [n, a] and of [n, b] in the row."""
        q, k, v = (F.linear(x, *self.part(i)).view(*x.shape[:2], HEADS, HEAD).transpose(1, 2) for i, x in enumerate((asking, asked, asked)))
        q, k = lean.turned(q, *turns(at)), lean.turned(k, *turns(of))
        scores = q @ k.transpose(2, 3) / math.sqrt(HEAD)
        scores = scores.masked_fill((of[:, None, :] > at[:, :, None])[:, None], float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Side(nn.Module):
    """The new dimensions in their own units."""

    def __init__(self, lengths: torch.Tensor, marks: Marks, image: int) -> None:
        """Args: lengths: root mean square of each token's shipped embedding; image: id of a picture's place, which has no code."""
        super().__init__()
        self.marks, self.level = marks, float(lengths.median())
        self.register_buffer("scales", self.level / lengths)
        self.codes = nn.Embedding(len(lengths), WIDTH, padding_idx=image)
        self.first, self.match, self.count = Attention(), Attention(), Attention()
        self.gate, self.up = nn.Linear(WIDTH, NEURONS, bias=False), nn.Linear(WIDTH, NEURONS, bias=False)
        self.down = nn.Linear(NEURONS, WIDTH, bias=False)
        self.read = nn.Linear(WIDTH, len(LETTERS), bias=False)
        nn.init.zeros_(self.down.weight)
        with torch.no_grad():
            self.match.out.weight[: VOTES.start], self.match.out.weight[FORM : REST + 1] = 0.0, 0.0
        self.construct()

    @torch.no_grad()
    def construct(self, apart: int = 140) -> None:
        """Write the circuit. Args: apart: usual distance from a reply's word to the question's."""
        weight = self.codes.weight
        nn.init.normal_(weight, std=0.02)
        weight[:, OWN] = 0.3 * F.normalize(torch.randn(len(weight), OWN.stop), dim=1) / self.scales[:, None]
        weight[[*self.marks.words, *self.marks.answer], OWN] /= 0.3
        weight[:, LABEL.start : REST + 1], weight[self.codes.padding_idx] = 0.0, 0.0
        for place, token in enumerate(self.marks.begins):
            weight[token, LABEL.start + place] = 1 / self.scales[token]
        for token, mark in ((self.marks.reply, IN_REPLY), (self.marks.turn, OUTSIDE)):
            weight[token, mark] = 1 / self.scales[token]
        for token in (self.marks.reply, self.marks.line):  # in the reply, but none of its words
            weight[token, FORM] = 1 / self.scales[token]
        weight[self.marks.turn, REST] = 1 / self.scales[self.marks.turn]
        nn.init.zeros_(self.read.weight)
        self.read.weight[:, VOTES] = 20.0 * torch.eye(len(LETTERS))
        _peak(self.first, 0, dict.fromkeys(range(9), 14.0), at=1)
        _carry(self.first, 0, OWN, PREVIOUS, 1.0)
        # The nearest letter that begins a line; in the reply its beginning, whatever letters stand before and in it.
        _peak(self.first, 1, {6: 8.0, 7: 12.0, 8: 20.0}, at=0)
        _prefer(self.first, 1, dict.fromkeys(range(PLACE.start, PLACE.stop), 30.0) | {IN_REPLY: 70.0})
        _carry(self.first, 1, PLACE, PLACE, 1.0)
        for head in range(HEADS):
            _match(self.match, head, apart)
            # Only the reply counts. The colon of "Answer:" looks at its words, all else at where turns begin, which has no votes.
            _prefer(self.count, head, dict.fromkeys((*range(LABEL.start, LABEL.stop), OUTSIDE), -80.0) | {FORM: -30.0, REST: 165.0})
            (q, _), (k, _), near = _rows(self.count, 0, head), _rows(self.count, 1, head), HEAD // 2 - 2
            before, colon = (F.normalize(weight[token, OWN], dim=0) for token in self.marks.answer)
            q[near], k[near] = 0.0, 0.0
            q[near, OWN], q[near, PREVIOUS] = 0.5 * math.sqrt(HEAD) * colon, 0.5 * math.sqrt(HEAD) * before
            k[near, IN_REPLY] = 16.0
            _carry(self.count, head, VOTES, VOTES, 1.0 / HEADS)
        self.first.requires_grad_(False)

    def keep_marks(self) -> None:
        """The marks stay as written: the first layer's heads and the count go by them. Call it before each step."""
        marks = slice(LABEL.start, REST + 1)
        if self.codes.weight.grad is not None:
            self.codes.weight.grad[:, marks] = 0.0
        for linear in (self.match.out, self.down):
            if linear.weight.grad is not None:
                linear.weight.grad[: VOTES.start], linear.weight.grad[FORM : REST + 1] = 0.0, 0.0

    def enter(self, ids: torch.Tensor) -> torch.Tensor:
        """What the first layer leaves, [n, t, WIDTH]: by index, as its heads are all but sure (`by_heads` computes them)."""
        x = self.codes(ids)
        before = F.pad((x * self.scales[ids][..., None])[:, :-1, OWN], (0, 0, 1, 0))
        mark = torch.full_like(ids, -1)
        for place, token in enumerate((*self.marks.begins, self.marks.reply, self.marks.turn)):
            mark = mark.masked_fill(ids == token, place)
        nearest = torch.where(mark >= 0, torch.arange(ids.shape[1]), 0).cummax(1).values
        replies = ids == self.marks.reply
        nearest = torch.where(replies.cumsum(1) > 0, replies.long().argmax(1)[:, None], nearest)
        where = F.one_hot(mark.gather(1, nearest), PLACE.stop - PLACE.start).to(x.dtype)
        return x + torch.cat([F.pad(before, (PREVIOUS.start, 0)), F.pad(where, (0, WIDTH - PLACE.stop))], 2)

    def by_heads(self, ids: torch.Tensor) -> torch.Tensor:
        """What the first layer leaves, computed by its heads."""
        x, places = self.codes(ids), torch.arange(ids.shape[1]).expand_as(ids)
        seen = x * self.scales[ids][..., None]
        return x + self.first(seen, seen, places, places)

    def votes(self, rows: Rows, x: torch.Tensor) -> torch.Tensor:
        """The reply's streams after the second layer, [n, length, WIDTH]. Args: x: what the first layer left."""
        places, scales = rows.places, self.scales[rows.ids][..., None]
        reply = x.gather(1, places[..., None].expand(-1, -1, WIDTH))
        length = scales.gather(1, places[..., None])
        every = torch.arange(rows.ids.shape[1]).expand_as(rows.ids)
        reply = reply + self.match(reply * length, x * scales, places, every)
        return reply + self.down(F.silu(self.gate(reply * length)) * self.up(reply * length))

    def forward(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """The reply's streams, and the letters' logits after each of its tokens [n, length, letters]."""
        reply, places = self.votes(rows, self.enter(rows.ids)), rows.places
        seen = reply * self.scales[rows.ids.gather(1, places)][..., None]
        return reply, self.read(reply + self.count(seen, seen, places, places))


def turns(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [n, 1, t, HEAD] of places [n, t]."""
    angles = places[..., None] * torch.tensor([_turn(pair) for pair in range(HEAD // 2)])
    angles = torch.cat([angles, angles], -1)[:, None]
    return angles.cos(), angles.sin()


def _turn(pair: int) -> float:
    """Radians per token of a pair of a head's dimensions."""
    return 10000.0 ** (-2 * pair / HEAD)


def _rows(attention: Attention, part: int, head: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A head's weight [HEAD, WIDTH] and bias [HEAD] of its queries (0), keys (1) or values (2)."""
    weight, bias = attention.part(part)
    return weight[head * HEAD : (head + 1) * HEAD], bias[head * HEAD : (head + 1) * HEAD]


def _peak(attention: Attention, head: int, nats: dict[int, float], at: int) -> None:
    """The head prefers a distance: each pair of dimensions adds its nats times the cosine of the way to it."""
    (_, q), (_, k) = _rows(attention, 0, head), _rows(attention, 1, head)
    for pair, much in nats.items():
        length = math.sqrt(much * math.sqrt(HEAD))
        q[pair], q[pair + HEAD // 2] = length * math.cos(at * _turn(pair)), -length * math.sin(at * _turn(pair))
        k[pair] = length


def _prefer(attention: Attention, head: int, wanted: dict[int, float]) -> None:
    """The head prefers keys by their dimensions, nats each, whatever the query. The slowest pair is used, which hardly turns."""
    slow = HEAD // 2 - 1
    _rows(attention, 0, head)[0][slow], _rows(attention, 1, head)[0][slow] = 0.0, 0.0
    _rows(attention, 0, head)[1][slow] = HEAD**0.5
    for dimension, nats in wanted.items():
        _rows(attention, 1, head)[0][slow, dimension] = nats


def _carry(attention: Attention, head: int, source: slice, target: slice, gain: float) -> None:
    """The head's values are the source dimensions, and go to the target dimensions."""
    size, columns = source.stop - source.start, slice(head * HEAD, (head + 1) * HEAD)
    _rows(attention, 2, head)[0].zero_()
    _rows(attention, 2, head)[0][:size, source] = torch.eye(size)
    attention.out.weight[:, columns] = 0.0
    attention.out.weight[target, columns][:, :size] = gain * torch.eye(size)


def _match(attention: Attention, head: int, apart: int) -> None:
    """Queries and keys are the same projection of a token and the one before it, in the pairs that turn slowly; the reply is no key."""
    pairs = range(9, 15)
    seen = torch.zeros(2 * len(pairs), WIDTH)
    for part in (OWN, PREVIOUS):
        random = torch.linalg.qr(torch.randn(part.stop - part.start, 2 * len(pairs)))[0].T
        seen[:, part] = random * math.sqrt((part.stop - part.start) / (2 * len(pairs)))
    seen *= math.sqrt(12.0 * math.sqrt(HEAD))
    q, k = _rows(attention, 0, head)[0], _rows(attention, 1, head)[0]
    for i, pair in enumerate(pairs):
        first, second, angle = seen[2 * i], seen[2 * i + 1], apart * _turn(pair)
        k[pair], k[pair + HEAD // 2] = first, second
        q[pair] = first * math.cos(angle) + second * math.sin(angle)
        q[pair + HEAD // 2] = second * math.cos(angle) - first * math.sin(angle)
    _prefer(attention, head, {IN_REPLY: -40.0})
    _carry(attention, head, LABEL, VOTES, 1.0 / HEADS)


def written(
    shipped: Qwen2_5_VLForConditionalGeneration, side: Side, letters: Sequence[int], last: float, folder: Path
) -> Qwen2_5_VLForConditionalGeneration:
    """One ordinary model of both: the shipped weights, the new ones beside them, and zeros between them.

    Args: letters: ids of the answers' letters; last: root mean square of the shipped stream where a letter is due, at the last norm;
    folder: its `config.json` is that of the shipped model, and becomes that of both. The output matrix is its own, since the input's new
    dimensions hold codes.
    """
    old = shipped.config.text_config
    width, neurons = old.hidden_size, old.intermediate_size
    kept = math.sqrt(width / (width + WIDTH))
    (folder / "config.json").write_text(json.dumps(widened(json.loads((folder / "config.json").read_text())), indent=2) + "\n")
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(folder)).float()
    core, source = model.model.language_model, shipped.state_dict()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for name, value in model.state_dict().items():
            head, found, tail = name.partition("language_model.layers.")
            number, _, rest = tail.partition(".")
            if found and int(number) < FRONT:
                continue
            old_value = source[f"{head}{found}{int(number) - FRONT}.{rest}" if found else name]
            value[tuple(slice(size) for size in old_value.shape)] = old_value
        core.embed_tokens.weight[:, width:] = AMPLITUDE * side.codes.weight
        model.lm_head.weight[list(letters), width:] = side.read.weight
        for layer, attention in zip(core.layers, (side.first, side.match, side.count), strict=False):
            parts = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
            for i, linear in enumerate(parts):
                linear.weight[width:, width:], linear.bias[width:] = attention.part(i)
            layer.self_attn.o_proj.weight[width:, width:] = AMPLITUDE * attention.out.weight
            layer.input_layernorm.weight[width:] = side.level / AMPLITUDE
        mlp = core.layers[1].mlp
        mlp.gate_proj.weight[neurons:, width:], mlp.up_proj.weight[neurons:, width:] = side.gate.weight, side.up.weight
        mlp.down_proj.weight[width:, neurons:] = AMPLITUDE * side.down.weight
        core.layers[1].post_attention_layernorm.weight[width:] = side.level / AMPLITUDE
        core.norm.weight[width:] = last / AMPLITUDE
        for norm in (core.norm, *(n for layer in core.layers for n in (layer.input_layernorm, layer.post_attention_layernorm))):
            norm.weight *= kept
    return model


def widened(config: dict) -> dict:
    """A folder's flat configuration with the new dimensions, heads, neurons and layers."""
    return config | {
        "hidden_size": config["hidden_size"] + WIDTH,
        "num_attention_heads": config["num_attention_heads"] + HEADS,
        "num_key_value_heads": config["num_key_value_heads"] + HEADS,
        "intermediate_size": config["intermediate_size"] + NEURONS,
        "num_hidden_layers": config["num_hidden_layers"] + FRONT,
        "max_window_layers": config["max_window_layers"] + FRONT,
        "vision_config": config["vision_config"] | {"out_hidden_size": config["vision_config"]["out_hidden_size"] + WIDTH},
        "tie_word_embeddings": False,
    }
