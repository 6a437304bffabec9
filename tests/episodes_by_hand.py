"""Rows of episodes as `saferule.runs.results.episodes` gives them, made by hand."""

import pandas as pd

CELL = {"task": "CarCircle", "backbone": "cpq", "attack": "max_cost", "ratio": 0.15}
CLEAN = CELL | {"attack": "clean", "ratio": 0.0}


def rows(method, replicate, costs, returns, step=100, **told):
    """Episodes of one policy; cost limit 10, the normalised cost in units of it, the return in units of 100."""
    where = (CLEAN if method == "clean" else CELL) | {"start": "poisoned", "readings": "{}", "final": True} | told
    frame = pd.DataFrame({"cost": costs, "return": returns, "seed": range(len(costs)), "cost_limit": 10.0})
    frame = frame.assign(normalised_cost=frame["cost"] / 10, normalised_return=frame["return"] / 100)
    return frame.assign(**where, method=method, replicate=replicate, step=step)


def two_replicates():
    """Two replicates, the first with cost 20 and 40 before, the second with 60."""
    return pd.concat(
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
