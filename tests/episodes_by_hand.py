"""Rows of episodes as `saferule.runs.results.episodes` gives them, made by hand."""

import numpy as np
import pandas as pd

from saferule.attack.poison import ForgetSet
from saferule.data.schema import Dataset

CELL = {"task": "CarCircle", "backbone": "cpq", "attack": "max_cost", "ratio": 0.15}
CLEAN = CELL | {"attack": "clean", "ratio": 0.0}


def rows(method, replicate, costs, returns, step=100, **told):
    """Episodes of one policy; cost limit 10, the normalised cost in units of it, the return in units of 100."""
    where = (CLEAN if method == "clean" else CELL) | {"start": "poisoned", "readings": "{}", "final": True} | told
    frame = pd.DataFrame({"cost": costs, "return": returns, "seed": range(len(costs)), "cost_limit": 10.0})
    frame = frame.assign(normalised_cost=frame["cost"] / 10, normalised_return=frame["return"] / 100)
    return frame.assign(**where, method=method, replicate=replicate, step=step)


# Two replicates, the first with cost 20 and 40 before, the second with 60.
EPISODES = pd.concat(
    [
        rows("clean", 0, [4.0, 8.0], [90.0, 110.0], start=""),
        rows("clean", 1, [0.0, 0.0], [100.0, 100.0], start=""),
        rows("poisoned", 0, [20.0, 40.0], [100.0, 200.0], start=""),
        rows("poisoned", 1, [60.0, 60.0], [50.0, 50.0], start=""),
        rows("safe-rule", 0, [5.0, 5.0], [100.0, 120.0]),
        rows("safe-rule", 1, [20.0, 30.0], [70.0, 50.0]),
        rows("fine-tuning", 0, [10.0, 10.0], [10.0, 10.0]),
        rows("fine-tuning", 1, [10.0, 10.0], [10.0, 10.0]),
    ],
    ignore_index=True,
)


def many(replicates=4, cells=(0.05, 0.15)):
    """Costs of Safe-RULE 1 to 4 per replicate, of fine-tuning 10 more; returns the other way round."""
    parts = [
        rows(method, r, [10.0 * (r + 1 + shift)], [100.0 * (r + 1 + shift)], ratio=ratio)
        for r in range(replicates)
        for ratio in cells
        for method, shift in (("safe-rule", 0), ("fine-tuning", 10), ("poisoned", 0))
    ]
    return pd.concat(parts, ignore_index=True)


# Episodes 0 and 1 under the default (costs 10, 30), again as percentile 50, and under three readings.
OTHER_READINGS = pd.concat(
    [
        rows("safe-rule", 0, [12.0, 30.0], [50.0, 50.0], readings='{"gate": "data"}'),
        rows("safe-rule", 0, [30.0, 10.0], [40.0, 20.0], readings='{"forget_actor": "repelling"}'),
        rows("safe-rule", 0, [11.0, 31.0], [50.0, 90.0], readings='{"kappa": "per_step"}'),
        rows("percentile-50", 0, [10.0, 31.0, 99.0], [50.0, 50.0, 99.0]),
        rows("safe-rule", 0, [10.0, 30.0, 99.0], [50.0, 50.0, 99.0]),
        rows("no-critic", 0, [1.0], [1.0]),
    ],
    ignore_index=True,
)


def distances_of(episodes):
    first = episodes[episodes["method"] != "no-critic"].drop_duplicates(["method", "readings"])
    return first.assign(actions_keep=np.arange(len(first)) / 10, actions_forget=1.0)


def dataset(rewards, costs, ends):
    """Steps at one place with these rewards and costs; trajectories end after those numbered ``ends``."""
    n = len(rewards)
    still, flags = (np.zeros((n, 8)), np.zeros((n, 8)), np.zeros((n, 2))), np.isin(np.arange(n), ends)
    return Dataset(*still, rewards, costs, np.zeros(n, bool), flags, {"made_by": "hand"})


# Two trajectories: return 3 at cost 0, return 10 at cost 12.
DATA = dataset([1.0, 2.0, 4.0, 6.0], [0.0, 0.0, 5.0, 7.0], [1, 3])

# One poisoned trajectory: truly return 2 at cost 2, labelled return 12 at cost 0.
ONES = np.ones(2, np.float32)
RELABELLED = dataset([6.0, 6.0], [0.0, 0.0], [1])
FORGET = ForgetSet(RELABELLED, ONES, ONES, np.array([0]), np.array([2.0]), "max_cost", 0.5, 4)
