"""The side network of the shipped MLLM (scripts/tiny/side.py): the written model computes what both networks compute side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from fgvr.utils.paths import PACKAGE

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from tiny.side import LETTERS, PART, RULING, VOTES, WEIGHT, WRITTEN, Marks, Rows, Ruling, Side, written

BEGINS, REPLY, LINE, TURN, ANSWER, WORDS = (30, 31, 32, 33, 34, 35, 36), 90, 91, 92, (97, 98), tuple(range(100, 260))
ANSWERS = range(20, 27)
RULE, THAN, END, WHEN, CAUSE, NOUNS, SAYS, THE = 40, 41, 42, 43, 44, tuple(range(50, 60)), (60, 61), 62
RULING_WORDS = Ruling((RULE, THAN, END, WHEN, CAUSE), WHEN, NOUNS, SAYS, ((60, 61, 0, 2),))
"""In the first part of a rule a noun follows the words 60 and 61."""
SAID = (*ANSWERS, *SAYS, *NOUNS)
ALONE = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "max_window_layers": 2,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
}


@pytest.fixture
def shipped(tmp_path: Path) -> Qwen2_5_VLForConditionalGeneration:
    """A small MLLM with random weights, whose configuration is in the folder."""
    torch.manual_seed(0)
    config = json.loads((PACKAGE / "models_tiny/mllm/config.json").read_text()) | ALONE
    config["vision_config"] |= {"out_hidden_size": 128, "depth": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(tmp_path)).float().eval()


@pytest.fixture
def side(shipped: Qwen2_5_VLForConditionalGeneration) -> Side:
    lengths = shipped.model.language_model.embed_tokens.weight.detach().pow(2).mean(1).sqrt()
    return Side(lengths, Marks(BEGINS, REPLY, LINE, TURN, ANSWER, WORDS, RULING_WORDS), image=666).requires_grad_(False)


def question(cases: int) -> tuple[Rows, torch.Tensor]:
    """Two candidates of twenty random pairs of words each, and a reply that repeats six pairs of one of them."""
    rows, true = [], torch.arange(cases) % 2
    for i in range(cases):
        lines = torch.tensor(WORDS)[torch.randperm(len(WORDS))[:80]].view(2, 20, 2)
        said = lines[true[i]][torch.randperm(20)[:6]]
        told = [token for k in (0, 1) for token in (BEGINS[k], 94, *lines[k].flatten().tolist())]
        rows.append([TURN, *[93] * 40, *told, REPLY, LINE, *said.flatten().tolist(), *ANSWER])
    ids = torch.tensor(rows)
    return Rows(ids, torch.full((cases,), ids.shape[1] - 1), 16), true


def test_the_first_layers_heads_do_what_training_computes_by_index(side: Side) -> None:
    rows, _ = question(8)
    wrong = (side.by_heads(rows.ids) - side.enter(rows.ids))[:, 2:, : VOTES.start].abs()
    assert wrong.mean() < 0.002
    assert wrong.max() < 0.1


def ruled(candidates: int, rule: list[int], asks: bool, reply: list[int]) -> Rows:
    """A prompt of some candidates that have two nouns each, with a rule, and a reply."""
    lines = [token for k in range(candidates) for token in (BEGINS[k], 94, 100 + k, NOUNS[k], 95, 110 + k, NOUNS[k + 1], END)]
    ids = torch.tensor([[TURN, *[93] * 40, *lines, *([WHEN, END] if asks else []), *rule, REPLY, LINE, *reply]])
    return Rows(ids, torch.tensor([ids.shape[1] - 1]), 2 + len(reply))


def test_a_rule_in_the_prompt_gives_one_noun_of_the_reply_more_weight_and_another_less(side: Side) -> None:
    rows = ruled(2, [RULE, THE, NOUNS[1], THAN, NOUNS[4], END], False, [99, NOUNS[1], 99, NOUNS[2], 99, NOUNS[4]])
    weights = side.votes(rows, side.by_heads(rows.ids))[0, 3:, WEIGHT]
    assert weights[[1, 3, 5]].round().tolist() == [[1, 0], [0, 0], [0, 1]]


def test_where_a_rule_is_asked_for_the_noun_that_tells_the_first_candidate_is_written_first(side: Side) -> None:
    reply = [100, NOUNS[0], 99, 111, NOUNS[2], 99, 99, NOUNS[7], RULE, *SAYS, THAN, THE]
    rows = ruled(2, [], True, reply)
    x, written_at = side.by_heads(rows.ids), {"more": -3, "less": -1}
    assert x[0, -2, PART].round().tolist() == [0, 1, 0, 0, 0]
    assert x[0, -2, RULING] > 0.5
    reply_x = side.votes(rows, x) * side.scales[rows.ids.gather(1, rows.places)][..., None]
    nouns = side.count(reply_x, reply_x, rows.places, rows.places)[0, :, WRITTEN]
    assert {name: int(nouns[at].argmax()) for name, at in written_at.items()} == {"more": 0, "less": 2}
    assert side(rows)[1][0, -3].argmax() == SAID.index(NOUNS[0])
    assert side(rows)[1][0, -3].max() > 30
    unasked = ruled(2, [], False, reply)
    assert side(unasked)[1][0, -3].max() < 30, "where no rule is asked for none is written"


def test_an_untrained_side_network_finds_pairs_of_random_words_in_the_context(side: Side) -> None:
    rows, true = question(64)
    found = side.votes(rows, side.by_heads(rows.ids))[:, 4:15:2, VOTES][..., :2]
    assert (found.sum(1).argmax(-1) == true).float().mean() > 0.9, "chance is .5"


def test_the_written_model_answers_as_both_networks_and_describes_as_the_shipped_one(shipped, side: Side, tmp_path: Path) -> None:
    rows, _ = question(4)
    with torch.no_grad():
        before, letters = shipped(input_ids=rows.ids).logits, side(rows)[1][:, -1]
        lengths: list[torch.Tensor] = []
        shipped.model.language_model.norm.register_forward_pre_hook(lambda _, given: lengths.append(given[0][:, -1].pow(2).mean(-1).sqrt()))
        shipped(input_ids=rows.ids[:1])
        one = written(shipped, side, SAID, float(lengths[0][0]), tmp_path).eval()
        found = one(input_ids=rows.ids).logits
    others = [i for i in range(668) if i not in SAID]
    assert len(LETTERS) == len(ANSWERS)
    assert torch.allclose(found[..., others], before[..., others], atol=5e-3), "describing stays as it was"
    assert torch.allclose(found[0, -1, list(SAID)], before[0, -1, list(SAID)] + letters[0], atol=0.1)
    assert letters.abs().max() > 1
