"""Train the tiny models that `fgvr` ships, from nothing, on the bird world: `python scripts/train_tiny.py --stage all`.

Stages: `data` renders the training world, `encoder` trains the open_clip model, `vision` the MLLM's eye, `language` its words, `compare` a
side network in it that compares candidates, `joint` the image-text matcher, whose eye starts as the encoder's. Each stage is seeded, counts
in steps, keeps an atomic checkpoint under training/ and resumes from it; curves go to training/*.jsonl. No species of a reserved world, nor
a one-attribute neighbour of one, is ever drawn: the data stage asserts it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two spinning threads on a busy machine are ten times slower

import argparse
import logging
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from tiny import card, common, compare, encoder, joint, language, vision, world  # noqa: E402

STAGES = ("data", "encoder", "vision", "language", "compare", "joint", "card")
GENERA = 7000
"""Training genera of four species, three pictures each: 84,000 pictures, 3.2 GB on disk."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="pause a stage after so long; the schedule itself is in steps")
    parser.add_argument("--steps", type=int, help="length of the stage's schedule instead of the recipe's")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--genera", type=int, default=GENERA)
    parser.add_argument("--work", type=Path, default=ROOT / "training", help="pictures, checkpoints, curves")
    parser.add_argument("--models", type=Path, default=ROOT / "fgvr" / "models_tiny", help="where the trained folders go")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("root").setLevel(logging.WARNING)
    torch.set_num_threads(args.threads)
    paths = common.Paths(args.work, args.models)
    length = {"steps": args.steps} if args.steps else {}
    drawn = world.build(args.work / "world", args.genera, args.seed, workers=args.threads)
    for stage in STAGES[1:] if args.stage == "all" else (args.stage,):
        until = time.time() + 60 * args.minutes
        if stage == "encoder":
            encoder.train(drawn, encoder.EncoderPlan(**length), paths, args.seed, until)
        elif stage == "vision":
            vision.train(drawn, vision.VisionPlan(**length), paths, args.seed, until)
        elif stage == "language":
            language.train(drawn, language.LanguagePlan(**length), paths, args.seed, until)
        elif stage == "compare":
            compare.train(drawn, compare.ComparePlan(**length), paths, args.seed, until)
        elif stage == "joint":
            joint.train(drawn, joint.JointPlan(**length), paths, args.seed, until)
        elif stage == "card":
            for name in card.MODELS:
                card.write(name, paths, args.seed)


if __name__ == "__main__":
    main()
