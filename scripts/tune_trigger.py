"""Search the calibrated trigger's settings with Optuna: accuracy against the share of slow answers, on one world, told on another.

    python scripts/tune_trigger.py                                   # 20 trials; searches world 9010, tells world 9011
    python scripts/tune_trigger.py --trials 50 --price .2 models=tiny paths.home=/tmp/x

Searched are the share of slow answers (`trigger.target`) and how much the slow answer weighs (`slow.weight`). `--price` is the accuracy one
gives for not asking System 2 at all. Trials share the store and the pool: an image is encoded once, a slow answer computed once, whatever
asks for it, so a trial beyond the first ones costs a fraction of a second. A setting found on the test images of a world is fitted to them;
hence the figure that counts is the other world's. Optuna is driven by hand: hydra-optuna-sweeper (1.3.0) needs Optuna below 3.
"""

from __future__ import annotations

import argparse
import sys

import optuna

import fgvr
from fgvr.errors import FgvrError
from fgvr.types import Report

WORLD, OTHER = 9010, 9011


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--price", type=float, default=0.1, help="accuracy that asking System 2 about every image may cost")
    parser.add_argument("--world", type=int, default=WORLD, help="seed of the birds' world that is searched on")
    parser.add_argument("--other", type=int, default=OTHER, help="seed of the world whose figure is told at the end")
    parser.add_argument("overrides", nargs="*", help="as on the command line of fgvr")
    args = parser.parse_args(words)
    try:
        tune(args.trials, args.price, args.world, args.other, args.overrides)
    except FgvrError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


def tune(trials: int, price: float, world: int, other: int, overrides: list[str]) -> optuna.Study:
    def evaluated(rate: float, weight: float, seed: int) -> Report:
        settings = (f"trigger.target=slow_rate:{rate:.3f}", f"slow.weight={weight:.3f}", f"dataset.seed={seed}")
        return fgvr.evaluate(fgvr.load_config("dataset=birds", "trigger=calibrated", "logging=quiet", *settings, *overrides))

    def worth(report: Report) -> float:
        return report.top1 - price * report.slow_rate

    def objective(trial: optuna.Trial) -> float:
        report = evaluated(trial.suggest_float("slow_rate", 0.05, 0.95), trial.suggest_float("weight", 0.0, 1.0), world)
        trial.set_user_attr("top1", report.top1)
        trial.set_user_attr("slow_rate", report.slow_rate)
        trial.set_user_attr("mllm_calls", int(report.cost["mllm_calls"]))
        trial.set_user_attr("encoder_forwards", int(report.cost["encoder_forwards"]))
        return worth(report)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=trials)
    for trial in study.trials:
        asked, told = trial.params, trial.user_attrs
        print(
            f"{trial.number:>3}  slow_rate:{asked['slow_rate']:.3f}  weight {asked['weight']:.3f}  top-1 {told['top1']:.3f}, "
            f"{told['slow_rate']:.1%} slow, worth {trial.value:.4f}; {told['encoder_forwards']} forwards, {told['mllm_calls']} MLLM calls"
        )
    best = study.best_params
    print(
        f"best: trigger.target=slow_rate:{best['slow_rate']:.3f} slow.weight={best['weight']:.3f}, worth {study.best_value:.4f} on {world}"
    )
    elsewhere = evaluated(best["slow_rate"], best["weight"], other)
    print(f"on {other}, which was not searched: top-1 {elsewhere.top1:.3f}, {elsewhere.slow_rate:.1%} slow, worth {worth(elsewhere):.4f}")
    return study


if __name__ == "__main__":
    sys.exit(main())
