"""Model cards: what was trained, by which commit and seed, how long, and what the files on disk then reach on development worlds.

Everything is measured through the public loaders (open_clip `local-dir:`, transformers `from_pretrained`), never through training code.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from fgvr.agents import prompts
from fgvr.data.birds import ATTRIBUTES, RESERVED_SEEDS, describe, read
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders.base import find_loader
from fgvr.types import ModelSpec
from tiny import common
from tiny.world import HeldOut, excluded_hash, held_out

WORLDS = (9002, 9003, 9004)
"""Development worlds of the cards; the curves use 9000 and 9001."""


@torch.no_grad()
def measure_encoder(folder: Path, held: HeldOut) -> dict[str, float]:
    """Top-1 by true descriptions, by 4-shot prototypes and by both; recall at 5 and the right genus of both."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()

    def encode(pictures: np.ndarray) -> torch.Tensor:
        batch = torch.stack([preprocess(Image.fromarray(p)) for p in pictures.reshape(-1, *pictures.shape[-3:])])
        return F.normalize(torch.cat([model.encode_image(part) for part in batch.split(64)]), dim=-1)

    species, tests = held.test.shape[:2]
    truth = torch.arange(species).repeat_interleave(tests)
    seen = encode(held.test)
    prototypes = F.normalize(encode(held.support).view(species, -1, seen.shape[1]).mean(1), dim=-1)
    texts = F.normalize(model.encode_text(tokenize(list(held.descriptions))), dim=-1)
    both = F.normalize(prototypes + texts, dim=-1)
    best = (seen @ both.T).topk(5).indices
    genus = torch.from_numpy(held.genera)

    def top1(bank: torch.Tensor) -> float:
        return float(((seen @ bank.T).argmax(-1) == truth).float().mean())

    return {
        "top-1 by description": top1(texts),
        "top-1 by 4-shot prototype": top1(prototypes),
        "top-1 fused": top1(both),
        "recall at 5 fused": float((best == truth[:, None]).any(-1).float().mean()),
        "right genus fused": float((genus[best[:, 0]] == genus[truth]).float().mean()),
    }


