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

from tiny.side import LETTERS, VOTES, Marks, Rows, Side, written

BEGINS, REPLY, LINE, TURN, ANSWER, WORDS = (30, 31, 32, 33, 34, 35, 36), 90, 91, 92, (97, 98), tuple(range(100, 260))
ANSWERS = range(20, 27)
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
    return Side(lengths, Marks(BEGINS, REPLY, LINE, TURN, ANSWER, WORDS), image=666).requires_grad_(False)


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
        one = written(shipped, side, list(ANSWERS), float(lengths[0][0]), tmp_path).eval()
        found = one(input_ids=rows.ids).logits
    others = [i for i in range(668) if i not in ANSWERS]
    assert len(LETTERS) == len(ANSWERS)
    assert torch.allclose(found[..., others], before[..., others], atol=5e-3), "describing stays as it was"
    assert torch.allclose(found[0, -1, ANSWERS], before[0, -1, ANSWERS] + letters[0], atol=0.1)
    assert letters.abs().max() > 1
