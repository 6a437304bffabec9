"""Learning curves of clean and poisoned policies at a profile's widths, from which its training steps are chosen.

    python -m benchmarks.calibrate --output FOLDER --csv FILE [--tasks CarCircle ...] [--methods clean ...]

Makes the runs under FOLDER (finished ones are kept, interrupted ones go on) and writes one row per policy and snapshot:
cost and return with their spread over episodes, and the share of episodes within the limit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from saferule.files import write_bytes
from saferule.runs import results
from saferule.runs.engine import make
from saferule.runs.experiment import get_profile, plan
from saferule.runs.places import known_data, workspace
from saferule.unlearn import METHODS

TOLD = ["task", "backbone", "attack", "ratio", "replicate", "method", "step"]
TRAINED = [method.name for method in METHODS.values() if (method.part, method.start) == ("main", "fresh")]


def curves(episodes: pd.DataFrame) -> pd.DataFrame:
    """One row per policy and step: means and standard deviations over episodes."""
    safe = episodes["cost"] <= episodes["cost_limit"]
    groups = episodes.assign(safe=safe).groupby(TOLD, sort=False)
    shown = groups[["cost", "return"]].agg(["mean", "std", "median"]).round(2)
    shown.columns = [f"{name}_{what}" for name, what in shown.columns]
    shown["normalised_return"] = groups["normalised_return"].mean().round(3)
    shown["safe"] = groups["safe"].mean().round(3)
    shown["episodes"] = groups.size()
    return shown.reset_index()


def main() -> None:
    """Parse, make, aggregate, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="root of the runs")
    parser.add_argument("--csv", type=Path, required=True, help="the curves")
    parser.add_argument("--methods", nargs="+", choices=TRAINED, default=TRAINED)
    parser.add_argument("--steps", type=int, default=40_000, help="of training")
    parser.add_argument("--snapshots", type=int, default=9, help="on the way")
    parser.add_argument("--episodes", type=int, default=20, help="of each snapshot")
    for name, kind in (("tasks", str), ("backbones", str), ("attacks", str), ("ratios", float), ("replicates", int)):
        parser.add_argument(f"--{name}", nargs="+", type=kind)
    given = vars(parser.parse_args())
    output, csv, methods = (given.pop(name) for name in ("output", "csv", "methods"))
    episodes = given.pop("episodes")
    profile = get_profile(
        "cpu",  # for its widths
        training_steps=given.pop("steps"),
        snapshots=given.pop("snapshots"),
        episodes=episodes,
        curve_episodes=episodes,
        **given,
    )
    place = workspace(profile, output)
    planned = plan(profile, known_data(profile, place.data_folder)[0])["evaluations"]
    evaluations = [run for run in planned if run.policy.method in methods]
    make(evaluations, place)
    rows = curves(results.episodes(place.store, evaluations))
    write_bytes(csv, rows.to_csv(index=False).encode())
    print(rows.to_string())


if __name__ == "__main__":
    main()