@torch.no_grad()
def measure_mllm(folder: Path, held: HeldOut, pictures: int = 120) -> dict[str, float]:
    """Accuracy of the free description per attribute, and top-1 over all species by the log-likelihood of the true descriptions."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
    species, tests = held.test.shape[:2]
    chosen = np.sort(np.random.default_rng(0).choice(species * tests, pictures, replace=False))
    flat, truth = held.test.reshape(-1, *held.test.shape[2:])[chosen], chosen // tests
    turns = [
        {"role": "system", "content": [{"type": "text", "text": prompts.SYSTEM}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompts.describe_image("bird")}]},
    ]
    text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    right, hits = [], []
    answers = [d + "<|im_end|>" for d in held.descriptions]
    for part in np.array_split(np.arange(pictures), max(1, pictures // 30)):
        batch = processor(text=[text] * len(part), images=[Image.fromarray(flat[i]) for i in part], return_tensors="pt")
        made = model.generate(**batch, max_new_tokens=48, do_sample=False)[:, batch["input_ids"].shape[1] :]
        for i, said in zip(part, processor.batch_decode(made, skip_special_tokens=True), strict=True):
            right.append([a == b for a, b in zip(read(said), held.labels[truth[i]], strict=True)])
    for i in range(pictures):
        image = Image.fromarray(flat[i])
        batch = processor(
            text=[text + a for a in answers], images=[image] * len(answers), padding=True, padding_side="right", return_tensors="pt"
        )
        start = len(processor.tokenizer(text).input_ids) + 15  # one image token stands for sixteen
        logits = model(**batch).logits[:, start - 1 : -1].log_softmax(-1)
        target = batch["input_ids"][:, start:]
        told = logits.gather(-1, target[..., None])[..., 0] * batch["attention_mask"][:, start:]
        hits.append(int(told.sum(1).argmax()) == truth[i])
    parts = np.array(right).mean(0)
    return {
        "description, mean of attributes": float(parts.mean()),
        "description, all ten right": float(np.array(right).all(1).mean()),
        "top-1 of all species by log-likelihood": float(np.mean(hits)),
    } | {f"description, {n}": float(v) for n, v in zip(ATTRIBUTES, parts, strict=True)}


def measure_joint(folder: Path, held: HeldOut, pictures: int = 60) -> dict[str, float]:
    """Top-1 over all species by matching the true descriptions, and how often the own one beats a one-attribute neighbour."""
    spec = ModelSpec("joint", "blip", str(folder), batch_size=64)
    model = find_loader(spec).load(spec, CpuDevice())
    rng, tests = np.random.default_rng(0), held.test.shape[1]
    chosen = np.sort(rng.choice(held.test.shape[0] * tests, pictures, replace=False))
    hits, pairs = [], []
    for i in chosen:
        image, truth = Image.fromarray(held.test.reshape(-1, *held.test.shape[2:])[i]), i // tests
        hits.append(int(np.argmax(model.match([image] * len(held.descriptions), list(held.descriptions)))) == truth)
        near = []
        for attribute, values in enumerate(ATTRIBUTES.values()):
            other = list(held.labels[truth])
            other[attribute] = (other[attribute] + 1 + int(rng.integers(len(values) - 1))) % len(values)
            near.append(describe(other))
        own, *others = model.match([image] * (1 + len(near)), [held.descriptions[truth], *near])
        pairs += [float(own > value) for value in others]
    return {
        "top-1 of all species by match": float(np.mean(hits)),
        "own description before a one-attribute neighbour": float(np.mean(pairs)),
    }


MODELS = {
    "joint": (("joint",), measure_joint, "BlipForImageTextRetrieval, 112 px, patch 14"),
    "encoder": (("encoder",), measure_encoder, "open_clip ViT, 112 px, patch 14"),
    "mllm": (("vision", "language", "compare"), measure_mllm, "Qwen2_5_VLForConditionalGeneration"),
}


def write(name: str, paths: common.Paths, seed: int) -> None:
    """Measure one model as its folder stands and write its README.md."""
    stages, measure, what = MODELS[name]
    folder, started = paths.models / name, time.time()
    rows = [measure(folder, held_out(world)) for world in WORLDS]
    for world, row in zip(WORLDS, rows, strict=True):
        print(name, world, json.dumps({k: round(v, 4) for k, v in row.items()}), flush=True)
    mean = {k: float(np.mean([r[k] for r in rows])) for k in rows[0]}
    (folder / "README.md").write_text(_card(name, what, folder, paths, stages, mean, seed))
    print(name, json.dumps({k: round(v, 4) for k, v in mean.items()}), f"measured in {time.time() - started:.0f} s", flush=True)


def _card(name: str, what: str, folder: Path, paths: common.Paths, stages: tuple[str, ...], mean: dict[str, float], seed: int) -> str:
    weights = next(folder.glob("*.safetensors"))
    commit = subprocess.run(
        ["git", "log", "-1", "--format=%h", "--", "scripts/tiny", "scripts/train_tiny.py"], capture_output=True, text=True
    )
    table = "\n".join(f"| {k} | {v:.3f} |" for k, v in mean.items())
    return f"""# Tiny {name}

{what},
trained from nothing by `scripts/train_tiny.py` for the synthetic bird world of `fgvr.data.birds`. A demonstration: it knows nothing
but these drawn birds and stands in for no real model. Licence: that of this repository; no third-party data or weights.

| | |
|---|---|
| script | commit {commit.stdout.strip() or "of this file"}, seed {seed} |
| training | {"; ".join(_effort(paths, stage) for stage in stages)} |
| weights | {weights.name}, float16, {weights.stat().st_size / 1e6:.2f} MB |
| never seen | worlds {RESERVED_SEEDS.start}-{RESERVED_SEEDS.stop - 1} and all one-attribute neighbours, hash `{excluded_hash()}` |
| prompts | fingerprint `{prompts.fingerprint()}` |

Measured on development worlds {", ".join(map(str, WORLDS))} (40 species each, 4 support pictures, held out from training), mean:

| measure | value |
|---|---|
{table}

Recipe and learning curves: docs/tiny-models.md.
"""


def _effort(paths: common.Paths, stage: str) -> str:
    """Steps and CPU minutes of a stage, over all its resumptions, from its curve."""
    lines = [json.loads(line) for line in (paths.work / f"{stage}.jsonl").read_text().splitlines()]
    ends = [line for line, following in zip(lines, [*lines[1:], None], strict=True) if following is None or following["cpu"] < line["cpu"]]
    return f"{stage} {lines[-1]['step']} steps, {sum(line['cpu'] for line in ends) / 60:.0f} CPU minutes"
